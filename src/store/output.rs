//! What tasks wrote to stdout and stderr, read back in the order in which it was written, as far as that is known: the files of
//! several attempts are merged by the looks that the leader has noted (`model::growth`). Where nobody has looked, they
//! follow each other in the order in which the attempts began.
//!
//! However long the files are, and however many, only the attempts that ran at the same time are open, each with one piece.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::base::ids::{TaskId, WorkerNo};
use crate::model::event::{Body, Event};
use crate::model::growth::{Growth, MAX_TEXT};
use crate::model::scan;
use crate::store::run::{self, RunDir, RunError};
use crate::sys::spool::{self, Cut};

/// Bytes that are read at once, and the longest line that is kept together.
const CHUNK: usize = 64 * 1024;

/// The time of what nobody has seen yet: it comes last.
const NOW: u64 = u64::MAX;

/// An attempt whose output is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its task.
    pub task: TaskId,
    /// Its number, from 1.
    pub number: u32,
    /// Who runs it.
    pub worker: WorkerNo,
    /// When it began, `CLOCK_MONOTONIC` in milliseconds.
    pub since_ms: u64,
    /// When it was over, by the same clock; nothing more is written then.
    pub ended_ms: Option<u64>,
}

/// A piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which attempt's, by the order in which they were added.
    pub attempt: usize,
    /// 0 for stdout, 1 for stderr.
    pub stream: usize,
    /// By when it was there, `CLOCK_MONOTONIC` in milliseconds; `None`: it has just come.
    pub at_ms: Option<u64>,
    /// What it is.
    pub what: What<'a>,
}

