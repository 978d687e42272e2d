//! Where Redis is, with a password that never gets into a log.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use redis::IntoConnectionInfo as _;
use serde::{Deserialize, Serialize, Serializer};
use turnmill_schema::masked::{is_socket, masked};

/// A Redis URL. It prints and serialises without its password; only [`RedisUrl::expose`] gives the whole.
///
/// Parsing takes any text, because a parser's error would quote the text and the password in it;
/// [`RedisUrl::problem`] is checked with the other settings.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct RedisUrl(String);

const TLS_SCHEMES: [&str; 2] = ["rediss://", "valkeys://"];
/// What a URL of a unix socket can say behind a `?`.
const OPTIONS: [&str; 4] = ["db", "user", "pass", "protocol"];

const NO_URL: &str = "is not a Redis URL; write it as redis://USER:PASSWORD@HOST:6379/0, with rediss:// for TLS, or \
    unix:///PATH, and percent-encode @ : / ? # % in user and password";
const ENCODED: &str = "has one of the characters / ? # in its user or password as it is, which ends the host's name; \
    percent-encode @ : / ? # % in both, as %40 %3A %2F %3F %23 %25";
const ENCODED_OPTION: &str = "has one of the characters & # + in an option as it is, which ends the option or becomes a \
    space; percent-encode & # + % in it, as %26 %23 %2B %25";

impl RedisUrl {
    /// The URL with its password, for the client.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is wrong with it, if the client would not take it, or would take a part of a password for something else. No
    /// part of the URL is told: nobody knows which part is the password.
    pub fn problem(&self) -> Option<&'static str> {
        if is_socket(&self.0) {
            let options = self.0.split_once('?').map_or("", |(_, options)| options);
            let known = |option: &str| OPTIONS.iter().any(|known| option.split('=').next() == Some(known));
            if self.0.contains('#') || options.contains('+') || !options.split_terminator('&').all(known) {
                return Some(ENCODED_OPTION);
            }
        } else {
            let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
            if rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@')) {
                return Some(ENCODED);
            }
        }
        self.0.as_str().into_connection_info().err().map(|_| NO_URL)
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        let cases = [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:s3cret@host:6379/1", "redis://:***@host:6379/1"),
            ("rediss://user:s3cret@host", "rediss://user:***@host"),
            ("redis://user:s3/cr@et@host", "redis://user:***@host"),
            ("redis://s3cret@host", "redis://***@host"),
            ("unix:///run/redis.sock?db=1&pass=s3cret&s3cret", "unix:///run/redis.sock?db=1&pass=***"),
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
    fn what_the_client_takes_is_taken() {
        for url in [
            "redis://127.0.0.1",
            "redis://user:word@host:6379/1?protocol=resp3",
            "redis://:a@b:c@host",
            "rediss://:w%23rd@host/0",
            "valkey://host",
            "valkeys://:word@host",
            "unix:///run/redis@1.sock?db=1&pass=s3cret@",
            "redis+unix:///run/redis.sock",
            "valkey+unix:///run/redis.sock?user=u&pass=a%26b%23c",
        ] {
            let url = RedisUrl::from(url.to_owned());
            assert_eq!(url.problem(), None, "{url}");
            assert_eq!(
                url.is_tls(),
                url.expose()
                    .split("://")
                    .next()
                    .is_some_and(|scheme| ["rediss", "valkeys"].contains(&scheme))
            );
        }
        for url in
            ["http://h", "redis://", "localhost:6379", "", "redis://h/one", "redis://h:port", "unix://"]
        {
            assert_eq!(RedisUrl::from(url.to_owned()).problem(), Some(NO_URL), "{url}");
        }
    }

    proptest! {
        /// Whatever a password holds: either the client reads it as it was meant, or the URL is refused with how to write it.
        /// It is never printed.
        #[test]
        fn no_part_of_a_password_is_told_or_taken_for_something_else(
            before in "[-a-z@:/?#%&=+ ]{0,4}", after in "[-a-z@:/?#%&=+ ]{0,4}", user in "[a-z]{0,3}", socket: bool,
        ) {
            let word = format!("{before}hunter{after}");
            let url = RedisUrl::from(match socket {
                true => format!("unix:///run/redis.sock?user={user}&pass={word}"),
                false => format!("redis://{user}:{word}@host:1"),
            });
            let said = format!("{url} {url:?} {} {:?}", serde_json::json!(url), url.problem());
            prop_assert!(!said.contains("hunter"), "{}", said);
            match url.problem() {
                None => {
                    let info = url.expose().into_connection_info().expect("no problem");
                    let address = if socket { "/run/redis.sock" } else { "host:1" };
                    prop_assert_eq!(info.addr().to_string(), address);
                    prop_assert!(info.redis_settings().password().is_some_and(|word| word.contains("hunter")));
                }
                Some(problem) => prop_assert!(problem.contains("percent-encode"), "{}", problem),
            }
        }
    }
}
