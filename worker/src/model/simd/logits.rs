//! Operations on a row of logits: what a sampler reads of a whole vocabulary.
//!
//! Invariant: sums run in [`WIDTH`] lanes that are then added in order, so they depend on the row alone.

// The parameter says for which instructions the compiler makes vectors of a loop; not each loop names it.
#![allow(clippy::extra_unused_type_parameters)]

use super::{LANES, Vector, for_each_isa};

/// Elements side by side: some vectors of every instruction set, so that none waits for the one before it.
const WIDTH: usize = 32;

/// Elements that [`survey`] looks at together. Few, because those of the first best block are read twice.
const BLOCK: usize = 1024;

/// Elements of which [`maxima`] keeps one.
pub const SHARE: usize = 32;

/// Below it `e^x` is subnormal in f32.
const SMALLEST: f32 = -87.0;

/// What one look at a row shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survey {
    /// The largest element that is a number; negative infinity if there is none.
    pub largest: f32,
    /// Where it is first; none: every number is negative infinity.
    pub first: Option<usize>,
    /// Whether an element is NaN.
    pub has_nan: bool,
}

for_each_isa! {
    /// The largest element, where it is, and whether there is NaN.
    pub fn survey(row: &[f32]) -> Survey = survey_row
}

#[inline(always)]
fn survey_row<V: Vector>(row: &[f32]) -> Survey {
    let (mut largest, mut best, mut magnitude) = (f32::NEG_INFINITY, None, 0);
    for (block, elements) in row.chunks(BLOCK).enumerate() {
        let (wide, rest) = elements.as_chunks::<WIDTH>();
        let (mut numbers, mut bits) = ([f32::NEG_INFINITY; WIDTH], [0; WIDTH]);
        for wide in wide {
            for lane in 0..WIDTH {
                numbers[lane] = larger(wide[lane], numbers[lane]);
                bits[lane] = magnitude_bits(wide[lane]).max(bits[lane]);
            }
        }
        let numbers = numbers.iter().chain(rest);
        let of_block = numbers.fold(f32::NEG_INFINITY, |largest, number| larger(*number, largest));
        let bits = bits.into_iter().chain(rest.iter().copied().map(magnitude_bits)).fold(0, u32::max);
        magnitude = magnitude.max(bits);
        if of_block > largest {
            (largest, best) = (of_block, Some(block * BLOCK));
        }
    }
    let first = best.map(|start| {
        let within = row[start..].iter().position(|element| *element == largest);
        start + within.expect("the largest element of the block is in it")
    });
    Survey { largest, first, has_nan: magnitude > f32::INFINITY.to_bits() }
}

/// The bits without the sign: those of NaN are above infinity's.
#[inline(always)]
fn magnitude_bits(element: f32) -> u32 {
    element.to_bits() & !(1 << 31)
}

/// The larger of the two; `b` if one is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

for_each_isa! {
    /// Every logit becomes its weight, `e^((logit - largest) / temperature)`: 1 for the largest one, which is finite. Weights below
    /// `least`, and those that are subnormal in f32, become 0. `e^x` is rounded once, to the nearest f32 but for at most one of
    /// thousands, and so has the same bits on every machine.
    pub fn weigh(row: &mut [f32], largest: f32, temperature: f32, least: f32) = weigh_row
}

#[inline(always)]
fn weigh_row<V: Vector>(row: &mut [f32], largest: f32, temperature: f32, least: f32) {
    for element in row {
        let x = (*element - largest) / temperature;
        let weight = exp(f64::from(if x > SMALLEST { x } else { SMALLEST })) as f32;
        *element = if x > SMALLEST && weight >= least { weight } else { 0.0 };
    }
}

for_each_isa! {
    /// Appends the largest element of every `SHARE` elements of a row, each with the number of its share.
    pub fn maxima(row: &[f32], out: &mut Vec<(f32, u32)>) = maxima_of_row
}

