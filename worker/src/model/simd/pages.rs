//! Large memory in large pages.
//!
//! Weights and the block pool are hundreds of megabytes that every step walks through. In pages of 4 KiB a good part of the
//! time goes into finding out where they lie, and what the processor reads ahead ends with each page.
//!
//! Invariant: the memory begins at a page, so vectors of 64 bytes never lie across two lines of the cache.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use memmap2::MmapMut;

/// A slice of its own, zeros at first, in pages of 2 MiB where the system has them and is asked for them (Linux).
pub struct LargePages<T> {
    memory: MmapMut,
    of: PhantomData<T>,
}

impl<T: Pod> LargePages<T> {
    /// `count` zeros. Fails where the system has no room.
    pub fn zeroed(count: usize) -> io::Result<Self> {
        let memory = MmapMut::map_anon(count * size_of::<T>())?;
        // A system without large pages is only slower.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self { memory, of: PhantomData })
    }
}

impl<T: Pod> Deref for LargePages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        cast_slice(&self.memory)
    }
}

impl<T: Pod> DerefMut for LargePages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        cast_slice_mut(&mut self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zeros_and_begin_at_a_line() {
        for count in [0, 1, 1000, 3 << 20] {
            let mut memory = LargePages::<u32>::zeroed(count).expect("there is room");
            assert!(memory.len() == count && memory.iter().all(|value| *value == 0));
            assert!(count == 0 || memory.as_ptr().addr().is_multiple_of(64));
            memory.fill(7);
            assert!(memory.iter().all(|value| *value == 7));
        }
    }
}
