//! Turns on their way into the queue: encoded once, and their objects written once, however often they are tried.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use turnmill_schema::{EncodedTurn, PayloadReference, TraceParent, TraceState, Turn, TurnId};

use crate::batch::Fate;
use crate::client::Client;
use crate::error::ClientError;
use crate::payload::PUTS_AT_ONCE;

/// How long objects are removed that no turn needs. What is left of them then is left to `kv gc`.
const DISCARD: Duration = Duration::from_secs(5);

/// A turn that has its id; see [`Client::prepare`] and [`Client::enqueue_prepared`].
#[derive(Clone, Debug)]
pub struct PreparedTurn {
    turn: Turn,
    after: Option<TurnId>,
    /// None: it was not tried yet.
    envelope: Option<Envelope>,
    /// A try did not end, or Redis did not say how: its object may be needed.
    may_be_enqueued: bool,
}

/// What goes to Redis for a turn.
#[derive(Clone, Debug)]
struct Envelope {
    bytes: Vec<u8>,
    /// The turn's object in the store, if it is too large for Redis.
    object: Option<PayloadReference>,
}

/// A turn that was prepared before, such as by this program before it crashed: enqueueing it again enqueues no second one.
impl From<Turn> for PreparedTurn {
    fn from(turn: Turn) -> Self {
        Self::new(turn, None)
    }
}

impl PreparedTurn {
    pub(crate) fn new(turn: Turn, after: Option<TurnId>) -> Self {
        Self { turn, after, envelope: None, may_be_enqueued: false }
    }

    /// Its id, which it has in the queue unless a turn was enqueued under its idempotency key before.
    pub fn id(&self) -> TurnId {
        self.turn.id
    }

    /// The turn.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// The turn that it must follow ([`crate::NewTurn::after`]).
    pub fn after(&self) -> Option<TurnId> {
        self.after
    }

    /// Puts the turn into another span, which may be about this very turn: it has its id already. To be called before the turn is
    /// first enqueued; later it has no effect.
    pub fn set_trace(&mut self, parent: TraceParent, state: Option<TraceState>) {
        self.turn.traceparent = Some(parent);
        self.turn.tracestate = state;
    }

    /// What goes to Redis; nothing before it was packed.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.envelope.as_ref().map_or(&[], |envelope| &envelope.bytes)
    }

    /// The turn's object in the store, if it has one.
    pub(crate) fn object(&self) -> Option<PayloadReference> {
        self.envelope.as_ref().and_then(|envelope| envelope.object)
    }

    /// A try begins or is judged.
    pub(crate) fn set_may_be_enqueued(&mut self, may_be: bool) {
        self.may_be_enqueued = may_be;
    }

    /// What can be said of it without encoding it.
    fn check(&self) -> Result<(), ClientError> {
        self.turn.validate()?;
        match (self.after, &self.turn.agent) {
            (Some(after), None) => Err(ClientError::FollowsAlone { turn: self.turn.id, after }),
            _ => Ok(()),
        }
    }

    /// What earlier tries left.
    pub(crate) fn fate(&self) -> Fate {
        if self.may_be_enqueued { Fate::Unknown } else { Fate::NotEnqueued }
    }
}

impl Client {
    /// Encodes those turns that are not encoded yet, and writes the objects of those that are too large for Redis. Nothing is
    /// written if one of them is invalid or over the hard limit; the place of such a turn comes with the error.
    pub(crate) async fn pack(&self, turns: &mut [PreparedTurn]) -> Result<(), (usize, ClientError)> {
        let new = |(_, turn): &(usize, &PreparedTurn)| turn.envelope.is_none();
        for (place, packed) in turns.iter().enumerate().filter(new) {
            packed.check().map_err(|error| (place, error))?;
        }
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (place, packed) in turns.iter().enumerate().filter(new) {
            match EncodedTurn::new(&packed.turn).map_err(|error| (place, error.into()))? {
                EncodedTurn::Inline(bytes) => small.push((place, Envelope { bytes, object: None })),
                EncodedTurn::Large { reference, object } => {
                    let bytes = reference.encode().map_err(|error| (place, error.into()))?;
                    large.push((place, Envelope { bytes, object: Some(reference) }, reference, object));
                }
            }
        }
        let envelopes = small.into_iter().map(Ok);
        let puts = large.into_iter().map(|(place, envelope, reference, object)| async move {
            let put = self.put_object(&reference, object).await;
            put.map(|()| (place, envelope)).map_err(|error| (place, error))
        });
        let mut envelopes = stream::iter(envelopes).chain(stream::iter(puts).buffer_unordered(PUTS_AT_ONCE));
        while let Some(packed) = envelopes.next().await {
            let (place, envelope) = packed?;
            turns[place].envelope = Some(envelope);
        }
        Ok(())
    }

    /// Whether the turn could be enqueued, as far as that can be said without Redis: [`Turn::validate`], and its size.
    pub fn check(&self, turn: &PreparedTurn) -> Result<(), ClientError> {
        turn.check()?;
        match EncodedTurn::new(&turn.turn)? {
            EncodedTurn::Large { reference, .. } if self.payloads.is_none() => {
                Err(ClientError::NoStore { turn: reference.turn, bytes: reference.bytes })
            }
            _ => Ok(()),
        }
    }

    /// Removes the objects of turns that are certainly not in the queue and will not be tried again. One that stays, because the
    /// store does not answer, is only in the way: `kv gc` collects it.
    pub async fn discard(&self, turns: Vec<PreparedTurn>) {
        let unneeded = turns.iter().filter(|turn| !turn.may_be_enqueued).filter_map(PreparedTurn::object);
        let unneeded: Vec<PayloadReference> = unneeded.collect();
        if tokio::time::timeout(DISCARD, self.remove_objects(&unneeded)).await.is_err() {
            tracing::warn!(
                "objects of turns that are not enqueued stay in the store: it takes too long to remove them"
            );
        }
    }
}
