//! Commands in, plan, forward, sample, tokens out: for ever.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{Receiver, Sender};

use super::{Command, MadeToken, Progress, Reply, Start};
use crate::lifecycle::Lifecycle;
use crate::model::{Engine, EngineError, Logits, Sampler};
use crate::observe::metrics;
use crate::schedule::{NewSequence, Sampled, Scheduler, SequenceId, StepPlan};

/// Everything the engine's thread owns.
pub(super) struct StepLoop<E> {
    /// Dropped first, so that a turn whose channel closes finds the engine gone.
    inbox: Receiver<Command>,
    model: E,
    scheduler: Scheduler,
    lifecycle: Arc<Lifecycle>,
    turns: HashMap<SequenceId, Turn>,
}

/// A turn in the engine.
struct Turn {
    sampler: Sampler,
    /// Taken out with the last token.
    reply: Option<Box<Reply>>,
    progress: Sender<Progress>,
    prompt_tokens: u32,
    admitted: bool,
    last_token: Option<Instant>,
}

impl<E: Engine> StepLoop<E> {
    pub(super) fn new(
        model: E,
        scheduler: Scheduler,
        inbox: Receiver<Command>,
        lifecycle: Arc<Lifecycle>,
    ) -> Self {
        Self { inbox, model, scheduler, lifecycle, turns: HashMap::new() }
    }

    /// Runs until every handle is gone.
    pub(super) fn run(mut self) {
        while self.take_commands() {
            if let Some(plan) = self.scheduler.schedule() {
                self.step(&plan);
            }
            self.report();
        }
    }

    /// Waits for a command while there is nothing to do. False: nobody will send any more.
    fn take_commands(&mut self) -> bool {
        if !self.scheduler.has_work() {
            self.lifecycle.engine().set_busy(false, Instant::now());
            let Some(command) = self.inbox.blocking_recv() else { return false };
            self.lifecycle.engine().set_busy(true, Instant::now());
            self.take(command);
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.take(command);
        }
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Start(start) => self.start(*start),
            Command::Stop(id) => self.drop_turn(id),
        }
    }

    fn start(&mut self, start: Start) {
        let made = start.reply.tokens();
        let prompt_tokens = start.prompt.len() as u32;
        let sampler = Sampler::new(start.sampling, &start.prompt, made);
        let new = NewSequence {
            id: start.id,
            tokens: [&start.prompt, made].concat(),
            max_total_tokens: start.max_total_tokens,
            namespace: start.namespace,
            priority: start.priority,
            alone: start.alone,
        };
        match self.scheduler.add(new) {
            Err(refused) => send(&start.progress, Progress::Refused(refused.to_string())),
            Ok(()) => {
                let turn = Turn {
                    sampler,
                    reply: Some(Box::new(start.reply)),
                    progress: start.progress,
                    prompt_tokens,
                    admitted: false,
                    last_token: None,
                };
                self.turns.insert(start.id, turn);
            }
        }
    }

    fn step(&mut self, plan: &StepPlan) {
        let started = Instant::now();
        self.announce_admissions(plan);
        match self.forward(plan) {
            Ok(mut logits) => {
                let sampling = plan.sequences.iter().filter(|sequence| sequence.samples);
                let mut sampled = Vec::new();
                for (sequence, row) in sampling.zip(logits.rows_mut()) {
                    sampled.extend(self.sample(sequence.id, row));
                }
                self.scheduler.apply(&sampled);
                metrics::tokens_generated(sampled.len());
            }
            Err(error) => {
                for id in self.scheduler.fail_step() {
                    self.fail(id, &error.to_string());
                }
            }
        }
        metrics::step_done(plan.rows(), started.elapsed());
        self.lifecycle.engine().step_done(Instant::now());
    }

    /// The step; a panic in it is an error of it. What it was computing is dropped with its blocks, and nothing else of the
    /// model changes in a step.
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        let model = AssertUnwindSafe(&mut self.model);
        catch_unwind(move || { model }.forward(plan)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(EngineError::Step(format!("the engine panicked ({text}); please report the log")))
        })
    }

    fn announce_admissions(&mut self, plan: &StepPlan) {
        for sequence in &plan.sequences {
            let Some(turn) = self.turns.get_mut(&sequence.id).filter(|turn| !turn.admitted) else { continue };
            turn.admitted = true;
            // Tokens that an earlier attempt made are not part of the prompt.
            let cached = self.scheduler.cached_tokens(sequence.id).unwrap_or(0).min(turn.prompt_tokens);
            metrics::prompt_admitted(turn.prompt_tokens, cached);
            send(&turn.progress, Progress::Admitted { cached_tokens: cached });
        }
    }

    /// Samples a turn's next token; none where the turn is over without one.
    fn sample(&mut self, id: SequenceId, logits: &mut [f32]) -> Option<Sampled> {
        let turn = self.turns.get_mut(&id)?;
        let reply = turn.reply.as_mut()?;
        let choice = match turn.sampler.sample(logits, &reply.forbidden()) {
            Ok(choice) => choice,
            Err(error) => {
                self.scheduler.remove(id);
                self.fail(id, &error.to_string());
                return None;
            }
        };
        let now = Instant::now();
        if let Some(last) = turn.last_token.replace(now) {
            metrics::inter_token(now - last);
        }
        let added = reply.push(choice.token);
        let finished = added.finish.is_some();
        let token = MadeToken {
            id: choice.token,
            text: added.text,
            logprobs: choice.logprobs,
            finish: added.finish,
            reply: if finished { turn.reply.take() } else { None },
        };
        send(&turn.progress, Progress::Token(token));
        if finished {
            self.turns.remove(&id);
        }
        Some(Sampled { id, token: choice.token, finished })
    }

    fn fail(&mut self, id: SequenceId, reason: &str) {
        if let Some(turn) = self.turns.remove(&id) {
            send(&turn.progress, Progress::Failed(reason.to_owned()));
        }
    }

    fn drop_turn(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.turns.remove(&id);
    }

    fn report(&self) {
        let pool = self.scheduler.pool();
        metrics::schedule(&self.scheduler.counts());
        metrics::pool(&pool.counts(), pool.headroom());
        self.lifecycle.set_headroom(pool.headroom());
    }
}

/// Never waits. The channel has room for all a turn can say; and a turn whose receiver is gone was given up
/// by its runner, which stops it with a command.
fn send(progress: &Sender<Progress>, what: Progress) {
    let _ = progress.try_send(what);
}
