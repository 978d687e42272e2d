//! Rope: how fast each pair of a head's elements turns.

use std::f64::consts::TAU;

use super::ModelError;

/// Frequencies of rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub base: f64,
    /// What became of them when the model's context was stretched.
    pub scaling: RopeScaling,
}

/// How frequencies were changed to stretch a context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths over `original_context / low` are low frequencies.
        low: f64,
        /// Wavelengths under `original_context / high` are high frequencies.
        high: f64,
        /// Context before stretching.
        original_context: f64,
    },
    /// A divisor for each frequency, as GGUF files carry them.
    Divisors(Vec<f32>),
}

impl RopeConfig {
    /// Of a context that was never stretched.
    pub fn plain(base: f64) -> Self {
        Self { base, scaling: RopeScaling::None }
    }

    /// Radians per position of each of the `head_dim / 2` pairs.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| libm::pow(self.base, -2.0 * i as f64 / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Divisors(divisors) => {
                plain.zip(divisors).map(|(frequency, divisor)| frequency / f64::from(*divisor)).collect()
            }
            RopeScaling::Llama3 { factor, low, high, original_context } => plain
                .map(|frequency| {
                    // 0 where the wavelength is a low frequency's, 1 where it is a high one's.
                    let turns = original_context * frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                })
                .collect(),
        }
    }

    /// Cosines and sines of `positions` positions, `[positions, head_dim / 2]`. Angles are computed in f64 and rounded once, with
    /// functions that are the same on every machine.
    pub fn tables(&self, head_dim: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.frequencies(head_dim);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| libm::sincos(p as f64 * f)));
        angles.map(|(sin, cos)| (cos as f32, sin as f32)).unzip()
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), ModelError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let sound = match &self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(*factor),
            RopeScaling::Llama3 { factor, low, high, original_context } => {
                [*factor, *low, *original_context, high - low].into_iter().all(positive)
            }
            RopeScaling::Divisors(divisors) => {
                divisors.len() == head_dim / 2 && divisors.iter().all(|d| positive(f64::from(*d)))
            }
        };
        if sound && positive(self.base) {
            return Ok(());
        }
        Err(ModelError::Unusable("its rope's base or scaling makes no sense".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_keeps_high_frequencies_and_divides_low_ones() {
        let plain = RopeConfig::plain(500_000.0);
        let scaling = RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original_context: 8192.0 };
        let scaled = RopeConfig { scaling, ..plain.clone() };
        let ratios: Vec<f64> =
            plain.frequencies(64).iter().zip(scaled.frequencies(64)).map(|(a, b)| a / b).collect();
        // The divisors that llama.cpp's converter writes for Llama 3.2 1B.
        assert_eq!(&ratios[..15], &[1.0; 15][..]);
        assert!((ratios[16] - 2.0).abs() < 1.5 && ratios[16] > 1.0, "{}", ratios[16]);
        assert!(ratios[18..].iter().all(|ratio| (ratio - 32.0).abs() < 1e-9), "{ratios:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let rope = |scaling| RopeConfig { base: 10_000.0, scaling };
        assert!(rope(RopeScaling::Linear { factor: 0.0 }).check(64).is_err());
        assert!(rope(RopeScaling::Divisors(vec![1.0; 31])).check(64).is_err());
        assert!(rope(RopeScaling::Divisors(vec![1.0; 32])).check(64).is_ok());
        assert!(RopeConfig::plain(f64::NAN).check(64).is_err());
    }
}
