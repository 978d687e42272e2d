//! What a key means. Pure: the same key in the same state of things is the same action.
//!
//! The keys are those that people know from htop, k9s and lazygit. While a question is asked, only its answers and Ctrl-C
//! count: a key that was meant for something else must not answer it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Action, Mode, Pane, Step};

/// Every key, and what it does: for `--help`, the help on the screen and docs/TOP.md.
pub const KEYS: [(&str, &str); 11] = [
    ("1 2 3 4", "go to queue, workers, turns, dead letters"),
    ("Tab, Shift-Tab, ← →", "go to the next pane, or the one before"),
    ("↑ ↓, PgUp PgDn, Home End", "select a row; also k j and g G"),
    ("c", "cancel the selected turn; asks"),
    ("d", "drain the selected worker; asks"),
    ("r", "replay the selected dead letter; asks"),
    ("p", "pause or resume the queue; asks"),
    ("y, n", "answer what is asked; Esc is no"),
    ("?", "show these keys"),
    ("q, Esc", "quit"),
    ("Ctrl-C", "quit, also while something is asked"),
];

/// Rows that a page key moves.
const PAGE: isize = 10;

/// The keys as text, for `--help`.
pub fn help() -> String {
    let lines = KEYS.iter().map(|(key, does)| format!("  {key:<25} {does}\n"));
    format!("Keys:\n{}", lines.collect::<String>().trim_end())
}

/// What is wanted; none where the key means nothing.
pub fn action(key: KeyEvent, mode: Mode) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => Some(Action::Quit),
        // A terminal's other chords are nobody's answer or command.
        _ if control || key.modifiers.contains(KeyModifiers::ALT) => None,
        code => match mode {
            Mode::Panes => command(code),
            Mode::Question => answer(code),
            // Whatever it is, somebody has read enough.
            Mode::Help => Some(Action::Help),
        },
    }
}

fn answer(code: KeyCode) -> Option<Action> {
    match code {
        KeyCode::Char('y' | 'Y') => Some(Action::Yes),
        KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => Some(Action::No),
        _ => None,
    }
}

