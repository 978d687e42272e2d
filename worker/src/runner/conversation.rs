//! A turn's tokens as the object store knows them: how they are cut into segments, and which segments may be there.
//!
//! Invariant: everything here is a hint. What is asked for is verified when it comes; what is not there is computed.

use std::sync::Arc;

use turnmill_schema::{Digest, Manifest, Message, Role};

use super::prepare::Prompting;
use crate::kv::{PrefixHash, Segment, SegmentGrid, SegmentId, TokenChain};
use crate::model::Rendering;

/// How a turn's tokens are cut into segments. The tokens are elsewhere, because their owner changes.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// How they are cut.
    pub grid: SegmentGrid,
    /// What the agent's manifest says, if it is about these tokens.
    pub manifest: Option<Manifest>,
}

/// What is known of a turn before it runs.
pub(super) struct Known<'a> {
    pub tenant: &'a str,
    /// All messages, from the agent's first one on.
    pub messages: &'a [Message],
    /// What else the template is given.
    pub rendering: Rendering<'a>,
    /// Prompt and published reply.
    pub chain: &'a TokenChain,
    pub manifest: Option<Manifest>,
    /// The agent has completed turns.
    pub has_history: bool,
    /// Earlier attempts computed some of it, and may have stored more than the manifest says.
    pub resumed: bool,
}

impl Conversation {
    /// How a turn's tokens are cut, and which of the segments may be stored, first to last.
    pub(super) fn new(prompting: &Prompting, known: &Known<'_>) -> (Self, Vec<Arc<Segment>>) {
        let chain = known.chain;
        let (namespace, block_tokens, hashes) = (chain.namespace(), chain.block_tokens(), chain.hashes());
        let of_this =
            |manifest: &Manifest| is_about(manifest, &namespace.as_bytes()[..], hashes, block_tokens);
        let manifest = known.manifest.filter(of_this);
        let shared_tokens = match &manifest {
            Some(manifest) => manifest.shared_tokens as usize,
            None => shared_tokens(prompting, known, chain.tokens()),
        };
        let shared_blocks = shared_tokens / block_tokens;
        let grid = SegmentGrid { namespace, tenant: known.tenant.into(), block_tokens, shared_blocks };
        let told =
            manifest.as_ref().map_or(shared_blocks, |manifest| manifest.tokens as usize / block_tokens);
        let hopeful = known.resumed || (known.has_history && manifest.is_none());
        let stored = stored(&grid, chain, told, hopeful);
        (Self { grid, manifest }, stored)
    }

    /// The names of the segments of the first `blocks` blocks of the turn's tokens, with the number of blocks up to each one's
    /// end.
    pub fn segments(&self, chain: &TokenChain, blocks: usize) -> Vec<(SegmentId, usize)> {
        let blocks = blocks.min(chain.hashes().len());
        let bounds = self.grid.bounds(blocks).into_iter();
        bounds.map(|segment| (self.grid.id(chain.hashes(), &segment), segment.end)).collect()
    }

    /// What to say of an agent of whom the segments up to `last`, whose end is block `blocks`, are stored.
    pub fn manifest_of(&self, last: &SegmentId, blocks: usize) -> Manifest {
        let tokens = |blocks: usize| u32::try_from(blocks * self.grid.block_tokens).unwrap_or(u32::MAX);
        Manifest {
            namespace: Digest(*last.namespace.as_bytes()),
            tokens: tokens(blocks),
            shared_tokens: tokens(self.grid.shared_blocks),
            last: Digest(last.last.0),
        }
    }
}

/// The segments of the first `told` blocks, and with `hopeful` the later ones that would be final.
fn stored(grid: &SegmentGrid, chain: &TokenChain, told: usize, hopeful: bool) -> Vec<Arc<Segment>> {
    let (tokens, hashes) = (chain.tokens(), chain.hashes());
    // The last token's block is computed in any case.
    let wanted = tokens.len().saturating_sub(1) / grid.block_tokens;
    let mut bounds = grid.bounds(told.min(hashes.len()));
    let end = bounds.last().map_or(0, |segment| segment.end);
    if hopeful {
        let later = grid.bounds(hashes.len()).into_iter();
        bounds.extend(later.filter(|segment| segment.end > end && grid.is_final(segment)));
    }
    bounds.retain(|segment| segment.start < wanted);
    bounds.iter().map(|segment| Arc::new(grid.segment(tokens, hashes, segment))).collect()
}

