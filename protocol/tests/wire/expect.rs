//! Files that hold what the code must produce. `UPDATE_EXPECT=1` rewrites them.
#![expect(clippy::disallowed_methods, reason = "the expectations of a pure crate are files")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// The root of the package.
pub(crate) fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(package().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

fn updating() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1")
}

/// Compares `text` with the file `path` of the package.
pub(crate) fn compare(path: &str, text: &str) {
    if updating() {
        fs::write(package().join(path), text).unwrap();
        return;
    }
    let kept = fs::read_to_string(package().join(path)).unwrap_or_default();
    assert!(
        kept == text,
        "{path} is not what the code produces.\nexpected:\n{kept}\nfound:\n{text}\n\
         A format that is out in the world changes only with a new version; if this change is meant, run \
         UPDATE_EXPECT=1 cargo test -p highwater-protocol and say why in an ADR."
    );
}

/// Compares bytes with `tests/golden/NAME.hex`: 32 bytes a line, the first line a comment.
pub(crate) fn compare_golden(name: &str, what: &str, bytes: &[u8]) {
    let mut text = format!("# {what}, {} bytes\n", bytes.len());
    for line in bytes.chunks(32) {
        text.extend(line.iter().map(|byte| format!("{byte:02x}")));
        text.push('\n');
    }
    compare(&format!("tests/golden/{name}.hex"), &text);
}

/// Keeps bytes that need not come out the same again, only stay readable: another version of a codec may compress better.
pub(crate) fn keep_golden(name: &str, what: &str, bytes: &[u8]) {
    if updating() {
        compare_golden(name, what, bytes);
    }
}

/// The bytes that `tests/golden/NAME.hex` has.
pub(crate) fn golden_bytes(name: &str) -> Vec<u8> {
    let text = read(&format!("tests/golden/{name}.hex"));
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// The names of all golden files.
pub(crate) fn golden_names() -> BTreeSet<String> {
    fs::read_dir(package().join("tests/golden"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| {
            name.strip_suffix(".hex").unwrap_or_else(|| panic!("{name} is not a .hex file")).to_owned()
        })
        .collect()
}

/// Compares what stands between `<!-- NAME -->` and `<!-- end of NAME -->` in a document.
pub(crate) fn compare_section(path: &str, name: &str, text: &str) {
    let whole = read(path);
    let (from, to) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = whole.split_once(&from).unwrap_or_else(|| panic!("{path} has no {from}"));
    let (kept, after) = rest.split_once(&to).unwrap_or_else(|| panic!("{path} has no {to}"));
    if updating() {
        fs::write(package().join(path), format!("{before}{from}{text}{to}{after}")).unwrap();
        return;
    }
    assert!(kept == text, "{path} says of {name}:\n{kept}\nbut the code says:\n{text}");
}
