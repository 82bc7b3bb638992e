//! What the README has to say first. That its commands work is tested with the process tests.

use std::fs;
use std::path::Path;

#[test]
fn the_first_lines_say_what_they_have_to() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("README.md");
    let readme = fs::read_to_string(path).unwrap().replace("**", "");
    let first = readme.lines().take(16).collect::<Vec<_>>().join(" ");
    for part in [
        "persistent message broker",
        "nothing below the high watermark is ever lost",
        "memory-mapped for reading",
        "positional writes into the same page cache",
    ] {
        assert!(first.contains(part), "'{part}' is not in the first lines");
    }
}
