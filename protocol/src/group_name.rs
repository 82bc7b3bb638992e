//! Which names groups, members and instances may have.

use crate::limits::{GROUP_NAME_BYTES_MAX, MEMBER_ID_BYTES_MAX};

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGroupName {
    /// The name has no character.
    #[error("the name of a {0} must not be empty")]
    Empty(&'static str),
    /// The name is longer than its limit.
    #[error("the name of a {what} has at most {limit} bytes, this one has {length}")]
    TooLong {
        /// What is named.
        what: &'static str,
        /// Its bytes.
        length: usize,
        /// The bytes that it may have.
        limit: usize,
    },
    /// A character outside letters, digits, `.`, `_`, `-`, `:` and `@`.
    #[error("'{}' is not allowed in the name of a {what}: use letters, digits, '.', '_', '-', ':' and '@'", .bad.escape_default())]
    Character {
        /// What is named.
        what: &'static str,
        /// The character.
        bad: char,
    },
}

/// Checks the name of a group.
///
/// # Errors
/// Says what is wrong with the name.
pub fn check_group_name(name: &str) -> Result<(), InvalidGroupName> {
    check("group", name, GROUP_NAME_BYTES_MAX)
}

/// Checks the id of a member.
///
/// # Errors
/// Says what is wrong with the id.
pub fn check_member_id(id: &str) -> Result<(), InvalidGroupName> {
    check("member", id, MEMBER_ID_BYTES_MAX)
}

/// Checks the instance id of a static member.
///
/// # Errors
/// Says what is wrong with the id.
pub fn check_instance_id(id: &str) -> Result<(), InvalidGroupName> {
    check("instance", id, GROUP_NAME_BYTES_MAX)
}

fn check(what: &'static str, name: &str, limit: usize) -> Result<(), InvalidGroupName> {
    if name.is_empty() {
        return Err(InvalidGroupName::Empty(what));
    }
    if name.len() > limit {
        return Err(InvalidGroupName::TooLong { what, length: name.len(), limit });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '@');
    match name.chars().find(|c| !allowed(*c)) {
        Some(bad) => Err(InvalidGroupName::Character { what, bad }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_the_bounds() {
        assert_eq!(check_group_name("billing.eu-1@prod:2"), Ok(()));
        assert_eq!(check_group_name(&"g".repeat(GROUP_NAME_BYTES_MAX)), Ok(()));
        let too_long = InvalidGroupName::TooLong {
            what: "group",
            length: GROUP_NAME_BYTES_MAX + 1,
            limit: GROUP_NAME_BYTES_MAX,
        };
        assert_eq!(check_group_name(&"g".repeat(GROUP_NAME_BYTES_MAX + 1)), Err(too_long));
        assert_eq!(check_group_name(""), Err(InvalidGroupName::Empty("group")));
        let slash = InvalidGroupName::Character { what: "instance", bad: '/' };
        assert_eq!(check_instance_id("eu/1"), Err(slash));
        assert_eq!(check_member_id(&"a".repeat(MEMBER_ID_BYTES_MAX)), Ok(()));
        assert!(check_member_id(&"a".repeat(MEMBER_ID_BYTES_MAX + 1)).is_err());
        assert!(check_member_id("a\nb").unwrap_err().to_string().contains("'\\n' is not allowed"));
    }
}
