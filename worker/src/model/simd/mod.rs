//! The SIMD room: every loop over many numbers that the CPU backend runs, in one canonical order of float operations.
//!
//! Owns: vectors of 16 lanes ([`Vector`]), the quantised product ([`q8`]), operations on rows ([`rows`]), attention over one
//! context split ([`attend`]), what samplers read of logits ([`logits`]), and memory that several threads write side by side
//! ([`tiles`]). Nothing here knows the rest of the crate, candle, or threads.
//!
//! Invariants: a row's result has the same bits whatever the other rows are, and on every instruction set. Integer dot products
//! are exact in any order. Float operations have one order, fixed by the source, which runs 16 lanes side by side:
//! vectors run across independent results, or sum into 16 lanes that are then added pairwise ([`logits`]: 32, added in order).
//! Multiply-adds are fused where the source says so and nowhere else.
#![allow(unsafe_code)]
// Loops over lanes and over rows of registers read best with an index.
#![allow(clippy::needless_range_loop)]

pub mod attend;
pub mod logits;
pub mod pages;
pub mod q8;
pub mod rows;
pub mod tiles;
mod vector;

pub use vector::{LANES, Lanes, Vector};

/// What this CPU can run, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with byte dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX2 with fused multiply-add and f16 conversion.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON with byte dot products.
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// Plain Rust; what it is compared with.
    Portable,
}

impl Isa {
    /// The best one here.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Self::Avx512Vnni.is_here() {
                return Self::Avx512Vnni;
            }
            if Self::Avx2.is_here() {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if Self::Dotprod.is_here() {
            return Self::Dotprod;
        }
        Self::Portable
    }

    /// Whether this CPU can run it.
    pub fn is_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            Self::Portable => true,
        }
    }

    /// All that this CPU can run.
    #[cfg(test)]
    pub fn all_here() -> Vec<Self> {
        let all = [
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod,
            Self::Portable,
        ];
        all.into_iter().filter(|isa| isa.is_here()).collect()
    }
}

/// Compiles `$body`, generic over [`Vector`], once for each instruction set, as `$name` with the [`Isa`] before its
/// other arguments.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* pub fn $name:ident $(<$($generic:ident : $bound:path),+>)? ( $($argument:ident : $type:ty),* $(,)? ) $(-> $result:ty)? = $body:ident) => {
        $(#[$doc])*
        pub fn $name $(<$($generic: $bound),+>)? (isa: $crate::model::simd::Isa, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            use $crate::model::simd::Isa;
            use $crate::model::simd::vector;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
            fn avx512 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                $body::<vector::Avx512 $($(, $generic)+)?>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                $body::<vector::Plain $($(, $generic)+)?>($($argument),*)
            }
            debug_assert!(isa.is_here());
            match isa {
                // SAFETY: `Isa` values other than `Portable` come from `detect` or are checked by `is_here`. The body is
                // otherwise safe code; the tests of its file run it against the portable version.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => unsafe { avx512 $(::<$($generic),+>)? ($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2 $(::<$($generic),+>)? ($($argument),*) },
                _ => $body::<vector::Plain $($(, $generic)+)?>($($argument),*),
            }
        }
    };
}
pub(crate) use for_each_isa;

#[cfg(test)]
pub(crate) mod testing {
    /// A small deterministic stream of floats in [-1, 1).
    pub fn floats(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }
}
