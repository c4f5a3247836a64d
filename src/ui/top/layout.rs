//! Where things stand on a screen of any size.

use crate::ui::top::view::{Page, View};

/// Rows of the screen that something has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Band {
    /// The first.
    pub y: u16,
    /// How many.
    pub height: u16,
}

/// The screen from top to bottom. What has no row is not shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Areas {
    /// What it is about.
    pub title: Band,
    /// The list of runs.
    pub runs: Band,
    /// The list of tasks with its heading, or what is there instead.
    pub body: Band,
    /// The selected task with its heading.
    pub detail: Band,
    /// The keys.
    pub foot: Band,
}

/// Divides the screen; `runs` and `tasks` are how many there are.
pub fn areas(view: &View, runs: usize, tasks: usize) -> Areas {
    let height = view.size.1;
    let title = u16::from(height >= 4);
    let foot = u16::from(height >= 2);
    let rest = height - title - foot;
    let many = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let listed = match rest {
        _ if matches!(view.page, Page::Log | Page::Detail) => 0,
        8.. => many(runs).clamp(1, rest / 6),
        3.. => 1,
        _ => 0,
    };
    let left = rest - listed;
    let (body, detail) = match view.page {
        Page::Tasks if left >= 6 => {
            let wanted = many(tasks).saturating_add(1 + u16::from(has_columns(view)));
            let body = wanted.min(left - left * 45 / 100).max(3);
            (body, left - body)
        }
        Page::Tasks | Page::Timeline => (left, 0),
        Page::Detail | Page::Log => (0, left),
    };
    let mut y = 0;
    let mut next = |height: u16| {
        let band = Band { y, height };
        y += height;
        band
    };
    Areas { title: next(title), runs: next(listed), body: next(body), detail: next(detail), foot: next(foot) }
}

/// Whether there is room for the names of the columns.
pub fn has_columns(view: &View) -> bool {
    view.size.1 >= 20
}

/// Rows of the list of tasks without its heading.
pub fn task_rows(view: &View, areas: &Areas) -> usize {
    usize::from(areas.body.height.saturating_sub(1 + u16::from(has_columns(view))))
}

/// The first row of a list that is shown, so that `selected` is on the screen; `first` is where it was.
pub fn scrolled(first: usize, selected: usize, rows: usize, all: usize) -> usize {
    let last = all.saturating_sub(rows);
    let first = first.min(selected).max((selected + 1).saturating_sub(rows));
    first.min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_divided_without_a_rest() {
        for page in [Page::Tasks, Page::Detail, Page::Log, Page::Timeline] {
            for height in 1..100 {
                for (runs, tasks) in [(0, 0), (1, 3), (500, 5000)] {
                    let view = View { size: (80, height), page, ..View::default() };
                    let a = areas(&view, runs, tasks);
                    let bands = [a.title, a.runs, a.body, a.detail, a.foot];
                    assert_eq!(bands.iter().map(|b| b.height).sum::<u16>(), height, "{page:?} {height} {a:?}");
                    assert!(bands.is_sorted_by_key(|b| b.y));
                }
            }
        }
    }

    #[test]
    fn a_list_scrolls_as_little_as_it_has_to() {
        assert_eq!(scrolled(0, 3, 5, 100), 0);
        assert_eq!(scrolled(0, 5, 5, 100), 1);
        assert_eq!(scrolled(50, 10, 5, 100), 10);
        assert_eq!(scrolled(98, 99, 5, 100), 95);
        assert_eq!(scrolled(3, 0, 0, 0), 0);
    }
}
