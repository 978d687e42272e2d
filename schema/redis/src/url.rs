//! Where Redis is, with a password that never gets into a log.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// A Redis URL. It prints and serialises without its password; only [`RedisUrl::expose`] gives the whole.
///
/// Parsing takes any text, because a parser's error would quote the text and the password in it;
/// [`RedisUrl::has_known_scheme`] is checked with the other settings.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct RedisUrl(String);

const TLS_SCHEMES: [&str; 2] = ["rediss://", "valkeys://"];
/// What redis-rs speaks.
const SCHEMES: [&str; 7] =
    ["redis://", "rediss://", "unix://", "redis+unix://", "valkey://", "valkeys://", "valkey+unix://"];
const MASK: &str = "***";

impl RedisUrl {
    /// The URL with its password, for the client.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the scheme is one that the client speaks and something follows it.
    pub fn has_known_scheme(&self) -> bool {
        SCHEMES.iter().any(|scheme| self.0.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
    }

    /// Whether what is said goes through TLS.
    pub fn is_tls(&self) -> bool {
        TLS_SCHEMES.iter().any(|scheme| self.0.starts_with(scheme))
    }

    /// The URL without its password: `redis://user:***@host`, `unix:///socket?pass=***`.
    pub fn masked(&self) -> String {
        masked(&self.0)
    }
}

/// A Redis, and who vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub url: RedisUrl,
    /// A PEM file of the authorities that `rediss://` trusts in place of the system's.
    pub ca: Option<PathBuf>,
}

impl From<RedisUrl> for Endpoint {
    fn from(url: RedisUrl) -> Self {
        Self { url, ca: None }
    }
}

/// A URL without its password.
///
/// It masks too much rather than too little: everything up to the last `@` counts as user information,
/// since an unescaped `/` or `@` in a password would otherwise leave a part of it readable.
pub fn masked(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (user, host) = match rest.rsplit_once('@') {
        Some((user, host)) => (mask_password(user), host),
        None => (String::new(), rest),
    };
    let host = match host.split_once("pass=") {
        Some((before, password)) => {
            let after = password.find('&').map_or("", |end| &password[end..]);
            format!("{before}pass={MASK}{after}")
        }
        None => host.to_owned(),
    };
    format!("{scheme}{user}{host}")
}

fn mask_password(user_info: &str) -> String {
    match user_info.split_once(':') {
        Some((user, _)) => format!("{user}:{MASK}@"),
        None => format!("{user_info}@"),
    }
}

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl FromStr for RedisUrl {
    type Err = Infallible;
    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({:?})", self.masked())
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        let cases = [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:s3cret@host:6379/1", "redis://:***@host:6379/1"),
            ("rediss://user:s3cret@host", "rediss://user:***@host"),
            ("redis://user:s3/cr@et@host", "redis://user:***@host"),
            ("redis://user@host", "redis://user@host"),
            ("unix:///run/redis.sock?db=1&pass=s3cret&user=u", "unix:///run/redis.sock?db=1&pass=***&user=u"),
            (":s3cret@host", ":***@host"),
        ];
        for (url, masked) in cases {
            let url = RedisUrl::from(url.to_owned());
            assert_eq!(url.to_string(), masked);
            assert!(!format!("{url:?}").contains("s3"), "{url:?}");
            assert_eq!(serde_json::json!(url), masked);
        }
    }

    #[test]
    fn only_schemes_the_client_speaks_are_known() {
        let known = |url: &str| RedisUrl::from(url.to_owned()).has_known_scheme();
        assert!(known("redis://h") && known("rediss://h") && known("unix:///s"));
        assert!(known("valkey://h") && known("valkeys://h") && known("valkey+unix:///s"));
        assert!(!known("http://h") && !known("redis://") && !known("localhost:6379") && !known(""));
    }
}
