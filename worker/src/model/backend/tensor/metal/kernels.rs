//! The kernels at work: two custom operations of candle and how they are dispatched.

use std::sync::Arc;

use candle_core::backend::BackendStorage as _;
use candle_core::{
    CpuStorage, CustomOp2, DType, Device, InplaceOp3, Layout, MetalDevice, MetalStorage, Result, Shape,
    Storage, StorageRef, Tensor, bail,
};
use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder};
use candle_metal_kernels::utils::{Input, Output, set_param};
use objc2_metal::MTLSize;

use super::super::pool::TensorPool;
use super::check::check;
use super::library::{Library, Pipeline};
use super::records::{Argument, Join, NO_WINDOW, Parameters, THREADS, Task, vectors_per_simdgroup};
use super::tables::Tables;
use crate::model::backend::{AttentionShape, KvShape};
use crate::model::error::first_line;
use crate::schedule::StepPlan;

/// The kernels, compiled for a pool and a number of query heads.
pub struct PagedKernels {
    device: Device,
    library: Library,
    kv: KvShape,
    /// Query heads that share a KV head.
    group: usize,
}

/// A step's addresses and tasks on the device. Of what is empty there is no tensor: Metal has no empty buffers.
pub struct PagedStep {
    slots: Tensor,
    block_tables: Tensor,
    sequences: Tensor,
    decode: Option<Tasks>,
    prefill: Option<Tasks>,
}

struct Tasks {
    tasks: Tensor,
    count: usize,
    /// In decode the joins and how many.
    joins: Option<(Tensor, usize)>,
}

impl PagedKernels {
    /// The kernels for a pool of `kv` and `heads` query heads; none, with a warning, where they do not compile or do not
    /// give what gathering gives.
    pub fn checked(device: &Device, kv: KvShape, heads: usize) -> Option<Self> {
        let Device::Metal(metal) = device else { return None };
        match Self::new(device, metal, kv, heads) {
            Ok(kernels) => Some(kernels),
            Err(error) => {
                let error = first_line(&error);
                tracing::warn!(
                    error,
                    "the kernels of paged attention cannot be used; it is gathered, which is slower"
                );
                None
            }
        }
    }

    /// Compiles and checks them.
    pub(super) fn new(device: &Device, metal: &MetalDevice, kv: KvShape, heads: usize) -> Result<Self> {
        let library = Library::compile(metal, kv.head_dim, kv.dtype)?;
        let kernels = Self { device: device.clone(), library, kv, group: heads / kv.kv_heads };
        check(&kernels)?;
        Ok(kernels)
    }

    /// What they were compiled for.
    pub(super) fn kv(&self) -> KvShape {
        self.kv
    }

    /// Query heads that share a KV head.
    pub(super) fn group(&self) -> usize {
        self.group
    }

    /// Where they run.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Takes the addresses of `plan` to the device.
    pub fn begin(&self, plan: &StepPlan) -> Result<PagedStep> {
        let tables = Tables::new(plan, self.group, self.kv.head_dim);
        let tensor = |words: Vec<u32>| Tensor::new(words, &self.device);
        let tasks = |tasks: &[Task], joins: &[Join]| {
            if tasks.is_empty() {
                return Ok(None);
            }
            let joins = match joins {
                [] => None,
                joins => Some((tensor(joins.iter().flat_map(Join::words).collect())?, joins.len())),
            };
            let words = tasks.iter().flat_map(Task::words).collect();
            Ok::<_, candle_core::Error>(Some(Tasks { tasks: tensor(words)?, count: tasks.len(), joins }))
        };
        Ok(PagedStep {
            slots: tensor(plan.slots.clone())?,
            decode: tasks(&tables.decode, &tables.joins)?,
            prefill: tasks(&tables.prefill, &[])?,
            sequences: tensor(tables.sequences.iter().flat_map(|sequence| sequence.words()).collect())?,
            block_tables: tensor(tables.block_tables)?,
        })
    }

