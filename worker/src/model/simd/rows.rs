//! Operations on single rows: RMSNorm, the gate of an MLP, rope, quantisation.

use super::q8::{GROUP, QuantisedRowsMut};
use super::{LANES, Lanes, Vector, for_each_isa};

/// What stands between an MLP's gate and its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh form, `x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))`.
    GeluTanh,
}

for_each_isa! {
    /// RMSNorm of every `weight.len()` elements of `x`, into `out`: `x / sqrt(mean(x^2) + epsilon) * weight`. The width is a
    /// multiple of 16.
    pub fn norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = norm_rows
}

#[inline(always)]
fn norm_rows<V: Vector>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = norm_scale::<V>(x, epsilon);
        for ((x, weight), out) in vectors(x).iter().zip(vectors(weight)).zip(vectors_mut(out)) {
            V::load(x).mul(scale).mul(V::load(weight)).store(out);
        }
    }
}

for_each_isa! {
    /// The same in place, of every `weight.len()` elements.
    pub fn norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) = norm_rows_in_place
}

#[inline(always)]
fn norm_rows_in_place<V: Vector>(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    for x in x.chunks_exact_mut(width) {
        let scale = norm_scale::<V>(x, epsilon);
        for (x, weight) in vectors_mut(x).iter_mut().zip(vectors(weight)) {
            V::load(x).mul(scale).mul(V::load(weight)).store(x);
        }
    }
}

