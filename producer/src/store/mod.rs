//! The object store that a queue's producers and workers share: payloads of turns too large for Redis, and K and V of agents that
//! are exported or imported.
//!
//! It is there with the feature `store`. Without it, [`PayloadStore`] has no values, so the rest of the crate need not know.

#[cfg(not(feature = "store"))]
mod absent;
#[cfg(feature = "store")]
mod object;
#[cfg(feature = "store")]
mod segments;

#[cfg(not(feature = "store"))]
pub(crate) use absent::PayloadStore;
#[cfg(feature = "store")]
pub(crate) use object::PayloadStore;

/// Why something that needs a store is left out, if there is none.
pub(crate) const NO_STORE: &str = match cfg!(feature = "store") {
    true => "no store was named",
    false => "turnmill-client was built without its feature `store`",
};
