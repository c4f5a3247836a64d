//! What stands before a line of a task's output: when, by whom, of which task, and whether it is stderr.
//! `10:11:12.3 W1 build  │ compiling`.

use crate::base::ids::{TaskId, WorkerNo};
use crate::base::sum::sum;
use crate::base::text::one_line;
use crate::ui::paint::Paint;

/// The narrowest column of names, where the terminal is narrow.
const NARROW: usize = 8;

/// How lines of output begin. Columns become wider with what has to stand in them.
#[derive(Debug)]
pub struct Prefix {
    paint: Paint,
    name: usize,
    worker: usize,
    /// The widest that the column of names gets.
    most: usize,
}

impl Prefix {
    /// For a terminal of so many columns; elsewhere names are never cut.
    pub fn new(paint: Paint, columns: Option<usize>) -> Prefix {
        let most = columns.map_or(usize::MAX, |columns| (columns / 3).max(NARROW));
        Prefix { paint, name: 0, worker: 0, most }
    }

    /// Makes room for the name of an attempt.
    pub fn widen(&mut self, task: &TaskId, number: u32, worker: WorkerNo) {
        self.name = self.name.max(name(task, number).chars().count()).min(self.most);
        self.worker = self.worker.max(worker.to_string().len());
    }

    /// The prefix of a line, with the space behind it. `stream`: 0 for stdout, 1 for stderr.
    pub fn of(&self, time: Option<&str>, task: &TaskId, number: u32, worker: WorkerNo, stream: usize) -> String {
        let Prefix { paint, name: width, worker: digits, .. } = *self;
        let name = format!("{:<width$}", one_line(&name(task, number), width.max(1)));
        let sign = if stream == 0 { " │".to_owned() } else { paint.bad("!│") };
        let who = paint.hue(sum(task.as_str().as_bytes()), format_args!("{:<digits$} {name}", worker.to_string()));
        format!("{}{who} {sign} ", self.time(time))
    }

    /// The time alone, with the space behind it.
    pub fn time(&self, time: Option<&str>) -> String {
        time.map(|time| self.paint.dim(time) + " ").unwrap_or_default()
    }
}

/// `build`, or `build#2` for the second attempt.
fn name(task: &TaskId, number: u32) -> String {
    if number > 1 { format!("{task}#{number}") } else { task.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn shown(columns: Option<usize>, paint: Paint) -> String {
        let mut prefix = Prefix::new(paint, columns);
        let lines = [
            (Some("10:11:12.3"), "build", 1, 1, 0, "compiling"),
            (Some("10:11:14.0"), "test-the-whole-program-on-all-systems", 1, 2, 0, "a begins"),
            (Some("10:11:14.0"), "test-the-whole-program-on-all-systems", 1, 2, 1, "a is slow"),
            (None, "build", 2, 12, 0, "compiling again"),
        ];
        let mut out = String::new();
        for (time, task, number, worker, stream, text) in lines {
            let (task, worker) = (TaskId::new(task).unwrap(), WorkerNo(worker));
            prefix.widen(&task, number, worker);
            writeln!(out, "{}{text}", prefix.of(time, &task, number, worker, stream)).unwrap();
        }
        out
    }

    #[test]
    fn the_name_of_a_task_takes_a_third_of_the_terminal_at_most() {
        let all = [60, 80, 120].map(|columns| format!("-- {columns}\n{}", shown(Some(columns), Paint::plain())));
        insta::assert_snapshot!(format!("{}-- a pipe\n{}", all.concat(), shown(None, Paint::plain())));
    }

    #[test]
    fn a_task_keeps_its_colour_and_stderr_is_told_without_one() {
        let out = shown(Some(80), Paint::always());
        let hue = |line: &str, name: &str| {
            let end = line.find(name).unwrap();
            line[..end].rfind("\x1b[").map(|at| line[at..].split('m').next().unwrap().to_owned()).unwrap()
        };
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(hue(lines[0], "W1 "), hue(lines[3], "W12 "));
        assert_ne!(hue(lines[0], "W1 "), hue(lines[1], "W2 "));
        assert!(lines[2].contains("!│") && !lines[1].contains('!'));
    }
}
