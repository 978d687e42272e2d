//! Up to 64 elements as small integers with a common scale and offset.

use half::f16;

use super::elements::saturate;

/// Elements of a group; a head's last one may have fewer.
pub(super) const GROUP: usize = 64;
/// Bytes of scale and offset.
pub(super) const PARAMETER_BYTES: usize = 4;

/// Added to a number from 0 to 2^22 it leaves that number, rounded, in the sum's low bits.
const ROUNDER: f32 = 12_582_912.0;
/// Values the compiler compares at once.
const LANES: usize = 16;

/// What quanta are multiplied with and added to.
#[derive(Clone, Copy)]
struct Parameters {
    scale: f32,
    offset: f32,
}

impl Parameters {
    /// Those with which quanta from 0 to `largest` reach all of `values`; NaN where one of them is not finite.
    fn new(values: &[f32], largest: f32) -> Self {
        let Extent { low, high, nothing } = Extent::of(values);
        let limit = f32::from(f16::MAX);
        let offset = f32::from(round_down(low.clamp(-limit, limit))) + nothing;
        let scale = f32::from(round_up((high.clamp(-limit, limit) - offset) / largest));
        Self { scale, offset }
    }

    fn read(bytes: &[u8]) -> Self {
        let half = |at: usize| f32::from(f16::from_le_bytes([bytes[at], bytes[at + 1]]));
        Self { scale: half(0), offset: half(2) }
    }

    fn write(self, bytes: &mut [u8]) {
        bytes[..2].copy_from_slice(&f16::from_f32(self.scale).to_le_bytes());
        bytes[2..].copy_from_slice(&f16::from_f32(self.offset).to_le_bytes());
    }

    fn quantise(self, values: &[f32], quanta: &mut [u8; GROUP]) {
        let inverse = if self.scale == 0.0 { 0.0 } else { 1.0 / self.scale };
        for (quantum, value) in quanta.iter_mut().zip(values) {
            *quantum = ((value - self.offset) * inverse + ROUNDER).to_bits() as u8;
        }
    }

    fn restore(self, quanta: &[u8], values: &mut [f32]) {
        for (value, quantum) in values.iter_mut().zip(quanta) {
            *value = self.offset + self.scale * f32::from(*quantum);
        }
    }
}

/// Quantises `values` to eight bits each.
pub(super) fn encode_q8(values: &mut [f32], encoded: &mut [u8]) {
    let (parameters, bytes) = encoded.split_at_mut(PARAMETER_BYTES);
    let quanta = quantise(values, 255.0, parameters);
    bytes.copy_from_slice(&quanta[..values.len()]);
}

/// The inverse of [`encode_q8`].
pub(super) fn decode_q8(encoded: &[u8], values: &mut [f32]) {
    let (parameters, quanta) = encoded.split_at(PARAMETER_BYTES);
    Parameters::read(parameters).restore(quanta, values);
}

/// Quantises `values` to four bits each.
pub(super) fn encode_q4(values: &mut [f32], encoded: &mut [u8]) {
    let (parameters, bytes) = encoded.split_at_mut(PARAMETER_BYTES);
    let quanta = quantise(values, 15.0, parameters);
    let (first, second) = quanta[..].split_at(bytes.len());
    // A group of an odd length has a zero for its last high half: quanta start out as zeros.
    for ((byte, low), high) in bytes.iter_mut().zip(first).zip(second) {
        *byte = low | high << 4;
    }
}

/// The inverse of [`encode_q4`].
pub(super) fn decode_q4(encoded: &[u8], values: &mut [f32]) {
    let (parameters, bytes) = encoded.split_at(PARAMETER_BYTES);
    let mut quanta = [0; GROUP];
    let (first, second) = quanta.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(first).zip(second) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    Parameters::read(parameters).restore(&quanta, values);
}

/// The quanta of `values`, zeros after them; writes what brings them back to `parameters`.
fn quantise(values: &mut [f32], largest: f32, parameters: &mut [u8]) -> [u8; GROUP] {
    let mut quanta = [0; GROUP];
    let chosen = Parameters::new(values, largest);
    saturate(values);
    chosen.quantise(values, &mut quanta);
    chosen.write(parameters);
    quanta
}

/// The extremes of some values.
struct Extent {
    low: f32,
    high: f32,
    /// 0 where all are finite, NaN otherwise.
    nothing: f32,
}

impl Extent {
    // Lane by lane, because the compiler may not reorder comparisons of floats by itself.
    fn of(values: &[f32]) -> Self {
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        let mut nothing = [0.0; LANES];
        for values in values.chunks(LANES) {
            for (lane, &value) in values.iter().enumerate() {
                low[lane] = if value < low[lane] { value } else { low[lane] };
                high[lane] = if value > high[lane] { value } else { high[lane] };
                nothing[lane] += value * 0.0;
            }
        }
        Self {
            low: low.into_iter().fold(f32::INFINITY, f32::min),
            high: high.into_iter().fold(f32::NEG_INFINITY, f32::max),
            nothing: nothing.into_iter().sum(),
        }
    }
}

/// The largest f16 that is not above `value`, which is within f16's range.
fn round_down(value: f32) -> f16 {
    let near = f16::from_f32(value);
    if f32::from(near) <= value || value.is_nan() {
        return near;
    }
    match near.to_bits() {
        0 => f16::from_bits(0x8001),
        bits if near.is_sign_negative() => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// The smallest f16 that is not below `value`, which is not negative and within f16's range.
fn round_up(value: f32) -> f16 {
    let near = f16::from_f32(value);
    if f32::from(near) < value { f16::from_bits(near.to_bits() + 1) } else { near }
}
