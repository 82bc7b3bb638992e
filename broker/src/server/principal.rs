//! Who is at the other end of a connection, and what they may do.

use highwater_protocol::error_code::ErrorCode;

use crate::api::ApiError;

/// What a principal is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// An application or a tool.
    Client,
    /// Another broker of the cluster, which has proved that it is one.
    Broker,
}

/// Whoever a connection speaks for. There is always one, from the handshake on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// For logs and for access rules.
    pub(crate) name: String,
    /// What it is to the cluster.
    pub(crate) role: Role,
}

/// What a request does, as far as access is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Looks at metadata.
    Describe,
    /// Makes, changes or removes topics.
    Administer,
    /// Appends.
    Produce,
    /// Reads what is committed.
    Consume,
    /// Follows a leader: reads what is not committed yet, and acknowledges.
    Replicate,
}

impl Principal {
    /// Whoever has not authenticated, while the broker asks for no authentication.
    #[must_use]
    pub(crate) fn anonymous() -> Self {
        Self { name: "anonymous".to_owned(), role: Role::Client }
    }

    /// Checks that this principal may do `operation`.
    pub(crate) fn authorise(&self, operation: Operation) -> Result<(), ApiError> {
        let allowed = match operation {
            Operation::Describe | Operation::Administer | Operation::Produce | Operation::Consume => true,
            Operation::Replicate => self.role == Role::Broker,
        };
        if allowed {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NotAuthorized,
            format!("'{}' may not do this: it is for brokers of the cluster", self.name),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_brokers_replicate() {
        let anonymous = Principal::anonymous();
        assert!(anonymous.authorise(Operation::Administer).is_ok());
        assert_eq!(anonymous.authorise(Operation::Replicate).unwrap_err().code, ErrorCode::NotAuthorized);
        let broker = Principal { name: "2".to_owned(), role: Role::Broker };
        assert!(broker.authorise(Operation::Replicate).is_ok());
    }
}
