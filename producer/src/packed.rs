//! Turns on their way into the queue: encoded once, and with their objects written once, however often they are tried.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use turnmill_schema::{EncodedTurn, PayloadReference, Turn};

use crate::batch::Fate;
use crate::client::Client;
use crate::error::ClientError;
use crate::payload::PUTS_AT_ONCE;

/// How long objects are removed that no turn needs. What is left of them then is left to `kv gc`.
const DISCARD: Duration = Duration::from_secs(5);

/// A turn on its way into the queue; see [`Client::enqueue_packed`].
#[derive(Clone, Debug)]
pub struct PackedTurn<'a> {
    turn: Cow<'a, Turn>,
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

impl From<Turn> for PackedTurn<'static> {
    fn from(turn: Turn) -> Self {
        Self { turn: Cow::Owned(turn), envelope: None, may_be_enqueued: false }
    }
}

impl<'a> From<&'a Turn> for PackedTurn<'a> {
    fn from(turn: &'a Turn) -> Self {
        Self { turn: Cow::Borrowed(turn), envelope: None, may_be_enqueued: false }
    }
}

impl PackedTurn<'_> {
    /// The turn.
    pub fn turn(&self) -> &Turn {
        &self.turn
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

    /// What earlier tries left.
    pub(crate) fn fate(&self) -> Fate {
        if self.may_be_enqueued { Fate::Unknown } else { Fate::NotEnqueued }
    }
}

impl Client {
    /// Encodes those turns that are not encoded yet, and writes the objects of those that are too large for Redis. Nothing is
    /// written if one of them is invalid or over the hard limit; the place of such a turn comes with the error.
    pub(crate) async fn pack(&self, turns: &mut [PackedTurn<'_>]) -> Result<(), (usize, ClientError)> {
        let new = |(_, turn): &(usize, &PackedTurn<'_>)| turn.envelope.is_none();
        for (place, packed) in turns.iter().enumerate().filter(new) {
            packed.turn.validate().map_err(|error| (place, error.into()))?;
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

    /// Removes the objects of turns that are certainly not in the queue and will not be tried again. One that stays, because the
    /// store does not answer, is only in the way: `kv gc` collects it.
    pub async fn discard(&self, turns: Vec<PackedTurn<'_>>) {
        let unneeded = turns.iter().filter(|turn| !turn.may_be_enqueued).filter_map(PackedTurn::object);
        let unneeded: Vec<PayloadReference> = unneeded.collect();
        if tokio::time::timeout(DISCARD, self.remove_objects(&unneeded)).await.is_err() {
            tracing::warn!(
                "objects of turns that are not enqueued stay in the store: it takes too long to remove them"
            );
        }
    }
}
