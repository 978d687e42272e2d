//! What a program does with signals.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT | drain; a second one: end what runs at once |
//! | SIGHUP | drain, unless it was ignored when the program started (`nohup`); it never hurries a drain |
//! | SIGUSR1, SIGUSR2 | nothing |
//!
//! SIGHUP drains because the terminal or the session that the program belongs to is gone. There is nothing to load again:
//! settings are read once. Where one signal of a group ends a session, others follow: the kernel and the shell of a closed
//! terminal each send SIGHUP, and systemd sends SIGTERM and SIGHUP together to a session's processes. So only a second
//! SIGTERM or SIGINT means "now". The standard library ignores SIGPIPE. Other signals do what the system does by default.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are listened to, from now until the end of the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    /// How many SIGTERM and SIGINT have come.
    orders: u32,
}

impl Signals {
    /// Takes signals from their default effects. In a runtime of tokio's.
    ///
    /// # Errors
    /// The system's words, if it refuses a handler.
    pub fn listen() -> io::Result<Self> {
        // The two that programs define for themselves would end the process. A stray one must not cost a drain.
        let _ = signal(SignalKind::user_defined1())?;
        let _ = signal(SignalKind::user_defined2())?;
        let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())?, hangup, orders: 0 })
    }

    /// Waits for one that says: stop. Returns its name.
    pub async fn stop(&mut self) -> &'static str {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = hangup(&mut self.hangup) => return "SIGHUP",
        };
        self.orders += 1;
        name
    }

    /// Waits for the second order to stop.
    pub async fn hurry(&mut self) {
        while self.orders < 2 {
            self.stop().await;
        }
    }
}

async fn hangup(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether the one who started this process wants it to outlive its terminal. Known on Linux only: elsewhere the system does not
/// tell a process which signals it ignores, short of a call that is unsafe.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 stands for signal 1.
    let hangup = 1 << (SignalKind::hangup().as_raw_value() - 1);
    ignored.is_some_and(|mask| mask & hangup != 0)
}
