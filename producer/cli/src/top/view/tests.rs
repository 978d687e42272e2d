//! Whole frames, compared with those in `frames/`, and what holds of all of them.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use turnmill_client::Fault;
use turnmill_client::operate::ends::EndsRead;
use turnmill_client::operate::running::Running;

use super::super::model::samples::{later, letter, snapshot};
use super::super::model::{Action, Pane};
use super::*;

const COLOURS: Theme = Theme::coloured_for_tests();

/// What was read, twice.
fn state() -> (State, Instant) {
    let read = Instant::now();
    let mut state = State::new("chat".to_owned(), "redis.example:6379".to_owned());
    state.take(Ok(snapshot()), read);
    state.take(Ok(later()), read);
    (state, read + Duration::from_millis(300))
}

fn buffer(state: &State, now: Instant, theme: Theme, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer needs no terminal");
    terminal.draw(|frame| draw(frame, state, now, theme)).expect("drawing into memory works");
    terminal.backend().buffer().clone()
}

fn frame(state: &State, now: Instant, width: u16, height: u16) -> String {
    text::lines(&buffer(state, now, COLOURS, width, height)).join("\n")
}

/// The frame must be what the file says.
fn assert_frame(drawn: &str, expected: &str) {
    let (drawn, expected) = (drawn.trim_end(), expected.trim_end());
    assert_eq!(drawn, expected, "\n--- drawn ---\n{drawn}\n--- expected ---\n{expected}\n");
}

#[test]
fn a_frame_of_80_columns_and_24_lines() {
    let (state, now) = state();
    assert_frame(&frame(&state, now, 80, 24), include_str!("frames/80x24.txt"));
}

#[test]
fn a_frame_of_120_columns_and_40_lines() {
    let (mut state, now) = state();
    state.apply(Action::Focus(Pane::Dead), now);
    assert_frame(&frame(&state, now, 120, 40), include_str!("frames/120x40.txt"));
}

#[test]
fn a_frame_as_text_shows_every_row_and_no_keys() {
    let (state, now) = state();
    assert_frame(&plain(&state, now, 100), include_str!("frames/plain.txt"));
}

#[test]
fn a_question_and_the_keys_fit_the_smallest_terminal() {
    let (mut state, now) = state();
    state.apply(Action::Cancel, now);
    let drawn = frame(&state, now, MIN_WIDTH, MIN_HEIGHT);
    for expected in [
        "Cancel this turn?",
        "019c1f2a-7b30-7c41-9d52-",
        "acme/planner",
        "mill-1",
        "157",
        "y  yes      n  no",
    ] {
        assert!(drawn.contains(expected), "{expected}:\n{drawn}");
    }
    state.apply(Action::No, now);
    state.apply(Action::Help, now);
    let drawn = frame(&state, now, MIN_WIDTH, MIN_HEIGHT);
    for (key, does) in super::super::keys::KEYS {
        assert!(drawn.contains(key) && drawn.contains(does), "{key}:\n{drawn}");
    }
}

#[test]
fn nothing_that_is_unknown_is_a_number() {
    let now = Instant::now();
    let mut state = State::new("q".to_owned(), "h:1".to_owned());
    let drawn = frame(&state, now, 80, 24);
    assert!(
        drawn.contains("reading") && drawn.matches(UNKNOWN).count() >= 5,
        "before anything was read:\n{drawn}"
    );
    assert!(!drawn.contains(" 0"), "{drawn}");
    let refused = "Redis refused it";
    let unread = Snapshot {
        lag: Err(refused.to_owned()),
        workers: Err(refused.to_owned()),
        running: Err(refused.to_owned()),
        ends: Err(refused.to_owned()),
        dead: Err(refused.to_owned()),
    };
    state.take(Ok(unread), now);
    let drawn = frame(&state, now, 80, 24);
    assert_eq!(drawn.matches("unknown: Redis").count(), 5, "every pane says why:\n{drawn}");
}

