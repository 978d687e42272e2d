//! Which tests of this process may run at the same time.
//!
//! Tests with short leases fail if something keeps the processor from them, and workers that compute do that. So a test has the
//! machine either [`alone()`], or it [`share()`]s it with others. A [`Line`](crate::line::Line) has it alone. Servers of Redis and
//! S3 and queues in memory share it, unless they are of a line's test. Tests without any of these wait for nobody.
//!
//! Invariant: while one test has it alone, no other test has or shares it. A thread stands for its test. What a test starts on that
//! thread while it has the machine alone belongs to it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

struct Holders {
    alone: Option<ThreadId>,
    sharing: Vec<ThreadId>,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { alone: None, sharing: Vec::new() });
static CHANGED: Condvar = Condvar::new();

/// The machine, with others; until dropped.
#[derive(Debug)]
pub struct Share(Option<ThreadId>);

/// The machine, without others; until dropped.
pub struct Alone(());

/// Waits until nobody else has the machine alone.
pub fn share() -> Share {
    let me = thread::current().id();
    let mut holders = once(|holders| holders.alone.is_none_or(|holder| holder == me));
    if holders.alone.is_some() {
        return Share(None);
    }
    holders.sharing.push(me);
    Share(Some(me))
}

/// Waits until nobody else has or shares the machine. Panics if this test does, because it would wait for itself.
pub fn alone() -> Alone {
    let me = thread::current().id();
    once(|holders| {
        let mine = holders.alone == Some(me) || holders.sharing.contains(&me);
        assert!(!mine, "this test has the machine already; start its line first, and one line at a time");
        holders.alone.is_none() && holders.sharing.is_empty()
    })
    .alone = Some(me);
    Alone(())
}

fn once(mut may: impl FnMut(&Holders) -> bool) -> MutexGuard<'static, Holders> {
    // A test that panics must not take the others with it.
    let holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    CHANGED.wait_while(holders, |holders| !may(holders)).unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(me) = self.0 else { return };
        let mut holders = once(|_| true);
        let at = holders.sharing.iter().position(|sharing| *sharing == me).expect("a share is counted once");
        holders.sharing.swap_remove(at);
        CHANGED.notify_all();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        once(|_| true).alone = None;
        CHANGED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn who_has_it_alone_meets_nobody() {
        static SHARING: AtomicUsize = AtomicUsize::new(0);
        static ALONE: AtomicUsize = AtomicUsize::new(0);
        let share_it = || {
            let _share = share();
            SHARING.fetch_add(1, Ordering::SeqCst);
            assert_eq!(ALONE.load(Ordering::SeqCst), 0);
            thread::yield_now();
            SHARING.fetch_sub(1, Ordering::SeqCst);
        };
        let have_it = || {
            let _alone = alone();
            ALONE.fetch_add(1, Ordering::SeqCst);
            let _own = share();
            thread::yield_now();
            assert_eq!((ALONE.load(Ordering::SeqCst), SHARING.load(Ordering::SeqCst)), (1, 0));
            ALONE.fetch_sub(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for index in 0..8 {
                scope.spawn(move || {
                    for _ in 0..200 {
                        if index % 2 == 0 { share_it() } else { have_it() }
                    }
                });
            }
        });
    }

    #[test]
    #[should_panic(expected = "has the machine already")]
    fn a_test_does_not_wait_for_itself() {
        let _share = share();
        let _alone = alone();
    }
}
