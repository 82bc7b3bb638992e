//! Waiting for a condition, with a deadline and never for time alone.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::sim::random::Random;

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks `condition` until it has a value, and returns it. Blocks the thread.
///
/// # Errors
/// When there is still no value after `limit`; the text says that `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        thread::park_timeout(PAUSE);
    }
}

/// Like [`until`] for a condition that is asked with a future. Cancelling it is safe if cancelling the future is.
///
/// # Errors
/// When there is still no value after `limit`, counted between two questions.
pub async fn until_async<T, F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `future`, or an error that names `what` after `limit`: for things that must not hang. Cancels the future.
///
/// # Errors
/// When the future is not ready after `limit`.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("waited {limit:?} in vain: {what}"),
    }
}

/// Lets a random time below `most` pass: not for anything to happen, but so that a fault strikes at any moment.
pub async fn random_moment(random: &mut Random, most: Duration) {
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_micros(random.below(micros))).await;
}

/// Lets time pass: not for anything to happen, but because it is measured what happens meanwhile, or because a client that
/// is played waits so long before it asks again.
pub async fn for_so_long(time: Duration) {
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut asked = 0;
        let value = until("the third question", Duration::from_secs(60), || {
            asked += 1;
            (asked == 3).then_some(asked)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn the_error_says_what_was_waited_for() {
        let error = until::<()>("rain", Duration::from_millis(1), || None).unwrap_err();
        assert!(error.to_string().contains("rain"), "{error}");
    }

    #[tokio::test]
    async fn futures_have_a_deadline_too() {
        let error =
            until_async::<(), _>("snow", Duration::from_millis(1), || async { None }).await.unwrap_err();
        assert!(error.to_string().contains("snow"), "{error}");
        let error = within("hail", Duration::from_millis(1), std::future::pending::<()>()).await.unwrap_err();
        assert!(error.to_string().contains("hail"), "{error}");
        assert_eq!(within("now", Duration::from_secs(60), async { 5 }).await.unwrap(), 5);
    }
}
