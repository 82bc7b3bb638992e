//! Files and functions stay small. What is larger is listed here with its size: the number may only go down.

use super::tree::{Finding, Tree};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that are larger, and how large they may be.
const LARGER_FILES: [(&str, usize); 0] = [];

/// Functions that are longer: file, name, lines.
const LONGER_FUNCTIONS: [(&str, &str, usize); 0] = [];

pub(crate) fn files(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".rs")) {
        let lines = text.lines().count();
        let ratchet = LARGER_FILES.iter().find(|(larger, _)| *larger == path);
        let max = ratchet.map_or(FILE_LINES_MAX, |(_, max)| *max);
        if lines > max {
            findings.push(Finding::new(
                path,
                0,
                format!("{lines} lines, more than {max}: what are its two parts?"),
            ));
        }
    }
    findings
}

pub(crate) fn functions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, code) in tree.sources() {
        for (line, name, lines) in code.functions() {
            let ratchet = LONGER_FUNCTIONS.iter().find(|(file, longer, _)| *file == path && *longer == name);
            let max = ratchet.map_or(FUNCTION_LINES_MAX, |(_, _, max)| *max);
            if lines > max {
                findings.push(Finding::new(path, line, format!("{name} has {lines} lines, more than {max}")));
            }
        }
    }
    findings
}
