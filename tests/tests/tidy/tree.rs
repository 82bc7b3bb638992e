//! The files of the workspace, or of a tree made up by a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::code::Code;

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// From 1; 0 when the whole file is meant.
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl Finding {
    pub(crate) fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

/// Text files by their path from the root, with `/` between the parts.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

/// Not part of what is written by hand.
const SKIPPED: [&str; 5] = [".git", "target", "data", "node_modules", "corpus"];

impl Tree {
    pub(crate) fn of_the_workspace() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut tree = Self::default();
        tree.add(root, "");
        tree
    }

    fn add(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                self.add(&entry.path(), &format!("{path}/"));
            } else if kind.is_file() {
                // What is not UTF-8 is data, and what is gone again was a file that someone is editing.
                if let Ok(text) = fs::read_to_string(entry.path()) {
                    self.files.insert(path, text);
                }
            }
        }
    }

    /// A tree of a test.
    pub(crate) fn with(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Rust files, comments and literals blanked out.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&str, Code)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs")).map(|(path, text)| (path, Code::new(text)))
    }

    /// Rust files under one of these folders.
    pub(crate) fn sources_in<'a>(&'a self, folders: &'a [&str]) -> impl Iterator<Item = (&'a str, Code)> {
        self.sources().filter(|(path, _)| folders.iter().any(|folder| path.starts_with(folder)))
    }

    /// Manifests of packages by their folder; the root's is left out.
    pub(crate) fn packages(&self) -> impl Iterator<Item = (&str, toml::Table)> {
        self.texts().filter_map(|(path, text)| {
            let folder = path.strip_suffix("/Cargo.toml")?;
            Some((folder, text.parse().unwrap_or_else(|error| panic!("{path}: {error}"))))
        })
    }

    pub(crate) fn table(&self, path: &str) -> Option<toml::Table> {
        self.text(path).map(|text| text.parse().unwrap_or_else(|error| panic!("{path}: {error}")))
    }
}
