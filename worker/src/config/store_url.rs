//! Where the object store is.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use etcetera::base_strategy::{BaseStrategy as _, choose_native_strategy};
use serde::{Deserialize, Serialize, Serializer};

use url::Url;

use turnmill_schema::masked::masked;

/// An object store's URL. Parsing takes any text; whether its scheme is known is checked with the other settings.
///
/// Credentials have no place in it (stores read them from the environment); one that stands there all the same is not
/// printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct StoreUrl(String);

const STARTS: [&str; 5] = ["file:///", "s3://", "gs://", "az://", "memory:///"];

impl StoreUrl {
    /// The URL as given.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is a folder of this machine.
    pub fn is_folder(&self) -> bool {
        self.0.starts_with("file:///")
    }

    /// The folder of this machine that it is; none if it is another store.
    pub fn folder(&self) -> Option<PathBuf> {
        let url = Url::parse(&self.0).ok().filter(|_| self.is_folder())?;
        url.to_file_path().ok()
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

/// Which object store a worker uses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum StoreSetting {
    /// A folder of this machine's user for K and V; turns too large for Redis are refused.
    Auto,
    /// None at all.
    None,
    /// This one, for K and V and for turns too large for Redis.
    At(StoreUrl),
}

impl StoreSetting {
    /// What it must be.
    pub(super) const RULE: &str =
        "auto, none or a URL that starts with file:///, s3://, gs://, az:// or memory:///";

    /// The store that was named: where producers may put turns, too.
    pub fn named(&self) -> Option<&StoreUrl> {
        match self {
            Self::At(url) => Some(url),
            Self::Auto | Self::None => None,
        }
    }

    /// Where K and V are kept. None: nowhere, because that was asked for or because the user has no folder for caches.
    pub fn for_kv(&self) -> Option<StoreUrl> {
        match self {
            Self::At(url) => Some(url.clone()),
            Self::Auto => cache_folder(),
            Self::None => None,
        }
    }
}

/// `turnmill/store` where the system has its user's caches: losing what is there costs time and nothing else.
fn cache_folder() -> Option<StoreUrl> {
    let folder = choose_native_strategy().ok()?.cache_dir().join("turnmill").join("store");
    Some(StoreUrl(Url::from_file_path(folder).ok()?.into()))
}

impl From<String> for StoreSetting {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "none" => Self::None,
            _ => Self::At(text.into()),
        }
    }
}

impl FromStr for StoreSetting {
    type Err = Infallible;
    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(s.to_owned().into())
    }
}

impl fmt::Display for StoreSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::At(url) => url.fmt(f),
        }
    }
}

impl Serialize for StoreSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_words_stand_for_no_url() {
        let of = |text: &str| StoreSetting::from(text.to_owned());
        assert_eq!((of("auto"), of("none")), (StoreSetting::Auto, StoreSetting::None));
        assert_eq!((of("auto").named(), of("none").named(), of("none").for_kv()), (None, None, None));
        let s3 = of("s3://b/a");
        assert_eq!(s3.for_kv().as_ref(), s3.named());
        for text in ["auto", "none", "s3://b/a"] {
            assert_eq!(of(text).to_string(), text);
        }
        assert!(of("none").for_kv().is_none());
    }

    #[test]
    fn only_stores_that_can_be_opened_are_known() {
        let known = |url: &str| StoreUrl::from(url.to_owned()).has_known_scheme();
        assert!(STARTS.into_iter().all(known));
        let folder = |url: &&str| StoreUrl::from((*url).to_owned()).is_folder();
        assert_eq!(STARTS.iter().filter(|url| folder(url)).count(), 1);
        for url in ["file://var/lib", "/var/lib", "s3:bucket", "redis://h", ""] {
            assert!(!known(url), "{url}");
        }
        assert!(STARTS.iter().all(|start| StoreSetting::RULE.contains(start)));
    }

    #[test]
    fn a_password_that_stands_there_is_not_printed() {
        let url = StoreUrl::from("s3://id:s3cret@bucket/a".to_owned());
        assert_eq!(url.to_string(), "s3://id:***@bucket/a");
        assert!(!format!("{url:?} {}", serde_json::json!(url)).contains("s3cret"));
    }
}
