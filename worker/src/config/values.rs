//! The kinds of value that only the configuration has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use turnmill_schema::{InvalidName, Name};
use uuid::Uuid;

/// How weights are kept and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsMode {
    /// Rounded to Q8_0 and packed for our own kernels.
    Fast,
    /// Dequantised to f32: slow, the reference.
    F32,
    /// As the file has them.
    AsIs,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// The GPU that this worker was built for, if the machine has one; else the CPU.
    Auto,
    /// The CPU, with kernels of our own.
    Cpu,
    /// An Apple GPU.
    Metal,
    /// An NVIDIA GPU.
    Cuda,
}

/// The number format of K and V in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum KvDtype {
    /// IEEE half precision.
    F16,
    /// Brain floating point.
    Bf16,
    /// IEEE single precision.
    F32,
}

/// How K and V are written to the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum KvCodec {
    /// IEEE half precision: the very bits of a pool in f16.
    F16,
    /// Eight bits an element, in groups with a scale and an offset.
    Q8,
    /// Four bits an element, in groups with a scale and an offset.
    Q4,
}

/// Whether tokens are proposed without a model of their own, and verified in the same step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SpeculationMode {
    /// Lookup on a CPU: there it is measured to be faster on agents' text and changes no word; off elsewhere.
    Auto,
    /// A step makes one token of a turn.
    Off,
    /// What followed the last tokens when they occurred before, in prompt or reply.
    Lookup,
}

impl SpeculationMode {
    /// Whether tokens are looked up on a device that computes the same however rows are batched (`same_bits`), or on another.
    pub fn looks_up(self, same_bits: bool) -> bool {
        match self {
            Self::Auto => same_bits,
            Self::Off => false,
            Self::Lookup => true,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self, f)
    }
}

// The names of these three are part of the KV namespace; the one spelling is the command line's.
impl fmt::Display for WeightsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self, f)
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self, f)
    }
}

impl fmt::Display for KvCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self, f)
    }
}

fn write_name(value: &impl clap::ValueEnum, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    value.to_possible_value().map_or(Ok(()), |name| f.write_str(name.get_name()))
}

/// The worker's name, and the consumer id made from it.
///
/// Two processes may have one name; they never have one consumer id, because Redis hands the pending entries
/// of a consumer to any client that asks under its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerName {
    name: Name,
    process: Uuid,
    /// The name was left to this process. Another one that reads the setting makes its own.
    is_auto: bool,
}

/// What stands for "host name and process id".
const AUTO: &str = "auto";

impl WorkerName {
    /// The name people see in results and logs.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The id under which this process, and no other, reads the queue. The same for every clone.
    pub fn consumer_id(&self) -> String {
        format!("{}:{}", self.name, self.process)
    }
}

impl FromStr for WorkerName {
    type Err = InvalidName;
    #[allow(clippy::disallowed_methods, reason = "names a process, before anything runs")]
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let is_auto = s == AUTO;
        let name = if is_auto { host_and_pid() } else { s.to_owned() };
        Ok(Self { name: Name::new(name)?, process: Uuid::now_v7(), is_auto })
    }
}

/// Host names may hold characters that names may not, and be long; a name must come out of every machine.
fn host_and_pid() -> String {
    let host = gethostname::gethostname();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "-.".contains(*c);
    let host: String = host.to_string_lossy().chars().filter(allowed).take(64).collect();
    format!("{host}-{}", std::process::id())
}

impl TryFrom<String> for WorkerName {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<WorkerName> for String {
    /// The setting as it was given.
    fn from(name: WorkerName) -> String {
        if name.is_auto { AUTO.to_owned() } else { name.name.into() }
    }
}

/// The SHA-256 a model file must have: 64 hexadecimal digits, kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ModelDigest(String);

/// The text is not a SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 has 64 hexadecimal digits, this has {0} characters or others among them; copy it again")]
pub struct InvalidDigest(usize);

impl ModelDigest {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelDigest {
    type Err = InvalidDigest;
    fn from_str(s: &str) -> Result<Self, InvalidDigest> {
        if s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self(s.to_ascii_lowercase()));
        }
        Err(InvalidDigest(s.chars().count()))
    }
}

impl TryFrom<String> for ModelDigest {
    type Error = InvalidDigest;
    fn try_from(s: String) -> Result<Self, InvalidDigest> {
        s.parse()
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_gives_every_process_its_own_consumer_id() {
        let first: WorkerName = "gpu-1".parse().expect("valid");
        let second: WorkerName = "gpu-1".parse().expect("valid");
        assert_eq!(first.name(), second.name());
        assert_ne!(first.consumer_id(), second.consumer_id());
        assert_eq!(first.consumer_id(), first.clone().consumer_id());
        assert!(first.consumer_id().starts_with("gpu-1:"));
    }

    #[test]
    fn auto_names_the_host_and_the_process() {
        let name: WorkerName = AUTO.parse().expect("every machine gets a name");
        assert!(name.to_string().ends_with(&format!("-{}", std::process::id())), "{name}");
    }

    #[test]
    fn modes_have_one_spelling_everywhere() {
        use clap::ValueEnum as _;
        for mode in WeightsMode::value_variants() {
            assert_eq!(serde_json::json!(mode), mode.to_string());
        }
        for dtype in KvDtype::value_variants() {
            assert_eq!(serde_json::json!(dtype), dtype.to_string());
        }
        for codec in KvCodec::value_variants() {
            assert_eq!(serde_json::json!(codec), codec.to_string());
        }
        assert_eq!(WeightsMode::AsIs.to_string(), "as-is");
        assert_eq!(KvCodec::Q8.to_string(), "q8");
        assert_eq!(KvDtype::Bf16.to_string(), "bf16");
    }

    #[test]
    fn auto_is_decided() {
        for same_bits in [true, false] {
            assert!(SpeculationMode::Lookup.looks_up(same_bits) && !SpeculationMode::Off.looks_up(same_bits));
            assert_eq!(SpeculationMode::Auto.looks_up(same_bits), same_bits);
        }
    }

    #[test]
    fn digests_are_checked() {
        let digits = "AB".repeat(32);
        assert_eq!(digits.parse::<ModelDigest>().expect("valid").as_str(), "ab".repeat(32));
        for bad in ["", "ab", &"xy".repeat(32), &"ab".repeat(33)] {
            assert!(bad.parse::<ModelDigest>().is_err(), "{bad:?}");
        }
    }
}
