//! A claimed turn that is not in Redis: fetching it before it runs, and removing its object once it has ended.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;
use turnmill_schema::{DeadReason, Outcome, PayloadReference, StoredTurn, Turn};

use super::Runner;
use super::fitness::Blame;
use super::health::Backoff;
use super::leave::{Leaving, Reason};
use super::turn::{Attempt, until};
use crate::broker::{Broker, Lease};
use crate::engine::EngineHandle;
use crate::store::{Payloads, StoreError};
use crate::surroundings::Surroundings;

/// How long a store that refuses is asked again before the turn is requeued. Clients of remote stores try again by
/// themselves too, so that one answer of theirs may take longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an ended turn waits for its object to be removed.
const REMOVAL: Duration = Duration::from_secs(5);

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// The turn that was stored, wherever that is. If it cannot be had the attempt fails, and the last one makes it a dead letter.
    pub(super) async fn fetch(&self, stored: StoredTurn, attempt: &Attempt) -> Result<Turn, Leaving> {
        let resolved = resolve(self.payloads.as_ref(), stored, &self.surroundings);
        let expires = until(attempt.deadline, &self.surroundings);
        let resolved = while_wanted(resolved, &attempt.lease, &self.requeue, expires).await?;
        resolved.map_err(|error| {
            // Whether it may pass or not: another worker may reach the store, and an operator may mend it meanwhile.
            Leaving::failed(Blame::Elsewhere, DeadReason::Unreadable, Reason::quoting(error))
        })
    }
}

/// What comes of `work`, unless its turn has to leave before.
async fn while_wanted<T>(
    work: impl Future<Output = T>,
    lease: &Lease,
    requeue: &CancellationToken,
    expires: impl Future<Output = ()>,
) -> Result<T, Leaving> {
    tokio::select! {
        biased;
        () = lease.lost() => Err(Leaving::Lost),
        done = work => Ok(done),
        () = requeue.cancelled() => Err(Leaving::Requeued),
        () = expires => Err(Leaving::Expired),
    }
}

/// Reads the turn behind a reference; a store that does not answer is asked again a few times.
async fn resolve(
    payloads: Option<&Payloads>,
    stored: StoredTurn,
    surroundings: &Surroundings,
) -> Result<Turn, StoreError> {
    let reference = match stored {
        StoredTurn::Inline(turn) => return Ok(*turn),
        StoredTurn::Reference(reference) => reference,
    };
    let payloads = payloads.ok_or(StoreError::NotConfigured)?;
    let (asked, mut backoff) = (surroundings.now(), Backoff::default());
    loop {
        match payloads.get(&reference).await {
            Err(error) if error.may_pass() && surroundings.since(asked) < PATIENCE => {
                backoff.pause(surroundings).await;
            }
            result => return result,
        }
    }
}

/// Removes the object of a turn that has ended, unless it failed: a replay needs it. What stays is only in the way.
pub(super) async fn remove(
    payloads: Option<&Payloads>,
    reference: Option<&PayloadReference>,
    outcome: Outcome,
    surroundings: &Surroundings,
) {
    let (Some(payloads), Some(reference)) = (payloads, reference) else { return };
    if outcome == Outcome::Failed {
        return;
    }
    match surroundings.timeout(REMOVAL, payloads.remove(reference)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the turn's payload stays in the store"),
        Err(_) => warn!("the turn's payload stays in the store, which takes too long to answer"),
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::envelope::MAX_INLINE_BYTES;
    use turnmill_schema::{AgentId, EncodedTurn, Message, Name, Role, TenantName, TurnId};

    use super::*;
    use crate::config::StoreUrl;

    fn turn(content: String) -> Turn {
        Turn::new(
            TurnId::new(0),
            TenantName::new("default").expect("a name"),
            vec![Message::new(Role::User, content)],
        )
    }

    /// A large turn in a store in `folder`, put there as a producer would.
    fn stored(folder: &std::path::Path) -> (Payloads, PayloadReference, Turn) {
        let queue = Name::new("q").expect("a name");
        let turn = turn("x".repeat(MAX_INLINE_BYTES));
        let EncodedTurn::Large { reference, object } = EncodedTurn::new(&turn).expect("encodes") else {
            panic!("the turn is not large")
        };
        let file = folder.join(reference.path(&queue));
        std::fs::create_dir_all(file.parent().expect("it is in a folder")).expect("made");
        std::fs::write(file, object).expect("written");
        let url = StoreUrl::from(format!("file://{}", folder.display()));
        (Payloads::open(&url, &queue).expect("opens"), reference, turn)
    }

    #[tokio::test]
    async fn both_forms_of_a_turn_are_resolved_and_a_reference_needs_a_store() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (payloads, reference, large) = stored(folder.path());
        let (inline, surroundings) = (turn("hi".into()), Surroundings::machine());
        let resolved = resolve(None, StoredTurn::Inline(Box::new(inline.clone())), &surroundings).await;
        assert_eq!(resolved.expect("inline"), inline);
        let resolved = resolve(Some(&payloads), StoredTurn::Reference(reference), &surroundings).await;
        assert_eq!(resolved.expect("stored"), large);
        let error =
            resolve(None, StoredTurn::Reference(reference), &surroundings).await.expect_err("no store");
        assert!(error.to_string().contains("TURNMILL_STORE") && !error.may_pass(), "{error}");
    }

    #[tokio::test]
    async fn a_turn_that_has_to_leave_does_not_wait_for_its_payload() {
        let lease = Lease::example(TurnId::new(0), AgentId::from_wire("t/a".to_owned()), 7);
        let (pending, requeue) = (std::future::pending::<()>, CancellationToken::new());
        let late = while_wanted(pending(), &lease, &requeue, std::future::ready(())).await;
        assert!(matches!(late, Err(Leaving::Expired)));
        requeue.cancel();
        let requeued = while_wanted(pending(), &lease, &requeue, pending()).await;
        assert!(matches!(requeued, Err(Leaving::Requeued)));
    }

    #[tokio::test]
    async fn a_failed_turns_object_stays_and_any_others_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for outcome in [Outcome::Completed, Outcome::Cancelled, Outcome::Expired, Outcome::Failed] {
            let (payloads, reference, _) = stored(folder.path());
            remove(Some(&payloads), Some(&reference), outcome, &Surroundings::machine()).await;
            assert_eq!(payloads.get(&reference).await.is_ok(), outcome == Outcome::Failed, "{outcome:?}");
        }
    }
}
