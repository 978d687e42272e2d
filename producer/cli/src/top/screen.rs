//! The terminal, taken over and given back.
//!
//! Invariants: it is given back when the screen is dropped, and before a panic's message is printed; a signal that asks
//! the program to end ends it the same way as a key does.

use std::io;

use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A terminal in raw mode that shows its alternate screen.
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes it over, and sees to it that a panic gives it back first.
    pub fn open() -> io::Result<Self> {
        let opened = ratatui::try_init();
        if opened.is_err() {
            // It may be half done.
            ratatui::restore();
        }
        Ok(Self { terminal: opened? })
    }

    /// Draws a frame, as large as the terminal is now.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic it is given back already; once more would move the cursor back over the message.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

/// Signals that ask to end: of a service manager, a terminal that was closed, or a person elsewhere.
pub struct Stops {
    signals: [Signal; 3],
}

impl Stops {
    pub fn listen() -> io::Result<Self> {
        let signals = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(signal);
        let [terminate, hangup, interrupt] = signals;
        Ok(Self { signals: [terminate?, hangup?, interrupt?] })
    }

    /// Waits for one.
    pub async fn next(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use pty_process::Size;
    use pty_process::blocking::{Command, open};

    use super::*;

    /// Set for the process that is to panic.
    const PANICS: &str = "TURNMILL_TEST_PANICS_ON_ITS_TERMINAL";

    /// Runs itself again, on a terminal.
    #[test]
    fn a_panic_gives_the_terminal_back_before_its_message() {
        if std::env::var_os(PANICS).is_some() {
            let mut screen = Screen::open().expect("there is a terminal");
            screen.draw(|_| {}).expect("it can be drawn on");
            panic!("on purpose");
        }
        let (mut pty, pts) = open().expect("there are pseudo-terminals");
        pty.resize(Size::new(24, 80)).expect("a terminal has a size");
        let this = "top::screen::tests::a_panic_gives_the_terminal_back_before_its_message";
        let program = std::env::current_exe().expect("a running program has a path");
        let command = Command::new(program).args(["--exact", this, "--nocapture"]).env(PANICS, "1");
        let mut child = command.spawn(pts).expect("starts");
        let mut output = Vec::new();
        // A terminal whose program is gone ends with an error, not with an end of file.
        let _ = pty.read_to_end(&mut output);
        assert!(!child.wait().expect("our own child can be waited for").success());
        let output = String::from_utf8_lossy(&output);
        let place = |text: &str| output.find(text).unwrap_or_else(|| panic!("no {text:?} in {output:?}"));
        let (entered, left, said) = (place("\u{1b}[?1049h"), place("\u{1b}[?1049l"), place("on purpose"));
        assert!(entered < left && left < said, "{output:?}");
        assert_eq!(output.matches("\u{1b}[?1049l").count(), 1, "the message stays in sight: {output:?}");
        assert!(output.rfind("\u{1b}[?25h") > output.rfind("\u{1b}[?25l"), "the cursor is shown: {output:?}");
    }
}
