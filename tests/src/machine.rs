//! Which tests of this process may run at the same time.
//!
//! Tests with short leases fail if something keeps the processor from them, and workers that compute do that. So a test has the
//! machine either [`alone()`], or it [`share()`]s it with others. A [`Line`](crate::line::Line) has it alone, unless it starts no
//! worker. Servers of Redis and S3 and queues in memory share it, unless they are of a line's test. Tests without any of these
//! wait for nobody.
//!
//! Invariant: while one test has it alone, no other test has or shares it. A thread stands for its test. What a test starts on that
//! thread while it has the machine alone belongs to it.
//!
//! libtest names a test's thread after the test and tells no times. So a test that has had the machine for long is named on standard
//! error when it lets go, and one that never lets go ends the program: the others would wait for it without a word.

use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A test that had the machine for longer is named when it lets go.
const LONG: Duration = Duration::from_secs(10);
/// No test needs so long; what waits in a test gives up before.
const LIMIT: Duration = Duration::from_secs(600);
/// How often the watchdog looks.
const LOOK: Duration = Duration::from_secs(5);

/// Who has or shares the machine.
#[derive(Clone, Debug)]
struct Holder {
    thread: ThreadId,
    /// Of the test; none in a program, which may hold it for as long as it runs.
    test: Option<String>,
    since: Instant,
    limit: Option<Duration>,
}

impl Holder {
    fn this_thread() -> Self {
        let thread = thread::current();
        // Every test is in a module. A program's threads are not named like that.
        let test = thread.name().filter(|name| name.contains("::")).map(str::to_owned);
        if test.is_some() {
            watch();
        }
        let limit = test.is_some().then_some(LIMIT);
        Self { thread: thread.id(), test, since: Instant::now(), limit }
    }

    /// What to say of a test that lets go; none if it was quick.
    fn farewell(&self, how: &str, now: Instant) -> Option<String> {
        let (test, held) = (self.test.as_ref()?, now - self.since);
        (held > LONG).then(|| format!("{test} {how} the machine for {} s", held.as_secs()))
    }

    /// What to say of a test that hangs.
    fn complaint(&self, now: Instant) -> Option<String> {
        let (test, held) = (self.test.as_ref()?, now - self.since);
        let hangs = self.limit.is_some_and(|limit| held > limit);
        hangs.then(|| {
            format!(
                "{test} has kept the machine for {} s: it hangs. Nothing else can run, so this program is aborted; run that \
                 test by itself",
                held.as_secs()
            )
        })
    }
}

struct Holders {
    alone: Option<Holder>,
    sharing: Vec<Holder>,
}

impl Holders {
    /// The first complaint there is.
    fn complaint(&self, now: Instant) -> Option<String> {
        self.alone.iter().chain(&self.sharing).find_map(|holder| holder.complaint(now))
    }
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { alone: None, sharing: Vec::new() });
static CHANGED: Condvar = Condvar::new();
static WATCHDOG: Once = Once::new();

/// The machine, with others; until dropped.
#[derive(Debug)]
pub struct Share(Option<ThreadId>);

/// The machine, without others; until dropped.
pub struct Alone(());

/// Waits until nobody else has the machine alone.
pub fn share() -> Share {
    let me = thread::current().id();
    let mut holders = once(|holders| holders.alone.as_ref().is_none_or(|holder| holder.thread == me));
    if holders.alone.is_some() {
        return Share(None);
    }
    let mut holder = Holder::this_thread();
    if let Some(first) = holders.sharing.iter().find(|sharing| sharing.thread == me) {
        holder.since = first.since;
    }
    holders.sharing.push(holder);
    Share(Some(me))
}

/// Waits until nobody else has or shares the machine. Panics if this test does, because it would wait for itself.
pub fn alone() -> Alone {
    let me = thread::current().id();
    let mut holders = once(|holders| {
        let mine = holders.alone.iter().chain(&holders.sharing).any(|holder| holder.thread == me);
        assert!(!mine, "this test has the machine already; start its line first, and one line at a time");
        holders.alone.is_none() && holders.sharing.is_empty()
    });
    holders.alone = Some(Holder::this_thread());
    Alone(())
}

impl Alone {
    /// The machine for as long as the test takes, because somebody asked for a long one.
    pub fn without_limit(self) -> Self {
        once(|_| true).alone.as_mut().expect("this test has it alone").limit = None;
        self
    }
}

fn once(mut may: impl FnMut(&Holders) -> bool) -> MutexGuard<'static, Holders> {
    // A test that panics must not take the others with it. `wait_while` would: after a panic under the lock it returns at once.
    let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    while !may(&holders) {
        holders = CHANGED.wait(holders).unwrap_or_else(PoisonError::into_inner);
    }
    holders
}

/// Starts the watchdog, once in a process.
fn watch() {
    WATCHDOG.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(LOOK);
                let complaint = once(|_| true).complaint(Instant::now());
                if let Some(complaint) = complaint {
                    say(&complaint);
                    end_children();
                    std::process::abort();
                }
            }
        });
    });
}

/// Ends what the tests have started, if the system says what that is (Linux does): an abort drops nothing.
fn end_children() {
    let me = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // After the name, which is in brackets and may hold anything, come state and parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        if parent == Some(me.as_str()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Past libtest, which keeps to itself what a test that passes prints.
fn say(line: &str) {
    // Nothing to be done if nobody reads standard error.
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(me) = self.0 else { return };
        let mut holders = once(|_| true);
        let at = holders.sharing.iter().position(|holder| holder.thread == me);
        let holder = holders.sharing.swap_remove(at.expect("a share is counted once"));
        let was_last = holders.sharing.iter().all(|other| other.thread != me);
        drop(holders);
        CHANGED.notify_all();
        if let Some(farewell) = holder.farewell("shared", Instant::now()).filter(|_| was_last) {
            say(&farewell);
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let holder = once(|_| true).alone.take();
        CHANGED.notify_all();
        if let Some(farewell) = holder.and_then(|holder| holder.farewell("had", Instant::now())) {
            say(&farewell);
        }
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

    #[test]
    fn a_test_that_keeps_it_for_long_is_named_and_one_that_hangs_ends_the_program() {
        let thread = thread::Builder::new().name("all::a_test".to_owned());
        let test = thread.spawn(Holder::this_thread).expect("a thread").join().expect("no panic");
        let program = thread::spawn(Holder::this_thread).join().expect("no panic");
        let unlimited = Holder { limit: None, ..test.clone() };
        let after = |seconds| test.since + Duration::from_secs(seconds);
        assert_eq!(test.farewell("had", after(9)), None);
        assert_eq!(test.farewell("had", after(61)).as_deref(), Some("all::a_test had the machine for 61 s"));
        let says = |holder: &Holder, seconds| {
            let (alone, sharing) = (None, vec![program.clone(), holder.clone()]);
            Holders { alone, sharing }.complaint(after(seconds))
        };
        assert_eq!(says(&test, 599), None);
        assert!(
            says(&test, 601)
                .is_some_and(|said| said.starts_with("all::a_test has kept the machine for 601 s"))
        );
        assert_eq!(says(&unlimited, 6000), None);
        assert_eq!((says(&program, 6000), program.farewell("had", after(6000))), (None, None));
    }
}
