//! Commands in, blocks in, plan, forward, sample, tokens out, blocks out: for ever.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, Sender};
use tracing::Span;

use super::channel::Command;
use super::export::{Budget, Exports, Wanted};
use super::import::Imports;
use super::offload::Offload;
use super::pace::Pace;
use super::samples::{self, Rows, Sample, Unsampled};
use super::{EngineSettings, Finished, MadeToken, Progress, Reply, Saving, SegmentSink, Start};
use crate::kv::{BlockPool, TokenChain};
use crate::lifecycle::Lifecycle;
use crate::model::{Engine, EngineError, Logits, NoLogits, Sampler};
use crate::observe::metrics;
use crate::schedule::{Left, NewSequence, Sampled, Scheduler, SequenceId, StepPlan};
use crate::surroundings::Surroundings;

/// Between two looks whether a full sink takes segments again, while there is nothing else to do.
const HELD_UP: Duration = Duration::from_millis(1);

/// What a loop that has nothing to compute waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// A command.
    Command,
    /// Room in the store for segments that are to be saved: to be looked for again soon.
    Room,
}

/// Everything an engine owns; the thread that runs it is the engine's.
pub struct StepLoop<E> {
    /// Dropped first, so that a turn whose channel closes finds the engine gone.
    inbox: Receiver<Command>,
    model: E,
    scheduler: Scheduler,
    lifecycle: Arc<Lifecycle>,
    pace: Arc<Pace>,
    turns: HashMap<SequenceId, Turn>,
    imports: Imports,
    exports: Exports,
    offload: Offload,
    transfer_bytes: usize,
    /// There is work, and none of it can be planned before a command comes: everything admitted waits for its blocks.
    waits: bool,
    surroundings: Surroundings,
}

/// A turn in the engine.
struct Turn {
    sampler: Sampler,
    reply: Reply,
    progress: Sender<Progress>,
    prompt_tokens: u32,
    admitted: bool,
    restore: Restore,
    saving: Option<Saving>,
    /// Its blocks before this one were offered to be saved, in final segments.
    offered: usize,
    /// How many of its blocks were computed when that was last looked at.
    computed: usize,
    last_token: Option<Instant>,
    /// What log lines about it are written in.
    span: Span,
}

/// What a turn waits for when it is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restore {
    /// Blocks from outside; it was not told yet that there is room for them.
    Awaited,
    /// Blocks from outside; it was told that there is room.
    Told,
    /// Only for what was kept of it when it was preempted.
    Over,
}

/// A turn that made its last token in this step, which it is told once its segments are announced.
struct Ended {
    id: SequenceId,
    turn: Turn,
    token: MadeToken,
}

impl<E: Engine> StepLoop<E> {
    pub(super) fn new(
        model: E,
        settings: EngineSettings,
        sink: Option<Arc<dyn SegmentSink>>,
        inbox: Receiver<Command>,
        ((lifecycle, pace), surroundings): ((Arc<Lifecycle>, Arc<Pace>), Surroundings),
    ) -> Self {
        let pool = BlockPool::new(settings.blocks, settings.block_tokens);
        let mut scheduler = Scheduler::new(settings.limits, pool);
        if settings.offload_bytes > 0 {
            scheduler.keep_preempted();
        }
        scheduler.speculate(settings.speculation);
        Self {
            inbox,
            model,
            scheduler,
            lifecycle,
            pace,
            turns: HashMap::new(),
            imports: Imports::default(),
            exports: Exports::new(sink),
            offload: Offload::new(settings.offload_bytes),
            transfer_bytes: settings.transfer_bytes.max(1),
            waits: false,
            surroundings,
        }
    }

