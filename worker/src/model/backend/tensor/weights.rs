//! Weights on the device: dense in f32, or in the checkpoint's own quantisation.
//!
//! Invariant: a product's input starts at its storage's first element, because candle's quantised matrix product on Metal
//! takes it for granted.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{D, Device, Result, Tensor};

use crate::config::WeightsMode;

/// Matrices that read the same rows; their outputs lie side by side.
pub struct TensorLinear {
    parts: Vec<Weight>,
    bias: Option<Tensor>,
}

enum Weight {
    /// `[inputs, outputs]`, a view of the transpose.
    Dense(Tensor),
    Quantised(Arc<QTensor>),
}

impl TensorLinear {
    /// Takes `parts` to `device`; those of one type become one matrix there.
    pub fn new(
        parts: &[QTensor],
        bias: Option<Vec<f32>>,
        mode: WeightsMode,
        device: &Device,
    ) -> Result<Self> {
        let parts = parts
            .chunk_by(|one, next| is_dense(one, mode) == is_dense(next, mode) && one.dtype() == next.dtype())
            .map(|stack| Weight::stack(stack, mode, device))
            .collect::<Result<_>>()?;
        let bias = bias.map(|bias| Tensor::new(bias, device)).transpose()?;
        Ok(Self { parts, bias })
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = if x.layout().start_offset() == 0 { x.contiguous()? } else { x.force_contiguous()? };
        let products = self.parts.iter().map(|part| part.forward(&x)).collect::<Result<Vec<_>>>()?;
        let y = match products.as_slice() {
            [only] => only.clone(),
            products => Tensor::cat(products, D::Minus1)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Whether `tensor` is multiplied in f32.
fn is_dense(tensor: &QTensor, mode: WeightsMode) -> bool {
    mode == WeightsMode::F32 || tensor.dtype() == GgmlDType::F32
}

impl Weight {
    /// One weight of matrices of one type. A quantised row lies in one piece, so matrices are stacked as bytes.
    fn stack(tensors: &[QTensor], mode: WeightsMode, device: &Device) -> Result<Self> {
        if is_dense(&tensors[0], mode) {
            let dense = tensors.iter().map(|tensor| tensor.dequantize(&tensor.device()));
            let stacked = Tensor::cat(&dense.collect::<Result<Vec<_>>>()?, 0)?;
            return Ok(Self::Dense(stacked.to_device(device)?.t()?));
        }
        let (dtype, inputs) = (tensors[0].dtype(), tensors[0].shape().dims2()?.1);
        let mut outputs = 0;
        let mut bytes = Vec::with_capacity(tensors.iter().map(QTensor::storage_size_in_bytes).sum());
        for tensor in tensors {
            outputs += tensor.shape().dims2()?.0;
            bytes.extend_from_slice(&tensor.data()?);
        }
        let storage = QStorage::from_data(Cow::Owned(bytes), device, dtype)?;
        Ok(Self::Quantised(Arc::new(QTensor::new(storage, (outputs, inputs))?)))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => x.matmul(weight),
            // Candle has no product of a bf16 matrix and a single row on Metal, so a lone row has a companion.
            Self::Quantised(weight) if weight.dtype() == GgmlDType::BF16 && x.dim(0)? == 1 => {
                let two = Tensor::cat(&[x, x], 0)?;
                two.apply_op1_no_bwd(weight.as_ref())?.narrow(0, 0, 1)?.force_contiguous()
            }
            Self::Quantised(weight) => x.apply_op1_no_bwd(weight.as_ref()),
        }
    }
}

/// The embedding table.
pub enum TensorTable {
    /// `[vocabulary, width]`.
    Dense(Tensor),
    /// The same, rows dequantised as they are looked up.
    Quantised(Box<QTensor>),
}

impl TensorTable {
    /// Takes `tensor` to `device`.
    pub fn new(tensor: &QTensor, mode: WeightsMode, device: &Device) -> Result<Self> {
        if is_dense(tensor, mode) {
            return Ok(Self::Dense(tensor.dequantize(&tensor.device())?.to_device(device)?));
        }
        let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
        Ok(Self::Quantised(Box::new(QTensor::new(storage, tensor.shape().clone())?)))
    }

    /// The rows `tokens`, `[T, width]`.
    pub fn rows(&self, tokens: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(table) => table.index_select(tokens, 0),
            Self::Quantised(table) => table.embedding(tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, seed: usize, dtype: GgmlDType) -> QTensor {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        let dense = Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("sizes agree");
        QTensor::quantize(&dense, dtype).expect("the type takes the shape")
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32")
    }

    #[test]
    fn stacked_matrices_give_their_outputs_side_by_side() {
        let mixes = [
            [GgmlDType::Q4K, GgmlDType::Q4K, GgmlDType::Q6K],
            [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16],
            [GgmlDType::Q8_0, GgmlDType::Q8_0, GgmlDType::Q8_0],
        ];
        let x = matrix(3, 256, 9, GgmlDType::F32).dequantize(&Device::Cpu).expect("f32");
        for mix in mixes {
            for mode in [WeightsMode::F32, WeightsMode::AsIs] {
                let parts: Vec<QTensor> =
                    mix.iter().zip(1..).map(|(dtype, seed)| matrix(16 * seed, 256, seed, *dtype)).collect();
                let bias: Vec<f32> = (0..96).map(|i| i as f32).collect();
                let all = TensorLinear::new(&parts, Some(bias.clone()), mode, &Device::Cpu);
                let together = values(&all.and_then(|all| all.forward(&x)).expect("a product"));
                let mut start = 0;
                for part in parts {
                    let outputs = part.shape().dims()[0];
                    let one = TensorLinear::new(&[part], None, mode, &Device::Cpu).expect("a weight");
                    let alone = values(&one.forward(&x).expect("a product"));
                    for (row, alone) in alone.chunks_exact(outputs).enumerate() {
                        let found = &together[row * 96 + start..][..outputs];
                        let near = |(i, (found, alone)): (usize, (&f32, &f32))| {
                            (found - alone - bias[start + i]).abs() < 1e-3
                        };
                        assert!(found.iter().zip(alone).enumerate().all(near), "{mix:?} {mode:?}");
                    }
                    start += outputs;
                }
            }
        }
    }

    #[test]
    fn a_lone_row_and_rows_within_a_tensor_are_multiplied_like_any_other() {
        let x = matrix(4, 64, 9, GgmlDType::F32).dequantize(&Device::Cpu).expect("f32");
        for dtype in [GgmlDType::F32, GgmlDType::BF16, GgmlDType::Q8_0] {
            let linear =
                TensorLinear::new(&[matrix(16, 64, 1, dtype)], None, WeightsMode::AsIs, &Device::Cpu)
                    .expect("a weight");
            let all = values(&linear.forward(&x).expect("a product"));
            let third = x.narrow(0, 2, 1).and_then(|row| linear.forward(&row)).expect("a product");
            for (alone, among) in values(&third).iter().zip(&all[32..48]) {
                assert!((alone - among).abs() < 1e-4, "{dtype:?}");
            }
        }
    }

    #[test]
    fn a_table_gives_the_rows_of_its_tokens() {
        for (dtype, mode) in [(GgmlDType::F32, WeightsMode::AsIs), (GgmlDType::Q8_0, WeightsMode::AsIs)] {
            let matrix = matrix(8, 64, 5, dtype);
            let dense = values(&matrix.dequantize(&Device::Cpu).expect("f32"));
            let table = TensorTable::new(&matrix, mode, &Device::Cpu).expect("a table");
            let tokens = Tensor::new(&[6u32, 0], &Device::Cpu).expect("tokens");
            let rows = values(&table.rows(&tokens).expect("rows"));
            assert_eq!((&rows[..64], &rows[64..]), (&dense[6 * 64..7 * 64], &dense[..64]), "{dtype:?}");
        }
    }
}
