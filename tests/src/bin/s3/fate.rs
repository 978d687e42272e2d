//! What becomes of a request, given the faults: drawn when it comes, with as many draws each time, so that a seed and
//! an order of requests give the same fates.

use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use turnmill_tests::s3_server::Faults;

/// What a request is to the faults and the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads an object.
    Get,
    /// Writes an object or a part of one.
    Put,
    /// Anything else, lists too.
    Other,
}

impl Operation {
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        // `/bucket/key`; without a key it is about the bucket.
        let of_an_object = uri.path().splitn(3, '/').nth(2).is_some_and(|key| !key.is_empty());
        match *method {
            Method::GET if of_an_object => Self::Get,
            Method::PUT if of_an_object => Self::Put,
            _ => Self::Other,
        }
    }
}

/// Where an object that is read ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// How much of it comes; less than 100.
    pub(crate) percent: u64,
    /// Whether no more than that is announced.
    pub(crate) announced: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No answer.
    Hang,
    /// Not done, and answered with this status and code of S3.
    Refused(StatusCode, &'static str),
    /// Done; an object that is read may be cut.
    Done(Option<Cut>),
}

/// Fates of requests, in the order they come.
pub(crate) struct Fates {
    faults: Faults,
    generator: ChaCha8Rng,
}

impl Default for Fates {
    fn default() -> Self {
        Self::new(Faults::default())
    }
}

impl Fates {
    pub(crate) fn new(faults: Faults) -> Self {
        let generator = ChaCha8Rng::seed_from_u64(faults.seed);
        Self { faults, generator }
    }

    /// How long the next request waits, and what becomes of it then.
    pub(crate) fn draw(&mut self, operation: Operation) -> (Duration, Fate) {
        let [error, truncate, shorten, percent] = std::array::from_fn(|_| self.generator.next_u64() % 100);
        let faults = &self.faults;
        let hits = |drawn: u64, percent: u8| drawn < u64::from(percent);
        let fate = if faults.hang {
            Fate::Hang
        } else if hits(error, faults.errors_percent) {
            Fate::Refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
        } else if faults.gone {
            Fate::Refused(StatusCode::NOT_FOUND, "NoSuchBucket")
        } else if faults.full && operation == Operation::Put {
            // As MinIO puts it; Amazon's is never full.
            Fate::Refused(StatusCode::INSUFFICIENT_STORAGE, "XMinioStorageFull")
        } else if operation != Operation::Get {
            Fate::Done(None)
        } else if hits(truncate, faults.truncate_percent) {
            Fate::Done(Some(Cut { percent, announced: false }))
        } else if hits(shorten, faults.shorten_percent) {
            Fate::Done(Some(Cut { percent, announced: true }))
        } else {
            Fate::Done(None)
        };
        (Duration::from_millis(faults.slow_ms), fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_method_and_whether_it_names_an_object() {
        let of = |method, uri: &str| Operation::of(&method, &uri.parse().expect("a URI"));
        assert_eq!(of(Method::GET, "/b/k"), Operation::Get);
        assert_eq!(of(Method::PUT, "/b/k/l?partNumber=1&uploadId=x"), Operation::Put);
        for uri in ["/", "/b", "/b/", "/b?list-type=2"] {
            assert_eq!((of(Method::GET, uri), of(Method::PUT, uri)), (Operation::Other, Operation::Other));
        }
        assert_eq!(of(Method::HEAD, "/b/k"), Operation::Other);
    }

    #[test]
    fn a_seed_gives_the_same_fates_and_about_as_many_as_asked_for() {
        let draw = |seed| {
            let mut fates =
                Fates::new(Faults { seed, errors_percent: 20, truncate_percent: 50, ..Faults::default() });
            let fates: Vec<Fate> = (0..1000).map(|_| fates.draw(Operation::Get).1).collect();
            fates
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let count = |what: fn(&Fate) -> bool| draw(1).iter().filter(|fate| what(fate)).count();
        let errors = count(|fate| matches!(fate, Fate::Refused(..)));
        let cuts = count(|fate| matches!(fate, Fate::Done(Some(Cut { announced: false, percent: 0..100 }))));
        assert!((150..250).contains(&errors) && (340..460).contains(&cuts), "{errors} errors, {cuts} cuts");
    }
}
