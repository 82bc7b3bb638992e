//! Many clients, each with connections of its own.

use anyhow::Context;
use highwater_client::Client;

use crate::args::Global;
use crate::connect::connect;

/// Connections that are made at the same time.
const CONNECT_AT_ONCE: usize = 50;

/// As many clients.
///
/// # Errors
/// When one of them did not come to be; says how many did.
pub(crate) async fn make(global: &Global, count: u32) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count as usize);
    let mut left = count as usize;
    while left > 0 {
        let some = left.min(CONNECT_AT_ONCE);
        let made = futures_util::future::try_join_all((0..some).map(|_| connect(global))).await;
        clients.extend(made.with_context(|| {
            format!(
                "{} of {count} connections were made; see `ulimit -n` and the broker's bound",
                clients.len()
            )
        })?);
        left -= some;
    }
    Ok(clients)
}
