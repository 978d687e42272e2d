//! What is kept of agents' K and V: a manifest leads through whole segments to the agent's first token, and every object is
//! a whole segment under its own name.
//!
//! Nothing removes objects during a run, so whatever a manifest names has to be there. A manifest may be older than the
//! agent's history, or of a lease that was lost meanwhile: it is a hint, and what it names was stored all the same.

use turnmill_schema::{AgentId, Digest, Manifest};

use super::{Finding, Violation};
use crate::chaos::kept::{Kept, KeptSegment};
use crate::chaos::stored::Stored;

/// What is wrong with manifests and objects: at most one finding an agent, and one an object.
pub(super) fn check(stored: &Stored, kept: &Kept) -> Vec<Finding> {
    let of_agents = stored.agents.iter().filter_map(|(agent, found)| {
        let detail = broken(agent, found.manifest.as_ref()?, kept)?;
        Some(Finding::new(Violation::Manifest, agent, detail))
    });
    let of_objects = kept.objects.iter().filter_map(|(path, object)| {
        let detail = match object {
            Ok(segment) if kept.path(&segment.start.namespace, &segment.start.hash) == *path => return None,
            Ok(segment) => format!("it is the segment {} of {}", segment.start.hash, segment.start.namespace),
            Err(damage) => damage.clone(),
        };
        Some(Finding::new(Violation::Manifest, path, detail))
    });
    of_agents.chain(of_objects).collect()
}

fn broken(agent: &AgentId, manifest: &Manifest, kept: &Kept) -> Option<String> {
    if agent.is_lone() {
        return Some("a turn that stands alone left a manifest".to_owned());
    }
    walk(manifest, kept).err()
}

/// From the last segment to the first one. It ends: each segment begins before the one after it.
fn walk(manifest: &Manifest, kept: &Kept) -> Result<(), String> {
    let (mut hash, mut end) = (manifest.last, manifest.tokens as usize);
    loop {
        let segment = find(kept, &manifest.namespace, &hash)?;
        let tokens = &segment.tokens;
        if tokens.is_empty() || tokens.end != end {
            return Err(format!("the segment {hash} has tokens {tokens:?} and should end before {end}"));
        }
        end = tokens.start;
        match segment.start.parent {
            Some(parent) => hash = parent,
            None if end == 0 => return Ok(()),
            None => {
                return Err(format!("the segment {hash} begins with token {end} and names none before it"));
            }
        }
    }
}

fn find<'a>(kept: &'a Kept, namespace: &Digest, hash: &Digest) -> Result<&'a KeptSegment, String> {
    let path = kept.path(namespace, hash);
    match kept.objects.get(&path) {
        None => Err(format!("{path} is missing")),
        Some(Err(damage)) => Err(format!("{path}: {damage}")),
        Some(Ok(segment)) if (&segment.start.namespace, &segment.start.hash) != (namespace, hash) => {
            Err(format!("{path} is the segment {} of {}", segment.start.hash, segment.start.namespace))
        }
        Some(Ok(segment)) => Ok(segment),
    }
}
