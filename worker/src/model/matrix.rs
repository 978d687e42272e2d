//! A weight matrix multiplied by candle: dense, or in the quantisation its file has.
//!
//! Invariant: a row's product has the same bits whatever the other rows are. Candle's kernels take other paths
//! for very few rows, so few rows are computed with rows of zeros beside them (rule 1 of ADR 0003).

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor};

use crate::config::WeightsMode;

/// Candle's repacked kernels run where the inner dimension is a multiple of this.
const REPACKED_K: usize = 256;
/// And the outer one of this.
const REPACKED_N: usize = 16;
/// The gemm crate (0.19) computes up to this many results by dot products, which add in another order.
const GEMM_SMALL: usize = 16 * 16;

/// `y = x · Wᵀ`, with `W` of `[outputs, inputs]`.
pub struct CandleMatrix {
    weight: Weight,
    /// Rows from which on the kernel adds in one order.
    min_rows: usize,
}

enum Weight {
    Dense(Tensor),
    Quantised(Arc<QTensor>),
}

impl CandleMatrix {
    /// Takes a tensor of the model file: dense in f32, or as it is.
    pub fn new(tensor: QTensor, mode: WeightsMode) -> Result<Self> {
        match mode {
            WeightsMode::F32 => Self::dense(&tensor),
            WeightsMode::AsIs | WeightsMode::Fast => Self::as_is(tensor),
        }
    }

    fn dense(tensor: &QTensor) -> Result<Self> {
        let weight = tensor.dequantize(&tensor.device())?;
        let (outputs, _) = weight.dims2()?;
        let min_rows = (GEMM_SMALL / outputs + 1).max(2);
        Ok(Self { weight: Weight::Dense(weight.t()?), min_rows })
    }

    fn as_is(tensor: QTensor) -> Result<Self> {
        if matches!(tensor.dtype(), GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            return Self::dense(&tensor);
        }
        let (outputs, inputs) = tensor.shape().dims2()?;
        let min_rows = if single_row_is_exact(tensor.dtype(), outputs, inputs) { 1 } else { 2 };
        Ok(Self { weight: Weight::Quantised(Arc::new(tensor)), min_rows })
    }

    /// `[rows, inputs]` to `[rows, outputs]`, f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let x = x.pad_with_zeros(0, 0, self.min_rows.saturating_sub(rows))?;
        let y = match &self.weight {
            Weight::Dense(weight) => x.matmul(weight)?,
            Weight::Quantised(weight) => x.apply_op1_no_bwd(weight.as_ref())?,
        };
        y.narrow(0, 0, rows)
    }
}

/// Whether candle's kernel for one row gives the bits of its kernel for many (measured; the same-bits test
/// of this room would show a change).
fn single_row_is_exact(dtype: GgmlDType, outputs: usize, inputs: usize) -> bool {
    matches!(dtype, GgmlDType::Q8_0 | GgmlDType::Q4K)
        && inputs.is_multiple_of(REPACKED_K)
        && outputs.is_multiple_of(REPACKED_N)
}

/// Reorders the rows of Q or K from llama.cpp's interleaved rope layout to halves (ADR 0007). Rows are quantised
/// one by one, so this moves bytes and changes no value.
pub fn unpermute_rope_rows(tensor: QTensor, heads: usize, head_dim: usize) -> Result<QTensor> {
    let shape = tensor.shape().clone();
    let (rows, _) = shape.dims2()?;
    let data = tensor.data()?;
    let row_bytes = data.len() / rows;
    let mut reordered = Vec::with_capacity(data.len());
    for head in 0..heads {
        for i in 0..head_dim {
            // Interleaved pair (2j, 2j + 1) becomes (j, j + half).
            let (half, j) = (i / (head_dim / 2), i % (head_dim / 2));
            let row = head * head_dim + 2 * j + half;
            reordered.extend_from_slice(&data[row * row_bytes..(row + 1) * row_bytes]);
        }
    }
    let storage = QStorage::from_data(Cow::Owned(reordered), &Device::Cpu, tensor.dtype())?;
    QTensor::new(storage, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [GgmlDType; 11] = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    /// Rows at which kernels were seen to change their path, and some between.
    const ROWS: [usize; 14] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 100, 513];

    /// Shapes `[outputs, inputs]`: small ones, the default model's, one for every repacked kernel.
    const SHAPES: [(usize, usize); 7] =
        [(64, 64), (96, 64), (192, 576), (1536, 576), (576, 1536), (256, 256), (320, 256)];

    fn matrix(rows: usize, columns: usize, seed: usize) -> Tensor {
        let value = |i: usize| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0) * 0.7;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("sizes agree")
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("f32");
        values.into_iter().map(f32::to_bits).collect()
    }

    /// Where a row's product depends on the number of rows.
    fn differences(linear: &CandleMatrix, inputs: usize) -> Vec<usize> {
        let x = matrix(513, inputs, 1);
        let expected = bits(&linear.forward(&x).expect("a product"));
        let outputs = expected.len() / 513;
        let differs = |rows: &usize| {
            let x = x.narrow(0, 0, *rows).and_then(|x| x.contiguous()).expect("some rows");
            bits(&linear.forward(&x).expect("a product")) != expected[..rows * outputs]
        };
        ROWS.into_iter().filter(differs).collect()
    }

    #[test]
    fn a_rows_product_does_not_depend_on_the_others() {
        let mut found = Vec::new();
        for (outputs, inputs) in SHAPES {
            let weight = matrix(outputs, inputs, 2);
            for dtype in TYPES.into_iter().filter(|dtype| inputs.is_multiple_of(dtype.block_size())) {
                for mode in [WeightsMode::F32, WeightsMode::AsIs] {
                    let tensor = QTensor::quantize(&weight, dtype).expect("the type takes the shape");
                    let linear = CandleMatrix::new(tensor, mode).expect("a matrix");
                    let rows = differences(&linear, inputs);
                    if !rows.is_empty() {
                        found.push(format!("{outputs}x{inputs} {dtype:?} {mode:?} at rows {rows:?}"));
                    }
                }
            }
        }
        assert!(found.is_empty(), "{found:#?}");
    }
}
