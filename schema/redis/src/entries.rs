//! Entries of streams that the whole queue shares. Anybody may write there by mistake, and so may a newer version: an entry
//! that cannot be read is told apart, and never an error.

use redis::FromRedisValue;
use redis::streams::{StreamId as RawEntry, StreamRangeReply};
use turnmill_schema::StreamId;

use crate::fault::Fault;
use crate::server::Server;

/// An entry of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<T> {
    /// Where it stands; the first half is when it was made, in Unix milliseconds by the server's clock.
    pub id: StreamId,
    /// What is in it.
    pub found: Found<T>,
}

/// What is in an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Found<T> {
    /// What belongs there.
    Ours(T),
    /// Nothing but its id: it was trimmed after it had been delivered.
    Trimmed,
    /// Somebody else's, or another version's; why it cannot be read.
    Foreign(String),
}

impl<T> Entry<T> {
    /// Reads raw entries; `read` says why one is foreign.
    pub(crate) fn read_all(raw: Vec<RawEntry>, read: impl Fn(&Fields<'_>) -> Result<T, String>) -> Vec<Self> {
        let entry = |raw: RawEntry| {
            let found = match read(&Fields(&raw)) {
                _ if raw.map.is_empty() => Found::Trimmed,
                Ok(record) => Found::Ours(record),
                Err(reason) => Found::Foreign(reason),
            };
            // Redis accepts no other ids.
            Some(Self { id: raw.id.parse().ok()?, found })
        };
        raw.into_iter().filter_map(entry).collect()
    }
}

/// The fields of an entry.
pub(crate) struct Fields<'a>(&'a RawEntry);

impl Fields<'_> {
    /// A field that must be there.
    pub(crate) fn get<T: FromRedisValue>(&self, name: &str) -> Result<T, String> {
        self.0.get(name).ok_or_else(|| format!("it has no {name}"))
    }
}

/// Which end of a stream to read from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// The oldest entries first.
    Oldest,
    /// The newest entries first.
    Newest,
}

impl Server {
    /// Entries of a stream after `after`, at most `count`.
    pub(crate) async fn entries(
        &self,
        step: &'static str,
        key: String,
        (side, after): (Side, StreamId),
        count: usize,
    ) -> Result<Vec<RawEntry>, Fault> {
        let (command, after) = match side {
            Side::Oldest => ("XRANGE", [format!("({after}"), "+".to_owned()]),
            Side::Newest => ("XREVRANGE", ["+".to_owned(), format!("({after}")]),
        };
        let mut range = redis::cmd(command);
        range.arg(key).arg(&after).arg("COUNT").arg(count);
        Ok(self.ask::<StreamRangeReply>(step, &range).await?.ids)
    }
}
