//! The known name nearest to a mistyped one.

/// The name in `known` that needs the fewest edits to become `name`, if they are few enough to be a typing error.
#[must_use]
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let bound = name.chars().count() / 3 + 1;
    known
        .iter()
        .map(|candidate| (edits(name, candidate), *candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements between two words.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_found_and_another_word_is_not() {
        assert_eq!(nearest("listn", &["listen", "data_dir"]), Some("listen"));
        assert_eq!(nearest("datadir", &["listen", "data_dir"]), Some("data_dir"));
        assert_eq!(nearest("colour", &["listen", "data_dir"]), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
