//! How fast a worker's parts are, measured as the product runs them, and what codecs cost in words.

#![allow(clippy::disallowed_methods, reason = "measures by the clock of the machine")]

pub mod drift;
pub mod engine;
pub mod machine;
pub mod queue;
pub mod restore;
pub mod speculation;
pub mod stall;
pub mod stored;

/// SplitMix64's output function (Steele, Lea and Flood, 2014): numbers that look random.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