fn command(code: KeyCode) -> Option<Action> {
    let action = match code {
        KeyCode::Char('q') | KeyCode::Esc => Action::Quit,
        KeyCode::Char('1') => Action::Focus(Pane::Queue),
        KeyCode::Char('2') => Action::Focus(Pane::Workers),
        KeyCode::Char('3') => Action::Focus(Pane::Running),
        KeyCode::Char('4') => Action::Focus(Pane::Dead),
        KeyCode::Tab | KeyCode::Right => Action::NextPane(1),
        KeyCode::BackTab | KeyCode::Left => Action::NextPane(-1),
        KeyCode::Down | KeyCode::Char('j') => Action::Move(Step::By(1)),
        KeyCode::Up | KeyCode::Char('k') => Action::Move(Step::By(-1)),
        KeyCode::PageDown => Action::Move(Step::By(PAGE)),
        KeyCode::PageUp => Action::Move(Step::By(-PAGE)),
        KeyCode::Home | KeyCode::Char('g') => Action::Move(Step::First),
        KeyCode::End | KeyCode::Char('G') => Action::Move(Step::Last),
        KeyCode::Char('c') => Action::Cancel,
        KeyCode::Char('d') => Action::Drain,
        KeyCode::Char('r') => Action::Replay,
        KeyCode::Char('p') => Action::Pause,
        KeyCode::Char('?') => Action::Help,
        _ => return None,
    };
    Some(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    fn letter(letter: char, modifiers: KeyModifiers) -> KeyEvent {
        KeyEvent::new(KeyCode::Char(letter), modifiers)
    }

    #[test]
    fn keys_are_those_that_people_know() {
        for (code, expected) in [
            (KeyCode::Char('q'), Action::Quit),
            (KeyCode::Esc, Action::Quit),
            (KeyCode::Char('1'), Action::Focus(Pane::Queue)),
            (KeyCode::Char('2'), Action::Focus(Pane::Workers)),
            (KeyCode::Char('3'), Action::Focus(Pane::Running)),
            (KeyCode::Char('4'), Action::Focus(Pane::Dead)),
            (KeyCode::Tab, Action::NextPane(1)),
            (KeyCode::Right, Action::NextPane(1)),
            (KeyCode::BackTab, Action::NextPane(-1)),
            (KeyCode::Left, Action::NextPane(-1)),
            (KeyCode::Down, Action::Move(Step::By(1))),
            (KeyCode::Char('k'), Action::Move(Step::By(-1))),
            (KeyCode::PageDown, Action::Move(Step::By(PAGE))),
            (KeyCode::Home, Action::Move(Step::First)),
            (KeyCode::Char('G'), Action::Move(Step::Last)),
            (KeyCode::Char('c'), Action::Cancel),
            (KeyCode::Char('d'), Action::Drain),
            (KeyCode::Char('r'), Action::Replay),
            (KeyCode::Char('p'), Action::Pause),
            (KeyCode::Char('?'), Action::Help),
        ] {
            assert_eq!(action(press(code), Mode::Panes), Some(expected), "{code:?}");
        }
        for code in
            [KeyCode::Char('y'), KeyCode::Char('n'), KeyCode::Enter, KeyCode::Char('x'), KeyCode::F(1)]
        {
            assert_eq!(action(press(code), Mode::Panes), None, "{code:?}");
        }
    }

    #[test]
    fn a_question_takes_its_answers_and_nothing_else() {
        for (code, expected) in [
            (KeyCode::Char('y'), Some(Action::Yes)),
            (KeyCode::Char('Y'), Some(Action::Yes)),
            (KeyCode::Char('n'), Some(Action::No)),
            (KeyCode::Esc, Some(Action::No)),
            (KeyCode::Char('q'), Some(Action::No)),
            (KeyCode::Enter, None),
            (KeyCode::Char('c'), None),
            (KeyCode::Char('d'), None),
            (KeyCode::Tab, None),
            (KeyCode::Down, None),
        ] {
            assert_eq!(action(press(code), Mode::Question), expected, "{code:?}");
        }
    }

    #[test]
    fn any_key_hides_the_help_and_does_nothing_else() {
        for code in [KeyCode::Char('q'), KeyCode::Esc, KeyCode::Char('c'), KeyCode::Char('x'), KeyCode::Enter]
        {
            assert_eq!(action(press(code), Mode::Help), Some(Action::Help), "{code:?}");
        }
    }

    #[test]
    fn control_c_quits_always_and_other_chords_do_nothing() {
        for mode in [Mode::Panes, Mode::Question, Mode::Help] {
            assert_eq!(action(letter('c', KeyModifiers::CONTROL), mode), Some(Action::Quit));
            assert_eq!(action(letter('d', KeyModifiers::CONTROL), mode), None);
            assert_eq!(action(letter('y', KeyModifiers::CONTROL), mode), None);
            assert_eq!(action(letter('y', KeyModifiers::ALT), mode), None);
        }
        let mut released = press(KeyCode::Char('q'));
        released.kind = KeyEventKind::Release;
        assert_eq!(action(released, Mode::Panes), None, "a key counts once");
        assert_eq!(action(letter('Y', KeyModifiers::SHIFT), Mode::Question), Some(Action::Yes));
    }

    /// The keys of these names, as [`KEYS`] has them.
    fn named(names: &str) -> Vec<KeyEvent> {
        let names = names.split([' ', ',', ';']).filter(|name| !name.is_empty());
        let key = |name: &str| {
            let code = match name {
                "Tab" => KeyCode::Tab,
                "Shift-Tab" => KeyCode::BackTab,
                "\u{2190}" => KeyCode::Left,
                "\u{2192}" => KeyCode::Right,
                "\u{2191}" => KeyCode::Up,
                "\u{2193}" => KeyCode::Down,
                "PgUp" => KeyCode::PageUp,
                "PgDn" => KeyCode::PageDown,
                "Home" => KeyCode::Home,
                "End" => KeyCode::End,
                "Esc" => KeyCode::Esc,
                "Ctrl-C" => return letter('c', KeyModifiers::CONTROL),
                _ => KeyCode::Char(name.parse().unwrap_or_else(|_| panic!("{name:?} is no key"))),
            };
            press(code)
        };
        names.map(key).collect()
    }

    #[test]
    fn every_key_of_the_help_does_something_and_the_help_has_every_key_that_does() {
        let mut told = named("k j g G");
        for (keys, does) in KEYS {
            let mode = if keys == "y, n" { Mode::Question } else { Mode::Panes };
            for key in named(keys) {
                assert!(action(key, mode).is_some(), "{key:?} does not {does}");
                told.push(key);
            }
        }
        assert!(KEYS.iter().any(|(_, does)| does.ends_with("also k j and g G")), "they are told");
        let letters = ('!'..='~').map(KeyCode::Char);
        let others = [
            KeyCode::Tab,
            KeyCode::BackTab,
            KeyCode::Left,
            KeyCode::Right,
            KeyCode::Up,
            KeyCode::Down,
            KeyCode::PageUp,
            KeyCode::PageDown,
            KeyCode::Home,
            KeyCode::End,
            KeyCode::Esc,
            KeyCode::Enter,
            KeyCode::Backspace,
            KeyCode::Delete,
            KeyCode::Insert,
            KeyCode::Char(' '),
        ];
        for key in letters.chain(others).map(press) {
            let is_told = told.contains(&key) && !['y', 'n'].map(KeyCode::Char).contains(&key.code);
            assert_eq!(action(key, Mode::Panes).is_some(), is_told, "{key:?}");
        }
    }

    #[test]
    fn the_help_fits_a_terminal() {
        let help = help();
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert_eq!(help.lines().count(), 1 + KEYS.len(), "{help}");
    }
}
