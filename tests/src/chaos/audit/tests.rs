//! Hand-made histories: one that keeps every promise, and the same with one thing wrong each.

use std::ops::Range;

use turnmill_client::NewTurn;
use turnmill_schema::kv_object::HeaderStart;
use turnmill_schema::{
    AgentName, Begin, Delta, Digest, End, Event, FinishReason, Manifest, Message, Outcome, Role, TenantName,
    Timing, TranscriptEntry, Usage,
};

use super::*;
use crate::chaos::kept::KeptSegment;
use crate::chaos::ledger::Words;
use crate::chaos::stored::{Entry, StoredAgent, StoredTurn};

/// A run of three turns: two of one agent, of which the first was resumed, and one that stands alone. Of the agent two
/// segments are stored, and one that its manifest does not know.
struct Run {
    ledger: Vec<Acknowledged>,
    stored: Stored,
    kept: Kept,
    undisturbed: Undisturbed,
}

impl Run {
    fn sound() -> Self {
        let tenant = TenantName::new("t").expect("a name");
        let agent = || NewTurn::user("hi").agent(AgentName::new("a").expect("a name"));
        let ledger: Vec<Acknowledged> = [agent(), agent(), NewTurn::user("hi")]
            .map(|request| Acknowledged::new(&tenant, TurnId::new(0), request))
            .into();
        let ids: Vec<TurnId> = ledger.iter().map(|known| known.turn).collect();
        let resumed = vec![
            begin(10, 0, "w1-1:x"),
            delta(10, 0, &[1, 2]),
            begin(20, 2, "w2-1:y"),
            delta(20, 2, &[3]),
            end(21, 3, "w2-1"),
        ];
        let stored = queue(&ledger, [resumed, plain(30), plain(12)]);
        let turns = vec![TurnId::new(0), TurnId::new(0), TurnId::new(0)];
        let mut there = queue(&ledger, [plain(5), plain(7), plain(5)]);
        rename(&mut there, &ids, &turns);
        let kept = Kept { queue: tenant.into(), objects: BTreeMap::new() };
        let mut run = Self { ledger, stored, kept, undisturbed: Undisturbed { turns, stored: there } };
        for kept in [
            kept_segment(None, 1, 0..256),
            kept_segment(Some(1), 2, 256..272),
            kept_segment(Some(2), 3, 272..288),
        ] {
            run.keep(kept.start.hash, Ok(kept));
        }
        run.agent().manifest = Some(manifest());
        run
    }

    /// Puts an object where the segment `hash` has to be.
    fn keep(&mut self, hash: Digest, object: Result<KeptSegment, String>) {
        self.kept.objects.insert(self.kept.path(&NAMESPACE, &hash), object);
    }

    /// Removes that object.
    fn lose(&mut self, hash: u8) {
        let lost = self.kept.objects.remove(&self.kept.path(&NAMESPACE, &Digest([hash; 32])));
        lost.expect("it was kept").expect("it was whole");
    }

    fn id(&self, place: usize) -> TurnId {
        self.ledger[place].turn
    }

    fn turn(&mut self, place: usize) -> &mut StoredTurn {
        let id = self.id(place);
        self.stored.turns.get_mut(&id).expect("it was made with the ledger")
    }

    fn entries(&mut self, place: usize) -> &mut Vec<Entry> {
        &mut self.turn(place).entries
    }

    fn agent(&mut self) -> &mut StoredAgent {
        self.stored.agents.get_mut(&self.ledger[0].agent).expect("it was made with the ledger")
    }

    fn findings(&self) -> Vec<Finding> {
        audit(&self.ledger, &self.stored, &self.kept, &self.undisturbed)
    }
}

const NAMESPACE: Digest = Digest([9; 32]);

/// A segment whose name and whose parent's name are one byte each, many times.
fn kept_segment(parent: Option<u8>, hash: u8, tokens: Range<usize>) -> KeptSegment {
    let parent = parent.map(|parent| Digest([parent; 32]));
    KeptSegment {
        start: HeaderStart { flags: 0, namespace: NAMESPACE, parent, hash: Digest([hash; 32]) },
        tokens,
    }
}

fn manifest() -> Manifest {
    Manifest { namespace: NAMESPACE, tokens: 272, shared_tokens: 0, last: Digest([2; 32]) }
}

fn entry(epoch: u64, event: Event) -> Entry {
    Entry { epoch, event }
}

