//! Cancelling a turn.

use serde::Serialize;
use turnmill_redis::TurnPlace;
use turnmill_redis::steps::{Cancel, Unrun};
use turnmill_schema::{Outcome, TurnId};

use crate::client::Client;
use crate::error::ClientError;

/// What [`Client::cancel`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "status", content = "outcome")]
pub enum Cancelled {
    /// It is cancelled, now.
    Cancelled,
    /// It had ended before, in this way.
    Ended(Outcome),
}

impl Client {
    /// Cancels a turn, waiting or running. A running one has ended when this returns; its worker learns of it at once or
    /// with its next renewal. The object of a large turn is removed from this client's store.
    pub async fn cancel(&self, turn: TurnId) -> Result<Cancelled, ClientError> {
        let TurnPlace { agent, entry } = self.place_of(turn).await?;
        let objects = self.objects_of(&[turn]).await?;
        let (keys, limits) = (self.keys_of(turn), self.settings.unrun_limits());
        let cancel = [Cancel { agent, entry }];
        let mut answers = self.connection.ask(|server| server.run_items(&keys, &limits, &cancel)).await?;
        match answers.pop().transpose()? {
            Some(Unrun::Done) => {
                self.remove_objects(&objects).await;
                Ok(Cancelled::Cancelled)
            }
            Some(Unrun::Ended(outcome)) => Ok(Cancelled::Ended(self.outcome_named(turn, &outcome)?)),
            // Only an ending for a deadline can come too early.
            Some(Unrun::Unknown | Unrun::Early) | None => Err(self.unknown_turn(turn)),
        }
    }

    async fn place_of(&self, turn: TurnId) -> Result<TurnPlace, ClientError> {
        let keys = self.keys_of(turn);
        let found = self.connection.ask(|server| server.turn_place(&keys, turn)).await?;
        found.ok_or_else(|| self.unknown_turn(turn))
    }

    fn outcome_named(&self, turn: TurnId, name: &str) -> Result<Outcome, ClientError> {
        let all = Outcome::ALL;
        let found = all.into_iter().find(|outcome| outcome.as_str() == name);
        found.ok_or_else(|| ClientError::Unreadable {
            what: format!("the outcome of turn {turn}"),
            reason: format!("it is {name:?}"),
        })
    }
}
