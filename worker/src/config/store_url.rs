//! Where the object store is.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::redis_url::masked;

/// An object store's URL. Parsing takes any text; whether its scheme is known is checked with the other settings.
///
/// Credentials have no place in it (stores read them from the environment); one that stands there all the same is not
/// printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct StoreUrl(String);

const STARTS: [&str; 5] = ["file:///", "s3://", "gs://", "az://", "memory:///"];

impl StoreUrl {
    /// What it must be.
    pub(super) const RULE: &str = "a URL that starts with file:///, s3://, gs://, az:// or memory:///";

    /// The URL as given.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it names a store of a kind that we can open.
    pub(super) fn has_known_scheme(&self) -> bool {
        STARTS.iter().any(|start| self.0.starts_with(start))
    }
}

impl From<String> for StoreUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl FromStr for StoreUrl {
    type Err = Infallible;
    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({:?})", masked(&self.0))
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stores_that_can_be_opened_are_known() {
        let known = |url: &str| StoreUrl::from(url.to_owned()).has_known_scheme();
        assert!(STARTS.into_iter().all(known));
        for url in ["file://var/lib", "/var/lib", "s3:bucket", "redis://h", ""] {
            assert!(!known(url), "{url}");
        }
        assert!(STARTS.iter().all(|start| StoreUrl::RULE.contains(start)));
    }

    #[test]
    fn a_password_that_stands_there_is_not_printed() {
        let url = StoreUrl::from("s3://id:s3cret@bucket/a".to_owned());
        assert_eq!(url.to_string(), "s3://id:***@bucket/a");
        assert!(!format!("{url:?} {}", serde_json::json!(url)).contains("s3cret"));
    }
}
