//! The port between the decoder and whatever multiplies: one decoder, one backend a kind of device.
//!
//! A backend owns the weights in the form its kernels read, the block pool's K and V, and all scratch memory. The decoder
//! says what a layer computes and never how. Between operations activations are rows `[T, width]` in f32.
//!
//! Invariant of the CPU backend (and of no other): an operation's result for a row has the same bits whatever the other
//! rows are.

pub mod cpu;
pub mod tensor;

use candle_core::Result;
use candle_core::quantized::QTensor;

pub use super::simd::rows::Activation;
use crate::config::KvDtype;
use crate::kv::BlockId;
use crate::schedule::StepPlan;

/// Extent of the block pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub layers: usize,
    /// Blocks in the pool.
    pub blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_dim: usize,
    /// Type of the elements.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Elements of one token's K (or V) in a layer.
    pub fn token_elements(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of all of a layer's K, which is where V starts.
    pub fn half_elements(&self) -> usize {
        self.blocks * self.block_tokens * self.token_elements()
    }

    /// Bytes of a block's K (or V) in one layer.
    pub fn half_block_bytes(&self) -> usize {
        self.block_tokens * self.token_elements() * element_bytes(self.dtype)
    }

    /// Bytes of one block in all layers, K and V.
    pub fn block_bytes(&self) -> usize {
        2 * self.layers * self.half_block_bytes()
    }

    /// Bytes a token takes in the whole pool.
    pub fn token_bytes(&self) -> usize {
        2 * self.layers * self.token_elements() * element_bytes(self.dtype)
    }
}

fn element_bytes(dtype: KvDtype) -> usize {
    match dtype {
        KvDtype::F16 | KvDtype::Bf16 => 2,
        KvDtype::F32 => 4,
    }
}

/// Attention of one layer: everything between the product before it and the one after it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Index of the layer in the pool.
    pub layer: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_dim: usize,
    /// Scores are multiplied by it (usually `1 / sqrt(head_dim)`).
    pub scale: f32,
    /// A row sees itself and the positions before it, this many in all; `None`: all of them.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Epsilon of the norms of Q and K.
    pub norm_epsilon: f32,
}

impl AttentionShape {
    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements of a row of Q.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a row of K (or V).
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What a kind of device does for the decoder.
pub trait Backend: Send + Sync {
    /// Rows of activations, `[T, width]` f32.
    type Rows: Send;
    /// Stacked matrices that read the same rows, with their bias.
    type Linear: Send + Sync;
    /// The weights of an RMSNorm.
    type Norm: Send + Sync;
    /// The embedding table.
    type Table: Send + Sync;
    /// Cosines and sines of every position.
    type Rope: Send + Sync;
    /// Addresses of a step: where its rows write and what they read.
    type Step: Send + Sync;

    /// Takes matrices `[outputs, inputs]` that read the same rows, in host memory and as the checkpoint has them, to be applied
    /// together: their outputs lie side by side. `bias` has one element an output of them all.
    fn linear(&self, parts: Vec<QTensor>, bias: Option<Vec<f32>>) -> Result<Self::Linear>;
    /// Takes the weights of a norm.
    fn norm(&self, weight: Vec<f32>) -> Result<Self::Norm>;
    /// Takes the embedding table, `[vocabulary, hidden]`.
    fn table(&self, matrix: QTensor) -> Result<Self::Table>;
    /// Takes cosines and sines, both `[positions, half]`.
    fn rope(&self, cos: Vec<f32>, sin: Vec<f32>, half: usize) -> Result<Self::Rope>;

    /// Prepares a step.
    fn begin(&mut self, plan: &StepPlan) -> Result<Self::Step>;
    /// Rows of the table, times `scale`.
    fn embed(&mut self, table: &Self::Table, tokens: &[u32], scale: f32) -> Result<Self::Rows>;
    /// `RMSNorm(x) · Wᵀ + bias`.
    fn norm_linear(
        &mut self,
        x: &Self::Rows,
        norm: (&Self::Norm, f32),
        linear: &Self::Linear,
    ) -> Result<Self::Rows>;
    /// Splits `qkv` (Q, K and V side by side) into heads; norms Q and K head by head where there are `head_norms`; turns them
    /// by `rope`; writes K and V into the step's slots; attends over each row's context. Gives `[T, heads * head_dim]`.
    fn attend(
        &mut self,
        qkv: Self::Rows,
        shape: &AttentionShape,
        head_norms: Option<&(Self::Norm, Self::Norm)>,
        rope: &Self::Rope,
        step: &Self::Step,
    ) -> Result<Self::Rows>;
    /// `activation(gate) * up` of rows that hold gate and up side by side.
    fn gate(&mut self, gate_up: Self::Rows, activation: Activation) -> Result<Self::Rows>;
    /// Adds `y · Wᵀ`, normed where there is a `post_norm`, to `x`.
    fn linear_add(
        &mut self,
        y: Self::Rows,
        linear: &Self::Linear,
        post_norm: Option<(&Self::Norm, f32)>,
        x: &mut Self::Rows,
    ) -> Result<()>;
    /// `RMSNorm(x[rows]) · headᵀ` of some rows, capped like scores where there is a `soft_cap`: `[rows, vocabulary]`. `memory` is
    /// what earlier logits lay in.
    fn logits(
        &mut self,
        rows: (Self::Rows, &[u32]),
        norm: (&Self::Norm, f32),
        head: &Self::Linear,
        soft_cap: Option<f32>,
        memory: Vec<f32>,
    ) -> Result<Vec<f32>>;
    /// Takes rows back that nobody needs any more.
    fn discard(&mut self, x: Self::Rows);

    /// Has the system hand out the pool's memory now and not within somebody's first step. Forgets what is in it.
    fn touch(&mut self) -> Result<()>;
    /// See [`Engine::read_blocks`](super::Engine::read_blocks).
    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>>;
    /// See [`Engine::write_blocks`](super::Engine::write_blocks).
    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<()>;
}