#[test]
fn an_empty_queue_is_told_from_an_unknown_one() {
    let now = Instant::now();
    let mut state = State::new("q".to_owned(), "h:1".to_owned());
    let empty = Snapshot {
        lag: Ok(turnmill_client::Lag::default()),
        workers: Ok(Vec::new()),
        running: Ok(Running::default()),
        ends: Ok(EndsRead { read_ms: 5_000, whole: true, first: true, ended: Vec::new() }),
        dead: Ok(Vec::new()),
    };
    state.take(Ok(empty), now);
    let drawn = frame(&state, now, 80, 24);
    for expected in [
        "0 open turns",
        "Newest 0 ends",
        "prompts cached: unknown",
        "ended/s: 0.0",
        "Running turns: 0, 0.0 tok/s",
        "no turn runs",
        "no worker was heard of",
        "Dead letters: 0",
        "no dead letters",
    ] {
        assert!(drawn.contains(expected), "{expected}:\n{drawn}");
    }
}

#[test]
fn a_redis_that_is_away_is_told_with_the_age_of_what_is_shown() {
    let (mut state, now) = state();
    let away = Fault::Unreachable { address: "h:1".to_owned(), reason: "refused".to_owned() };
    state.take(Err(away.into()), now);
    let drawn = frame(&state, now + Duration::from_secs(12), 80, 24);
    let first = drawn.lines().next().unwrap_or_default();
    assert!(first.contains("REDIS DOES NOT ANSWER: this is 12.3 s old"), "{first}");
    assert!(drawn.lines().last().is_some_and(|line| line.contains("cannot reach Redis at h:1")), "{drawn}");
    assert!(drawn.contains("acme/planner"), "what was read stays:\n{drawn}");
}

#[test]
fn a_terminal_that_is_too_small_is_told_so() {
    let (state, now) = state();
    for (width, height) in [(79, 24), (80, 19), (20, 5), (1, 1)] {
        let drawn = frame(&state, now, width, height);
        assert!(!drawn.contains("Queue"), "{drawn}");
        if width >= 20 {
            let words = drawn.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(&format!("has {width} x {height} cells; top needs 80 x 20")), "{words}");
        }
    }
    for (width, height) in [(80, 20), (81, 21), (200, 60), (500, 200)] {
        assert!(frame(&state, now, width, height).contains("4 Dead letters"), "{width} x {height}");
    }
}

#[test]
fn no_colour_is_used_where_none_is_wanted() {
    let (mut state, now) = state();
    state.apply(Action::Cancel, now);
    let coloured = |theme| {
        let buffer = buffer(&state, now, theme, 80, 24);
        buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(coloured(COLOURS));
    assert!(!coloured(Theme::plain()));
}

#[test]
fn text_from_outside_reaches_no_terminal_as_control_characters() {
    let (mut state, now) = state();
    let error = "bad \u{1b}[31mred\u{1b}]0;title\u{7} and\nmore\r\u{9b}2J";
    let poisoned = Snapshot { dead: Ok(vec![letter(9, "a", "rejected", 1, error)]), ..later() };
    state.take(Ok(poisoned), now);
    state.apply(Action::Replay, now);
    for drawn in [plain(&state, now, 200), frame(&state, now, 120, 40)] {
        assert!(drawn.contains("bad "), "{drawn}");
        assert!(!drawn.chars().any(|c| c.is_control() && c != '\n'), "{drawn:?}");
    }
}

#[test]
fn the_cursor_is_seen_in_the_focused_pane_without_colours() {
    let (mut state, now) = state();
    state.apply(Action::Focus(Pane::Running), now);
    state.apply(Action::Move(super::super::model::Step::By(1)), now);
    let drawn = frame(&state, now, 80, 24);
    assert!(drawn.contains("> acme/coder"), "{drawn}");
    assert!(drawn.contains("━ 3 Running turns") && drawn.contains("─ 2 Workers"), "{drawn}");
}
