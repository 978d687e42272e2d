//! The kernels' pipelines: compiled when a backend is made, for its head size and number format.

use candle_core::{Device, MetalDevice, Result, bail};
use candle_metal_kernels::metal::{ComputePipeline, Library as MetalLibrary};

use super::kernels::PagedKernels;
use super::records::{DECODE, KERNELS, Kernel, PREFILL, REDUCE, RESHAPE_AND_CACHE, SOURCES, THREADS};
use crate::config::KvDtype;
use crate::model::backend::KvShape;
use crate::model::error::first_line;

/// A kernel and its pipeline.
pub struct Pipeline {
    /// Which kernel.
    pub kernel: Kernel,
    /// What Metal made of it.
    pub state: ComputePipeline,
}

/// The pipelines for one head size and number format. Candle's own cache knows candle's sources only.
pub struct Library {
    /// Writes K and V into slots.
    pub reshape_and_cache: Pipeline,
    /// Attends few query vectors.
    pub decode: Pipeline,
    /// Joins what `decode` left.
    pub reduce: Pipeline,
    /// Attends many query vectors.
    pub prefill: Pipeline,
}

impl Library {
    /// Compiles the sources.
    pub fn compile(device: &MetalDevice, head_dim: usize, dtype: KvDtype) -> Result<Self> {
        let library = compile_sources(device, head_dim, dtype)?;
        let pipeline = |kernel| pipeline(device, &library, kernel);
        Ok(Self {
            reshape_and_cache: pipeline(RESHAPE_AND_CACHE)?,
            decode: pipeline(DECODE)?,
            reduce: pipeline(REDUCE)?,
            prefill: pipeline(PREFILL)?,
        })
    }
}

/// Heads that the kernels take.
fn takes(head_dim: usize) -> bool {
    head_dim.is_multiple_of(16) && (16..=256).contains(&head_dim)
}

fn compile_sources(device: &MetalDevice, head_dim: usize, dtype: KvDtype) -> Result<MetalLibrary> {
    if !takes(head_dim) {
        bail!("heads of {head_dim} elements are none that the kernels take (multiples of 16 up to 256)");
    }
    let kv = match dtype {
        KvDtype::F16 => "half",
        KvDtype::Bf16 => "bfloat",
        KvDtype::F32 => "float",
    };
    let definitions = format!("#define TURNMILL_KV {kv}\n#define TURNMILL_HEAD_DIM {head_dim}\n");
    let source = definitions + &SOURCES.concat();
    device.metal_device().new_library_with_source(&source, None).map_err(candle_core::Error::wrap)
}

fn pipeline(device: &MetalDevice, library: &MetalLibrary, kernel: Kernel) -> Result<Pipeline> {
    let name = format!("turnmill_{}", kernel.name);
    let function = library.get_function(&name, None).map_err(candle_core::Error::wrap)?;
    let state = device.metal_device().new_compute_pipeline_state_with_function(&function);
    let state = state.map_err(candle_core::Error::wrap)?;
    let threads = state.max_total_threads_per_threadgroup();
    if threads < THREADS {
        bail!("{name} needs {THREADS} threads in a threadgroup, this device gives it {threads}");
    }
    Ok(Pipeline { kernel, state })
}

/// Compiles every kernel for itself, and checks them together; says of each what came of it.
pub fn compile_all(
    device: &Device,
    head_dim: usize,
    dtype: KvDtype,
) -> Vec<(&'static str, std::result::Result<(), String>)> {
    let Device::Metal(metal) = device else { return Vec::new() };
    let library = compile_sources(metal, head_dim, dtype).map_err(|error| first_line(&error));
    let outcome = |kernel: Kernel| {
        let library = library.as_ref().map_err(String::clone)?;
        pipeline(metal, library, kernel).map(drop).map_err(|error| first_line(&error))
    };
    let mut outcomes: Vec<_> = KERNELS.into_iter().map(|kernel| (kernel.name, outcome(kernel))).collect();
    if outcomes.iter().all(|(_, outcome)| outcome.is_ok()) {
        let kv = KvShape { layers: 1, blocks: 1, block_tokens: 16, kv_heads: 2, head_dim, dtype };
        let checked = PagedKernels::new(device, metal, kv, 6).map(drop).map_err(|error| first_line(&error));
        outcomes.push(("results", checked));
    }
    outcomes
}
