//! Large memory in large pages.
//!
//! Weights and the block pool are hundreds of megabytes that every step walks through. In pages of 4 KiB a good part of the
//! time goes into finding out where they lie.

use bytemuck::Zeroable;
use bytemuck::allocation::zeroed_vec;

/// `count` zeros, in pages of 2 MiB where the system has them and is asked for them (Linux).
pub fn zeroed_in_large_pages<T: Zeroable>(count: usize) -> Vec<T> {
    let memory = zeroed_vec(count);
    #[cfg(target_os = "linux")]
    advise(&memory);
    memory
}

#[cfg(target_os = "linux")]
fn advise<T>(memory: &[T]) {
    use rustix::mm::{Advice, madvise};
    const PAGE: usize = 2 << 20;
    let start = memory.as_ptr().addr().next_multiple_of(PAGE) - memory.as_ptr().addr();
    let end = size_of_val(memory) / PAGE * PAGE;
    if start < end {
        // SAFETY: the range lies inside `memory` and begins at a page; this advice changes what pages memory lies in and nothing that
        // it holds. `tests::zeros_are_zeros` reads all of it.
        let outcome = unsafe {
            madvise(memory.as_ptr().cast_mut().byte_add(start).cast(), end - start, Advice::LinuxHugepage)
        };
        // A system without large pages is only slower.
        let _ = outcome;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zeros() {
        for count in [0, 1, 1000, 3 << 20] {
            let mut memory: Vec<u32> = zeroed_in_large_pages(count);
            assert!(memory.len() == count && memory.iter().all(|value| *value == 0));
            memory.fill(7);
            assert!(memory.iter().all(|value| *value == 7));
        }
    }
}
