//! The queue's atomic steps: one module each, which holds the script, its typed arguments and its typed reply. Which position
//! an argument has is known to that module and its script alone.
//!
//! Rules of all scripts: check everything (types, ids, epoch, owner), then write; the same call again gives the same answer;
//! every key is declared. What lets a full Redis drain carries `allow-oom`; enqueueing does not.

mod advance;
mod agent;
mod append;
mod attended;
mod cancel;
mod collector;
mod consumers;
mod counts;
mod enqueue;
mod finish;
mod group;
mod lease;
mod pause;
mod prepare;
mod promote;
mod purge;
mod reclaim;
mod registry;
mod renew;
mod repair;
mod requeue;
mod return_ticket;
mod seed;
mod sweep;
mod trim;

pub use advance::Advance;
pub use agent::{ActOnAgent, AgentActed, AgentAction, Rollback};
pub use append::AppendAnyway;
pub use attended::Attended;
pub use cancel::{Cancel, Expire, Unrun, UnrunLimits};
pub use collector::KeepCollector;
pub use consumers::{ConsumerGroup, RemoveConsumers};
pub use counts::{CountWork, Counts, PriorityCounts};
pub use enqueue::{DepthLimits, Enqueue, EnqueueTurn, Enqueued};
pub use finish::{Finish, FinishAnswer, FinishLimits, LeaseKey};
pub use group::CreateGroup;
pub use lease::{Grant, KnownHistory, LeaseAnswer, LeaseHead, LeaseLimits, ResultEntry};
pub use pause::Pause;
pub use prepare::Prepare;
pub use promote::Promote;
pub use purge::{Letter, Purge};
pub use reclaim::{Reclaim, SilentTicket};
pub use registry::{Leave, Order, Register};
pub use renew::{Renew, RenewItem};
pub use repair::Repair;
pub use requeue::{Requeue, RequeueAnswer, RequeueLimits};
pub use return_ticket::ReturnTicket;
pub use seed::{Seed, Seeded};
pub use sweep::BeginSweep;
pub use trim::{Trim, Trimmed};

/// A script: its flags, then its files.
macro_rules! script {
    ($flags:literal $($file:literal)+) => {
        concat!("#!lua", $flags, "\n", include_str!("common.lua"), $(include_str!($file)),+)
    };
}
pub(crate) use script;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{ItemStep, Step};

    #[test]
    fn the_shebang_is_the_first_line_and_stands_once() {
        let all = [
            Advance::SCRIPT,
            ActOnAgent::SCRIPT,
            AppendAnyway::SCRIPT,
            Cancel::SCRIPT,
            KeepCollector::SCRIPT,
            RemoveConsumers::SCRIPT,
            CountWork::SCRIPT,
            Enqueue::SCRIPT,
            Finish::SCRIPT,
            LeaseHead::SCRIPT,
            Promote::SCRIPT,
            Purge::SCRIPT,
            Reclaim::SCRIPT,
            Prepare::SCRIPT,
            Register::SCRIPT,
            Leave::SCRIPT,
            Order::SCRIPT,
            Pause::SCRIPT,
            BeginSweep::SCRIPT,
            CreateGroup::SCRIPT,
            Renew::SCRIPT,
            Repair::SCRIPT,
            Requeue::SCRIPT,
            ReturnTicket::SCRIPT,
            Seed::SCRIPT,
            Trim::SCRIPT,
        ];
        for script in all {
            assert!(script.starts_with("#!lua"), "{script}");
            assert_eq!(script.matches("#!").count(), 1, "{script}");
        }
    }
}