    /// Runs until every handle is gone.
    #[allow(clippy::disallowed_methods, reason = "a thread of its own, which no simulation runs")]
    pub(super) fn run(mut self) {
        loop {
            match self.pause() {
                Some(Pause::Command) => match self.inbox.blocking_recv() {
                    Some(command) => self.resume(command),
                    None => return,
                },
                Some(Pause::Room) => std::thread::sleep(HELD_UP),
                None => {}
            }
            self.round();
        }
    }

    /// What the loop waits for before its next [`Self::round`]; none: there is work.
    pub fn pause(&self) -> Option<Pause> {
        let computes = self.scheduler.has_work() && !self.waits;
        let pause = match (self.exports.is_empty(), self.imports.is_empty()) {
            _ if computes => None,
            // A store that hangs is no engine that hangs.
            (false, _) => self.exports.is_held_up().then_some(Pause::Room),
            // What waits for blocks waits for others, who see to it that it does not wait for ever.
            (true, true) => Some(Pause::Command),
            (true, false) => None,
        };
        if pause.is_some() {
            self.lifecycle.engine().set_busy(false, self.surroundings.now());
        }
        pause
    }

    /// Waits for a command, as [`Pause::Command`] asks. False: every handle is gone.
    pub async fn wait(&mut self) -> bool {
        let command = self.inbox.recv().await;
        let is_one = command.is_some();
        command.into_iter().for_each(|command| self.resume(command));
        is_one
    }

    fn resume(&mut self, command: Command) {
        self.lifecycle.engine().set_busy(true, self.surroundings.now());
        self.take(command);
    }

