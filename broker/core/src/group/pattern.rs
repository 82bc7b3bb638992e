//! Patterns of topic names: `*` is any characters, `?` is one, `,` separates alternatives. No topic's name has one of
//! these characters.

/// Whether a whole name matches one of the patterns. The time is at most the product of the lengths.
pub(super) fn matches(patterns: &str, name: &str) -> bool {
    patterns.split(',').any(|pattern| matches_one(pattern.trim().as_bytes(), name.as_bytes()))
}

/// Whether a pattern can match anything.
pub(super) fn is_empty(patterns: &str) -> bool {
    patterns.split(',').all(|pattern| pattern.trim().is_empty())
}

fn matches_one(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // After a mismatch the last `*` takes one byte more; earlier ones need not be tried again.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(read) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == byte => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                read = taken + 1;
            }
        }
    }
    pattern.iter().skip(at).all(|&left| left == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders-eu", false),
            ("orders-*", "orders-", true),
            ("orders-*", "orders", false),
            ("*-eu", "orders-eu", true),
            ("*-eu", "orders-eu-1", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1c2b", false),
            ("shard-?", "shard-1", true),
            ("shard-?", "shard-12", false),
            ("*", "anything", true),
            ("orders, refunds-*", "refunds-eu", true),
            ("orders,refunds-*", "payments", false),
            ("", "orders", false),
            ("**?", "x", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(is_empty(" , ") && is_empty("") && !is_empty("a,"));
    }

    #[test]
    fn a_hostile_pattern_takes_bounded_time() {
        let pattern = "*a".repeat(500);
        assert!(!matches(&pattern, &"a".repeat(249).replace("aaaa", "aaab")));
    }
}
