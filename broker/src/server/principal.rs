//! Who is at the other end of a connection, and what they may do.

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::NodeId;
use highwater_protocol::messages::BrokerIdentity;

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
    /// Which broker it is, if it is one.
    pub(crate) node_id: Option<NodeId>,
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
        Self { name: "anonymous".to_owned(), role: Role::Client, node_id: None }
    }

    /// A broker that says who it is, and knows what the brokers of the cluster share.
    pub(crate) fn broker(identity: &BrokerIdentity, secret: &str) -> Result<Self, ApiError> {
        if !same_secret(&identity.secret, secret) {
            return Err(ApiError::new(
                ErrorCode::NotAuthorized,
                format!(
                    "broker {} has another cluster secret: start all brokers with the same --cluster-secret",
                    identity.node_id
                ),
            ));
        }
        if identity.node_id == 0 {
            return Err(ApiError::invalid("0 is not the id of a broker"));
        }
        let node_id = NodeId(identity.node_id);
        Ok(Self { name: format!("broker {node_id}"), role: Role::Broker, node_id: Some(node_id) })
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

/// Compares every byte, whichever differs first.
fn same_secret(given: &str, ours: &str) -> bool {
    let differing = given.bytes().zip(ours.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b));
    given.len() == ours.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_brokers_replicate() {
        let anonymous = Principal::anonymous();
        assert!(anonymous.authorise(Operation::Administer).is_ok());
        assert_eq!(anonymous.authorise(Operation::Replicate).unwrap_err().code, ErrorCode::NotAuthorized);
        let identity = BrokerIdentity { node_id: 2, secret: "s3".to_owned(), ..BrokerIdentity::default() };
        let broker = Principal::broker(&identity, "s3").unwrap();
        assert!(broker.authorise(Operation::Replicate).is_ok());
        for other in ["", "s", "s4", "s33"] {
            let refused = Principal::broker(&identity, other).unwrap_err();
            assert_eq!(refused.code, ErrorCode::NotAuthorized);
            assert!(!refused.message.contains("s3"), "a secret in an error");
        }
    }
}