fn begin(epoch: u64, resume_from: u32, worker: &str) -> Entry {
    entry(epoch, Event::Begin(Begin { epoch, resume_from, attempt: 1, worker: worker.into() }))
}

fn delta(epoch: u64, index: u32, tokens: &[u32]) -> Entry {
    let mut delta = Delta { index, ..Delta::default() };
    tokens.iter().for_each(|token| delta.push(*token, &format!("{token} "), None));
    entry(epoch, Event::Delta(delta))
}

fn end(epoch: u64, tokens: u32, worker: &str) -> Entry {
    let usage = Usage { completion_tokens: tokens, ..Usage::default() };
    entry(
        epoch,
        Event::End(End {
            outcome: Outcome::Completed,
            finish: Some(FinishReason::Length),
            stop: None,
            error: None,
            usage,
            timing: Timing::default(),
            worker: Some(worker.into()),
        }),
    )
}

/// One attempt from `epoch` on, with the tokens that every turn here has.
fn plain(epoch: u64) -> Vec<Entry> {
    vec![begin(epoch, 0, "w1-1:x"), delta(epoch, 0, &[1, 2, 3]), end(epoch + 1, 3, "w1-1")]
}

fn queue(ledger: &[Acknowledged], streams: [Vec<Entry>; 3]) -> Stored {
    let mut stored = Stored::default();
    for (known, entries) in ledger.iter().zip(streams) {
        let (state, outcome) = (Some("ended".into()), Some("completed".into()));
        stored.turns.insert(known.turn, StoredTurn { state, outcome, entries });
        if !known.agent.is_lone() {
            let agent = stored.agents.entry(known.agent.clone()).or_default();
            agent.state = Some("idle".into());
            agent.transcript.push(said(known.turn));
        }
    }
    stored
}

fn said(turn: TurnId) -> TranscriptEntry {
    TranscriptEntry {
        turn,
        messages: vec![Message::new(Role::Assistant, "1 2 3 ")],
        keep: 0,
        tokens: vec![1],
        rendering: None,
    }
}

fn rename(stored: &mut Stored, from: &[TurnId], to: &[TurnId]) {
    let new = |turn: TurnId| from.iter().zip(to).find(|(old, _)| **old == turn).map_or(turn, |(_, new)| *new);
    stored.turns = std::mem::take(&mut stored.turns).into_iter().map(|(turn, s)| (new(turn), s)).collect();
    for entry in stored.agents.values_mut().flat_map(|agent| &mut agent.transcript) {
        entry.turn = new(entry.turn);
    }
}

/// Changes a sound run, and expects just these findings, each of the turn at its place in the ledger or of something
/// that has no turn.
#[track_caller]
fn expect(change: impl FnOnce(&mut Run), expected: &[(Violation, Option<usize>)]) {
    let mut run = Run::sound();
    change(&mut run);
    let found = run.findings();
    let place = |finding: &Finding| (0..3).find(|place| run.id(*place).to_string() == finding.subject);
    let mut told: Vec<_> = found.iter().map(|finding| (finding.violation, place(finding))).collect();
    told.sort_unstable();
    assert_eq!(told, expected, "{found:#?}");
}

use Violation::{Diverged, Duplicated, Lost, Manifest as Broken, OutOfOrder, PostFence};

#[test]
fn a_sound_run_has_no_findings_and_one_resumed_turn() {
    let run = Run::sound();
    assert_eq!(run.findings(), []);
    assert_eq!((resumed(&run.ledger, &run.stored), resumed(&run.ledger, &run.undisturbed.stored)), (1, 0));
}

#[test]
fn lost_is_a_turn_without_an_end_without_tokens_or_without_keys() {
    let no_end = |run: &mut Run| {
        run.entries(2).pop();
        run.turn(2).state = Some("leased".into());
    };
    expect(no_end, &[(Lost, Some(2)), (Diverged, Some(2))]);
    let gone = |run: &mut Run| drop(run.stored.turns.remove(&run.ledger[2].turn));
    expect(gone, &[(Lost, Some(2))]);
    expect(|run| run.turn(2).state = None, &[(Lost, Some(2))]);
    expect(|run| drop(run.agent().transcript.pop()), &[(Lost, Some(1)), (Diverged, Some(1))]);

    let gap = |run: &mut Run| {
        let entries = run.entries(2);
        entries[1] = delta(12, 0, &[1]);
        entries.insert(2, delta(12, 2, &[3]));
    };
    expect(gap, &[(Lost, Some(2)), (Lost, Some(2)), (Diverged, Some(2))]);
    expect(|run| run.entries(0)[2] = begin(20, 3, "w2-1:y"), &[(Lost, Some(0))]);
    expect(|run| run.entries(2)[2] = end(13, 4, "w1-1"), &[(Lost, Some(2))]);
}