#[inline(always)]
fn maxima_of_row<V: Vector>(row: &[f32], out: &mut Vec<(f32, u32)>) {
    let (shares, rest) = row.as_chunks::<SHARE>();
    for (index, share) in shares.iter().enumerate() {
        // Halves are joined until one is left.
        let (mut lanes, mut width) = (*share, SHARE);
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] = larger(lanes[lane], lanes[lane + width]);
            }
        }
        out.push((lanes[0], index as u32));
    }
    if !rest.is_empty() {
        out.push((rest.iter().copied().fold(f32::NEG_INFINITY, larger), shares.len() as u32));
    }
}

for_each_isa! {
    /// Appends the elements from `least` up, each with its place in the row.
    pub fn at_least(row: &[f32], least: f32, out: &mut Vec<(f32, u32)>) = at_least_of_row
}

#[inline(always)]
fn at_least_of_row<V: Vector>(row: &[f32], least: f32, out: &mut Vec<(f32, u32)>) {
    let (groups, rest) = row.as_chunks::<LANES>();
    for (group, start) in groups.iter().zip((0u32..).step_by(LANES)) {
        let mut found = V::load(group).reaches(V::splat(least));
        while found != 0 {
            let lane = found.trailing_zeros();
            out.push((group[lane as usize], start + lane));
            found &= found - 1;
        }
    }
    let start = (row.len() - rest.len()) as u32;
    out.extend(rest.iter().copied().zip(start..).filter(|(element, _)| *element >= least));
}

for_each_isa! {
    /// The sum of a row.
    pub fn sum(row: &[f32]) -> f64 = sum_row
}

#[inline(always)]
fn sum_row<V: Vector>(row: &[f32]) -> f64 {
    sum_of(row, f64::from)
}

for_each_isa! {
    /// The sum of `e^(logit - largest)` over a row, whose largest element is finite.
    pub fn exp_sum(row: &[f32], largest: f32) -> f64 = exp_sum_row
}

#[inline(always)]
fn exp_sum_row<V: Vector>(row: &[f32], largest: f32) -> f64 {
    sum_of(row, |logit| {
        let x = logit - largest;
        exp(f64::from(if x > SMALLEST { x } else { SMALLEST }))
    })
}

#[inline(always)]
fn sum_of(row: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let (wide, rest) = row.as_chunks::<WIDTH>();
    let mut lanes = [0.0; WIDTH];
    for wide in wide {
        for lane in 0..WIDTH {
            lanes[lane] += term(wide[lane]);
        }
    }
    let lanes: f64 = lanes.iter().sum();
    rest.iter().fold(lanes, |sum, element| sum + term(*element))
}

