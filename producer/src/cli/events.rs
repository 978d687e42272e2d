//! `turnmill events`: turns as they end.

use std::io::{Write, stdout};

use clap::Args;
use turnmill::StreamId;
use turnmill::operate::events::{EndedTurn, EventsQuery, Membership};
use turnmill::schema::Name;

use super::print::json_line;
use super::terminal::for_stdout;
use super::{Exit, Global, Tenants};

const AFTER_HELP: &str = "\
Redis keeps about the newest ten thousand ends. As a consumer group each end is printed by one of the
group's consumers, acknowledged once it is printed, and printed again where that was cut off. Give each
consumer a name that stays: it first gets what was delivered to it before. What a consumer was given and has
not acknowledged for a minute goes to another one that reads. If the first one was only slow, both print it.

A group belongs to --tenant: another tenant's group of the same name is another group. So is the group of
that name with --all-tenants.";

/// Follows until it is interrupted or `--count` is reached.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Events {
    #[command(flatten)]
    tenants: Tenants,
    /// Read as a consumer of this group of the tenant; it is made if it does not exist.
    #[arg(long, value_name = "NAME", requires = "consumer", allow_hyphen_values = true)]
    group: Option<Name>,
    /// Which consumer of the group this is.
    #[arg(long, value_name = "NAME", requires = "group", allow_hyphen_values = true)]
    consumer: Option<Name>,
    /// Start after this entry, 0 for the oldest kept; a group only when it is made [default: from now on].
    #[arg(long, value_name = "ID")]
    from: Option<StreamId>,
    /// End after N ends. No more are read, so that none is kept from the group's other consumers.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Events {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let operator = global.operator().await?;
        let membership = self
            .group
            .clone()
            .zip(self.consumer.clone())
            .map(|(group, consumer)| Membership { group, consumer });
        let query =
            EventsQuery { scope: self.tenants.scope(), membership, from: self.from, count: self.count };
        let mut events = operator.events(query);
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
        let agent = ended.agent.as_ref().map_or("-", Name::as_str);
        let error = ended.end.error.as_ref().map(|error| format!(" {error}")).unwrap_or_default();
        let outcome = ended.end.outcome.as_str();
        let line = format!("{} {} {}/{agent} {outcome}{error}", ended.id, ended.turn, ended.tenant);
        writeln!(stdout(), "{}", for_stdout(&line))?;
        Ok(stdout().flush()?)
    }
}