#[test]
fn duplicated_is_a_second_end_token_transcript_entry_or_turn() {
    expect(|run| run.entries(2).push(end(14, 3, "w1-1")), &[(Duplicated, Some(2))]);
    // The same again is what a repeated append of other extent may leave; another token is not.
    expect(|run| run.entries(2).insert(2, delta(12, 1, &[2, 3])), &[]);
    expect(|run| run.entries(2).insert(2, delta(12, 1, &[2, 4])), &[(Duplicated, Some(2))]);
    expect(|run| run.entries(0)[2] = begin(20, 1, "w2-1:y"), &[(Duplicated, Some(0))]);
    let twice = |run: &mut Run| {
        let again = run.agent().transcript[1].clone();
        run.agent().transcript.push(again);
    };
    expect(twice, &[(Duplicated, Some(1))]);
    let second = |run: &mut Run| {
        let copy = run.turn(2).clone();
        run.stored.turns.insert(TurnId::new(0), copy);
    };
    expect(second, &[(Duplicated, None)]);
}

#[test]
fn out_of_order_is_a_turn_that_began_before_the_one_before_ended() {
    // At once with the first turn, which ends at 21; and before it.
    expect(|run| *run.entries(1) = plain(15), &[(OutOfOrder, Some(1))]);
    expect(|run| *run.entries(1) = plain(21), &[(OutOfOrder, Some(1))]);
    expect(|run| *run.entries(1) = plain(22), &[]);
    expect(|run| *run.entries(1) = plain(2), &[(OutOfOrder, Some(1))]);
    expect(|run| run.agent().transcript.reverse(), &[(OutOfOrder, None)]);
}

#[test]
fn diverged_is_any_other_token_text_ending_or_history() {
    expect(|run| run.entries(2)[1] = delta(12, 0, &[1, 2, 4]), &[(Diverged, Some(2))]);
    let text = |run: &mut Run| {
        let Event::Delta(delta) = &mut run.entries(0)[3].event else { panic!("a delta") };
        delta.text.push('!');
    };
    expect(text, &[(Diverged, Some(0))]);
    let ending = |run: &mut Run| {
        let Event::End(end) = &mut run.entries(2)[2].event else { panic!("an End") };
        end.finish = Some(FinishReason::Stop);
    };
    expect(ending, &[(Diverged, Some(2))]);
    let reader = |run: &mut Run| run.ledger[1].told = Some(Words { tokens: vec![1], text: "1 ".into() });
    expect(reader, &[(Diverged, Some(1))]);
    expect(|run| run.agent().transcript[1].keep = 7, &[(Diverged, Some(1))]);
    expect(|run| run.undisturbed.stored.turns.clear(), &[0, 1, 2].map(|place| (Diverged, Some(place))));
}

#[test]
fn post_fence_is_whatever_a_worker_writes_that_lost_the_turn() {
    // The first worker goes on after the second one's Begin.
    let zombie = |run: &mut Run| run.entries(0).insert(3, delta(10, 2, &[3]));
    expect(zombie, &[(PostFence, Some(0))]);
    expect(|run| run.entries(0)[2] = begin(10, 2, "w2-1:y"), &[(PostFence, Some(0)), (PostFence, Some(0))]);
    expect(|run| run.entries(0)[0].epoch = 11, &[(PostFence, Some(0))]);
    expect(|run| drop(run.entries(2).remove(0)), &[(PostFence, Some(2))]);
    expect(|run| run.entries(0)[4] = end(21, 3, "w1-1"), &[(PostFence, Some(0))]);
    expect(|run| run.entries(0)[4] = end(21, 3, "w2"), &[(PostFence, Some(0))]);
    expect(|run| run.entries(0)[4] = end(19, 3, "w2-1"), &[(PostFence, Some(0))]);
    for late in [begin(40, 3, "w1-1:x"), delta(40, 3, &[4])] {
        expect(|run| run.entries(2).push(late), &[(PostFence, Some(2))]);
    }
}