/// What a piece of output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What<'a> {
    /// A line with its line feed, or the last one, or one before a hole, without it.
    Line(&'a [u8]),
    /// A part of a very long line, but its end.
    Part(&'a [u8]),
    /// So many bytes were given back to the disk, because there were too many.
    Hole(u64),
}

/// The output of some attempts of a run.
#[derive(Debug)]
pub struct Outputs {
    folder: RunDir,
    attempts: Vec<Attempt>,
    wanted: [bool; 2],
    /// So many lines of each file at most, from its end.
    tail: Option<u64>,
    /// Of the attempts that may still say something: which, which half of it, and the file once it is open.
    streams: Vec<(usize, usize, Option<Stream>)>,
}

impl Outputs {
    /// Of no attempt yet. `wanted`: stdout, stderr. With `tail` only so many lines of each file, from its end.
    pub fn new(folder: RunDir, wanted: [bool; 2], tail: Option<u64>) -> Outputs {
        Outputs { folder, attempts: Vec::new(), wanted, tail, streams: Vec::new() }
    }

    /// Takes in an event of the run's log: an attempt that begins is one more, and one that ends says nothing more.
    pub fn apply(&mut self, event: &Event) {
        let (Some(task), Some(number)) = (&event.task, event.attempt) else { return };
        match &event.body {
            // Only what was taken over from another run has no worker, and it was not started here.
            Body::Started(p) => {
                let Some(worker) = event.worker else { return };
                self.add(Attempt { task: task.clone(), number, worker, since_ms: p.mono_ms, ended_ms: None });
            }
            Body::Done(p) => self.end(task, number, None, Some(p.duration_ms)),
            Body::Failed(p) | Body::TimedOut(p) | Body::Lost(p) | Body::Cancelled(p) => {
                self.end(task, number, p.mono_ms, p.duration_ms);
            }
            _ => {}
        }
    }

    fn add(&mut self, attempt: Attempt) {
        let number = self.attempts.len();
        self.attempts.push(attempt);
        self.streams.extend((0..2).filter(|&s| self.wanted[s]).map(|s| (number, s, None)));
    }

    fn end(&mut self, task: &TaskId, number: u32, at_ms: Option<u64>, took_ms: Option<u64>) {
        if let Some(attempt) = self.attempts.iter_mut().rev().find(|a| a.number == number && a.task == *task) {
            let took = || attempt.since_ms.saturating_add(took_ms.unwrap_or(0));
            attempt.ended_ms = Some(at_ms.unwrap_or_else(took));
        }
    }

    /// The attempts, in the order in which they were added.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// From now on files are read from their beginning.
    pub fn whole_from_now(&mut self) {
        self.tail = None;
    }

    /// The same attempts, nothing of them read yet.
    pub fn afresh(&self) -> Result<Outputs, RunError> {
        let mut anew = Outputs::new(self.folder.again()?, self.wanted, self.tail);
        self.attempts.iter().for_each(|attempt| anew.add(attempt.clone()));
        Ok(anew)
    }

    /// Shows what is new. With `all` a last line without line feed is shown also of attempts that are not over. Returns
    /// `false` as soon as `each` does.
    pub fn read(&mut self, all: bool, mut each: impl FnMut(&Attempt, Piece<'_>) -> bool) -> io::Result<bool> {
        let Outputs { folder, attempts, tail, streams, .. } = self;
        // By time; at the same time in the order in which they began.
        let mut heap: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        heap.extend(streams.iter().enumerate().map(|(i, (a, ..))| Reverse((attempts[*a].since_ms, i))));
        let mut done = vec![false; streams.len()];
        while let Some(Reverse((time, i))) = heap.pop() {
            let (number, half, file) = &mut streams[i];
            let attempt = &attempts[*number];
            if file.is_none() {
                *file = Stream::open(folder, attempt, *half, *tail)?;
            }
            let Some(stream) = file else {
                // Its files are made before it ends.
                done[i] = attempt.ended_ms.is_some();
                continue;
            };
            loop {
                let whole = all || attempt.ended_ms.is_some();
                let Some((at, what)) = stream.next(attempt, whole)? else {
                    done[i] = attempt.ended_ms.is_some();
                    break;
                };
                if at > time {
                    heap.push(Reverse((at, i)));
                    break;
                }
                let at_ms = Some(at).filter(|at| *at != NOW);
                if !each(attempt, Piece { attempt: *number, stream: *half, at_ms, what: stream.show(what) }) {
                    return Ok(false);
                }
                stream.take(what);
            }
            if done[i] {
                *file = None;
            }
        }
        let mut done = done.into_iter();
        streams.retain(|_| !done.next().unwrap_or_default());
        Ok(true)
    }
}

/// What comes next in a file, of what is in memory.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// So many bytes, a line.
    Line(usize),
    /// So many bytes of a longer line.
    Part(usize),
    /// So many bytes were given back.
    Hole(u64),
}

/// One file as it is read.
#[derive(Debug)]
struct Stream {
    half: usize,
    file: File,
    growth: Growth,
    cut: Option<Cut>,
    /// What was read and not shown yet: behind `begin`, and of that nothing before `scanned` ends a line.
    buffer: Vec<u8>,
    begin: usize,
    scanned: usize,
    /// Where to read on.
    at: u64,
    /// The latest time that was told.
    told: u64,
}

impl Stream {
    /// `None`: there is no such file yet.
    fn open(folder: &RunDir, attempt: &Attempt, half: usize, tail: Option<u64>) -> io::Result<Option<Stream>> {
        let [out, err] = run::output_names(&attempt.task, attempt.number);
        let logs = match folder.worker(attempt.worker).and_then(|w| w.sub("logs")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let file = match logs.open_read(if half == 0 { out } else { err }) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        // Only for the order: without it all goes on.
        let times = logs.read_bounded(run::times_name(&attempt.task, attempt.number), MAX_TEXT).unwrap_or_default();
        let growth = Growth::parse(&String::from_utf8_lossy(&times));
        let cut = Cut::of(&file);
        let at = tail.map_or(Ok(0), |lines| last_lines(&file, lines))?;
        Ok(Some(Stream { half, file, growth, cut, buffer: Vec::new(), begin: 0, scanned: 0, at, told: 0 }))
    }

    /// What comes next, and when it was there. `None`: nothing yet.
    fn next(&mut self, attempt: &Attempt, whole: bool) -> io::Result<Option<(u64, Next)>> {
        let next = loop {
            if let Some(end) = scan::line_end(&self.buffer, self.scanned) {
                break Next::Line(end + 1 - self.begin);
            }
            self.scanned = self.buffer.len();
            let left = self.buffer.len() - self.begin;
            if left >= CHUNK {
                break Next::Part(CHUNK);
            }
            // What has been given back to the disk, because it was too long, reads as zeros.
            let data = spool::next_data(&self.file, self.at);
            if data > self.at {
                break if left > 0 { Next::Line(left) } else { Next::Hole(data - self.at) };
            }
            if !self.fill()? {
                if left == 0 || !whole {
                    return Ok(None);
                }
                break Next::Line(left);
            }
        };
        let end = match next {
            Next::Line(n) | Next::Part(n) => self.at - (self.buffer.len() - self.begin - n) as u64,
            Next::Hole(n) => self.at + n,
        };
        let end = self.cut.map_or(end, |cut| cut.before(end));
        // What nobody has seen was there at the end at the latest.
        let at = self.growth.seen_ms(self.half, end).or(attempt.ended_ms).unwrap_or(NOW);
        self.told = at.max(self.told).max(attempt.since_ms);
        Ok(Some((self.told, next)))
    }

    /// Reads on. `false`: there is no more.
    fn fill(&mut self) -> io::Result<bool> {
        if self.begin > 0 {
            self.buffer.drain(..self.begin);
            self.scanned -= self.begin;
            self.begin = 0;
        }
        let length = self.file.metadata()?.len();
        if length < self.at {
            // It was cut, so that everything stands elsewhere; or whoever writes it has emptied it.
            self.cut = Cut::of(&self.file);
            self.at = self.cut.map_or(length, |cut| cut.after(self.at)).min(length);
        }
        // What is given back begins there: a piece never reaches into it.
        let most = if self.at < spool::HEAD { spool::HEAD - self.at } else { u64::MAX };
        let wanted = CHUNK.min(usize::try_from(most).unwrap_or(CHUNK));
        let before = self.buffer.len();
        self.buffer.resize(before + wanted, 0);
        let n = self.file.read_at(&mut self.buffer[before..], self.at);
        self.buffer.truncate(before + n.as_ref().map_or(0, |n| *n));
        self.at += n? as u64;
        Ok(self.buffer.len() > before)
    }

    fn show(&self, next: Next) -> What<'_> {
        match next {
            Next::Line(n) => What::Line(&self.buffer[self.begin..self.begin + n]),
            Next::Part(n) => What::Part(&self.buffer[self.begin..self.begin + n]),
            Next::Hole(n) => What::Hole(n),
        }
    }

    fn take(&mut self, next: Next) {
        match next {
            Next::Line(n) | Next::Part(n) => {
                self.begin += n;
                self.scanned = self.scanned.max(self.begin);
            }
            Next::Hole(n) => self.at += n,
        }
    }
}

/// Where the last `lines` lines of a file begin. Reads it from its end, no further than needed.
fn last_lines(file: &File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut left = lines;
    let mut bytes = vec![0_u8; CHUNK];
    let mut last = true;
    if lines == 0 {
        return Ok(end);
    }
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        // A piece that was given back: all of it down to where that begins.
        if start > spool::HEAD && spool::next_data(file, start) >= end {
            end = spool::HEAD;
            continue;
        }
        let wanted = usize::try_from(end - start).unwrap_or(CHUNK);
        let n = file.read_at(&mut bytes[..wanted], start)?;
        // Shortened meanwhile.
        let piece = &bytes[..n];
        let mut until = n;
        if std::mem::take(&mut last) && piece.last() == Some(&b'\n') {
            // It ends the last line; it begins no further one.
            until -= 1;
        }
        while let Some(at) = piece[..until].iter().rposition(|b| *b == b'\n') {
            left -= 1;
            if left == 0 {
                return Ok(start + at as u64 + 1);
            }
            until = at;
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::RunId;
    use crate::logic::simulation;
    use crate::model::event::{Done, Draft, Started};
    use crate::store::run::Origin;

    const HEAD: usize = 16 * 1024 * 1024;
    /// Long lines, so that there are few.
    const LINE: usize = 4096;

    /// A run's folder with the output of tasks a, b, c by W1, W2, W3, and what was noted of it.
    struct Scene {
        temp: tempfile::TempDir,
        outputs: Outputs,
        seq: u64,
    }

    impl Scene {
        fn new(wanted: [bool; 2], tail: Option<u64>) -> Scene {
            let temp = tempfile::tempdir().unwrap();
            let mut plan = simulation::plan(vec![simulation::task("a")]);
            plan.run = RunId::new("20260102-030405-abc").unwrap();
            let folder = RunDir::create(temp.path(), &plan, &Origin::default()).unwrap();
            Scene { temp, outputs: Outputs::new(folder, wanted, tail), seq: 0 }
        }

        fn path(&self, task: &str, ending: &str) -> std::path::PathBuf {
            let worker = u32::from(task.as_bytes()[0] - b'a') + 1;
            let logs = self.outputs.folder.path().join(format!("workers/W{worker}/logs"));
            std::fs::create_dir_all(&logs).unwrap();
            assert!(logs.starts_with(self.temp.path()));
            logs.join(format!("{task}.1.{ending}"))
        }

        fn write(&self, task: &str, ending: &str, text: impl AsRef<[u8]>) {
            std::fs::write(self.path(task, ending), text).unwrap();
        }

        fn event(&mut self, task: &str, body: Body) {
            self.seq += 1;
            let worker = WorkerNo(u32::from(task.as_bytes()[0] - b'a') + 1);
            let draft = Draft::attempt(Some(worker), &TaskId::new(task).unwrap(), 1, body);
            self.outputs.apply(&Event::new(draft, self.seq, String::new()));
        }

        fn begin(&mut self, task: &str, mono_ms: u64) {
            let started = Started { cwd: "/".into(), mono_ms, ..Started::default() };
            self.event(task, Body::Started(started));
        }

        fn done(&mut self, task: &str, duration_ms: u64) {
            let done = r#"{"exit":0,"duration_ms":DURATION}"#.replace("DURATION", &duration_ms.to_string());
            self.event(task, Body::Done(serde_json::from_str::<Done>(&done).unwrap()));
        }

        /// What is read now: task, stream, time, text.
        fn read(&mut self, all: bool) -> Vec<String> {
            let mut seen = Vec::new();
            let heard = self.outputs.read(all, |attempt, piece| {
                let time = piece.at_ms.map_or("now".to_owned(), |ms| ms.to_string());
                let text = match piece.what {
                    What::Line(line) | What::Part(line) => String::from_utf8_lossy(line).into_owned(),
                    What::Hole(n) => format!("[{n}]"),
                };
                seen.push(format!("{}{} {time} {text:?}", attempt.task, piece.stream));
                true
            });
            assert!(heard.unwrap());
            seen
        }
    }

    #[test]
    fn output_of_several_tasks_is_told_in_the_order_in_which_it_grew() {
        let mut s = Scene::new([true, true], None);
        s.write("a", "out", "a1\na2\na3\na4");
        s.write("a", "err", "e1\n");
        s.write("a", "times", "1100 3 0\n1500 6 3\n1900 9 3\n");
        s.write("b", "out", "b1\nb2\n");
        s.write("b", "err", "");
        s.write("b", "times", "1300 3 0\n1700 6 0\n");
        s.begin("a", 1000);
        s.begin("b", 1200);
        s.done("a", 2000);
        s.done("b", 800);
        let told = [
            r#"a0 1100 "a1\n""#,
            r#"b0 1300 "b1\n""#,
            r#"a0 1500 "a2\n""#,
            r#"a1 1500 "e1\n""#,
            r#"b0 1700 "b2\n""#,
            r#"a0 1900 "a3\n""#,
            r#"a0 3000 "a4""#,
        ];
        assert_eq!(s.read(false), told);
        assert_eq!(s.read(false), Vec::<String>::new(), "each once");
    }

    #[test]
    fn without_notes_it_follows_in_the_order_in_which_attempts_ended() {
        let mut s = Scene::new([true, false], None);
        for (task, since) in [("b", 1000), ("a", 1500), ("c", 2000)] {
            s.write(task, "out", format!("{task}1\n{task}2\n"));
            s.write(task, "err", "not wanted\n");
            s.begin(task, since);
        }
        s.done("b", 5000);
        s.done("a", 10);
        let told: Vec<String> = s.read(false).iter().map(|l| l.replace(r"\n", "")).collect();
        let expected = [
            r#"a0 1510 "a1""#,
            r#"a0 1510 "a2""#,
            r#"b0 6000 "b1""#,
            r#"b0 6000 "b2""#,
            r#"c0 now "c1""#,
            r#"c0 now "c2""#,
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_line_that_is_not_complete_waits_for_its_end() {
        let mut s = Scene::new([true, true], None);
        s.begin("a", 1000);
        assert_eq!(s.read(false), Vec::<String>::new(), "no file yet");
        s.write("a", "out", "begun, ");
        s.write("a", "err", "");
        assert_eq!(s.read(false), Vec::<String>::new());
        s.write("a", "out", "begun, done\nmore");
        assert_eq!(s.read(false), [r#"a0 now "begun, done\n""#]);
        s.done("a", 700);
        assert_eq!(s.read(false), [r#"a0 now "more""#]);
        assert!(s.outputs.streams.is_empty(), "what is over is closed");
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        for (text, lines, rest) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 7, "a\nb\n"),
            ("a\n\n\n", 2, "\n\n"),
            ("", 3, ""),
            ("a\n", 0, ""),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            let at = usize::try_from(last_lines(&file, lines).unwrap()).unwrap();
            assert_eq!(&text[at..], rest, "the last {lines} of {text:?}");
        }
        let mut file = tempfile::tempfile().unwrap();
        let text = "a line of sixteen\n".repeat(20_000);
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        assert_eq!(last_lines(&file, 10_000).unwrap(), text.len() as u64 / 2, "over several pieces");
    }

    /// 16 MiB, a hole, and lines.
    fn with_hole(path: &std::path::Path, hole: usize, tail: &str) {
        let file = File::create(path).unwrap();
        let line = format!("{}\n", ".".repeat(LINE - 1));
        file.write_all_at(line.repeat(HEAD / LINE).as_bytes(), 0).unwrap();
        file.write_all_at(tail.as_bytes(), (HEAD + hole) as u64).unwrap();
    }

    #[test]
    fn a_hole_is_told_where_it_is_and_no_zeros_are() {
        let hole = 8 * 1024 * 1024;
        for tail in [None, Some(4)] {
            let mut s = Scene::new([true, true], tail);
            with_hole(&s.path("a", "out"), hole, "x\ny\n");
            s.write("a", "err", "");
            s.begin("a", 1000);
            let told = s.read(false);
            assert!(told[told.len() - 4].ends_with("..\\n\""));
            let end = ["a0 now \"[8388608]\"", "a0 now \"x\\n\"", "a0 now \"y\\n\""];
            assert_eq!(told[told.len() - 3..], end);
            assert_eq!(told.len(), if tail.is_none() { HEAD / LINE + 3 } else { 5 });
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_goes_on_behind_the_cut() {
        let mut s = Scene::new([true, false], None);
        let path = s.path("a", "out");
        let hole = 64 * 1024 * 1024;
        let body = format!("{}\n", ".".repeat(LINE - 1)).repeat(9000);
        with_hole(&path, hole, &body);
        s.write("a", "err", "");
        s.write("a", "times", format!("1500 {} 0\n", HEAD + hole));
        s.begin("a", 1000);
        let before = s.read(false).len();
        let file = File::options().read(true).append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut &file, b"new\n").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert!(spool::cut(&file).unwrap() > 0);
        s.done("a", 3000);
        assert_eq!(s.read(false), [r#"a0 now "new\n""#], "{before} lines before");

        // Read anew it has its mark, and times are those of the bytes as they were written.
        let mut anew = Scene::new([true, false], None);
        std::fs::rename(&path, anew.path("a", "out")).unwrap();
        anew.write("a", "times", format!("1500 {HEAD} 0\n1700 {} 0\n", HEAD + hole + body.len()));
        anew.begin("a", 1000);
        anew.done("a", 3000);
        let told = anew.read(false);
        let marked = told.iter().position(|l| l.contains("bytes are cut out here")).unwrap();
        assert!(told[marked - 2].starts_with("a0 1500 ") && told[marked + 1].starts_with("a0 1700 "), "{marked}");
        assert_eq!(told.last().unwrap(), r#"a0 4000 "new\n""#);
    }
}
