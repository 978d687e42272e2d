//! Sixteen floats side by side: plain Rust that the compiler vectorises, and AVX-512 by hand.
//!
//! Invariant: both give the same bits for every operation here, for every input that is no NaN.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Floats side by side.
pub const LANES: usize = 16;

/// Memory of one vector.
pub type Lanes = [f32; LANES];

/// Sixteen f32 and what the kernels do with them. Methods must be inlined into a function compiled for the instruction set.
pub trait Vector: Copy {
    /// The same value in all lanes.
    fn splat(value: f32) -> Self;
    /// From memory.
    fn load(from: &Lanes) -> Self;
    /// To memory.
    fn store(self, to: &mut Lanes);
    /// Widened; exact.
    fn from_f16(from: &[f16; LANES]) -> Self;
    /// Widened; exact.
    fn from_bf16(from: &[bf16; LANES]) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// The larger of the two, lane by lane.
    fn max(self, b: Self) -> Self;
    /// The smaller of the two, lane by lane.
    fn min(self, b: Self) -> Self;
    /// Bit `i` says whether lane `i` is at least `b`'s.
    fn reaches(self, b: Self) -> u16;
    /// Without the sign.
    fn abs(self) -> Self;
    /// Adds `exponent << 23` to the bits: scales by a power of two.
    fn add_to_exponent(self, exponent: Self) -> Self;
    /// Rounded to nearest even and cut to i8; for finite values only.
    fn to_i8(self) -> [i8; LANES];
    /// Exchanges rows and columns.
    fn transpose(rows: &mut [Self; LANES]);
    /// Lane `i` of the result is [`Self::sum`] of vector `i`.
    fn sums(vectors: &[Self; LANES]) -> Self;

    /// All zero.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// The sum of all lanes, added pairwise.
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(f32::max)
    }

    /// Halves are joined until one is left.
    #[inline(always)]
    fn fold(self, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] = join(lanes[lane], lanes[lane + width]);
            }
        }
        lanes[0]
    }

    /// `e^x` within 2 ulp for x in [-87, 88], to which x is cut; branch-free. Range reduction and polynomial are
    /// those of Cephes' `expf` (S. Moshier, 1989).
    #[inline(always)]
    fn exp(self) -> Self {
        /// Adding it rounds to an integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        const COEFFICIENTS: [f32; 6] =
            [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
        // Below -87 the result would be subnormal, above 88 infinite.
        let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
        let shifted = x.mul_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(ROUND));
        let n = shifted.sub(Self::splat(ROUND));
        let r = n.mul_add(Self::splat(-LN_2_LOW), n.mul_add(Self::splat(-LN_2_HIGH), x));
        let mut polynomial = Self::splat(COEFFICIENTS[0]);
        for coefficient in &COEFFICIENTS[1..] {
            polynomial = polynomial.mul_add(r, Self::splat(*coefficient));
        }
        let mantissa = polynomial.mul_add(r.mul(r), r).add(Self::splat(1.0));
        // `shifted` holds n in its low bits; moved into the exponent field it scales by 2^n.
        mantissa.add_to_exponent(shifted)
    }

    /// `cap * tanh(self / cap)`, as `cap * (1 - 2 / (1 + exp(2 * self / cap)))`.
    #[inline(always)]
    fn capped(self, cap: f32) -> Self {
        let divisor = self.mul(Self::splat(2.0 / cap)).exp().add(Self::splat(1.0));
        Self::splat(cap).mul(Self::splat(1.0).sub(Self::splat(2.0).div(divisor)))
    }
}

/// Asks the memory for a few elements that are read soon. It changes nothing.
#[inline(always)]
pub fn prefetch<E>(elements: &[E]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let start = elements.as_ptr().cast::<i8>();
        for offset in (0..size_of_val(elements)).step_by(LINE) {
            // SAFETY: a prefetch touches nothing, and the pointer stays inside the slice.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = elements;
}

/// Plain Rust. Compiled with AVX2 or NEON it becomes vectors; without fused multiply-add in hardware it is slow and still right.
#[derive(Clone, Copy)]
pub struct Plain(Lanes);

impl Plain {
    #[inline(always)]
    fn map2(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            out[lane] = f(self.0[lane], b.0[lane]);
        }
        Self(out)
    }
}

impl Vector for Plain {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(from: &Lanes) -> Self {
        Self(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut Lanes) {
        *to = self.0;
    }

    #[inline(always)]
    fn from_f16(from: &[f16; LANES]) -> Self {
        let mut out = [0.0; LANES];
        from.convert_to_f32_slice(&mut out);
        Self(out)
    }

