use super::samples::{later, running_turn, snapshot, worker};
use super::*;

/// A state that has read twice.
fn state() -> (State, Instant) {
    let now = Instant::now();
    let mut state = State::new("q".to_owned(), "h:1".to_owned());
    state.take(Ok(snapshot()), now);
    state.take(Ok(later()), now);
    (state, now)
}

fn away() -> ClientError {
    turnmill_client::Fault::Unreachable { address: "h:1".to_owned(), reason: "refused".to_owned() }.into()
}

fn question(state: &State) -> &Question {
    match &state.overlay {
        Overlay::Question(question) => question,
        other => panic!("nothing is asked: {other:?}"),
    }
}

#[test]
fn what_was_read_stays_while_redis_is_away() {
    let (mut state, now) = state();
    state.take(Err(away()), now + Duration::from_secs(9));
    assert!(state.trouble.as_ref().is_some_and(|why| why.contains("cannot reach Redis at h:1")));
    assert_eq!(state.shown.as_ref().map(|(_, at)| *at), Some(now), "its age goes on from when it was read");
    assert!(state.has_running());
    state.take(Ok(later()), now + Duration::from_secs(10));
    assert_eq!(state.trouble, None, "it comes back by itself");
}

#[test]
fn nothing_is_done_without_a_yes() {
    for action in [Action::Cancel, Action::Drain, Action::Replay, Action::Pause] {
        let (mut state, now) = state();
        assert_eq!(state.apply(action, now), Effect::None, "{action:?} asks");
        assert_eq!(state.mode(), Mode::Question);
        assert_eq!(state.apply(Action::No, now), Effect::None);
        assert_eq!(state.told(now).map(|told| told.text.as_str()), Some("nothing was done"));
        state.apply(action, now);
        let order = question(&state).order.clone();
        assert_eq!(state.apply(Action::Yes, now), Effect::Do(order));
        assert_eq!(state.apply(Action::Yes, now), Effect::None, "a yes counts once");
    }
}

#[test]
fn a_question_is_about_what_was_selected_when_it_was_asked() {
    let (mut state, now) = state();
    state.apply(Action::Focus(Pane::Running), now);
    state.apply(Action::Move(Step::By(1)), now);
    state.apply(Action::Cancel, now);
    let coder = running_turn("coder", 0).turn;
    assert_eq!(question(&state).order, Order::Cancel(coder));
    assert!(question(&state).about.iter().any(|line| line.contains("acme/coder")), "it is named");
    // It ends meanwhile, and another row takes its place.
    let mut without = later();
    without.running.as_mut().expect("read").turns.remove(1);
    state.take(Ok(without), now);
    assert_eq!(state.apply(Action::Yes, now), Effect::Do(Order::Cancel(coder)), "never another one");
}

#[test]
fn questions_go_where_they_are_about_and_say_why_they_are_not_asked() {
    let (mut state, now) = state();
    state.apply(Action::Replay, now);
    assert_eq!((state.focus, question(&state).title.as_str()), (Pane::Dead, "Replay this dead letter?"));
    state.apply(Action::No, now);
    state.apply(Action::Focus(Pane::Workers), now);
    state.apply(Action::Move(Step::By(1)), now);
    state.apply(Action::Drain, now);
    let told = state.told(now).expect("it is told");
    assert!(told.failed && told.text == "worker mill-2 is told to drain already", "{told:?}");

    let nothing = Snapshot {
        lag: Err("refused".to_owned()),
        workers: Ok(Vec::new()),
        running: Err("refused".to_owned()),
        dead: Ok(Vec::new()),
        ..later()
    };
    state.take(Ok(nothing), now);
    for action in [Action::Cancel, Action::Drain, Action::Replay, Action::Pause] {
        assert_eq!(state.apply(action, now), Effect::None);
        assert_eq!(state.mode(), Mode::Panes, "{action:?} has nothing to ask about");
        assert!(state.told(now).is_some_and(|told| told.failed), "{action:?}");
    }
}

#[test]
fn a_paused_queue_is_resumed_and_another_is_paused() {
    let (mut state, now) = state();
    state.apply(Action::Pause, now);
    assert_eq!(question(&state).order, Order::Pause);
    state.apply(Action::No, now);
    let mut paused = later();
    paused.lag.as_mut().expect("read").paused = true;
    state.take(Ok(paused), now);
    state.apply(Action::Pause, now);
    assert_eq!(question(&state).order, Order::Resume);
}

#[test]
fn panes_go_round() {
    let (mut state, now) = state();
    assert_eq!(state.focus, Pane::Running);
    let mut seen = Vec::new();
    for _ in 0..4 {
        state.apply(Action::NextPane(1), now);
        seen.push(state.focus);
    }
    assert_eq!(seen, [Pane::Dead, Pane::Queue, Pane::Workers, Pane::Running]);
    state.apply(Action::NextPane(-1), now);
    assert_eq!(state.focus, Pane::Workers);
}

#[test]
fn help_is_shown_and_hidden_and_what_was_told_goes() {
    let (mut state, now) = state();
    state.apply(Action::Help, now);
    assert_eq!(state.mode(), Mode::Help);
    state.apply(Action::Help, now);
    assert_eq!(state.mode(), Mode::Panes);
    state.tell(Ok("done".to_owned()), now);
    assert!(state.told(now).is_some());
    assert!(state.told(now + TOLD_FOR).is_none());
    assert_eq!(state.apply(Action::Quit, now), Effect::Quit);
}

#[test]
fn workers_are_named_and_the_servers_clock_is_known_where_it_was_read() {
    let (mut state, now) = state();
    assert_eq!(state.worker_name(&worker("mill-1", "ready").id), "mill-1");
    assert_eq!(state.worker_name("gone-1"), "gone-1");
    assert_eq!(state.server_ms(), Some(samples::NOW_MS + 2_000));
    let refused = || Err("refused".to_owned());
    state.take(Ok(Snapshot { ends: refused(), ..later() }), now);
    assert_eq!(state.server_ms(), Some(samples::NOW_MS + 2_000), "by the other reading");
    state.take(Ok(Snapshot { ends: refused(), running: Err("refused".to_owned()), ..later() }), now);
    assert_eq!(state.server_ms(), None);
}
