//! Where panes are. Queue and newest ends have a fixed height; workers, running turns and dead letters share what is left.

use ratatui::layout::{Constraint, Layout, Rect};

/// The smallest terminal.
pub const MIN_WIDTH: u16 = 80;
pub const MIN_HEIGHT: u16 = 20;

/// Columns of the queue; newest ends have the rest.
const QUEUE_WIDTH: u16 = 54;
/// Columns between both.
const GAP: u16 = 2;
/// Lines of both: a rule and what is below it.
const QUEUE_HEIGHT: u16 = 6;
/// Lines of a pane beside its rows: a rule, and the names of its columns.
const PANE_HEAD: u16 = 2;
/// Rows that every pane has, whether or not it fills them.
const LEAST_ROWS: u16 = 2;

/// An area a pane.
pub struct Places {
    pub header: Rect,
    pub queue: Rect,
    pub ends: Rect,
    pub workers: Rect,
    pub running: Rect,
    pub dead: Rect,
    pub footer: Rect,
}

impl Places {
    /// `wants`: rows of workers, running turns and dead letters.
    pub fn of(area: Rect, wants: [usize; 3]) -> Self {
        let room = area.height.saturating_sub(QUEUE_HEIGHT + 2 + 3 * PANE_HEAD);
        let [workers, running, dead] = share(room, wants).map(|rows| Constraint::Length(PANE_HEAD + rows));
        let (one, top) = (Constraint::Length(1), Constraint::Length(QUEUE_HEIGHT));
        let [header, top, workers, running, dead, footer] =
            Layout::vertical([one, top, workers, running, dead, one]).areas(area);
        let [queue, ends] = Layout::horizontal([Constraint::Length(QUEUE_WIDTH), Constraint::Fill(1)])
            .spacing(GAP)
            .areas(top);
        Self { header, queue, ends, workers, running, dead, footer }
    }
}

/// Lines of a frame that shows every row; a pane with fewer has the least there are all the same, as [`share`] gives it.
pub fn whole_height(wants: [usize; 3]) -> u16 {
    let rows = wants.map(|rows| u16::try_from(rows).unwrap_or(u16::MAX / 4).max(LEAST_ROWS) + PANE_HEAD);
    rows.into_iter().sum::<u16>() + QUEUE_HEIGHT + 2
}

/// Shares rows out one by one among the panes that want more, so that none starves; running turns have what nobody wants.
fn share(room: u16, wants: [usize; 3]) -> [u16; 3] {
    let least = LEAST_ROWS.min(room / 3);
    let mut rows = [least; 3];
    let mut left = room - 3 * least;
    while left > 0 {
        let before = left;
        for (rows, wants) in rows.iter_mut().zip(wants) {
            if left > 0 && usize::from(*rows) < wants {
                *rows += 1;
                left -= 1;
            }
        }
        if left == before {
            rows[1] += left;
            left = 0;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_share_what_there_is() {
        assert_eq!(share(10, [0, 0, 0]), [2, 6, 2], "nobody wants more");
        assert_eq!(share(10, [9, 9, 9]), [4, 3, 3]);
        assert_eq!(share(10, [3, 100, 2]), [3, 5, 2]);
        assert_eq!(share(30, [50, 3, 2]), [25, 3, 2], "what others leave");
        assert_eq!(share(6, [9, 9, 9]), [2, 2, 2]);
        assert_eq!(share(4, [9, 9, 9]).iter().sum::<u16>(), 4);
    }

    #[test]
    fn a_whole_frame_has_a_line_for_every_row() {
        for wants in [[0, 0, 0], [1, 1, 1], [1, 4, 1], [0, 9, 0], [3, 40, 7]] {
            let height = whole_height(wants);
            let places = Places::of(Rect::new(0, 0, 80, height), wants);
            let rows = [places.workers, places.running, places.dead].map(|area| area.height - PANE_HEAD);
            for (rows, wants) in rows.into_iter().zip(wants) {
                assert!(usize::from(rows) >= wants.max(1), "{rows} of {wants}");
            }
        }
    }

    #[test]
    fn the_smallest_terminal_shows_two_rows_of_everything() {
        let places = Places::of(Rect::new(0, 0, MIN_WIDTH, MIN_HEIGHT), [9, 9, 9]);
        for area in [places.workers, places.running, places.dead] {
            assert_eq!(area.height, PANE_HEAD + LEAST_ROWS);
        }
        assert_eq!((places.footer.y, places.footer.height), (MIN_HEIGHT - 1, 1));
    }
}
