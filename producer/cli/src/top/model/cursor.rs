//! Which row of a list is selected: by what the row is about, not by its place.

/// How to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This many rows down, or up if negative.
    By(isize),
    First,
    Last,
}

/// A selected row.
#[derive(Clone, Debug)]
pub struct Cursor<K> {
    /// What it is about; none in an empty list.
    key: Option<K>,
    /// Its place, to go on near it once it is gone.
    place: usize,
}

impl<K> Default for Cursor<K> {
    fn default() -> Self {
        Self { key: None, place: 0 }
    }
}

impl<K: Clone + PartialEq> Cursor<K> {
    /// Its place in the list; none in an empty one.
    pub fn place(&self) -> Option<usize> {
        self.key.as_ref().map(|_| self.place)
    }

    /// The selected one of `rows`, where it is still among them.
    pub fn of<'a, R>(&self, rows: &'a [R], key: impl Fn(&R) -> K) -> Option<&'a R> {
        rows.iter().find(|row| self.key.as_ref() == Some(&key(row)))
    }

    /// Finds its row again after rows came and went; where it went, takes the one in its place.
    pub fn follow(&mut self, keys: &[K]) {
        let again = self.key.as_ref().and_then(|key| keys.iter().position(|other| other == key));
        self.go(keys, again.unwrap_or(self.place));
    }

    /// Moves; stops at both ends.
    pub fn step(&mut self, keys: &[K], step: Step) {
        let place = match step {
            Step::By(rows) => self.place.saturating_add_signed(rows),
            Step::First => 0,
            Step::Last => usize::MAX,
        };
        self.go(keys, place);
    }

    fn go(&mut self, keys: &[K], place: usize) {
        self.place = place.min(keys.len().saturating_sub(1));
        self.key = keys.get(self.place).cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_on_its_row_while_others_come_and_go() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.place(), None);
        cursor.follow(&["a", "b", "c"]);
        assert_eq!(cursor.place(), Some(0), "the first");
        cursor.step(&["a", "b", "c"], Step::By(1));
        cursor.follow(&["x", "y", "a", "b"]);
        assert_eq!(cursor.place(), Some(3), "still b");
        assert_eq!(cursor.of(&["a", "b"], |row| *row), Some(&"b"));
        assert_eq!(cursor.of(&["a", "c"], |row| *row), None, "never another one");
        cursor.follow(&["x", "y"]);
        assert_eq!((cursor.place(), cursor.of(&["x", "y"], |row| *row)), (Some(1), Some(&"y")), "near it");
        cursor.follow(&[]);
        assert_eq!(cursor.place(), None);
    }

    #[test]
    fn it_stops_at_both_ends() {
        let keys = [1, 2, 3];
        let mut cursor = Cursor::default();
        cursor.follow(&keys);
        for (step, place) in [
            (Step::By(-1), 0),
            (Step::By(2), 2),
            (Step::By(1), 2),
            (Step::By(-10), 0),
            (Step::Last, 2),
            (Step::First, 0),
        ] {
            cursor.step(&keys, step);
            assert_eq!(cursor.place(), Some(place), "{step:?}");
        }
    }
}