    /// Writes `keys` and `values`, `[T, kv_heads * head_dim]` f32, into the step's slots.
    pub fn write(
        &self,
        keys: &Tensor,
        values: &Tensor,
        pool: &TensorPool,
        shape: &AttentionShape,
        step: &PagedStep,
    ) -> Result<()> {
        let op = ReshapeAndCache { kernels: self, parameters: self.parameters(pool, shape)?, step };
        pool.layer(shape.layer).inplace_op3(keys, values, &op)
    }

    /// Attention of all rows; `queries` `[T, heads * head_dim]` f32 gives as much.
    pub fn attend(
        &self,
        queries: &Tensor,
        pool: &TensorPool,
        shape: &AttentionShape,
        step: &PagedStep,
    ) -> Result<Tensor> {
        let op = PagedAttention { kernels: self, parameters: self.parameters(pool, shape)?, step };
        queries.apply_op2_no_bwd(pool.layer(shape.layer), &op)
    }

    fn parameters(&self, pool: &TensorPool, shape: &AttentionShape) -> Result<Parameters> {
        if (shape.group(), shape.head_dim) != (self.group, self.kv.head_dim) {
            bail!("the kernels were compiled for other heads than {shape:?}");
        }
        Ok(Parameters {
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            blocks: pool.shape().blocks as u32,
            block_tokens: pool.shape().block_tokens as u32,
            window: shape.window.map_or(NO_WINDOW, |window| window as u32),
            scale: shape.scale,
            soft_cap: shape.soft_cap.unwrap_or(0.0),
        })
    }
}

struct ReshapeAndCache<'a> {
    kernels: &'a PagedKernels,
    parameters: Parameters,
    step: &'a PagedStep,
}

impl InplaceOp3 for ReshapeAndCache<'_> {
    fn name(&self) -> &'static str {
        "reshape-and-cache"
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        bail!("{} is for Metal", self.name())
    }

    fn metal_fwd(
        &self,
        pool: &mut MetalStorage,
        pool_layout: &Layout,
        keys: &MetalStorage,
        keys_layout: &Layout,
        values: &MetalStorage,
        values_layout: &Layout,
    ) -> Result<()> {
        let slots = Held::new(&self.step.slots)?;
        let bound = [
            Bound::of("keys", keys, keys_layout)?,
            Bound::of("values", values, values_layout)?,
            slots.bound("slots")?,
            Bound::of("pool", pool, pool_layout)?,
        ];
        let width = self.parameters.kv_heads as usize * self.kernels.kv.head_dim;
        let groups = (width.div_ceil(THREADS), self.step.slots.dim(0)?);
        dispatch(pool.device(), &self.kernels.library.reshape_and_cache, &bound, &self.parameters, groups)
    }
}

struct PagedAttention<'a> {
    kernels: &'a PagedKernels,
    parameters: Parameters,
    step: &'a PagedStep,
}

impl CustomOp2 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{} is for Metal", self.name())
    }

    fn metal_fwd(
        &self,
        queries: &MetalStorage,
        queries_layout: &Layout,
        pool: &MetalStorage,
        pool_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let device = queries.device();
        let shape = queries_layout.shape().clone();
        let output = floats(device, shape.elem_count())?;
        let (block_tables, sequences) =
            (Held::new(&self.step.block_tables)?, Held::new(&self.step.sequences)?);
        let inputs = [
            Bound::of("queries", queries, queries_layout)?,
            Bound::of("pool", pool, pool_layout)?,
            block_tables.bound("block_tables")?,
            sequences.bound("sequences")?,
            Bound::whole("output", &output),
        ];
        if let Some(tasks) = &self.step.decode {
            self.decode(device, tasks, &inputs)?;
        }
        if let Some(tasks) = &self.step.prefill {
            let held = Held::new(&tasks.tasks)?;
            let bound = [inputs.as_slice(), &[held.bound("tasks")?]].concat();
            let groups = (tasks.count, self.parameters.kv_heads as usize);
            dispatch(device, &self.kernels.library.prefill, &bound, &self.parameters, groups)?;
        }
        Ok((MetalStorage::new(output, device.clone(), shape.elem_count(), DType::F32), shape))
    }
}

