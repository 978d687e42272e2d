//! Settings: flags, environment, file and defaults become validated values before anything binds.
//!
//! Invariants: settings that [`load()`] returned are valid as a whole; every value knows where it came from; what nobody knows (a
//! key, a variable, a flag) is refused; passwords are never printed.
//!
//! | file | owns |
//! |---|---|
//! | `table` | the macro that makes flags, variables and keys of one table ([`crate::settings!`]) |
//! | `load` | which of them counts |
//! | `problems` | rules that values have to keep |
//! | [`report`] | what `config` prints |
//! | `byte_size` | sizes that people can write |

mod byte_size;
mod error;
mod load;
mod problems;
pub mod report;
mod table;

pub use byte_size::{AutoByteSize, ByteSize, InvalidByteSize};
pub use error::SettingsError;
pub use load::{Effective, SettingsArgs, Source, load, log_format, without_empty_variables};
pub use problems::{MOST, MOST_BYTES, Problems};
pub use table::{Checked, Table};

#[cfg(test)]
mod sample {
    use std::num::NonZeroU16;
    use std::path::PathBuf;

    use clap::{Args as _, FromArgMatches as _};

    use super::{AutoByteSize, Checked, Problems};
    use crate::logs::{LogFilter, LogFormat};
    use crate::traces::OtlpUrl;

    crate::settings! {
        /// Settings of a program that unit tests are about. Its variables are known ones: others are refused.
        Sample from "TURNMILL_CONFIG";

        /// A path.
        ["TURNMILL_MODEL"] model: Option<PathBuf>;
        /// A number with a kind of its own.
        ["TURNMILL_SHARDS"] shards: NonZeroU16 = "1";
        /// A number.
        ["TURNMILL_LEASE_MS"] lease_ms: u64 = "15000";
        /// Another.
        ["TURNMILL_FLUSH_MS"] flush_ms: u64 = "100";
        /// A number with a rule.
        ["TURNMILL_BLOCK_TOKENS"] block_tokens: u32 = "16";
        /// A size.
        ["TURNMILL_POOL_BYTES"] pool_bytes: AutoByteSize = "auto";
        /// Yes or no.
        ["TURNMILL_LOG_CONTENT"] log_content: bool = "false";
        /// How log lines look.
        ["TURNMILL_LOG_FORMAT"] log_format: LogFormat = "auto";
        /// Which log lines are written.
        ["TURNMILL_LOG"] log: LogFilter = "info";
        /// A URL that may hold a password.
        ["TURNMILL_OTLP_ENDPOINT"] otlp_endpoint: Option<OtlpUrl>;
    }

    impl Checked for Sample {
        fn check(&self, problems: &mut Problems) {
            let fits = self.block_tokens.is_power_of_two() && (8..=256).contains(&self.block_tokens);
            problems.require(fits, "block_tokens", self.block_tokens, "a power of two from 8 to 256");
            problems.wait("lease_ms", self.lease_ms, 300);
        }
    }

    /// Settings from flags alone, not validated.
    pub fn sample(flags: &[&str]) -> Sample {
        // clap reads the environment of the process; here only flags and defaults may count.
        let command = Sample::augment_args(clap::Command::new("test")).mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from([&["test"], flags].concat()).expect("flags parse");
        Sample::from_arg_matches(&matches).expect("its own matches")
    }
}
