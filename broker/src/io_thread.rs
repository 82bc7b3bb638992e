//! Work that may block on the disk, awaited.

use tokio::sync::oneshot;

use crate::storage::file_system::FileSystem;

/// Runs `job` on an I/O thread. `None`: the thread ended without running it, or the job panicked.
///
/// Not cancelled by dropping the future: the job runs to its end all the same.
pub(crate) async fn run<T: Send + 'static>(
    file_system: &dyn FileSystem,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    file_system.spawn_io(Box::new(move || {
        let _receiver_gone = sender.send(job());
    }));
    receiver.await.ok()
}
