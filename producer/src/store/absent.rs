//! What stands for a store if the crate is built without one.

use std::convert::Infallible;

use turnmill_schema::{Manifest, Name, PayloadReference, Turn};

use crate::error::ClientError;

/// A store, of which there is none. The field is private, so that code around it is not taken for unreachable.
#[derive(Clone, Debug)]
#[allow(dead_code)]
pub(crate) struct PayloadStore(Infallible);

/// Segments of a store, of which there are none.
#[derive(Debug)]
#[allow(dead_code)]
pub(crate) struct Segments(Infallible);

impl PayloadStore {
    pub(crate) fn open(_: &str, _: &Name) -> Result<Self, ClientError> {
        Err(ClientError::StoreNotBuilt)
    }

    pub(crate) async fn put(&self, _: &PayloadReference, _: Vec<u8>) -> Result<(), ClientError> {
        match self.0 {}
    }

    pub(crate) async fn get(&self, _: &PayloadReference) -> Result<Turn, ClientError> {
        match self.0 {}
    }

    pub(crate) async fn remove(&self, _: &PayloadReference) {
        match self.0 {}
    }

    pub(crate) fn segments(&self, _: &Manifest) -> Segments {
        match self.0 {}
    }

    pub(crate) async fn put_segment(&self, _: Vec<u8>) -> Result<(), ClientError> {
        match self.0 {}
    }
}

impl Segments {
    pub(crate) async fn next(&mut self) -> Result<Option<Result<Vec<u8>, String>>, ClientError> {
        match self.0 {}
    }
}