impl PagedAttention<'_> {
    /// Partitions, and what joins them.
    fn decode(&self, device: &MetalDevice, tasks: &Tasks, inputs: &[Bound<'_>]) -> Result<()> {
        let (kv_heads, head_dim) = (self.parameters.kv_heads as usize, self.kernels.kv.head_dim);
        let vectors = tasks.count * kv_heads * vectors_per_simdgroup(head_dim);
        let values = floats(device, vectors * head_dim)?;
        let (maxima, sums) = (floats(device, vectors)?, floats(device, vectors)?);
        let Some((joins, join_count)) = &tasks.joins else { bail!("partitions without joins") };
        let (held_tasks, held_joins) = (Held::new(&tasks.tasks)?, Held::new(joins)?);
        let own = [
            Bound::whole("partial_values", &values),
            Bound::whole("partial_maxima", &maxima),
            Bound::whole("partial_sums", &sums),
            held_tasks.bound("tasks")?,
            held_joins.bound("joins")?,
        ];
        let bound = [inputs, &own].concat();
        let library = &self.kernels.library;
        dispatch(device, &library.decode, &bound, &self.parameters, (tasks.count, kv_heads))?;
        dispatch(device, &library.reduce, &bound, &self.parameters, (*join_count, kv_heads))
    }
}

/// A buffer of `count` floats from candle's pool of buffers.
fn floats(device: &MetalDevice, count: usize) -> Result<Arc<Buffer>> {
    device.new_buffer_builder().with_size_for(count, DType::F32).build()
}

/// A buffer under the name that the kernels give it.
#[derive(Clone, Copy)]
struct Bound<'a> {
    name: &'static str,
    buffer: &'a Buffer,
    offset: usize,
}

impl<'a> Bound<'a> {
    fn whole(name: &'static str, buffer: &'a Buffer) -> Self {
        Self { name, buffer, offset: 0 }
    }

    fn of(name: &'static str, storage: &'a MetalStorage, layout: &Layout) -> Result<Self> {
        if !layout.is_contiguous() {
            bail!("{name} must be contiguous, not {layout:?}");
        }
        let offset = layout.start_offset() * storage.dtype().size_in_bytes();
        Ok(Self { name, buffer: storage.buffer(), offset })
    }
}

/// A tensor whose storage is held while its buffer is in use.
struct Held<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Held<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        Ok(Self { storage, layout })
    }

    fn bound(&self, name: &'static str) -> Result<Bound<'_>> {
        match &*self.storage {
            Storage::Metal(storage) => Bound::of(name, storage, self.layout),
            _ => bail!("{name} is not on Metal"),
        }
    }
}

/// Encodes one kernel over `groups` threadgroups. Arguments are found by name, so their order is that of the kernel's list.
fn dispatch(
    device: &MetalDevice,
    pipeline: &Pipeline,
    bound: &[Bound<'_>],
    parameters: &Parameters,
    groups: (usize, usize),
) -> Result<()> {
    let find = |name: &str| match bound.iter().find(|bound| bound.name == name) {
        Some(bound) => Ok((bound.buffer, bound.offset)),
        None => bail!("nothing is bound to {name} of {}", pipeline.kernel.name),
    };
    let words: Vec<u32> = parameters.words().collect();
    // The guard locks candle's encoder: it ends with this function, before candle's next operation.
    let guard = device.command_encoder()?;
    let encoder: &ComputeCommandEncoder = guard.as_ref();
    encoder.set_compute_pipeline_state(&pipeline.state);
    for (index, argument) in pipeline.kernel.arguments.iter().enumerate() {
        match argument {
            Argument::Input(name) => {
                let (buffer, offset) = find(name)?;
                set_param(encoder, index, Input::with_offset(buffer, offset));
            }
            Argument::Output(name) => {
                let (buffer, offset) = find(name)?;
                set_param(encoder, index, Output::with_offset(buffer, offset));
            }
            Argument::Parameters => set_param(encoder, index, words.as_slice()),
        }
    }
    let size = |width, height| MTLSize { width, height, depth: 1 };
    encoder.dispatch_thread_groups(size(groups.0, groups.1), size(THREADS, 1));
    Ok(())
}
