//! One matrix written by several threads at once, each in its own rectangle.
//!
//! Invariant: the rectangles handed out for one borrow of the matrix do not overlap.

use std::marker::PhantomData;
use std::ops::Range;

/// A row-major matrix, borrowed to be written in rectangles.
pub struct Tiles<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

/// One rectangle of a matrix.
pub struct Tile<'a> {
    start: *mut f32,
    stride: usize,
    /// Its rows in the matrix.
    rows: Range<usize>,
    /// Its columns in the matrix.
    columns: Range<usize>,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is the only way to its elements while it lives (see `Tiles::cut`), and floats can be sent.
unsafe impl Send for Tile<'_> {}
// SAFETY: a shared tile tells its place and nothing of its elements.
unsafe impl Sync for Tile<'_> {}

impl<'a> Tiles<'a> {
    /// Borrows `matrix`, whose rows have `width` elements.
    pub fn new(matrix: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && matrix.len().is_multiple_of(width), "a matrix has whole rows");
        Self { rows: matrix.len() / width, width, start: matrix.as_mut_ptr(), borrowed: PhantomData }
    }

    /// Cuts the matrix into rectangles; `cuts` are their rows and columns.
    ///
    /// # Panics
    /// Where a rectangle reaches outside or overlaps the one before it in the order of `cuts`: columns may begin anew only in
    /// later rows.
    pub fn cut(self, cuts: impl IntoIterator<Item = (Range<usize>, Range<usize>)>) -> Vec<Tile<'a>> {
        let mut last: Option<(Range<usize>, Range<usize>)> = None;
        let mut tiles = Vec::new();
        for (rows, columns) in cuts {
            assert!(rows.end <= self.rows && columns.end <= self.width, "a tile lies inside the matrix");
            assert!(rows.start <= rows.end && columns.start <= columns.end, "a tile has an extent");
            if let Some((last_rows, last_columns)) = &last {
                let beside = *last_rows == rows && last_columns.end <= columns.start;
                assert!(beside || last_rows.end <= rows.start, "tiles do not overlap");
            }
            last = Some((rows.clone(), columns.clone()));
            // SAFETY: the offset lies inside the borrowed matrix or one past its end, as just checked.
            let start = unsafe { self.start.add(rows.start * self.width) };
            tiles.push(Tile { start, stride: self.width, rows, columns, borrowed: PhantomData });
        }
        tiles
    }
}

impl Tile<'_> {
    /// Its rows in the matrix.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Its columns in the matrix.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// Its elements in row `row` of the matrix.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "a tile writes its own rows");
        // SAFETY: row and columns lie inside the matrix (checked by `cut`), no other tile has them, and the borrow of
        // `self` keeps this tile from handing them out twice. `tests::tiles_write_their_own` runs under many threads.
        unsafe {
            let start = self.start.add((row - self.rows.start) * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_write_their_own() {
        let mut matrix = vec![0.0; 7 * 10];
        let cuts = [0..3, 3..7].into_iter().flat_map(|rows| [(rows.clone(), 0..4), (rows, 4..10)]);
        let tiles = Tiles::new(&mut matrix, 10).cut(cuts);
        std::thread::scope(|scope| {
            for (index, mut tile) in tiles.into_iter().enumerate() {
                scope.spawn(move || {
                    for row in tile.rows() {
                        tile.row(row).fill(index as f32 + 1.0);
                    }
                });
            }
        });
        for (i, value) in matrix.iter().enumerate() {
            let expected = 1 + usize::from(i / 10 >= 3) * 2 + usize::from(i % 10 >= 4);
            assert_eq!(*value, expected as f32, "element {i}");
        }
    }

    #[test]
    #[should_panic(expected = "tiles do not overlap")]
    fn overlapping_tiles_are_refused() {
        Tiles::new(&mut [0.0; 8], 4).cut([(0..2, 0..3), (0..2, 2..4)]);
    }

    #[test]
    #[should_panic(expected = "a tile lies inside the matrix")]
    fn tiles_outside_are_refused() {
        Tiles::new(&mut [0.0; 8], 4).cut([(0..3, 0..3)]);
    }
}
