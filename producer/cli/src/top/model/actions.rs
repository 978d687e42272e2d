//! What somebody may want, and what lies over the panes while it is asked.

use super::cursor::Step;
use super::questions::{Order, Question};

/// What can be focused, in the order of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    Queue,
    Workers,
    Running,
    Dead,
}

impl Pane {
    pub const ALL: [Self; 4] = [Self::Queue, Self::Workers, Self::Running, Self::Dead];

    /// The pane `by` places further on; after the last comes the first.
    pub fn step(self, by: isize) -> Self {
        let place = (self as isize + by).rem_euclid(Self::ALL.len() as isize);
        Self::ALL[place as usize]
    }
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    Focus(Pane),
    /// As many panes further on.
    NextPane(isize),
    Move(Step),
    /// Ask whether to do it to what is selected.
    Cancel,
    Drain,
    Replay,
    /// Ask whether to pause or to resume the queue.
    Pause,
    /// Show the keys, or hide them.
    Help,
    /// Answer the question.
    Yes,
    No,
}

/// What is to be done outside the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    None,
    Quit,
    Do(Order),
}

/// What keys are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Panes,
    Question,
    Help,
}

/// What lies over the panes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Overlay {
    #[default]
    None,
    Help,
    Question(Question),
}
