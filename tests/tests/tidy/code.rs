//! Rust source as far as the checks need it: without comments and literals, and without what is compiled for tests only.

/// A source whose comments and literals are spaces. Lines and columns are those of the file.
#[derive(Debug, Clone)]
pub(crate) struct Code {
    text: String,
}

impl Code {
    pub(crate) fn new(source: &str) -> Self {
        Self { text: blank_comments_and_literals(source) }
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Without items under `#[cfg(test)]` and functions under `#[test]`.
    pub(crate) fn for_product(&self) -> Self {
        let mut text = self.text.clone();
        for mark in ["#[cfg(test)]", "#[cfg(any(test", "#[test]"] {
            while let Some(at) = text.find(mark) {
                let end = end_of_item(&text, at + mark.len());
                let blank: String =
                    text[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
                text.replace_range(at..end, &blank);
            }
        }
        if self.text.contains("#![cfg(test)]") {
            text.clear();
        }
        Self { text }
    }

    /// Only what `for_product` leaves out.
    pub(crate) fn for_tests(&self) -> Self {
        let product = self.for_product();
        let text = self
            .text
            .lines()
            .zip(product.text.lines().chain(std::iter::repeat("")))
            .map(|(whole, kept)| if whole == kept { "" } else { whole })
            .collect::<Vec<_>>()
            .join("\n");
        Self { text }
    }

    /// Lines that have `word`, which begins and ends at the border of an identifier where it is one itself.
    pub(crate) fn find<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.lines().filter(move |(_, line)| has_word(line, word)).map(|(number, _)| number)
    }

    /// Functions with a body: the line they start in, their name, and how many lines they have.
    pub(crate) fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(at) = self.text[from..].find("fn ").map(|at| from + at) {
            from = at + 3;
            let is_word = !self.text[..at].ends_with(is_identifier);
            let name: String = self.text[from..].chars().take_while(|&c| is_identifier(c)).collect();
            if !is_word || name.is_empty() {
                continue;
            }
            let end = end_of_item(&self.text, from);
            if self.text[..end].ends_with('}') {
                let line = self.text[..at].matches('\n').count() + 1;
                found.push((line, name, self.text[at..end].matches('\n').count() + 1));
            }
        }
        found
    }
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `line` has `word` and not as a part of a longer identifier.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let open = |neighbour: Option<char>, own: Option<char>| {
            !(own.is_some_and(is_identifier) && neighbour.is_some_and(is_identifier))
        };
        open(before, word.chars().next()) && open(after, word.chars().next_back())
    })
}

/// Where the item that begins at `from` ends: behind its braces, or behind its semicolon.
fn end_of_item(text: &str, from: usize) -> usize {
    let mut depth = 0usize;
    let mut brackets = 0usize;
    for (at, c) in text[from..].char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && brackets == 0 {
                    return from + at + 1;
                }
            }
            ';' if depth == 0 && brackets == 0 => return from + at + 1,
            _ => {}
        }
    }
    text.len()
}

fn blank_comments_and_literals(source: &str) -> String {
    let bytes: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match (bytes[at], bytes.get(at + 1)) {
            ('/', Some('/')) => end_of_line(&bytes, at),
            ('/', Some('*')) => end_of_block_comment(&bytes, at),
            ('"', _) => end_of_string(&bytes, at + 1),
            ('r' | 'b' | 'c', _) if !out.ends_with(is_identifier) => end_of_prefixed(&bytes, at),
            ('\'', _) => end_of_char(&bytes, at),
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn end_of_line(text: &[char], from: usize) -> usize {
    (from..text.len()).find(|&at| text[at] == '\n').unwrap_or(text.len())
}

fn end_of_block_comment(text: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Behind the closing quote of a string whose first character is at `from`.
fn end_of_string(text: &[char], from: usize) -> usize {
    let mut at = from;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `r"…"`, `r#"…"#`, `b"…"`, `br#"…"#`, `c"…"`, `b'…'`; `from` itself when it is only an identifier.
fn end_of_prefixed(text: &[char], from: usize) -> usize {
    let mut at = from;
    while at < text.len() && at < from + 2 && matches!(text[at], 'r' | 'b' | 'c') {
        at += 1;
    }
    let raw = text[from..at].contains(&'r');
    let hashes = text[at..].iter().take_while(|&&c| raw && c == '#').count();
    at += hashes;
    match text.get(at) {
        Some('"') if raw => {
            let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            (at + 1..text.len())
                .find(|&end| text[end..].starts_with(&closing))
                .map_or(text.len(), |end| end + closing.len())
        }
        Some('"') => end_of_string(text, at + 1),
        Some('\'') if text[from] == 'b' && at == from + 1 => end_of_char(text, at),
        _ => from,
    }
}

/// Behind a character literal; `from` itself when it is a lifetime.
fn end_of_char(text: &[char], from: usize) -> usize {
    match (text.get(from + 1), text.get(from + 2)) {
        (Some('\\'), _) => {
            (from + 3..text.len()).find(|&at| text[at] == '\'').map_or(text.len(), |at| at + 1)
        }
        (Some(_), Some('\'')) => from + 3,
        _ => from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_code_stays_in_place() {
        let source = "let a = \"todo!()\"; // dbg!(1)\nlet b = 'x'; /* a /* b */ c */ let c: &'static str = r#\"\"fn\"\"#;\nb'\\'' + b\"\\\"\" br";
        let code = Code::new(source);
        let lines: Vec<&str> = code.lines().map(|(_, line)| line.trim_end()).collect();
        assert_eq!(lines[0], "let a =          ;");
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "let b = ; let c: &'static str = ;"
        );
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>().join(" "), "+ br");
    }

    #[test]
    fn tests_are_told_from_product_code() {
        let code = Code::new("fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { x(); }\n}\nfn c() {}\n");
        let names = |code: Code| code.functions().into_iter().map(|(_, name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(code.for_product()), ["a", "c"]);
        assert_eq!(names(code.for_tests()), ["b"]);
    }

    #[test]
    fn functions_are_measured() {
        let code = Code::new("trait T {\n fn none(&self);\n fn two(x: [u8; 2]) -> u8 {\n }\n}\n");
        assert_eq!(code.functions(), [(3, "two".to_owned(), 2)]);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use tokio::time;", "tokio"));
        assert!(!has_word("use tokio_util::time;", "tokio"));
        assert!(has_word("x.await;", ".await"));
        assert!(!has_word("awaiting", "await"));
    }
}
