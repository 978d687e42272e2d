//! The bytes of an object on their way to a client: counted, and cut where that is its fate.

use std::io;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use futures::{StreamExt, TryStreamExt, stream};
use turnmill_tests::s3_server::Counters;

use crate::fate::Cut;
use crate::locked;

/// The same response, whose body counts what is taken from it and ends where `cut` says.
pub(crate) fn sent(mut response: Response, cut: Option<Cut>, counters: Arc<Mutex<Counters>>) -> Response {
    let announced = response.headers().get(CONTENT_LENGTH);
    let length: Option<u64> = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    // An empty object has nothing to cut.
    let cut = cut.zip(length).filter(|(_, length)| *length > 0);
    let keep = cut.map_or(u64::MAX, |(cut, length)| length * cut.percent / 100);
    if cut.is_some_and(|(cut, _)| cut.announced) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(keep));
    }
    let ends_early = cut.is_some_and(|(cut, _)| !cut.announced);
    response.map(|body| first(body, keep, ends_early, counters))
}

/// The first `keep` bytes of `body`, then an error if it `ends_early`.
fn first(body: Body, keep: u64, ends_early: bool, counters: Arc<Mutex<Counters>>) -> Body {
    let mut left = keep;
    let kept = body.into_data_stream().map_err(io::Error::other).map_ok(move |mut chunk: Bytes| {
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= chunk.len() as u64;
        locked(&counters).bytes_out += chunk.len() as u64;
        chunk
    });
    let kept = kept.try_take_while(|chunk| std::future::ready(Ok(!chunk.is_empty())));
    let end = ends_early.then(|| {
        stream::once(async {
            // What was sent so far leaves the server first.
            tokio::task::yield_now().await;
            Err(io::Error::other("the object ends early, as asked for"))
        })
    });
    Body::from_stream(kept.chain(stream::iter(end).flatten()))
}
