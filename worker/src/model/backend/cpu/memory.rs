//! The buffers that activations live in, kept from step to step.
//!
//! Invariant: once steps of some size have run, a step of that size or a smaller one allocates no buffer.

use crate::model::simd::q8::QuantisedRows;

/// Rows of activations, `[rows, width]`.
#[derive(Default)]
pub struct Rows {
    /// Row-major.
    pub values: Vec<f32>,
    /// Elements of a row.
    pub width: usize,
}

impl Rows {
    /// How many.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// One of them.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }
}

/// Buffers that nobody uses now.
#[derive(Default)]
pub struct Memory {
    free: Vec<Vec<f32>>,
    /// The quantised rows of the product that runs.
    pub quantised: QuantisedRows,
}

impl Memory {
    /// Room for `rows` rows of `width` elements; what is in it is left over from earlier.
    pub fn take(&mut self, rows: usize, width: usize) -> Rows {
        let wanted = rows * width;
        // The smallest that is large enough, else the largest, which then grows.
        let fits = |buffer: &Vec<f32>| (buffer.capacity() < wanted, buffer.capacity().abs_diff(wanted));
        let best = (0..self.free.len()).min_by_key(|index| fits(&self.free[*index]));
        let mut values = best.map(|index| self.free.swap_remove(index)).unwrap_or_default();
        values.resize(wanted, 0.0);
        Rows { values, width }
    }

    /// Takes them back.
    pub fn give(&mut self, rows: Rows) {
        self.free.push(rows.values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let mut memory = Memory::default();
        let (small, large) = (memory.take(2, 8), memory.take(100, 8));
        let places = [small.values.as_ptr(), large.values.as_ptr()];
        memory.give(large);
        memory.give(small);
        let (a, b) = (memory.take(1, 16), memory.take(50, 8));
        assert_eq!([a.values.as_ptr(), b.values.as_ptr()], places);
        assert_eq!((a.rows(), b.rows()), (1, 50));
    }
}
