//! Programs of tests and benches that a signal ends in good order.

use tokio::signal::unix::{SignalKind, signal};

/// Runs `work` to its end. None: SIGINT or SIGTERM ended it. Either way the processes that it started are gone afterwards, since
/// they end with the values that own them.
pub fn until_signal<T, E: From<std::io::Error>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<Option<T>, E> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = work => done.map(Some),
            _ = tokio::signal::ctrl_c() => Ok(None),
            _ = terminate.recv() => Ok(None),
        }
    })
}
