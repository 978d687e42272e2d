//! The same words as undisturbed: in the result, in the transcript, and to those who read along.

use turnmill_schema::{AgentId, TranscriptEntry, TurnId};

use super::{Finding, Undisturbed, Violation};
use crate::chaos::ledger::{Acknowledged, Words};
use crate::chaos::stored::{Stored, StoredTurn};

/// Turns that say something else than undisturbed: at most one finding each.
pub(super) fn check(ledger: &[Acknowledged], stored: &Stored, undisturbed: &Undisturbed) -> Vec<Finding> {
    let differs = |(known, there): (&Acknowledged, &TurnId)| {
        // A turn that is gone is lost, and found elsewhere.
        let here = stored.turns.get(&known.turn)?;
        let detail = difference(known, here, stored, *there, &undisturbed.stored)?;
        Some(Finding::new(Violation::Diverged, known.turn, detail))
    };
    ledger.iter().zip(&undisturbed.turns).filter_map(differs).collect()
}

fn difference(
    known: &Acknowledged,
    here: &StoredTurn,
    stored: &Stored,
    there: TurnId,
    undisturbed: &Stored,
) -> Option<String> {
    let Some(reference) = undisturbed.turns.get(&there) else {
        return Some(format!("the undisturbed run has no turn {there}"));
    };
    let (words, expected) = (here.words(), reference.words());
    if words != expected {
        return Some(first_difference(&words, &expected));
    }
    let ending = |turn: &StoredTurn| turn.end().map(|(_, end)| (end.outcome, end.finish));
    if ending(here) != ending(reference) {
        return Some(format!("it ended {:?}, undisturbed {:?}", ending(here), ending(reference)));
    }
    if known.told.as_ref().is_some_and(|told| *told != words) {
        return Some("its reader saw other words than its result stream has".to_owned());
    }
    // A turn that stands alone has no transcript, here or there.
    let said = |stored: &Stored, agent: &AgentId, turn| {
        let transcript = &stored.agents.get(agent)?.transcript;
        let entry = transcript.iter().find(|entry| entry.turn == turn)?;
        let TranscriptEntry { messages, keep, tokens, .. } = entry.clone();
        Some((messages, keep, tokens))
    };
    let differs = said(stored, &known.agent, known.turn) != said(undisturbed, &known.agent, there);
    differs.then(|| "its transcript entry is not that of the undisturbed run".to_owned())
}

fn first_difference(words: &Words, expected: &Words) -> String {
    let same = words.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
    let (made, wanted) = (words.tokens.len(), expected.tokens.len());
    if same == made && same == wanted {
        return format!(
            "the same {same} tokens, but the text {:?}, undisturbed {:?}",
            words.text, expected.text
        );
    }
    format!("{made} tokens, undisturbed {wanted}; token {same} is the first that differs")
}