    /// Takes the commands that have come, then copies blocks and computes a step, as far as there is anything to do.
    pub fn round(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.take(command);
        }
        if self.scheduler.has_work() && !self.waits {
            self.lifecycle.engine().set_busy(true, self.surroundings.now());
        }
        let mut budget = self.budget();
        self.imports.copy(&mut self.scheduler, &mut self.model, &mut budget);
        let turns = &mut self.turns;
        let plan = self.scheduler.schedule_judged(&mut |id, guess, most| {
            if let Some(turn) = turns.get_mut(&id) {
                turn.reply.judge(guess, most);
            }
        });
        // Before the step writes them.
        self.offload.keep(self.scheduler.take_evicted(), &self.scheduler, &self.model);
        self.waits = plan.is_none();
        self.announce_room(&mut budget);
        if let Some(plan) = plan {
            self.step(&plan);
        }
        self.exports.copy(self.scheduler.pool(), &self.model, &mut budget);
        self.report();
    }

    /// Who is in the engine, to be looked at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// What may be copied now. Nobody waits for the next step while none can be planned.
    fn budget(&self) -> Budget {
        if self.waits || !self.scheduler.has_work() {
            Budget::unlimited()
        } else {
            Budget::new(self.transfer_bytes)
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Start(start, span) => self.start(*start, span),
            Command::Import(import) => self.imports.push(import),
            Command::EndRestore(id) => self.end_restore(id),
            Command::Stop { id, keep } => self.drop_turn(id, keep),
        }
    }

    fn end_restore(&mut self, id: SequenceId) {
        if let Some(turn) = self.turns.get_mut(&id) {
            turn.restore = Restore::Over;
        }
        self.waits = false;
        self.scheduler.end_restore(id);
    }

    fn start(&mut self, start: Start, span: Span) {
        self.waits = false;
        let prompt_tokens = start.chain.len().saturating_sub(start.reply.made());
        let (prompt, made) = start.chain.tokens().split_at(prompt_tokens);
        let sampler = Sampler::new(start.sampling, prompt, made);
        let new = NewSequence {
            id: start.id,
            chain: start.chain,
            max_total_tokens: start.max_total_tokens,
            priority: start.priority,
            alone: start.alone,
            restorable_blocks: start.restorable_blocks,
        };
        match self.scheduler.add(new) {
            Err(refused) => send(&start.progress, Progress::Refused(refused.to_string())),
            Ok(()) => {
                let turn = Turn {
                    sampler,
                    reply: start.reply,
                    progress: start.progress,
                    prompt_tokens: prompt_tokens as u32,
                    admitted: false,
                    restore: if start.restorable_blocks > 0 { Restore::Awaited } else { Restore::Over },
                    saving: start.saving,
                    offered: 0,
                    computed: 0,
                    last_token: None,
                    span,
                };
                self.turns.insert(start.id, turn);
            }
        }
    }

    /// Tells turns that were admitted and wait for blocks from elsewhere that there is room for them. Those that were
    /// preempted get what was kept of their blocks.
    fn announce_room(&mut self, budget: &mut Budget) {
        let restoring: Vec<_> = self.scheduler.restoring().collect();
        for (id, blocks) in restoring {
            let Some(turn) = self.turns.get_mut(&id) else { continue };
            match turn.restore {
                Restore::Awaited => {
                    turn.restore = Restore::Told;
                    send(&turn.progress, Progress::Room { blocks });
                }
                Restore::Told => {}
                Restore::Over => {
                    let _of_the_turn = turn.span.clone().entered();
                    self.offload.restore(id, &mut self.scheduler, &mut self.model, budget);
                    self.waits = false;
                }
            }
        }
    }

    fn step(&mut self, plan: &StepPlan) {
        let started = self.surroundings.now();
        self.announce_admissions(plan);
        match self.forward(plan) {
            Ok(mut logits) => {
                let (sampled, ended) = self.sample(plan, &mut logits);
                let left = self.scheduler.apply(&sampled);
                self.offer_computed(plan);
                self.finish(ended, left);
                metrics::tokens_generated(sampled.len());
            }
            Err(error) => {
                for id in self.scheduler.fail_step() {
                    self.fail(id, &error.to_string());
                }
            }
        }
        let took = self.surroundings.since(started);
        self.pace.step(plan.rows(), took);
        metrics::step_done(plan.rows(), took);
        self.lifecycle.engine().step_done(self.surroundings.now());
    }

    /// Offers the final segments that this step completed.
    fn offer_computed(&mut self, plan: &StepPlan) {
        for sequence in &plan.sequences {
            let Some(turn) = self.turns.get_mut(&sequence.id) else { continue };
            let (Some(saving), Some(computed)) = (&turn.saving, self.scheduler.computed(sequence.id)) else {
                continue;
            };
            if computed.1.len() > turn.computed {
                turn.computed = computed.1.len();
                let _of_the_turn = turn.span.enter();
                turn.offered = self.exports.offer(saving, computed, Wanted::Final, turn.offered);
            }
        }
    }

    /// Gives ended turns their last token, and with it reply and tokens. Their last segments are announced before, so
    /// that the runner, which waits for them, knows that they come.
    fn finish(&mut self, ended: Vec<Ended>, mut left: Vec<Left>) {
        for Ended { id, turn, mut token } in ended {
            let index = left.iter().position(|left| left.id == id);
            let index = index.expect("a sequence leaves in the step that samples its last token");
            let chain = left.swap_remove(index).chain;
            let kept = turn.reply.kept_tokens(chain.tokens()).len();
            self.offer_all(&turn, &chain, kept, Wanted::All);
            token.finished = Some(Box::new(Finished { reply: turn.reply, chain }));
            send(&turn.progress, Progress::Token(token));
        }
    }

    /// Offers all segments of a turn that left which the pool holds, up to its first `kept` tokens.
    fn offer_all(&mut self, turn: &Turn, chain: &TokenChain, kept: usize, wanted: Wanted) {
        let Some(saving) = &turn.saving else { return };
        let pool = self.scheduler.pool();
        let hashes = &chain.hashes()[..kept / chain.block_tokens()];
        let known = pool.known_prefix(hashes);
        let _of_the_turn = turn.span.enter();
        self.exports.offer(saving, (chain.tokens(), &hashes[..known]), wanted, turn.offered);
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
            turn.restore = Restore::Over;
            // Tokens that an earlier attempt made are not part of the prompt.
            let cached = self.scheduler.cached_tokens(sequence.id).unwrap_or(0).min(turn.prompt_tokens);
            metrics::prompt_admitted(turn.prompt_tokens, cached);
            send(&turn.progress, Progress::Admitted { cached_tokens: cached, at: self.surroundings.now() });
        }
    }

    /// Samples the next tokens of the turns that have rows in `logits`, and then tells each, in the plan's order.
    fn sample(&mut self, plan: &StepPlan, logits: &mut Logits) -> (Vec<Sampled>, Vec<Ended>) {
        let mut logits = logits.rows_mut();
        let mut turns = Vec::new();
        for (id, tokens) in plan.sampling() {
            // All of them, so that the next turn's come after them.
            let own: Vec<_> = logits.by_ref().take(tokens.len()).collect();
            if let Some(turn) = self.turns.remove(&id) {
                turns.push((id, turn, tokens, own));
            }
        }
        let rows = turns.iter_mut().map(|(_, turn, tokens, logits)| Rows {
            sampler: &mut turn.sampler,
            reply: &mut turn.reply,
            tokens,
            logits: std::mem::take(logits),
        });
        let samples = samples::sample(rows.collect());
        let (mut sampled, mut ended) = (Vec::new(), Vec::new());
        for ((id, turn, tokens, _), samples) in turns.into_iter().zip(samples) {
            let first = sampled.len();
            self.tell(id, turn, samples, (&mut sampled, &mut ended));
            metrics::speculated(tokens.len() - 1, (sampled.len() - first).saturating_sub(1));
        }
        (sampled, ended)
    }

    /// Tells a turn its next tokens. Unless it is over, it stays.
    fn tell(
        &mut self,
        id: SequenceId,
        mut turn: Turn,
        samples: Vec<Result<Sample, Unsampled>>,
        (sampled, ended): (&mut Vec<Sampled>, &mut Vec<Ended>),
    ) {
        for sample in samples {
            let Sample { token, added, logprobs } = match sample {
                Ok(sample) => sample,
                Err(Unsampled::Logits(error @ NoLogits::Unusable)) => {
                    metrics::bad_logits();
                    // Its next attempt would find what made them.
                    self.scheduler.discard(id);
                    send(&turn.progress, Progress::Failed(error.to_string()));
                    return;
                }
                // Every attempt would come to this.
                Err(error @ (Unsampled::Logits(NoLogits::NothingAllowed) | Unsampled::Stuck(_))) => {
                    self.scheduler.remove(id);
                    send(&turn.progress, Progress::Refused(error.to_string()));
                    return;
                }
            };
            let now = self.surroundings.now();
            if let Some(last) = turn.last_token.replace(now) {
                metrics::inter_token(now - last);
            }
            let finished = added.finish.is_some();
            sampled.push(Sampled { id, token, finished });
            let token = MadeToken { id: token, at: now, pieces: added.pieces, logprobs, finished: None };
            if finished {
                ended.push(Ended { id, turn, token });
                return;
            }
            send(&turn.progress, Progress::Token(token));
        }
        self.turns.insert(id, turn);
    }

    fn fail(&mut self, id: SequenceId, reason: &str) {
        if let Some(turn) = self.turns.remove(&id) {
            send(&turn.progress, Progress::Failed(reason.to_owned()));
        }
    }

    fn drop_turn(&mut self, id: SequenceId, keep: bool) {
        self.waits = false;
        let (left, turn) = (self.scheduler.remove(id), self.turns.remove(&id));
        let (Some(Left { chain, .. }), Some(turn)) = (left, turn) else { return };
        if keep {
            // Before the runner gets the tokens, and asks the store for their segments.
            self.offer_all(&turn, &chain, chain.len(), Wanted::Checkpoint);
        }
        send(&turn.progress, Progress::Stopped(chain));
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
