//! The threads that do the store's work: client calls, encoding, checksums.
//!
//! Invariant: they run at a lower priority than everything else in the process. A step waits for its slowest thread, so
//! on two cores one busy background thread of equal priority would double its time.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle, Runtime};

use super::super::StoreError;
use super::saver::WRITERS;

/// Threads for what never blocks: waiting for sockets and for the other threads.
const WAITING: usize = 2;
/// Bounds of the threads that read and verify.
const READERS: (usize, usize) = (2, 8);

/// A runtime that has nothing else in it. Dropping it ends its threads and waits for none, so it may be dropped anywhere.
#[derive(Debug)]
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub fn start() -> Result<Self, StoreError> {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        // Writers have threads of their own, so that no reader waits for one.
        let blocking = WRITERS + cores.clamp(READERS.0, READERS.1);
        let runtime = Builder::new_multi_thread()
            .worker_threads(WAITING)
            .max_blocking_threads(blocking)
            .thread_name("store")
            .on_thread_start(give_way)
            .enable_all()
            .build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(StoreError::Threads)
    }

    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is there until it is dropped").handle()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for threads would panic in an async context.
            runtime.shutdown_background();
        }
    }
}

/// Lowers this thread's priority.
#[cfg(target_os = "linux")]
fn give_way() {
    /// The lowest there is: a hundredth of an ordinary thread's share of a busy core.
    const NICE: i32 = 19;
    // On Linux it is the thread's, elsewhere the whole process's. One that is not allowed to be nice is as good, and
    // slower for others.
    let _ = rustix::process::nice(NICE);
}

/// Other systems' priorities belong to the whole process.
#[cfg(not(target_os = "linux"))]
fn give_way() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn only_the_stores_threads_give_way() {
        let ours = getpriority_process(None).expect("a priority");
        let threads = Threads::start().expect("threads start");
        let runtime = threads.handle();
        let nice = || getpriority_process(None).expect("a priority");
        let (waiting, blocking) = runtime.block_on(async {
            let waiting = runtime.spawn(async move { nice() }).await.expect("no panic");
            (waiting, runtime.spawn_blocking(nice).await.expect("no panic"))
        });
        assert_eq!([waiting, blocking], [19; 2]);
        assert_eq!(nice(), ours);
    }
}
