//! Which device computes: chosen, opened, and asked how much memory it has for K and V.

use std::fmt;

use candle_core::Device;

use super::ModelError;
use super::backend::tensor;
use crate::config::{DeviceKind, KvDtype};

/// Memory for K and V where nobody said how much, and the device does not say what suits it.
const POOL_BYTES: usize = 256 << 20;
/// Number formats of the pool.
const KV_DTYPES: [KvDtype; 3] = [KvDtype::F16, KvDtype::Bf16, KvDtype::F32];

/// An opened device.
#[derive(Clone, Debug)]
pub enum ComputeDevice {
    /// The CPU, with kernels of our own.
    Cpu,
    /// One of candle's devices, its CPU among them, which is for tests.
    Tensor(Device),
}

/// What came of compiling a kernel, for a head size and a number format.
#[derive(Clone, Debug)]
pub struct CompiledKernel {
    /// The kernel.
    pub name: &'static str,
    /// Elements of a head.
    pub head_dim: usize,
    /// Number format of the pool.
    pub dtype: KvDtype,
    /// What went wrong, if anything.
    pub outcome: Result<(), String>,
}

impl ComputeDevice {
    /// Opens what `kind` names, or finds the best there is.
    pub fn open(kind: DeviceKind) -> Result<Self, ModelError> {
        let not_built = |way: &str| Err(format!("this worker was built without {way}; set device to cpu"));
        let opened = match kind {
            DeviceKind::Cpu => return Ok(Self::Cpu),
            DeviceKind::Auto => return Ok(Self::best()),
            DeviceKind::Metal => {
                metal().unwrap_or_else(|| not_built("Metal, which it has on macOS by default"))
            }
            DeviceKind::Cuda => cuda().unwrap_or_else(|| not_built("CUDA, which takes --features cuda")),
        };
        opened.map(Self::Tensor).map_err(ModelError::Device)
    }

    /// The first GPU that this worker was built for and that can be opened; else the CPU.
    fn best() -> Self {
        for opened in [metal(), cuda()].into_iter().flatten() {
            match opened {
                Ok(device) => return Self::Tensor(device),
                Err(reason) => tracing::warn!(reason, "the CPU computes"),
            }
        }
        Self::Cpu
    }

    /// What kind of machine computes the bits. `ours` says whether all products are our own, which give the same on every CPU.
    pub fn compute_kind(&self, ours: bool) -> &'static str {
        match self {
            Self::Cpu if ours => "cpu",
            Self::Cpu => cpu_kind(),
            Self::Tensor(Device::Cpu) => "candle-cpu",
            Self::Tensor(Device::Metal(_)) => "metal",
            Self::Tensor(Device::Cuda(_)) => "cuda",
        }
    }

    /// Memory for K and V that suits beside weights of `weights_bytes`.
    pub fn pool_bytes(&self, weights_bytes: u64) -> usize {
        match self {
            #[cfg(all(target_os = "macos", feature = "metal"))]
            Self::Tensor(Device::Metal(device)) => {
                let device = device.metal_device();
                let recommended = device.recommended_max_working_set_size() as u64;
                share(recommended, device.current_allocated_size() as u64 + weights_bytes)
            }
            _ => {
                let _ = weights_bytes;
                POOL_BYTES
            }
        }
    }

    /// Compiles each kernel of our own for heads of `head_dim` elements and every number format; nothing where there are
    /// none for this device.
    pub fn compile_kernels(&self, head_dim: usize) -> Vec<CompiledKernel> {
        let Self::Tensor(device) = self else { return Vec::new() };
        let compile = |dtype| {
            let kernels = tensor::compile_all(device, head_dim, dtype).into_iter();
            kernels.map(move |(name, outcome)| CompiledKernel { name, head_dim, dtype, outcome })
        };
        KV_DTYPES.into_iter().flat_map(compile).collect()
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => cpu_kind(),
            _ => self.compute_kind(false),
        })
    }
}

/// A quarter of what a device recommends to use and nothing uses yet. Its memory is the whole machine's, and candle
/// rounds buffers up and keeps freed ones for a while.
#[cfg(any(test, all(target_os = "macos", feature = "metal")))]
fn share(recommended: u64, used: u64) -> usize {
    (recommended.saturating_sub(used) / 4) as usize
}

/// The Metal device; none where this worker was built without.
#[cfg(all(target_os = "macos", feature = "metal"))]
fn metal() -> Option<Result<Device, String>> {
    // Candle takes the first of them without asking whether there is one.
    if candle_metal_kernels::metal::Device::all().is_empty() {
        return Some(Err("this machine has no Metal device; set device to cpu".to_owned()));
    }
    Some(Device::new_metal(0).map_err(|error| unopened("Metal", &error)))
}

/// The Metal device; none where this worker was built without.
#[cfg(not(all(target_os = "macos", feature = "metal")))]
fn metal() -> Option<Result<Device, String>> {
    None
}

/// The CUDA device; none where this worker was built without.
#[cfg(feature = "cuda")]
fn cuda() -> Option<Result<Device, String>> {
    Some(Device::new_cuda(0).map_err(|error| unopened("CUDA", &error)))
}

/// The CUDA device; none where this worker was built without.
#[cfg(not(feature = "cuda"))]
fn cuda() -> Option<Result<Device, String>> {
    None
}

#[cfg(any(feature = "cuda", all(target_os = "macos", feature = "metal")))]
fn unopened(way: &str, error: &candle_core::Error) -> String {
    let reason = super::error::first_line(error);
    format!("the {way} device cannot be opened ({reason}); set device to cpu")
}

/// Kinds of CPU: candle's kernels differ by instruction set.
fn cpu_kind() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            return "cpu-avx512vnni";
        }
        if is_x86_feature_detected!("avx2") {
            return "cpu-avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "cpu-neon" } else { "cpu-portable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_built_is_refused_in_words_and_never_found() {
        let built = [cfg!(all(target_os = "macos", feature = "metal")), cfg!(feature = "cuda")];
        let kinds = [(DeviceKind::Metal, "without Metal"), (DeviceKind::Cuda, "without CUDA")];
        for ((kind, word), _) in kinds.into_iter().zip(built).filter(|(_, built)| !built) {
            let refused = ComputeDevice::open(kind).expect_err("not built").to_string();
            assert!(refused.contains(word) && refused.contains("set device to cpu"), "{refused}");
        }
        assert!(matches!(ComputeDevice::open(DeviceKind::Cpu), Ok(ComputeDevice::Cpu)));
        if built == [false; 2] {
            assert!(matches!(ComputeDevice::open(DeviceKind::Auto), Ok(ComputeDevice::Cpu)));
        }
    }

    #[test]
    fn a_pool_takes_a_share_of_what_is_left() {
        assert_eq!(share(12 << 30, 4 << 30), 2 << 30);
        assert_eq!(share(1 << 30, 2 << 30), 0);
        assert_eq!(ComputeDevice::Cpu.pool_bytes(1 << 40), POOL_BYTES);
    }

    #[test]
    fn kinds_of_machine_have_names_of_their_own() {
        assert!(ComputeDevice::Cpu.compute_kind(false).starts_with("cpu-"));
        assert_eq!(ComputeDevice::Tensor(Device::Cpu).compute_kind(true), "candle-cpu");
    }
}
