//! `turnmill events`: turns as they end.

use std::io::{Write, stdout};

use clap::Args;
use turnmill_client::events::{EndedTurn, EventsQuery, Membership};
use turnmill_client::schema::{END_OF_TIME_MS, Name};
use turnmill_client::{InvalidStreamId, StreamId};

use super::Tenants;
use crate::cli::Global;
use crate::exit::Exit;
use crate::print::json_line;
use crate::text::{agent_id, for_stdout};

const AFTER_HELP: &str = "\
Redis keeps about the newest ten thousand ends. In a consumer group one of the consumers prints each end and
acknowledges it afterwards; if it was cut off in between, the end is printed again. Give each consumer a name
that stays: it first gets the ends that were delivered to it before. If a consumer does not acknowledge an end
for a minute, another one that reads gets it; if the first one was only slow, both print it. A consumer that
has nothing to acknowledge and has not read for a day is taken off the group's list.

A group belongs to --tenant: another tenant's group of the same name is another group. With --all-tenants, so
is the group of that name.";

/// Unix seconds, until the year 5138, are below this number. Milliseconds were below it until 1973, when there was no Redis.
const FIRST_MS: u64 = 100_000_000_000;

/// Follows until it is interrupted or `--count` is reached.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Events {
    #[command(flatten)]
    tenants: Tenants,
    /// Read as a consumer of this group, which is made if it does not exist.
    #[arg(long, value_name = "NAME", requires = "consumer", allow_hyphen_values = true)]
    group: Option<Name>,
    /// The name of this consumer in the group.
    #[arg(long, value_name = "NAME", requires = "group", allow_hyphen_values = true)]
    consumer: Option<Name>,
    /// Start after this entry, or after this time in Unix milliseconds; 0 is the oldest end that is kept. A group that
    /// exists goes on from its own place instead [default: now].
    #[arg(long, value_name = "ID", value_parser = place)]
    from: Option<StreamId>,
    /// Stop after N ends. No further end is read, so the group's other consumers get the rest.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Events {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let client = global.connect().await?;
        let membership = self
            .group
            .clone()
            .zip(self.consumer.clone())
            .map(|(group, consumer)| Membership { group, consumer });
        let query =
            EventsQuery { scope: self.tenants.scope(), membership, from: self.from, count: self.count };
        let mut events = client.events(query);
        while let Some(ended) = events.next().await? {
            self.print(&ended)?;
            events.acknowledge(ended.id).await?;
        }
        Ok(())
    }

    fn print(&self, ended: &EndedTurn) -> Result<(), Exit> {
        if self.json {
            return json_line(ended);
        }
        let agent = agent_id(&ended.tenant, ended.agent.as_ref());
        let error = ended.end.error.as_ref().map(|error| format!(" {error}")).unwrap_or_default();
        let outcome = ended.end.outcome.as_str();
        let line = format!("{} {} {agent} {outcome}{error}", ended.id, ended.turn);
        writeln!(stdout(), "{}", for_stdout(&line))?;
        Ok(stdout().flush()?)
    }
}

/// An entry of the stream of events, whose id begins with when it was made. A time in another unit would start at the oldest
/// end, or after every end that ever comes.
fn place(text: &str) -> Result<StreamId, String> {
    let id: StreamId = text.parse().map_err(|error: InvalidStreamId| error.to_string())?;
    match id.epoch {
        0 | FIRST_MS..END_OF_TIME_MS => Ok(id),
        _ => Err(format!(
            "{text} is no time in Unix milliseconds; give an id as events prints it, milliseconds as in 1700000000000, or 0 \
             for the oldest that is kept"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From 1980 to the end of time, in seconds.
    const SECONDS: std::ops::Range<u64> = 315_532_800..END_OF_TIME_MS / 1000;

    proptest! {
        #[test]
        fn a_time_is_taken_in_milliseconds_and_in_no_other_unit(seconds in SECONDS, sequence in 0_u64..1000) {
            for (unit, is_taken) in [(1, false), (1000, true), (1_000_000, false)] {
                for text in [format!("{}", seconds * unit), format!("{}-{sequence}", seconds * unit)] {
                    let read = place(&text);
                    prop_assert_eq!(read.is_ok(), is_taken, "{}", text);
                    prop_assert!(read.map_or_else(|why| why.contains(&text), |id| id.epoch == seconds * unit));
                }
            }
        }
    }

    #[test]
    fn zero_is_the_oldest_that_is_kept() {
        assert_eq!(place("0"), Ok(StreamId::START));
        assert!(place("now").is_err_and(|why| why.contains("not a stream id")));
    }
}
