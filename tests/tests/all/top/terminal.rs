//! A program on a pseudo-terminal, and what a terminal would show of it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pty_process::Size;
use pty_process::blocking::{Command, Pty};
use rustix::termios::{Termios, tcgetattr};
use turnmill_tests::PATIENCE;

/// How often a condition is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// A running program with its terminal; killed on drop.
pub struct Terminal {
    pty: Pty,
    /// The program's side, kept open so that its settings can be read once the program ended.
    side: File,
    before: Termios,
    child: Child,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts a program on a terminal of that size.
    pub fn start(command: Command, rows: u16, columns: u16) -> Self {
        let (pty, pts) = pty_process::blocking::open().expect("there are pseudo-terminals");
        pty.resize(Size::new(rows, columns)).expect("a terminal has a size");
        let name = rustix::pty::ptsname(&pty, Vec::new()).expect("a terminal has a name");
        let path = name.into_string().expect("it is ASCII");
        // Not to be the terminal of this process, if it leads a session: the program could not have it then.
        let flags = rustix::pty::OpenptFlags::NOCTTY.bits().cast_signed();
        let side = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .expect("it can be opened again");
        let before = tcgetattr(&side).expect("a terminal has settings");
        let child = command.spawn(pts).expect("the program starts");
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let output = pty.as_fd().try_clone_to_owned().expect("a descriptor can be copied");
        read_on(File::from(output), Arc::clone(&screen));
        Self { pty, side, before, child, screen }
    }

    /// Types.
    pub fn press(&mut self, keys: &str) {
        self.pty.write_all(keys.as_bytes()).expect("the program reads its terminal");
    }

    /// Another size, as when somebody drags a window's corner.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.screen().screen_mut().set_size(rows, columns);
        self.pty.resize(Size::new(rows, columns)).expect("a terminal has a size");
    }

    /// Waits until the screen shows the text; what it shows then.
    pub fn until(&self, text: &str) -> String {
        self.until_so(text, |shown| shown.contains(text))
    }

    /// Waits until the screen does not show the text.
    pub fn until_gone(&self, text: &str) -> String {
        self.until_so(text, |shown| !shown.contains(text))
    }

    /// Waits until what the screen shows is so; what it shows then.
    pub fn until_so(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let patience = Instant::now() + PATIENCE;
        loop {
            let shown = self.shown();
            if is_so(&shown) {
                return shown;
            }
            assert!(Instant::now() < patience, "{what:?} is waited for; the screen shows:\n{shown}");
            std::thread::sleep(LOOK);
        }
    }

    /// What the screen shows.
    pub fn shown(&self) -> String {
        self.screen().screen().contents()
    }

    /// Whether any cell has a colour of its own.
    pub fn has_colours(&self) -> bool {
        let parser = self.screen();
        let screen = parser.screen();
        let (rows, columns) = screen.size();
        let mut cells =
            (0..rows).flat_map(|row| (0..columns).filter_map(move |column| screen.cell(row, column)));
        cells.any(|cell| cell.fgcolor() != vt100::Color::Default || cell.bgcolor() != vt100::Color::Default)
    }

    /// Its process.
    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// Waits for the program to end, and checks that the terminal is as it was before: the main screen, a cursor, lines
    /// and echo.
    pub fn ended(mut self) -> ExitStatus {
        let patience = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                break status;
            }
            assert!(Instant::now() < patience, "it does not end; the screen shows:\n{}", self.shown());
            std::thread::sleep(LOOK);
        };
        let after = tcgetattr(&self.side).expect("a terminal has settings");
        assert_eq!(after.local_modes, self.before.local_modes, "lines, echo and signals");
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
        self.until_main_screen();
        status
    }

    /// What was written last may still be on its way through the terminal.
    fn until_main_screen(&self) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let is_so = {
                let parser = self.screen();
                !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
            };
            if is_so {
                return;
            }
            assert!(
                Instant::now() < patience,
                "the main screen and the cursor do not come back:\n{}",
                self.shown()
            );
            std::thread::sleep(LOOK);
        }
    }

    fn screen(&self) -> std::sync::MutexGuard<'_, vt100::Parser> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Feeds the screen until the terminal is closed.
fn read_on(mut output: File, screen: Arc<Mutex<vt100::Parser>>) {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            screen.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..count]);
        }
    });
}
