//! What a run ran on, as far as the system tells.

use std::process::Command;

use serde::Serialize;

/// Programs that ran in the last minute, on average, beyond which figures are worth little.
const BUSY_LOAD: f64 = 0.5;

/// A machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// What the engine computes with.
    pub compute: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Its memory.
    pub memory_bytes: Option<u64>,
    /// System and architecture.
    pub system: String,
    /// The load of the last minute when the run began.
    pub load: Option<f64>,
}

impl Machine {
    /// This one, now.
    pub(super) fn look() -> Self {
        Self {
            cpu: cpu().unwrap_or_else(|| "unknown".to_owned()),
            compute: turnmill_worker::model::ComputeDevice::Cpu.to_string(),
            cores: cores(),
            memory_bytes: memory_bytes(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load: load(),
        }
    }

    /// What it is, in a line, and a second line if other programs ran.
    pub(super) fn describe(&self) -> String {
        let Self { cpu, cores, compute, system, .. } = self;
        let busy = self.busy().map(|load| format!("\nOther programs ran (load {load:.1}): worth little."));
        format!("{cpu}, {cores} cores, {compute}, {system}{}", busy.unwrap_or_default())
    }

    /// The load, where other programs ran when the run began.
    pub fn busy(&self) -> Option<f64> {
        self.load.filter(|load| *load > BUSY_LOAD)
    }
}

/// Cores that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn cpu() -> Option<String> {
    if cfg!(target_os = "macos") {
        return said("sysctl", &["-n", "machdep.cpu.brand_string"]);
    }
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let name = field("model name")?;
    // A virtual machine's processor is often called by its maker's line alone; the numbers tell which it is.
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(model)) => Some(format!("{name}, family {family}, model {model}")),
        _ => Some(name),
    }
}

fn memory_bytes() -> Option<u64> {
    if cfg!(target_os = "macos") {
        return said("sysctl", &["-n", "hw.memsize"])?.parse().ok();
    }
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// The commit of the checkout that this runs in.
pub(super) fn commit() -> Option<String> {
    said("git", &["describe", "--always", "--dirty", "--abbrev=10"])
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
