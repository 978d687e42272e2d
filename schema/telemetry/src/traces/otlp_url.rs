//! Where spans go, with a password that never gets into a log.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use turnmill_schema::masked::masked;

/// The base URL of an OTLP receiver over HTTP; the signal's path (`/v1/traces`) is appended to it.
///
/// Parsing takes any text, because a parser's error would quote the text and a password in it;
/// [`OtlpUrl::is_usable`] is checked with the other settings.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct OtlpUrl(String);

impl OtlpUrl {
    /// What it must be.
    pub const RULE: &str = "a URL that starts with http:// or https://, such as http://127.0.0.1:4318";

    /// Where spans are posted.
    pub fn traces(&self) -> String {
        format!("{}/v1/traces", self.0.trim_end_matches('/'))
    }

    /// Whether the exporter can use it.
    pub fn is_usable(&self) -> bool {
        url::Url::parse(&self.0).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
    }
}

impl From<String> for OtlpUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl FromStr for OtlpUrl {
    type Err = Infallible;
    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for OtlpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for OtlpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OtlpUrl({:?})", masked(&self.0))
    }
}

impl Serialize for OtlpUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signals_path_is_appended_once_and_passwords_are_masked() {
        for url in ["http://h:4318", "http://h:4318/"] {
            assert_eq!(OtlpUrl::from(url.to_owned()).traces(), "http://h:4318/v1/traces");
        }
        let url = OtlpUrl::from("https://u:s3cret@h/otlp".to_owned());
        assert!(url.is_usable());
        assert_eq!(
            (url.to_string(), url.traces()),
            ("https://u:***@h/otlp".into(), "https://u:s3cret@h/otlp/v1/traces".into())
        );
        for bad in ["", "h:4318", "grpc://h", "http://"] {
            assert!(!OtlpUrl::from(bad.to_owned()).is_usable(), "{bad:?}");
        }
    }
}