#[test]
fn post_fence_is_also_what_contradicts_the_end() {
    expect(|run| run.turn(2).state = Some("leased".into()), &[(PostFence, Some(2))]);
    expect(|run| run.turn(2).outcome = Some("failed".into()), &[(PostFence, Some(2))]);
    // Committed, and ended otherwise.
    let failed = |run: &mut Run| {
        run.turn(0).outcome = Some("failed".into());
        let Event::End(end) = &mut run.entries(0)[4].event else { panic!("an End") };
        (end.outcome, end.finish) = (Outcome::Failed, None);
    };
    expect(failed, &[(Diverged, Some(0)), (PostFence, Some(0))]);
    let lone = |run: &mut Run| {
        let agent = run.ledger[2].agent.clone();
        run.stored.agents.insert(agent, StoredAgent::default());
    };
    expect(lone, &[(PostFence, None)]);
    let unknown = |run: &mut Run| {
        let agent = AgentId::from_wire("t/z".into());
        run.stored.agents.insert(agent, StoredAgent::default());
    };
    expect(unknown, &[(PostFence, None)]);
    let changes: [fn(&mut StoredAgent); 4] = [
        |agent| agent.state = Some("leased".into()),
        |agent| agent.owner = Some("w1-1:x".into()),
        |agent| agent.ticket = Some("1-1".into()),
        |agent| agent.backlog = 1,
    ];
    for change in changes {
        expect(|run| change(run.agent()), &[(PostFence, None)]);
    }
}

#[test]
fn a_manifest_is_sound_whatever_else_is_kept_and_one_may_be_missing() {
    expect(|run| run.lose(3), &[]);
    expect(|run| run.agent().manifest = None, &[]);
    let older = |run: &mut Run| {
        run.agent().manifest = Some(Manifest { tokens: 256, last: Digest([1; 32]), ..manifest() });
    };
    expect(older, &[]);
}

#[test]
fn a_manifest_is_broken_that_names_what_is_not_there() {
    expect(|run| run.lose(1), &[(Broken, None)]);
    expect(|run| run.lose(2), &[(Broken, None)]);
    let changes: [fn(&mut Manifest); 4] = [
        |manifest| manifest.last = Digest([8; 32]),
        |manifest| manifest.namespace = Digest([8; 32]),
        |manifest| manifest.tokens = 256,
        |manifest| manifest.tokens = 288,
    ];
    for change in changes {
        expect(|run| change(run.agent().manifest.as_mut().expect("it has one")), &[(Broken, None)]);
    }
    let lone = |run: &mut Run| {
        let agent = run.ledger[2].agent.clone();
        run.stored.agents.insert(agent, StoredAgent { manifest: Some(manifest()), ..StoredAgent::default() });
    };
    expect(lone, &[(PostFence, None), (Broken, None)]);
}

#[test]
fn a_manifest_is_broken_whose_segments_do_not_lead_to_the_first_token() {
    let chains = [
        // The first one begins late; a gap; an overlap; a segment without tokens, which names itself.
        kept_segment(None, 2, 256..272),
        kept_segment(Some(1), 2, 257..272),
        kept_segment(Some(1), 2, 240..272),
        kept_segment(Some(2), 2, 272..272),
        kept_segment(Some(3), 2, 256..272),
        kept_segment(Some(7), 2, 256..272),
        // There is nothing before the first token.
        kept_segment(Some(1), 2, 0..272),
    ];
    for chain in chains {
        expect(|run| run.keep(Digest([2; 32]), Ok(chain)), &[(Broken, None)]);
    }
}

#[test]
fn an_object_is_a_finding_that_is_damaged_or_another_segment_and_so_is_the_manifest_that_names_it() {
    for (hash, findings) in [(1, 2), (2, 2), (3, 1)] {
        let expected = vec![(Broken, None); findings];
        let name = Digest([hash; 32]);
        expect(|run| run.keep(name, Err("its bytes have changed".into())), &expected);
        let other = |run: &mut Run, change: fn(&mut HeaderStart)| {
            let mut kept = run.kept.objects[&run.kept.path(&NAMESPACE, &name)].clone();
            change(&mut kept.as_mut().expect("it is whole").start);
            run.keep(name, kept);
        };
        expect(|run| other(run, |start| start.namespace = Digest([8; 32])), &expected);
        expect(|run| other(run, |start| start.hash = Digest([8; 32])), &expected);
    }
    let elsewhere = |run: &mut Run| {
        run.kept.objects.insert("kv-damaged/t/x".into(), Ok(kept_segment(None, 1, 0..256)));
    };
    expect(elsewhere, &[(Broken, None)]);
}
