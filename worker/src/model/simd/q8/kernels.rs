//! The inner loops of the quantised product, one for each instruction set; [`portable`] is what the others equal.

use std::ops::Range;

use super::{At, GROUP_LINES, PANEL, PackedQ8, QuantisedRows};
use crate::model::simd::Isa;

/// Calls `write` with the 16 sums of every row of `rows` and panel of `panels`.
pub fn run(
    isa: Isa,
    weights: &PackedQ8,
    x: &QuantisedRows,
    rows: Range<usize>,
    panels: Range<usize>,
    mut write: impl FnMut(At, &[f32; PANEL]),
) {
    debug_assert!(isa.is_here());
    match isa {
        // SAFETY: an `Isa` other than `Portable` is one this CPU has. `multiply` has checked that rows and panels exist and that
        // inner dimensions agree. `tests::every_kernel_gives_the_same_bits` compares with `portable`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { avx512::run(weights, x, rows, panels, &mut write) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::run(weights, x, rows, panels, &mut write) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod => unsafe { dotprod::run(weights, x, rows, panels, &mut write) },
        Isa::Portable => portable(weights, x, rows, panels, &mut write),
    }
}

/// The plain version.
fn portable(
    weights: &PackedQ8,
    x: &QuantisedRows,
    rows: Range<usize>,
    panels: Range<usize>,
    write: &mut impl FnMut(At, &[f32; PANEL]),
) {
    let groups = weights.groups;
    for panel in panels {
        for row in rows.clone() {
            let mut sums = [0.0f32; PANEL];
            for group in 0..groups {
                let lines = &weights.lines[(panel * groups + group) * GROUP_LINES..][..GROUP_LINES];
                let values = &x.values[row * groups + group];
                for (column, sum) in sums.iter_mut().enumerate() {
                    let mut dot = x.starts[row * groups + group];
                    for (line, values) in lines.iter().zip(values.chunks_exact(4)) {
                        for (weight, value) in line.0[column * 4..][..4].iter().zip(values) {
                            dot += i32::from(*weight) * i32::from(*value);
                        }
                    }
                    let scale = weights.scales[panel * groups + group][column].to_f32();
                    *sum = (dot as f32 * scale).mul_add(x.scales[row * groups + group], *sum);
                }
            }
            write(At { row, panel }, &sums);
        }
    }
}