/// `e^x` for x in [-87, 0], within 1e-12 of it (relative): `2^n * e^r` with `|r| <= ln 2 / 2`, and `e^r` by its Taylor series,
/// whose first term left out is below 3e-13.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Adding it rounds to an integer in the low bits of the mantissa.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// `1 / k!` for k from 10 down to 0.
    const COEFFICIENTS: [f64; 11] = [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let shifted = x.mul_add(std::f64::consts::LOG2_E, ROUND);
    let r = (shifted - ROUND).mul_add(-std::f64::consts::LN_2, x);
    let series = COEFFICIENTS[1..].iter().fold(COEFFICIENTS[0], |sum, next| sum.mul_add(r, *next));
    // `shifted` holds n in its low bits; moved into the exponent field it scales by 2^n.
    f64::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::testing::floats;
    use super::*;

    /// Rows with whole and broken ends.
    fn rows() -> impl Iterator<Item = Vec<f32>> {
        [1usize, 7, 31, 32, 33, 1023, 1024, 1025, 5000].into_iter().zip(0..).map(|(length, seed)| {
            let mut row = floats(seed, length);
            row.iter_mut().for_each(|x| *x *= 60.0);
            row[length / 3] = f32::NEG_INFINITY;
            row
        })
    }

    #[test]
    fn a_survey_finds_the_first_of_the_largest_and_any_nan() {
        for mut row in rows() {
            let finite: Vec<f32> = row.iter().copied().filter(|x| x.is_finite()).collect();
            let largest = finite.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = row.iter().position(|x| *x == largest).filter(|_| !finite.is_empty());
            let last = row.len() - 1;
            for isa in Isa::all_here() {
                let expected = Survey { largest, first, has_nan: false };
                assert_eq!(survey(isa, &row), expected, "{isa:?}, {}", row.len());
            }
            row[last] = largest;
            for isa in Isa::all_here() {
                assert_eq!(survey(isa, &row).first, first.or(Some(last)).filter(|_| largest.is_finite()));
            }
            for nan in [f32::NAN, -f32::NAN] {
                for at in [0, last / 2, last] {
                    let before = std::mem::replace(&mut row[at], nan);
                    assert!(Isa::all_here().into_iter().all(|isa| survey(isa, &row).has_nan), "at {at}");
                    row[at] = before;
                }
            }
        }
    }

    #[test]
    fn weights_are_e_to_the_x_rounded_once() {
        let (mut count, mut apart) = (0, 0);
        for temperature in [0.3, 1.0, 7.0, 100.0] {
            let logits = floats(9, 20_000).into_iter().map(|x| x * 50.0 - 50.0);
            let logits: Vec<f32> = std::iter::once(0.0).chain(logits).collect();
            let mut plain = logits.clone();
            weigh(Isa::Portable, &mut plain, 0.0, temperature, 0.0);
            assert_eq!(plain[0], 1.0);
            for (logit, weight) in logits.iter().zip(&plain) {
                let x = logit / temperature;
                let expected = if x > SMALLEST { f64::from(x).exp() as f32 } else { 0.0 };
                count += 1;
                apart += u32::from(*weight != expected);
                assert!(weight.to_bits().abs_diff(expected.to_bits()) <= 1, "e^{x} is {weight}");
            }
            for isa in Isa::all_here() {
                let mut weights = logits.clone();
                weigh(isa, &mut weights, 0.0, temperature, 0.0);
                assert_eq!(weights, plain, "{isa:?}");
            }
        }
        assert!(apart * 5_000 < count, "{apart} of {count} are not the nearest");
    }

    #[test]
    fn small_weights_are_dropped() {
        let mut row = [1.0, 0.0, -1.0, -100.0, f32::NEG_INFINITY];
        weigh(Isa::detect(), &mut row, 1.0, 1.0, 0.3);
        assert_eq!(row.map(|weight| weight > 0.0), [true, true, false, false, false]);
    }

    #[test]
    fn sums_have_the_same_bits_everywhere() {
        for row in rows() {
            let row: Vec<f32> = row.into_iter().map(|x| x.max(-20.0)).collect();
            let expected: f64 = row.iter().copied().map(f64::from).sum();
            let plain = sum(Isa::Portable, &row);
            assert!((plain - expected).abs() <= 1e-9, "{plain} and not {expected}");
            let expected: f64 = row.iter().map(|x| (f64::from(*x) - 60.0).exp()).sum();
            let exps = exp_sum(Isa::Portable, &row, 60.0);
            assert!((exps / expected - 1.0).abs() < 1e-6, "{exps} and not {expected}");
            for isa in Isa::all_here() {
                assert_eq!((sum(isa, &row), exp_sum(isa, &row, 60.0)), (plain, exps), "{isa:?}");
            }
        }
    }

    #[test]
    fn elements_from_a_number_up_keep_their_places() {
        for row in rows() {
            for least in [f32::NEG_INFINITY, -30.0, 55.0, 70.0] {
                let all = row.iter().copied().zip(0u32..);
                let expected: Vec<(f32, u32)> = all.filter(|(element, _)| *element >= least).collect();
                for isa in Isa::all_here() {
                    let mut found = Vec::new();
                    at_least(isa, &row, least, &mut found);
                    assert_eq!(found, expected, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn maxima_are_the_shares_largest() {
        for row in rows() {
            let largest = |share: &[f32]| share.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected: Vec<(f32, u32)> = row.chunks(SHARE).map(largest).zip(0..).collect();
            for isa in Isa::all_here() {
                let mut found = Vec::new();
                maxima(isa, &row, &mut found);
                assert_eq!(found, expected, "{isa:?}");
            }
        }
    }
}
