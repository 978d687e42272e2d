//! What the machine gives at best, and what this process took of it: beside a figure, they say what bounds it.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// Larger than any cache, in words.
const BUFFER_WORDS: usize = (1 << 30) / size_of::<u64>();
/// Runs of which the fastest counts: whatever else runs can only slow one down.
const RUNS: usize = 5;

/// Bytes of memory that the threads that compute read in a second together, with nothing else to do.
pub fn read_bytes_per_s() -> f64 {
    let words = vec![1_u64; BUFFER_WORDS];
    let part = BUFFER_WORDS.div_ceil(threads());
    let read = || {
        let began = Instant::now();
        let sum = |part: &[u64]| part.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
        let total = black_box(&words).par_chunks(part).map(sum).reduce(|| 0, u64::wrapping_add);
        assert_eq!(total, BUFFER_WORDS as u64, "every word was read");
        size_of_val(&words[..]) as f64 / began.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| read()).fold(0.0, f64::max)
}

/// How many threads compute.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Most memory that this process has had so far, in bytes. Known on Linux only.
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    peak_in(&status)
}

/// Reads the line `VmHWM:    1234 kB`.
fn peak_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_its_line_alone() {
        assert_eq!(peak_in("VmPeak:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 7 kB\n"), Some(1234 << 10));
        assert_eq!(peak_in("VmPeak:\t 9 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_what_is_touched() {
        const BYTES: usize = 64 << 20;
        let before = peak_bytes().expect("Linux tells");
        let touched = black_box(vec![1_u8; BYTES]);
        let after = peak_bytes().expect("Linux tells");
        assert!(after >= BYTES as u64 && after >= before, "{before} {after} {}", touched.len());
    }
}
