//! `turnmill top`: a queue as it is now, on a terminal.
//!
//! * [`model`]: what is shown and where the cursor is. Pure: no clock, no I/O.
//! * [`keys`]: what a key means, as the state of things is. Pure.
//! * [`view`]: draws the model. Pure: the same model gives the same frame.
//! * [`poll`]: reads Redis again and again; what one reading may cost is bounded there.
//! * [`act`]: does what somebody confirmed.
//! * [`screen`]: the terminal, given back whatever happens.
//!
//! One task does it all, so a panic anywhere unwinds through the screen. Invariants: nothing but a confirmed question
//! changes the queue; what cannot be read is shown as unknown; a Redis that is away ends nothing.

mod act;
pub mod keys;
mod model;
mod poll;
mod screen;
mod view;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ratatui::crossterm::event::{Event, EventStream, KeyEvent};
use tokio::sync::{Notify, mpsc};
use turnmill_client::operate::Operator;
use turnmill_client::{ClientBuilder, ClientError};

use model::{Effect, State};
use poll::Reader;
use screen::{Screen, Stops};
use view::Theme;

use crate::text::say;

/// Ages on the screen move so often, whether or not anything was read.
const TICK: Duration = Duration::from_millis(500);
/// How long a command may take before Redis counts as away.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a reading goes on trying: a connection that broke while it idled is no outage. The next reading comes soon.
const RETRY_FOR: Duration = Duration::from_millis(250);

/// The patience of somebody who watches.
pub fn patience(builder: ClientBuilder) -> ClientBuilder {
    builder.response_timeout(RESPONSE_TIMEOUT).retry_for(RETRY_FOR)
}

/// Takes over the terminal until somebody quits.
pub async fn watch(operator: Operator, interval: Duration) -> io::Result<()> {
    let mut screen = Screen::open()?;
    let mut stops = Stops::listen()?;
    let mut events = EventStream::new();
    let theme = Theme::from_environment();
    let mut state = State::new(operator.queue().to_string(), operator.address().to_owned());
    let refresh = Notify::new();
    let (readings, mut read) = mpsc::channel(1);
    let mut polling = std::pin::pin!(poll::run(operator.clone(), interval, &refresh, readings));
    let mut doing = FuturesUnordered::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        screen.draw(|frame| view::draw(frame, &state, Instant::now(), theme))?;
        let effect = tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => press(&mut state, key),
                Some(Ok(_)) => Effect::None,
                Some(Err(error)) => return Err(error),
                // Nobody is there any more.
                None => Effect::Quit,
            },
            Some(reading) = read.recv() => { state.take(reading, Instant::now()); Effect::None }
            Some(done) = doing.next() => { state.tell(done, Instant::now()); refresh.notify_one(); Effect::None }
            () = &mut polling => Effect::Quit,
            _ = tick.tick() => Effect::None,
            () = stops.next() => Effect::Quit,
        };
        match effect {
            Effect::None => {}
            Effect::Quit => break,
            Effect::Do(order) => doing.push(act::perform(&operator, order)),
        }
    }
    drop(screen);
    // What was confirmed is done, though nobody looks any more.
    while let Some(done) = doing.next().await {
        if let Err(why) = done {
            say(why);
        }
    }
    Ok(())
}

fn press(state: &mut State, key: KeyEvent) -> Effect {
    match keys::action(key, state.mode()) {
        Some(action) => state.apply(action, Instant::now()),
        None => Effect::None,
    }
}

/// Prints one frame, as wide as given and as long as it takes. Reads twice where turns run: a speed needs two readings.
pub async fn once(operator: Operator, interval: Duration, width: u16) -> Result<String, ClientError> {
    let mut state = State::new(operator.queue().to_string(), operator.address().to_owned());
    let mut reader = Reader::new(operator);
    state.take(Ok(reader.read().await?), Instant::now());
    if state.has_running() {
        tokio::time::sleep(interval).await;
        state.take(Ok(reader.read().await?), Instant::now());
    }
    Ok(view::plain(&state, Instant::now(), width))
}

/// Writes a frame.
pub fn print(frame: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(frame.as_bytes())?;
    out.flush()
}
