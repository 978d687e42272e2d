//! A task that somebody waits for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::Simulation;

/// What comes of a task. Dropping it ends the task, where it waits.
#[derive(Debug)]
#[must_use = "a task that nobody waits for is ended"]
pub struct Running<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Task(AbortOnDropHandle<T>),
    Simulated { done: oneshot::Receiver<T>, _ends: DropGuard },
}

/// The task panicked, or its runtime is gone; the runtime's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

impl<T: Send + 'static> Running<T> {
    pub(super) fn task(task: JoinHandle<T>) -> Self {
        Self(Kind::Task(AbortOnDropHandle::new(task)))
    }

    pub(super) fn simulated(
        simulation: &dyn Simulation,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        let (answer, done) = oneshot::channel();
        let ends = CancellationToken::new();
        let ended = ends.clone();
        simulation.spawn(Box::pin(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                made = task => drop(answer.send(made)),
            }
        }));
        Self(Kind::Simulated { done, _ends: ends.drop_guard() })
    }
}

impl<T> Future for Running<T> {
    type Output = Result<T, Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut self.0 {
            Kind::Task(task) => {
                ready!(Pin::new(task).poll(context)).map_err(|error| Failed(error.to_string()))
            }
            Kind::Simulated { done, .. } => ready!(Pin::new(done).poll(context))
                .map_err(|_| Failed("the simulated task is gone".to_owned())),
        })
    }
}