    #[inline(always)]
    fn from_bf16(from: &[bf16; LANES]) -> Self {
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            out[lane] = f32::from_bits(u32::from(from[lane].to_bits()) << 16);
        }
        Self(out)
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            out[lane] = self.0[lane].mul_add(b.0[lane], c.0[lane]);
        }
        Self(out)
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.map2(b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.map2(b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.map2(b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.map2(b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.map2(b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.map2(b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn reaches(self, b: Self) -> u16 {
        let mut bits = 0;
        for lane in 0..LANES {
            bits |= u16::from(self.0[lane] >= b.0[lane]) << lane;
        }
        bits
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map2(self, |a, _| a.abs())
    }

    #[inline(always)]
    fn add_to_exponent(self, exponent: Self) -> Self {
        self.map2(exponent, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }

    #[inline(always)]
    fn to_i8(self) -> [i8; LANES] {
        let mut out = [0; LANES];
        for lane in 0..LANES {
            out[lane] = self.0[lane].round_ties_even() as i8;
        }
        out
    }

    #[inline(always)]
    fn sums(vectors: &[Self; LANES]) -> Self {
        Self(vectors.map(Self::sum))
    }

    #[inline(always)]
    fn transpose(rows: &mut [Self; LANES]) {
        for i in 0..LANES {
            for j in 0..i {
                let above = rows[j].0[i];
                rows[j].0[i] = rows[i].0[j];
                rows[i].0[j] = above;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{LANES, Lanes, Vector};

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY (of every block in this implementation): `Avx512` is named only by functions that `for_each_isa` compiles for
    // AVX-512, F16C and FMA and calls where the CPU has them. Loads and stores go through references to arrays of
    // exactly the size they touch. `vector::tests` compares each operation with `Plain`.
    impl Vector for Avx512 {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        fn load(from: &Lanes) -> Self {
            Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, to: &mut Lanes) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn from_f16(from: &[f16; LANES]) -> Self {
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
        }

        #[inline(always)]
        fn from_bf16(from: &[bf16; LANES]) -> Self {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }

        #[inline(always)]
        fn mul_add(self, b: Self, c: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        fn add(self, b: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, b.0) })
        }

        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, b.0) })
        }

        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, b.0) })
        }

        #[inline(always)]
        fn div(self, b: Self) -> Self {
            Self(unsafe { _mm512_div_ps(self.0, b.0) })
        }

        #[inline(always)]
        fn max(self, b: Self) -> Self {
            Self(unsafe { _mm512_max_ps(self.0, b.0) })
        }

        #[inline(always)]
        fn min(self, b: Self) -> Self {
            Self(unsafe { _mm512_min_ps(self.0, b.0) })
        }

        #[inline(always)]
        fn reaches(self, b: Self) -> u16 {
            unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, b.0) }
        }

        #[inline(always)]
        fn abs(self) -> Self {
            Self(unsafe { _mm512_abs_ps(self.0) })
        }

        #[inline(always)]
        fn add_to_exponent(self, exponent: Self) -> Self {
            unsafe {
                let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(exponent.0));
                Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), shifted)))
            }
        }

        #[inline(always)]
        fn to_i8(self) -> [i8; LANES] {
            let mut out = [0; LANES];
            unsafe {
                let whole =
                    _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
                _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(whole));
            }
            out
        }

        /// Four rounds: each adds the halves of what is left of every vector, two vectors to a register.
        #[inline(always)]
        fn sums(vectors: &[Self; LANES]) -> Self {
            unsafe {
                let mut eights = [_mm512_setzero_ps(); 8];
                for i in 0..8 {
                    let (a, b) = (vectors[2 * i].0, vectors[2 * i + 1].0);
                    let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                    let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                    eights[i] = _mm512_add_ps(low, high);
                }
                let mut fours = [_mm512_setzero_ps(); 4];
                for i in 0..4 {
                    let (a, b) = (eights[2 * i], eights[2 * i + 1]);
                    let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                    let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                    fours[i] = _mm512_add_ps(low, high);
                }
                let mut twos = [_mm512_setzero_ps(); 2];
                for i in 0..2 {
                    let (a, b) = (fours[2 * i], fours[2 * i + 1]);
                    let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
                    let high = _mm512_shuffle_ps::<0b11_10_11_10>(a, b);
                    twos[i] = _mm512_add_ps(low, high);
                }
                let low = _mm512_shuffle_ps::<0b10_00_10_00>(twos[0], twos[1]);
                let high = _mm512_shuffle_ps::<0b11_01_11_01>(twos[0], twos[1]);
                // Lane 4j + m holds the sum of vector j + 4m.
                let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                Self(_mm512_permutexvar_ps(order, _mm512_add_ps(low, high)))
            }
        }

        /// Four rounds of exchanges, of 1, 2, 4 and 8 lanes.
        #[inline(always)]
        fn transpose(rows: &mut [Self; LANES]) {
            unsafe {
                let mut pairs = [_mm512_setzero_ps(); LANES];
                for i in (0..LANES).step_by(2) {
                    pairs[i] = _mm512_unpacklo_ps(rows[i].0, rows[i + 1].0);
                    pairs[i + 1] = _mm512_unpackhi_ps(rows[i].0, rows[i + 1].0);
                }
                let mut quads = pairs;
                for i in (0..LANES).step_by(4) {
                    for half in 0..2 {
                        let (a, b) = (pairs[i + half], pairs[i + 2 + half]);
                        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                        quads[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                        quads[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                    }
                }
                // quads[4g + j] holds, in its 128-bit part p, column 4p + j of rows 4g..4g + 4.
                for j in 0..4 {
                    let low01 = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[j], quads[4 + j]);
                    let high01 = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[j], quads[4 + j]);
                    let low23 = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[8 + j], quads[12 + j]);
                    let high23 = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[8 + j], quads[12 + j]);
                    rows[j].0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(low01, low23);
                    rows[4 + j].0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(high01, high23);
                    rows[8 + j].0 = _mm512_shuffle_f32x4::<0b11_01_11_01>(low01, low23);
                    rows[12 + j].0 = _mm512_shuffle_f32x4::<0b11_01_11_01>(high01, high23);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::simd::testing::floats;
    use crate::model::simd::{Isa, for_each_isa};

    for_each_isa! {
        /// Every operation, one after the other, on 32 numbers.
        pub fn everything(x: &[f32]) -> Vec<u32> = every_operation
    }

    #[inline(always)]
    fn every_operation<V: Vector>(x: &[f32]) -> Vec<u32> {
        let lanes: &[Lanes] = x.as_chunks().0;
        let (a, b) = (V::load(&lanes[0]), V::load(&lanes[1]));
        let mut out = Vec::new();
        let mut keep = |vector: V| {
            let mut lanes = [0.0; LANES];
            vector.store(&mut lanes);
            out.extend(lanes.map(f32::to_bits));
        };
        for result in [a.add(b), a.sub(b), a.mul(b), a.div(b), a.max(b), a.min(b), a.abs(), a.mul_add(b, a)] {
            keep(result);
        }
        keep(a.mul(V::splat(40.0)).exp());
        keep(V::from_f16(&lanes[0].map(f16::from_f32)));
        keep(V::from_bf16(&lanes[0].map(bf16::from_f32)));
        keep(V::load(&a.mul(V::splat(127.0)).to_i8().map(f32::from)));
        let mut square: [V; LANES] = std::array::from_fn(|i| a.mul(V::splat(i as f32)).add(b));
        keep(V::sums(&square));
        V::transpose(&mut square);
        square.into_iter().for_each(&mut keep);
        out.extend([a.sum(), b.largest()].map(f32::to_bits));
        out.extend([a.reaches(b), b.reaches(a), a.reaches(a)].map(u32::from));
        out
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for seed in 0..50 {
            let x = floats(seed, 2 * LANES);
            for isa in Isa::all_here() {
                assert_eq!(everything(isa, &x), everything(Isa::Portable, &x), "{isa:?}");
            }
        }
    }

    #[test]
    fn a_transposed_square_has_rows_for_columns() {
        let mut square: [Plain; LANES] =
            std::array::from_fn(|i| Plain(std::array::from_fn(|j| (i * LANES + j) as f32)));
        Plain::transpose(&mut square);
        for (i, row) in square.iter().enumerate() {
            assert!(row.0.iter().enumerate().all(|(j, value)| *value == (j * LANES + i) as f32));
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -880_000..870_000 {
            let x = -(i as f32) / 10_000.0;
            let expected = f64::from(x).exp() as f32;
            let mut found = [0.0; LANES];
            Plain::splat(x).exp().store(&mut found);
            let ulps = (i64::from(found[0].to_bits()) - i64::from(expected.to_bits())).abs();
            assert!(ulps <= 2, "exp({x}) is {} and not {expected}", found[0]);
        }
        let mut edge = [0.0; LANES];
        Plain::splat(f32::NEG_INFINITY).exp().store(&mut edge);
        assert!(edge[0] < 1e-37);
    }
}