/// Takes `$rows` in pieces for which `$tile` is compiled, largest first.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! in_pieces {
    ($rows:expr, [$($size:literal),+], |$row:ident| $tile:ident $arguments:tt) => {
        let mut $row = $rows.start;
        $(
            while $rows.end - $row >= $size {
                $tile::<$size> $arguments;
                $row += $size;
            }
        )+
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// Rows first, then panels: a pair of panels stays in the first-level cache while all rows pass.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma,f16c")]
    pub unsafe fn run(
        weights: &PackedQ8,
        x: &QuantisedRows,
        rows: Range<usize>,
        panels: Range<usize>,
        write: &mut impl FnMut(At, &[f32; PANEL]),
    ) {
        let mut panel = panels.start;
        // One or two rows alone leave room for more panels, whose independent sums hide the latency.
        let wide = if rows.len() <= 2 { 4 } else { 2 };
        while panel < panels.end {
            // SAFETY: forwarded from the caller; the panels exist.
            unsafe {
                if wide == 4 && panel + 4 <= panels.end {
                    in_pieces!(rows, [2, 1], |row| tile4(weights, x, write, panel, row, rows.start));
                    panel += 4;
                } else if panel + 2 <= panels.end {
                    in_pieces!(rows, [6, 4, 2, 1], |row| tile2(weights, x, write, panel, row, rows.start));
                    panel += 2;
                } else {
                    in_pieces!(rows, [8, 4, 2, 1], |row| tile1(weights, x, write, panel, row, rows.start));
                    panel += 1;
                }
            }
        }
    }

    macro_rules! panels {
        ($name:ident, $panels:literal) => {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma,f16c")]
            unsafe fn $name<const R: usize>(
                weights: &PackedQ8,
                x: &QuantisedRows,
                write: &mut impl FnMut(At, &[f32; PANEL]),
                panel: usize,
                row: usize,
                x_first: usize,
            ) {
                // SAFETY: forwarded from the caller.
                unsafe { tile::<R, $panels>(weights, x, write, panel, row, x_first) }
            }
        };
    }
    panels!(tile1, 1);
    panels!(tile2, 2);
    panels!(tile4, 4);

    /// `R` rows by `P` panels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma,f16c")]
    unsafe fn tile<const R: usize, const P: usize>(
        weights: &PackedQ8,
        x: &QuantisedRows,
        write: &mut impl FnMut(At, &[f32; PANEL]),
        panel: usize,
        row: usize,
        x_first: usize,
    ) {
        let groups = weights.groups;
        let first = row == x_first;
        let mut sums = [[_mm512_setzero_ps(); P]; R];
        // SAFETY: `panel + P` panels and `row + R` rows exist, each of `groups` groups, so every pointer below stays inside the
        // vectors it is taken from.
        unsafe {
            let lines = weights.lines.as_ptr().add(panel * groups * GROUP_LINES);
            let scales = weights.scales.as_ptr().add(panel * groups);
            let values = x.values.as_ptr().add(row * groups);
            let (row_scales, starts) =
                (x.scales.as_ptr().add(row * groups), x.starts.as_ptr().add(row * groups));
            for group in 0..groups {
                let mut dots = [[_mm512_setzero_si512(); P]; R];
                for r in 0..R {
                    dots[r] = [_mm512_set1_epi32(*starts.add(r * groups + group)); P];
                }
                for quad in 0..GROUP_LINES {
                    let mut w = [_mm512_setzero_si512(); P];
                    for p in 0..P {
                        let line = lines.add((p * groups + group) * GROUP_LINES + quad);
                        w[p] = _mm512_load_si512(line.cast());
                        if first {
                            // A prefetch touches nothing, wherever it points.
                            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(P * groups * GROUP_LINES).cast());
                        }
                    }
                    for r in 0..R {
                        let four = values.add(r * groups + group).cast::<i32>().add(quad).read_unaligned();
                        let four = _mm512_set1_epi32(four);
                        for p in 0..P {
                            dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], w[p], four);
                        }
                    }
                }
                for p in 0..P {
                    let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(p * groups + group).cast()));
                    for r in 0..R {
                        let row_scale = _mm512_set1_ps(*row_scales.add(r * groups + group));
                        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r][p]), scale);
                        sums[r][p] = _mm512_fmadd_ps(scaled, row_scale, sums[r][p]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                let mut out = [0.0; PANEL];
                // SAFETY: `out` has the 64 bytes that are written.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums[r][p]) };
                write(At { row: row + r, panel: panel + p }, &out);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn run(
        weights: &PackedQ8,
        x: &QuantisedRows,
        rows: Range<usize>,
        panels: Range<usize>,
        write: &mut impl FnMut(At, &[f32; PANEL]),
    ) {
        for panel in panels {
            // SAFETY: forwarded from the caller; the panel exists.
            unsafe {
                in_pieces!(rows, [2, 1], |row| tile(weights, x, write, panel, row));
            }
        }
    }

    /// `R` rows by one panel. The byte product of AVX2 saturates, so bytes are widened to 16 bits; `dots[half]` of a row
    /// holds, for four outputs each, the sums of inputs 0 and 1 beside those of inputs 2 and 3.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const R: usize>(
        weights: &PackedQ8,
        x: &QuantisedRows,
        write: &mut impl FnMut(At, &[f32; PANEL]),
        panel: usize,
        row: usize,
    ) {
        let groups = weights.groups;
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        // SAFETY: as in the AVX-512 kernel: panel and rows exist, each of `groups` groups.
        unsafe {
            let lines = weights.lines.as_ptr().add(panel * groups * GROUP_LINES);
            for group in 0..groups {
                let mut dots = [[_mm256_setzero_si256(); 4]; R];
                for quad in 0..GROUP_LINES {
                    let line = lines.add(group * GROUP_LINES + quad).cast::<__m128i>();
                    let w = [0, 1, 2, 3].map(|part| _mm256_cvtepu8_epi16(_mm_load_si128(line.add(part))));
                    for r in 0..R {
                        let values = x.values.as_ptr().add((row + r) * groups + group);
                        let four = values.cast::<i32>().add(quad).read_unaligned();
                        let four = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
                        for part in 0..4 {
                            dots[r][part] = _mm256_add_epi32(dots[r][part], _mm256_madd_epi16(w[part], four));
                        }
                    }
                }
                let halves = weights.scales.as_ptr().add(panel * groups + group).cast::<__m128i>();
                for r in 0..R {
                    let at = (row + r) * groups + group;
                    let start = _mm256_set1_epi32(x.starts[at]);
                    let row_scale = _mm256_set1_ps(x.scales[at]);
                    for half in 0..2 {
                        // Outputs 0 1 4 5 and 2 3 6 7, put in order by the permutation.
                        let pairs = _mm256_hadd_epi32(dots[r][2 * half], dots[r][2 * half + 1]);
                        let dot = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                        let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dot, start));
                        let scale = _mm256_cvtph_ps(_mm_loadu_si128(halves.add(half)));
                        sums[r][half] = _mm256_fmadd_ps(_mm256_mul_ps(dot, scale), row_scale, sums[r][half]);
                    }
                }
            }
        }
        for r in 0..R {
            let mut out = [0.0; PANEL];
            // SAFETY: `out` has twice the 32 bytes that are written.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sums[r][0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[r][1]);
            }
            write(At { row: row + r, panel }, &out);
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod dotprod {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::*;

    #[target_feature(enable = "neon,dotprod")]
    pub unsafe fn run(
        weights: &PackedQ8,
        x: &QuantisedRows,
        rows: Range<usize>,
        panels: Range<usize>,
        write: &mut impl FnMut(At, &[f32; PANEL]),
    ) {
        for panel in panels {
            // SAFETY: forwarded from the caller; the panel exists.
            unsafe {
                in_pieces!(rows, [2, 1], |row| tile(weights, x, write, panel, row));
            }
        }
    }

    /// Adds to four results the products of four signed bytes each with bytes `4 * QUAD..` of `x`. The intrinsic
    /// (`vdotq_laneq_s32`) is not stable in Rust.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn dot<const QUAD: usize>(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        let mut sum = sum;
        // SAFETY: one instruction on registers, of an extension that the function requires.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{quad}]",
                sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x, quad = const QUAD,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }

    /// Widens four scales. The intrinsic (`vcvt_f32_f16`) is not stable in Rust, and converting one by one costs a call each.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn widen(scales: uint16x4_t) -> float32x4_t {
        let wide: float32x4_t;
        // SAFETY: one instruction on registers, which every AArch64 CPU has.
        unsafe {
            asm!(
                "fcvtl {wide:v}.4s, {scales:v}.4h",
                wide = lateout(vreg) wide, scales = in(vreg) scales,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        wide
    }

    /// Adds four lines of a group, whose activations `x` holds.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn quad<const QUAD: usize>(dots: &mut [int32x4_t; 4], w: [int8x16_t; 4], x: int8x16_t) {
        for part in 0..4 {
            dots[part] = dot::<QUAD>(dots[part], w[part], x);
        }
    }

    /// `R` rows by one panel. Both factors are signed here, so the weights lose their surplus and sums start from 0.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn tile<const R: usize>(
        weights: &PackedQ8,
        x: &QuantisedRows,
        write: &mut impl FnMut(At, &[f32; PANEL]),
        panel: usize,
        row: usize,
    ) {
        let groups = weights.groups;
        let mut sums = [[vdupq_n_f32(0.0); 4]; R];
        // SAFETY: as in the AVX-512 kernel: panel and rows exist, each of `groups` groups.
        unsafe {
            let lines = weights.lines.as_ptr().add(panel * groups * GROUP_LINES);
            for group in 0..groups {
                let mut dots = [[vdupq_n_s32(0); 4]; R];
                for half in 0..2 {
                    let x: [int8x16_t; R] = std::array::from_fn(|r| {
                        let values = x.values.as_ptr().add((row + r) * groups + group);
                        vld1q_s8(values.cast::<i8>().add(half * 16))
                    });
                    let line = |index: usize| {
                        let bytes = lines.add(group * GROUP_LINES + half * 4 + index).cast::<u8>();
                        let signed = |part: usize| {
                            vreinterpretq_s8_u8(veorq_u8(vld1q_u8(bytes.add(part * 16)), vdupq_n_u8(128)))
                        };
                        [signed(0), signed(1), signed(2), signed(3)]
                    };
                    let w = [line(0), line(1), line(2), line(3)];
                    for r in 0..R {
                        quad::<0>(&mut dots[r], w[0], x[r]);
                        quad::<1>(&mut dots[r], w[1], x[r]);
                        quad::<2>(&mut dots[r], w[2], x[r]);
                        quad::<3>(&mut dots[r], w[3], x[r]);
                    }
                }
                let scales = weights.scales.as_ptr().add(panel * groups + group).cast::<u16>();
                let scales: [float32x4_t; 4] =
                    std::array::from_fn(|part| widen(vld1_u16(scales.add(part * 4))));
                for r in 0..R {
                    let row_scale = x.scales[(row + r) * groups + group];
                    for part in 0..4 {
                        let scaled = vmulq_f32(vcvtq_f32_s32(dots[r][part]), scales[part]);
                        sums[r][part] = vfmaq_n_f32(sums[r][part], scaled, row_scale);
                    }
                }
            }
        }
        for r in 0..R {
            let mut out = [0.0; PANEL];
            for part in 0..4 {
                // SAFETY: `out` has the four times 16 bytes that are written.
                unsafe { vst1q_f32(out.as_mut_ptr().add(part * 4), sums[r][part]) };
            }
            write(At { row: row + r, panel }, &out);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::{BlockQ8_0, Epilogue, GROUP, multiply};
    use super::*;
    use crate::model::simd::rows::quantise;
    use crate::model::simd::testing::floats;
    use crate::model::simd::tiles::Tiles;

    fn packed(outputs: usize, inputs: usize, seed: u32) -> (PackedQ8, Vec<Vec<BlockQ8_0>>) {
        let blocks = |row: usize| -> Vec<BlockQ8_0> {
            let values = floats(seed + row as u32, inputs);
            let block = |(group, values): (usize, &[f32])| {
                let mut quants = [0i8; GROUP];
                for (quant, value) in quants.iter_mut().zip(values) {
                    *quant = (value * 129.0) as i8;
                }
                BlockQ8_0 { scale: f16::from_f32(0.01 + group as f32 / 900.0).to_bits(), values: quants }
            };
            values.chunks_exact(GROUP).enumerate().map(block).collect()
        };
        let rows: Vec<_> = (0..outputs).map(blocks).collect();
        let mut packed = PackedQ8::zeroed(outputs, inputs).expect("there is room");
        for (mut panel, rows) in packed.panels_mut().zip(rows.chunks(PANEL)) {
            rows.iter().enumerate().for_each(|(column, row)| panel.set(column, row));
        }
        (packed, rows)
    }

    fn quantised(rows: usize, inputs: usize) -> QuantisedRows {
        let mut x = QuantisedRows::default();
        x.resize(rows, inputs);
        let values = floats(77, rows * inputs);
        for chunk in x.chunks_mut(rows.max(1)) {
            quantise(Isa::Portable, &values, chunk);
        }
        x
    }

    fn product(isa: Isa, weights: &PackedQ8, x: &QuantisedRows, epilogue: Epilogue<'_>) -> Vec<f32> {
        let mut out = vec![0.5; x.rows() * weights.outputs()];
        let cut = [(0..x.rows(), 0..weights.outputs())];
        for mut tile in Tiles::new(&mut out, weights.outputs()).cut(cut) {
            multiply(isa, weights, x, &mut tile, 0, epilogue);
        }
        out
    }

    #[test]
    fn every_kernel_gives_the_same_bits() {
        for (outputs, inputs) in [(16, 32), (7, 64), (64, 576), (100, 96), (33, 1536)] {
            let (weights, _) = packed(outputs, inputs, 5);
            let bias = floats(3, outputs);
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 31] {
                let x = quantised(rows, inputs);
                for epilogue in [Epilogue::Replace, Epilogue::Add, Epilogue::Bias(&bias)] {
                    let expected = product(Isa::Portable, &weights, &x, epilogue);
                    for isa in Isa::all_here() {
                        let found = product(isa, &weights, &x, epilogue);
                        assert!(found == expected, "{isa:?} {outputs}x{inputs}, {rows} rows");
                    }
                }
            }
        }
    }

    #[test]
    fn the_product_is_that_of_the_quantised_numbers() {
        let (weights, blocks) = packed(40, 128, 9);
        let x = quantised(3, 128);
        let found = product(Isa::detect(), &weights, &x, Epilogue::Replace);
        for row in 0..3 {
            for (column, blocks) in blocks.iter().enumerate() {
                let mut expected = 0.0;
                for (group, block) in blocks.iter().enumerate() {
                    let at = row * 4 + group;
                    let pairs = block.values.iter().zip(&x.values[at]);
                    let dot: i64 = pairs.map(|(w, a)| i64::from(*w) * i64::from(*a)).sum();
                    let scale = f64::from(f16::from_bits(block.scale).to_f32()) * f64::from(x.scales[at]);
                    expected += dot as f64 * scale;
                }
                let found = f64::from(found[row * 40 + column]);
                assert!(
                    (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
                    "{found} is not {expected}"
                );
            }
        }
    }

    #[test]
    fn a_part_of_the_columns_is_that_part_of_the_product() {
        let (weights, _) = packed(48, 64, 2);
        let x = quantised(5, 64);
        let expected = product(Isa::Portable, &weights, &x, Epilogue::Replace);
        // The second matrix of a wider stack, in three pieces.
        let mut out = vec![0.0; 5 * 60];
        let cuts = [(0..5, 12..28), (0..5, 28..60)];
        for mut tile in Tiles::new(&mut out, 60).cut(cuts) {
            multiply(Isa::detect(), &weights, &x, &mut tile, 12, Epilogue::Replace);
        }
        for row in 0..5 {
            assert_eq!(out[row * 60 + 12..][..48], expected[row * 48..][..48]);
        }
    }
}