/// Whether the manifest's last block is one of these.
fn is_about(manifest: &Manifest, namespace: &[u8], hashes: &[PrefixHash], block_tokens: usize) -> bool {
    let blocks = manifest.tokens as usize / block_tokens;
    let last = blocks.checked_sub(1).and_then(|last| hashes.get(last));
    manifest.namespace.0 == namespace && last.is_some_and(|last| last.0 == manifest.last.0)
}

/// How many tokens at the start of the conversation are its system prompt's, whatever follows it.
fn shared_tokens(prompting: &Prompting, known: &Known<'_>, tokens: &[u32]) -> usize {
    let messages = known.messages;
    let system = messages.iter().take_while(|message| message.role == Role::System).count();
    if system == 0 {
        return 0;
    }
    // A template that takes no conversation without a user has no part that can be told apart.
    let Ok(rendered) = prompting.dialogue.render(&messages[..system], &known.rendering) else { return 0 };
    let Ok(alone) = prompting.tokenizer.encode(&rendered) else { return 0 };
    alone.iter().zip(tokens).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Identity, Namespace};

    const BLOCK: usize = 16;

    fn grid(shared_blocks: usize) -> SegmentGrid {
        let namespace = Namespace::new(&Identity::example());
        SegmentGrid { namespace, tenant: "t".into(), block_tokens: BLOCK, shared_blocks }
    }

    fn ends(shared: usize, tokens: usize, told: usize, hopeful: bool) -> Vec<usize> {
        let tokens: Vec<u32> = (0..tokens as u32).collect();
        let grid = grid(shared);
        let chain = TokenChain::new(grid.namespace, BLOCK, tokens);
        let segments = stored(&grid, &chain, told, hopeful);
        segments.iter().map(|segment| segment.first_block + segment.tokens.len() / BLOCK).collect()
    }

    #[test]
    fn what_the_manifest_says_is_asked_for_and_no_more() {
        assert_eq!(ends(3, 16 * 40, 25, false), [3, 19, 25]);
        assert!(ends(0, 16 * 40, 0, false).is_empty());
    }

    #[test]
    fn a_resumed_turn_asks_for_later_final_segments_too() {
        assert_eq!(ends(3, 16 * 60, 25, true), [3, 19, 25, 35, 51]);
        assert_eq!(ends(3, 16 * 60, 19, true), [3, 19, 35, 51]);
        assert_eq!(ends(3, 16 * 60, 0, true), [3, 19, 35, 51]);
    }

    #[test]
    fn the_last_tokens_block_alone_is_not_asked_for() {
        assert_eq!(ends(0, 256, 16, false), [16]);
        assert_eq!(ends(3, 48, 3, false), [3]);
        assert!(ends(0, 16, 1, false).is_empty());
    }

    #[test]
    fn a_manifest_of_other_tokens_or_another_namespace_is_no_hint() {
        let tokens: Vec<u32> = (0..64).collect();
        let namespace = Namespace::new(&Identity::example());
        let chain = TokenChain::new(namespace, BLOCK, tokens);
        let last = Digest(chain.hashes()[1].0);
        let manifest =
            Manifest { namespace: Digest(*namespace.as_bytes()), tokens: 32, shared_tokens: 0, last };
        let about =
            |manifest: Manifest| is_about(&manifest, &namespace.as_bytes()[..], chain.hashes(), BLOCK);
        assert!(about(manifest));
        assert!(!about(Manifest { tokens: 48, ..manifest }));
        assert!(!about(Manifest { tokens: 0, ..manifest }));
        assert!(!about(Manifest { tokens: 16 * 99, ..manifest }));
        assert!(!about(Manifest { namespace: Digest([9; 32]), ..manifest }));
        assert!(!about(Manifest { last: Digest([9; 32]), ..manifest }));
    }
}
