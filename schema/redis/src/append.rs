//! Publishing tokens: one XADD for each delta, with an explicit id `<epoch>-<tokens published with it>`.
//!
//! No script: this is the commonest write. Redis refuses ids at or below a stream's top, so the next attempt's Begin fences
//! an older worker for free, and the top id is the point to resume from.

use redis::Value;
use turnmill_schema::TurnId;
use turnmill_schema::keys::{FIELD_AT, FIELD_EVENT, Keys};

use crate::call::Step;
use crate::fault::{Fault, Meaning, meaning};
use crate::link::Link;
use crate::server::Server;
use crate::steps::AppendAnyway;

/// The way on which appends go. What was known of a stream on one way need not hold on the next: the server may have lost its
/// last second in between.
#[derive(Clone)]
pub struct AppendLink(Link);

impl AppendLink {
    /// Unlike that of any other connection of this process.
    pub fn generation(&self) -> u64 {
        self.0.generation
    }
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is the stream's newest entry.
    Landed,
    /// Its id is not above the stream's top.
    Refused,
    /// There is no stream: the turn ended long ago, or somebody deleted it.
    NoStream,
}

/// The top of a result stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Top {
    /// The epoch that wrote it.
    pub epoch: u64,
    /// Tokens published by then.
    pub published: u32,
}

impl Server {
    /// The way for the next append.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn append_link(&self) -> Result<AppendLink, Fault> {
        self.shared_link().await.map(AppendLink)
    }

    /// Publishes an event under the id `<epoch>-<published>`. A full Redis refuses XADD, and takes a script that may go over
    /// its limit.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn append(
        &self,
        link: &AppendLink,
        keys: &Keys,
        turn: TurnId,
        (epoch, published): (u64, u32),
        event: &[u8],
    ) -> Result<Appended, Fault> {
        let (id, at_ms) = (format!("{epoch}-{published}"), self.clock().now_ms());
        let mut add = redis::cmd("XADD");
        add.arg(keys.result(turn)).arg("NOMKSTREAM").arg(&id);
        add.arg(FIELD_EVENT).arg(event).arg(FIELD_AT).arg(at_ms);
        let connection = &mut link.0.connection.clone();
        let mut added = add.query_async::<Value>(connection).await;
        if added.as_ref().is_err_and(|error| meaning(error.code().unwrap_or_default()) == Meaning::Full) {
            let anyway = AppendAnyway { turn, id, event, at_ms };
            added =
                self.invoke(AppendAnyway::NAME, AppendAnyway::SCRIPT, &anyway.call(keys), connection).await;
        }
        match added {
            Ok(Value::Nil) => Ok(Appended::NoStream),
            Ok(_) => Ok(Appended::Landed),
            Err(error) if error.to_string().contains("equal or smaller") => Ok(Appended::Refused),
            Err(error) => Err(self.shared_fault(&link.0, AppendAnyway::NAME, &error).await),
        }
    }

    /// The top of a turn's result stream; none if there is no stream, or it holds somebody else's entries.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn result_top(
        &self,
        link: &AppendLink,
        keys: &Keys,
        turn: TurnId,
    ) -> Result<Option<Top>, Fault> {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(keys.result(turn)).arg("+").arg("-").arg("COUNT").arg(1);
        let entries = last.query_async::<Vec<(String, Value)>>(&mut link.0.connection.clone()).await;
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return Err(self.shared_fault(&link.0, AppendAnyway::NAME, &error).await),
        };
        Ok(entries.first().and_then(|(id, _)| {
            let (epoch, published) = id.split_once('-')?;
            Some(Top { epoch: epoch.parse().ok()?, published: published.parse().ok()? })
        }))
    }
}

impl std::fmt::Debug for AppendLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppendLink").field("generation", &self.0.generation).finish()
    }
}
