//! Dead letters, as the stream of them shows them.

use turnmill_schema::keys::{FIELD_AGENT, Keys};
use turnmill_schema::{AgentId, StreamId, TurnId};

use crate::entries::{Entry, Fields, Side};
use crate::fault::Fault;
use crate::server::Server;

/// What errors call this.
const STEP: &str = "reading dead letters";

/// A dead letter. The id of its entry says when the turn failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadRecord {
    /// The turn that failed.
    pub turn: TurnId,
    /// Whose it is.
    pub agent: AgentId,
    /// Why it is here, in one word.
    pub reason: String,
    /// Leases that counted as attempts.
    pub attempts: u64,
}

impl Server {
    /// Dead letters after `after`, oldest first, at most `count`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn dead_letters(
        &self,
        keys: &Keys,
        after: StreamId,
        count: usize,
    ) -> Result<Vec<Entry<DeadRecord>>, Fault> {
        let found = self.entries(STEP, keys.dead(), (Side::Oldest, after), count).await?;
        Ok(Entry::read_all(found, read_letter))
    }

    /// The newest dead letters, newest first, at most `count`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn newest_dead_letters(
        &self,
        keys: &Keys,
        count: usize,
    ) -> Result<Vec<Entry<DeadRecord>>, Fault> {
        let found = self.entries(STEP, keys.dead(), (Side::Newest, StreamId::START), count).await?;
        Ok(Entry::read_all(found, read_letter))
    }
}

fn read_letter(fields: &Fields<'_>) -> Result<DeadRecord, String> {
    let turn = fields.get::<String>("turn")?.parse().map_err(|error| format!("{error}"))?;
    let agent = AgentId::from_wire(fields.get(FIELD_AGENT)?);
    Ok(DeadRecord {
        turn,
        agent,
        reason: fields.get("reason")?,
        attempts: fields.get("attempts").unwrap_or(0),
    })
}
