//! Elements of the pool's types, little endian, to f32 and back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::group::GROUP;
use crate::config::KvDtype;

/// Reads one group's elements; `values` has as many as `bytes` hold.
pub(super) fn load(dtype: KvDtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        KvDtype::F16 => {
            let mut halves = [f16::ZERO; GROUP];
            let halves = &mut halves[..values.len()];
            unpack(bytes, halves, f16::from_le_bytes);
            halves.convert_to_f32_slice(values);
        }
        KvDtype::Bf16 => {
            let mut halves = [bf16::ZERO; GROUP];
            let halves = &mut halves[..values.len()];
            unpack(bytes, halves, bf16::from_le_bytes);
            halves.convert_to_f32_slice(values);
        }
        KvDtype::F32 => unpack(bytes, values, f32::from_le_bytes),
    }
}

/// Writes one group's elements; `bytes` has room for just them. What f16 cannot hold saturates there.
pub(super) fn store(dtype: KvDtype, values: &mut [f32], bytes: &mut [u8]) {
    match dtype {
        KvDtype::F16 => {
            saturate(values);
            let mut halves = [f16::ZERO; GROUP];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            pack(halves, bytes, f16::to_le_bytes);
        }
        KvDtype::Bf16 => {
            let mut halves = [bf16::ZERO; GROUP];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            pack(halves, bytes, bf16::to_le_bytes);
        }
        KvDtype::F32 => pack(values, bytes, f32::to_le_bytes),
    }
}

/// Brings finite and infinite values into the range of f16; NaN stays.
pub(super) fn saturate(values: &mut [f32]) {
    let largest = f32::from(f16::MAX);
    for value in values {
        *value = value.clamp(-largest, largest);
    }
}

fn unpack<E, const N: usize>(bytes: &[u8], values: &mut [E], read: impl Fn([u8; N]) -> E) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (value, bytes) in values.iter_mut().zip(elements) {
        *value = read(*bytes);
    }
}

fn pack<E: Copy, const N: usize>(values: &[E], bytes: &mut [u8], write: impl Fn(E) -> [u8; N]) {
    let (elements, _) = bytes.as_chunks_mut::<N>();
    for (bytes, value) in elements.iter_mut().zip(values) {
        *bytes = write(*value);
    }
}
