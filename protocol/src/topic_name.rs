//! Which names a topic may have.

use crate::limits::TOPIC_NAME_BYTES_MAX;

/// Why a topic name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopicName {
    /// The name has no character.
    #[error("a topic name must not be empty")]
    Empty,
    /// The name is longer than `TOPIC_NAME_BYTES_MAX`.
    #[error("a topic name has at most {TOPIC_NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// `/` separates namespaces and is reserved.
    #[error("'/' is reserved in topic names")]
    Separator,
    /// A character outside letters, digits, `.`, `_` and `-`.
    #[error("'{}' is not allowed in a topic name: use letters, digits, '.', '_' and '-'", .0.escape_default())]
    Character(char),
    /// `.` and `..` name directories everywhere else.
    #[error("'.' and '..' are not topic names")]
    Dots,
    /// Names that start with two underscores, or with [`INTERNAL_PREFIX`], belong to the brokers.
    #[error("names that start with '__' or '{INTERNAL_PREFIX}' are reserved for internal topics")]
    Internal,
}

/// What the names of the brokers' own topics start with. Users can read these topics, and neither make nor change them.
pub const INTERNAL_PREFIX: &str = "hw-";

/// Whether a topic belongs to the brokers.
#[must_use]
pub fn is_internal_topic(name: &str) -> bool {
    name.starts_with(INTERNAL_PREFIX)
}

/// Checks the name of a topic that a user asks for. Whether names with [`INTERNAL_PREFIX`] are refused depends on what the
/// cluster has reached ([`is_internal_topic`]): this does not.
///
/// # Errors
/// Says what is wrong with the name.
pub fn check_topic_name(name: &str) -> Result<(), InvalidTopicName> {
    if name.is_empty() {
        return Err(InvalidTopicName::Empty);
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(InvalidTopicName::TooLong(name.len()));
    }
    if name == "." || name == ".." {
        return Err(InvalidTopicName::Dots);
    }
    if name.contains('/') {
        return Err(InvalidTopicName::Separator);
    }
    if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(InvalidTopicName::Character(bad));
    }
    if name.starts_with("__") {
        return Err(InvalidTopicName::Internal);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_the_bounds() {
        assert_eq!(check_topic_name("orders.v2_eu-1"), Ok(()));
        assert_eq!(check_topic_name(&"a".repeat(TOPIC_NAME_BYTES_MAX)), Ok(()));
        let long = "a".repeat(TOPIC_NAME_BYTES_MAX + 1);
        assert_eq!(check_topic_name(&long), Err(InvalidTopicName::TooLong(TOPIC_NAME_BYTES_MAX + 1)));
        assert_eq!(check_topic_name(""), Err(InvalidTopicName::Empty));
        assert_eq!(check_topic_name(".."), Err(InvalidTopicName::Dots));
        assert_eq!(check_topic_name("a/b"), Err(InvalidTopicName::Separator));
        assert_eq!(check_topic_name("a b"), Err(InvalidTopicName::Character(' ')));
        assert_eq!(check_topic_name("__offsets"), Err(InvalidTopicName::Internal));
    }

    #[test]
    fn internal_topics_are_known_by_their_names() {
        assert!(is_internal_topic("hw-groups") && is_internal_topic(INTERNAL_PREFIX));
        assert!(!is_internal_topic("hwgroups") && !is_internal_topic("my-hw-groups"));
        assert!(InvalidTopicName::Internal.to_string().contains("'hw-'"));
    }
}
