//! What a broker does from time to time without being asked: it looks at the disk, lets segments go, empties the trash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::io_thread;
use crate::observe::health::Health;
use crate::server::Node;
use crate::storage::error::Error as StorageError;
use crate::storage::file_system::FileSystem;
use crate::storage::store::{DiskState, Store};

/// How often the room on the disk is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(1);
/// How often each partition may roll and let go of segments.
const MAINTAIN_PERIOD: Duration = Duration::from_secs(5);
/// In how many portions the partitions are gone through, so that many of them do not come at once.
const MAINTAIN_PORTIONS: u32 = 50;
/// How often the trash is emptied.
const TRASH_PERIOD: Duration = Duration::from_secs(30);

/// Starts it. Everything ends with `stop`.
pub(crate) fn start(
    node: &Arc<Node>,
    health: &Arc<Health>,
    store: &Arc<Store>,
    file_system: &Arc<dyn FileSystem>,
    data_dir: &Path,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let upkeep = |task| {
        let stop = stop.clone();
        async move {
            let _stopped = stop.run_until_cancelled_owned(task).await;
        }
    };
    let boxed = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| task;
    tasks.spawn(upkeep(boxed(Box::pin(watch_space(
        Arc::clone(node),
        Arc::clone(health),
        Arc::clone(store),
        Arc::clone(file_system),
        data_dir.to_owned(),
    )))));
    tasks.spawn(upkeep(boxed(Box::pin(maintain(Arc::clone(node))))));
    tasks.spawn(upkeep(boxed(Box::pin(empty_trash(Arc::clone(store), Arc::clone(file_system))))));
}

async fn watch_space(
    node: Arc<Node>,
    health: Arc<Health>,
    store: Arc<Store>,
    file_system: Arc<dyn FileSystem>,
    data_dir: PathBuf,
) {
    let mut ticks = interval(SPACE_PERIOD);
    loop {
        ticks.tick().await;
        let (looking, files, path) = (Arc::clone(&store), Arc::clone(&file_system), data_dir.clone());
        let look = move || {
            let state = looking.refresh_space()?;
            Ok::<_, StorageError>((state, files.space(&path).map_or(0, |space| space.available)))
        };
        let (state, available) = match io_thread::run(&*file_system, look).await {
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                error!(%error, "the room on the disk could not be read");
                continue;
            }
            None => return,
        };
        let read_only = state == DiskState::ReadOnly;
        node.read_only.store(read_only, Ordering::Relaxed);
        node.metrics.read_only.set(i64::from(read_only));
        node.metrics.disk_available_bytes.set(available);
        if read_only {
            health.obstruct(
                Health::READ_ONLY,
                "free disk space is below the reserve: appends are refused".to_owned(),
            );
        } else {
            health.clear(Health::READ_ONLY);
        }
    }
}

async fn maintain(node: Arc<Node>) {
    let mut ticks = interval(MAINTAIN_PERIOD / MAINTAIN_PORTIONS);
    let mut rest = Vec::new();
    let mut portion = 0;
    loop {
        ticks.tick().await;
        if rest.is_empty() {
            rest = node.partitions.open();
            portion = rest.len().div_ceil(MAINTAIN_PORTIONS as usize);
        }
        let now = node.clock.wall();
        for handle in rest.drain(rest.len().saturating_sub(portion)..) {
            handle.maintain(now);
        }
    }
}

async fn empty_trash(store: Arc<Store>, file_system: Arc<dyn FileSystem>) {
    let mut ticks = interval(TRASH_PERIOD);
    loop {
        ticks.tick().await;
        let emptied = Arc::clone(&store);
        match io_thread::run(&*file_system, move || emptied.empty_trash()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => warn!(%error, "the trash could not be emptied; it is tried again"),
            None => return,
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