for_each_isa! {
    /// Adds the RMSNorm of every `weight.len()` elements of `x` to `out`.
    pub fn norm_add(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = norm_add_rows
}

#[inline(always)]
fn norm_add_rows<V: Vector>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = norm_scale::<V>(x, epsilon);
        for ((x, weight), out) in vectors(x).iter().zip(vectors(weight)).zip(vectors_mut(out)) {
            V::load(out).add(V::load(x).mul(scale).mul(V::load(weight))).store(out);
        }
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)`; the squares are summed in 16 lanes and then pairwise.
#[inline(always)]
fn norm_scale<V: Vector>(x: &[f32], epsilon: f32) -> V {
    let mut squares = V::zero();
    for lanes in vectors(x) {
        let x = V::load(lanes);
        squares = x.mul_add(x, squares);
    }
    V::splat(1.0 / (squares.sum() / x.len() as f32 + epsilon).sqrt())
}

for_each_isa! {
    /// Every element becomes `cap * tanh(x / cap)`.
    pub fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_all
}

#[inline(always)]
fn soft_cap_all<V: Vector>(x: &mut [f32], cap: f32) {
    let (vectors, rest) = x.as_chunks_mut();
    for x in vectors {
        V::load(x).capped(cap).store(x);
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    V::load(&last).capped(cap).store(&mut last);
    rest.copy_from_slice(&last[..rest.len()]);
}

for_each_isa! {
    /// Rows of `[gate, up]`, `width` elements each, to rows of `activation(gate) * up`.
    pub fn gate(gate_up: &[f32], width: usize, activation: Activation, out: &mut [f32]) = gate_rows
}

#[inline(always)]
fn gate_rows<V: Vector>(gate_up: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = gate_up.split_at(width);
        for ((gate, up), out) in vectors(gate).iter().zip(vectors(up)).zip(vectors_mut(out)) {
            let gate = V::load(gate);
            let argument = match activation {
                Activation::Silu => gate,
                Activation::GeluTanh => {
                    let cube = gate.mul(gate).mul(gate);
                    cube.mul_add(V::splat(0.044_715), gate).mul(V::splat(1.595_769_2))
                }
            };
            let divisor = V::splat(1.0).add(V::zero().sub(argument).exp());
            gate.div(divisor).mul(V::load(up)).store(out);
        }
    }
}

for_each_isa! {
    /// Turns the head vectors of a row in place: element `i` of the first half with element `i` of the second, by the angle
    /// whose cosine and sine are given. Half a head is a multiple of 8.
    pub fn rope(heads: &mut [f32], cos: &[f32], sin: &[f32]) = rope_heads
}

#[inline(always)]
fn rope_heads<V: Vector>(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in heads.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        if !half.is_multiple_of(LANES) {
            // Half a vector is left: few models have such heads, and a head has one.
            turn::<V>(&mut first[..half - 8], &mut second[..half - 8], cos, sin);
            let rest = half - 8..half;
            let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
            let (mut c, mut s) = ([0.0; LANES], [0.0; LANES]);
            a[..8].copy_from_slice(&first[rest.clone()]);
            b[..8].copy_from_slice(&second[rest.clone()]);
            c[..8].copy_from_slice(&cos[rest.clone()]);
            s[..8].copy_from_slice(&sin[rest.clone()]);
            turn::<V>(&mut a, &mut b, &c, &s);
            first[rest.clone()].copy_from_slice(&a[..8]);
            second[rest].copy_from_slice(&b[..8]);
        } else {
            turn::<V>(first, second, cos, sin);
        }
    }
}

#[inline(always)]
fn turn<V: Vector>(first: &mut [f32], second: &mut [f32], cos: &[f32], sin: &[f32]) {
    let pairs = vectors_mut(first).iter_mut().zip(vectors_mut(second));
    for ((first, second), (cos, sin)) in pairs.zip(vectors(cos).iter().zip(vectors(sin))) {
        let (a, b, cos, sin) = (V::load(first), V::load(second), V::load(cos), V::load(sin));
        a.mul_add(cos, V::zero().sub(b.mul(sin))).store(first);
        b.mul_add(cos, a.mul(sin)).store(second);
    }
}

for_each_isa! {
    /// Quantises `x` in groups of 32: `value = round(x * 127 / largest)`, `scale = largest / 127`. A group with a value that is
    /// not finite gets a scale that is not a number.
    pub fn quantise(x: &[f32], out: QuantisedRowsMut<'_>) = quantise_groups
}

#[inline(always)]
fn quantise_groups<V: Vector>(x: &[f32], out: QuantisedRowsMut<'_>) {
    let out = out.values.iter_mut().zip(out.scales).zip(out.starts);
    for (group, ((values, scale), start)) in x.chunks_exact(GROUP).zip(out) {
        let halves = vectors(group);
        let (low, high) = (V::load(&halves[0]), V::load(&halves[1]));
        let largest = low.abs().max(high.abs()).largest();
        // Zero, or not a number if something is not finite: a maximum may forget it.
        let poison = low.mul(V::zero()).add(high.mul(V::zero())).sum();
        *scale = largest / 127.0 + poison;
        // Below this the inverse would be infinite; such values are nothing beside any other.
        if poison != 0.0 || largest < 1e-30 {
            *values = [0; GROUP];
            *start = 0;
            continue;
        }
        let inverse = V::splat(127.0 / largest);
        values[..LANES].copy_from_slice(&low.mul(inverse).to_i8());
        values[LANES..].copy_from_slice(&high.mul(inverse).to_i8());
        *start = -128 * values.iter().map(|value| i32::from(*value)).sum::<i32>();
    }
}

/// A row as vectors; its length is a multiple of 16.
#[inline(always)]
fn vectors(row: &[f32]) -> &[Lanes] {
    row.as_chunks().0
}

#[inline(always)]
fn vectors_mut(row: &mut [f32]) -> &mut [Lanes] {
    row.as_chunks_mut().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::simd::Isa;
    use crate::model::simd::q8::QuantisedRows;
    use crate::model::simd::testing::floats;

    fn close(found: f32, expected: f64) {
        assert!(
            (f64::from(found) - expected).abs() <= 2e-6 * expected.abs().max(1.0),
            "{found} is not {expected}"
        );
    }

    #[test]
    fn norm_equals_a_plain_one_and_is_the_same_in_place_and_added() {
        let (x, weight, before) = (floats(1, 3 * 96), floats(2, 96), floats(3, 3 * 96));
        let mut plain = vec![0.0; x.len()];
        norm(Isa::Portable, &x, &weight, 1e-5, &mut plain);
        for (row, found) in x.chunks(96).zip(plain.chunks(96)) {
            let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 96.0;
            for ((x, weight), found) in row.iter().zip(&weight).zip(found) {
                close(*found, f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight));
            }
        }
        let sums: Vec<f32> = before.iter().zip(&plain).map(|(before, norm)| before + norm).collect();
        for isa in Isa::all_here() {
            let (mut out, mut in_place, mut added) = (vec![0.0; x.len()], x.clone(), before.clone());
            norm(isa, &x, &weight, 1e-5, &mut out);
            norm_in_place(isa, &mut in_place, &weight, 1e-5);
            norm_add(isa, &x, &weight, 1e-5, &mut added);
            assert!(out == plain && in_place == plain && added == sums, "{isa:?}");
        }
    }

    #[test]
    fn gates_equal_plain_ones() {
        let gate_up: Vec<f32> = floats(3, 2 * 64).into_iter().map(|x| x * 6.0).collect();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut plain = vec![0.0; 32 * 2];
            gate(Isa::Portable, &gate_up, 32, activation, &mut plain);
            for (row, found) in gate_up.chunks(64).zip(plain.chunks(32)) {
                for i in 0..32 {
                    let (x, up) = (f64::from(row[i]), f64::from(row[32 + i]));
                    let activated = match activation {
                        Activation::Silu => x / (1.0 + (-x).exp()),
                        Activation::GeluTanh => {
                            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                            0.5 * x * (1.0 + inner.tanh())
                        }
                    };
                    close(found[i], activated * up);
                }
            }
            for isa in Isa::all_here() {
                let mut out = vec![0.0; 64];
                gate(isa, &gate_up, 32, activation, &mut out);
                assert_eq!(out, plain, "{isa:?}");
            }
        }
        // Far out on either side nothing overflows.
        let mut edge = vec![0.0; 16];
        let extremes: Vec<f32> = [1e30, -1e30].into_iter().cycle().take(16).chain([1.0; 16]).collect();
        gate(Isa::detect(), &extremes, 16, Activation::Silu, &mut edge);
        assert!(edge[0] == 1e30 && edge[1].abs() < 1e-5, "{edge:?}");
    }

    #[test]
    fn rope_turns_pairs() {
        for half in [8, 16, 24, 32, 40, 64] {
            let heads = floats(4, 2 * 2 * half);
            let angles = floats(5, half);
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            let mut plain = heads.clone();
            rope(Isa::Portable, &mut plain, &cos, &sin);
            for (before, after) in heads.chunks(2 * half).zip(plain.chunks(2 * half)) {
                for i in 0..half {
                    let (a, b) = (f64::from(before[i]), f64::from(before[half + i]));
                    let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                    close(after[i], a * cos - b * sin);
                    close(after[half + i], b * cos + a * sin);
                }
            }
            for isa in Isa::all_here() {
                let mut turned = heads.clone();
                rope(isa, &mut turned, &cos, &sin);
                assert_eq!(turned, plain, "{isa:?}");
            }
        }
    }

    #[test]
    fn quantised_groups_are_near_and_alike_and_never_hide_what_is_not_finite() {
        let mut x = floats(6, 8 * GROUP);
        x[GROUP..2 * GROUP].fill(0.0);
        x[2 * GROUP] = f32::NAN;
        x[3 * GROUP + 5] = f32::INFINITY;
        x[4 * GROUP..5 * GROUP].fill(1e-36);
        let quantised = |isa| {
            let mut rows = QuantisedRows::default();
            rows.resize(2, 4 * GROUP);
            for (chunk, x) in rows.chunks_mut(1).into_iter().zip(x.chunks(4 * GROUP)) {
                quantise(isa, x, chunk);
            }
            let chunk = rows.chunks_mut(2).pop().expect("two rows");
            (chunk.values.to_vec(), chunk.scales.to_vec(), chunk.starts.to_vec())
        };
        let (values, scales, starts) = quantised(Isa::Portable);
        for group in [0, 1, 4, 5, 6, 7] {
            for (value, x) in values[group].iter().zip(&x[group * GROUP..]) {
                assert!((f32::from(*value) * scales[group] - x).abs() <= scales[group] * 0.5001 + 1e-30);
            }
            let sum: i32 = values[group].iter().map(|value| i32::from(*value)).sum();
            assert_eq!(starts[group], -128 * sum);
        }
        assert!(scales[2].is_nan() && scales[3].is_nan());
        for isa in Isa::all_here() {
            let found = quantised(isa);
            assert_eq!((&found.0, &found.2), (&values, &starts), "{isa:?}");
            assert!(found.1.iter().zip(&scales).all(|(a, b)| a == b || a.is_nan() && b.is_nan()));
        }
    }
}
