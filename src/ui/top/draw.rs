//! The picture on a screen of any size: pure text in a grid of cells. Only rows that can be seen are made.

use std::fmt::Write;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

use crate::base::text::one_line;
use crate::logic::pace;
use crate::logic::view::Phase;
use crate::ui::board;
use crate::ui::lines;
use crate::ui::top::facts;
use crate::ui::top::layout::{self, Band};
use crate::ui::top::past::Try;
use crate::ui::top::picture::{Opened, Picture, Row, Stream};
use crate::ui::top::view::{Over, Page, Pane, Question, Shows, View, chosen};
use crate::ui::when;

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// What every key does.
const HELP: [(&str, &str); 20] = [
    ("↑ ↓ j k", "move in the list, the output or the timeline"),
    ("PgUp PgDn Space", "the same by a page"),
    ("Home End g G", "to the beginning, to the end (output: follow it)"),
    ("Tab", "runs, tasks, output: what the arrows move"),
    ("Enter", "all about the task; once more: its output alone"),
    ("Esc", "back; leaves where there is no way back"),
    ("l", "the output on the whole screen"),
    ("e", "stdout and stderr, only stdout, only stderr"),
    ("f", "follow the output again"),
    ("← →", "another attempt of the task"),
    ("n p", "the next, the previous task"),
    ("t", "the timeline: a row for every worker"),
    ("/", "list only tasks with a text in id, title or state"),
    ("c", "cancel the task (in the list of runs: the run); asks first"),
    ("r", "run again what a run that has ended left undone; asks first"),
    ("Ctrl-L", "draw the screen anew"),
    ("Ctrl-Z", "stop; the shell's fg goes on"),
    ("q Ctrl-C", "leave; runs go on"),
    ("", ""),
    ("", "any key closes this"),
];

/// Colours and other marks of text. Nothing is told by a colour alone.
#[derive(Clone, Copy)]
struct Look {
    colour: bool,
}

impl Look {
    fn in_colour(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn warn(self) -> Style {
        self.in_colour(Color::Yellow)
    }

    fn bad(self) -> Style {
        self.in_colour(Color::Red)
    }

    fn busy(self) -> Style {
        self.in_colour(Color::Cyan)
    }

    fn phase(self, phase: Phase) -> Style {
        match phase {
            Phase::Done => self.in_colour(Color::Green),
            Phase::Failed | Phase::TimedOut | Phase::Lost => self.bad(),
            Phase::Running => self.busy(),
            Phase::Retrying | Phase::Cancelled => self.warn(),
            Phase::Waiting | Phase::Ready | Phase::Skipped => dim(),
        }
    }
}

fn plain() -> Style {
    Style::new()
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// A row of cells that is filled from left to right.
struct Line<'b> {
    buffer: &'b mut Buffer,
    y: u16,
    x: u16,
    end: u16,
}

impl<'b> Line<'b> {
    fn new(buffer: &'b mut Buffer, y: u16) -> Line<'b> {
        let Rect { x, width, height, .. } = buffer.area;
        // A row below the screen has no columns.
        let end = if y < height { x + width } else { x };
        Line { buffer, y, x, end }
    }

    fn room(&self) -> usize {
        usize::from(self.end.saturating_sub(self.x))
    }

    /// Text, cut where the row ends.
    fn put(&mut self, text: impl AsRef<str>, style: Style) -> &mut Self {
        let room = self.room();
        if room > 0 {
            (self.x, _) = self.buffer.set_stringn(self.x, self.y, fit(text.as_ref(), room), room, style);
        }
        self
    }

    /// Text in a column of its own, and a space behind it.
    fn cell(&mut self, text: impl AsRef<str>, width: usize, style: Style) -> &mut Self {
        let from = self.x;
        let width = width.min(self.room());
        if width > 0 {
            self.buffer.set_stringn(from, self.y, fit(text.as_ref(), width), width, style);
        }
        let taken = u16::try_from(width + 1).unwrap_or(u16::MAX);
        self.x = from.saturating_add(taken).min(self.end);
        self
    }

    /// As [`Line::cell`], at the right edge of the column.
    fn right(&mut self, text: impl AsRef<str>, width: usize, style: Style) -> &mut Self {
        let pad = width.saturating_sub(columns(text.as_ref()));
        self.cell(format!("{}{}", " ".repeat(pad), text.as_ref()), width, style)
    }

    /// Text at the right edge of the row, where there is room for it.
    fn at_end(&mut self, text: &str, style: Style) {
        let width = columns(text);
        if width < self.room() {
            self.x = self.end - u16::try_from(width).unwrap_or(0);
            self.put(text, style);
        }
    }

    /// The rest of the row.
    fn fill(&mut self, with: &str, style: Style) {
        let rest = with.repeat(self.room());
        self.put(rest, style);
    }

    /// Marks the whole row.
    fn mark(&mut self, style: Style) {
        let Rect { x, width, .. } = self.buffer.area;
        if self.end > x {
            self.buffer.set_style(Rect { x, y: self.y, width, height: 1 }, style);
        }
    }
}

fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// `text` in at most `width` columns; a cut is marked.
fn fit(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let wide = columns(c.encode_utf8(&mut [0; 4]));
        if used + wide + 1 > width {
            break;
        }
        out.push(c);
        used += wide;
    }
    out.push('…');
    out
}

/// Draws everything.
pub fn draw(buffer: &mut Buffer, picture: &Picture<'_>, view: &View) {
    let look = Look { colour: picture.colour };
    let areas = view.areas(picture);
    title(buffer, areas.title, picture);
    runs(buffer, areas.runs, picture, view, look);
    if let Some(run) = picture.run {
        match view.page {
            Page::Timeline => timeline(buffer, areas.body, run, picture, view, look),
            _ => tasks(buffer, areas.body, run, picture, view, look),
        }
        detail(buffer, areas.detail, run, picture, view, look);
    } else {
        nothing(buffer, areas.body, picture, view);
    }
    if view.over == Over::Help {
        help(buffer, look);
    }
    foot(buffer, areas.foot, picture, view, look);
}

fn title(buffer: &mut Buffer, band: Band, picture: &Picture<'_>) {
    if band.height == 0 {
        return;
    }
    let active = picture.runs.iter().filter(|row| row.is_active()).count();
    let counted = match picture.runs.len() {
        0 => "no runs".to_owned(),
        1 => format!("1 run, {active} active"),
        n => format!("{n} runs, {active} active"),
    };
    let mut line = Line::new(buffer, band.y);
    line.put("cpw top", bold()).put(format!("  {}", picture.project), plain());
    line.at_end(&counted, dim());
}

fn nothing(buffer: &mut Buffer, band: Band, picture: &Picture<'_>, view: &View) {
    let text = match picture.runs.iter().find(|row| Some(&row.id) == view.run.as_ref()) {
        Some(row) => row.said.as_deref().unwrap_or("this run cannot be read just now"),
        None => "no run here yet: one starts from a prompt that matches a rule, or by `cpw run PLAN`",
    };
    for (n, part) in wrapped(text, usize::from(view.size.0)).into_iter().take(usize::from(band.height)).enumerate() {
        Line::new(buffer, band.y + u16::try_from(n).unwrap_or(0)).put(part, plain());
    }
}

/// Words of a text in lines of `width` columns.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if columns(line) + 1 + columns(word) <= width => *line = format!("{line} {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn runs(buffer: &mut Buffer, band: Band, picture: &Picture<'_>, view: &View, look: Look) {
    let focused = view.page == Page::Tasks && view.pane == Pane::Runs;
    let shown = picture.runs.iter().skip(view.first_run).take(usize::from(band.height));
    for (y, row) in (band.y..).zip(shown) {
        let mut line = Line::new(buffer, y);
        run_row(&mut line, row, picture, look);
        if Some(&row.id) == view.run.as_ref() {
            line.mark(selected(focused));
        }
    }
}

/// How the selected row of a list is marked.
fn selected(focused: bool) -> Style {
    Style::new().add_modifier(if focused { Modifier::REVERSED } else { Modifier::BOLD })
}

fn run_row(line: &mut Line<'_>, row: &Row, picture: &Picture<'_>, look: Look) {
    let (sign, style) = match row.word {
        "ok" => ("✓", look.phase(Phase::Done)),
        "active" => (SPINNER[picture.turn % SPINNER.len()], look.busy()),
        "cancelled" => ("–", look.warn()),
        "failed" => ("✗", look.bad()),
        _ => ("!", look.bad()),
    };
    let word = if row.cancelling { "cancelling" } else { row.word };
    // What tells runs apart is their time; the rest of an id is there to be unguessable.
    let id = row.id.as_str();
    line.cell(sign, 1, style).cell(id.get(..15).unwrap_or(id), 15, plain()).cell(word, 10, style);
    let mut parts = Vec::new();
    parts.extend(row.percent.map(|p| format!("{p} %")));
    parts.extend(row.counts.map(lines::tally));
    parts.extend(when::of_run(&row.id).map(|then| when::ago(then, picture.now_unix_ms)));
    parts.extend(row.rule.as_deref().map(|rule| format!("rule {}", one_line(rule, 40))));
    parts.extend(row.said.as_deref().map(|said| one_line(said, 200)));
    line.put(parts.join(" · "), plain());
}

/// A heading, heavier where the arrows move what is below it.
fn heading(buffer: &mut Buffer, y: u16, text: &str, focused: bool, look: Look) {
    let (rule, style) = if focused { ("━", look.busy()) } else { ("─", dim()) };
    let mut line = Line::new(buffer, y);
    line.put(format!("{rule}{rule} "), style).put(text, bold()).put(" ", style).fill(rule, style);
}

/// Widths of the columns in the list of tasks.
struct Columns {
    id: usize,
    bar: usize,
    left: bool,
}

fn tasks(buffer: &mut Buffer, band: Band, run: Opened<'_>, picture: &Picture<'_>, view: &View, look: Look) {
    if band.height == 0 {
        return;
    }
    let listed = chosen(run, &view.filter);
    let focused = view.page == Page::Tasks && view.pane == Pane::Tasks;
    heading(buffer, band.y, &tasks_heading(run, listed.len(), view, picture), focused, look);
    let rows = layout::task_rows(view, &view.areas(picture));
    let shown = || listed.iter().skip(view.first_task).take(rows).copied();
    let width = usize::from(view.size.0);
    let longest = shown().map(|i| run.plan.tasks[i].id.as_str().len()).max().unwrap_or(0);
    let bar = match width {
        110.. => 12,
        80.. => 6,
        _ => 0,
    };
    let columns = Columns { id: longest.clamp(4, (width / 5).max(8)), bar, left: width >= 80 };
    let mut y = band.y + 1;
    if layout::has_columns(view) {
        column_names(&mut Line::new(buffer, y), &columns);
        y += 1;
    }
    for i in shown() {
        let mut line = Line::new(buffer, y);
        task_row(&mut line, run, i, picture, &columns, look);
        if i == view.task {
            line.mark(selected(focused));
        }
        y += 1;
    }
}

fn tasks_heading(run: Opened<'_>, listed: usize, view: &View, picture: &Picture<'_>) -> String {
    let counts = run.state.view.counts;
    let mut text = format!("{} of {} done", counts.done, counts.total);
    if counts.failed > 0 {
        let _ = write!(text, " · {} failed", counts.failed);
    }
    if let Some(left) = run_left(run, picture) {
        let _ = write!(text, " · {left}");
    }
    if run.state.spent_usd > 0.0 {
        let _ = write!(text, " · ${:.4}", run.state.spent_usd);
    }
    if !view.filter.is_empty() || view.over == Over::Filter {
        let _ = write!(text, " · {listed} with /{}", one_line(&view.filter, 64));
    }
    text
}

/// When the run may be over. Of a long plan that costs more than a picture, and nobody knows anyway.
fn run_left(run: Opened<'_>, picture: &Picture<'_>) -> Option<String> {
    /// Tasks of a plan that is looked through for every picture.
    const FEW: usize = 1000;
    if run.state.tasks.len() > FEW || run.state.view.ended.is_some() || !run.same_boot {
        return None;
    }
    pace::run_left(run.state, run.plan, |i| left(run, i, picture)).map(pace::Left::text_left)
}

fn column_names(line: &mut Line<'_>, columns: &Columns) {
    line.cell("", 1, dim()).cell("state", 9, dim()).cell("task", columns.id, dim());
    line.cell("by", 3, dim()).cell("", columns.bar.max(1) + 5, dim()).right("time", 6, dim());
    if columns.left {
        line.right("ETA", 6, dim()).right("try", 3, dim());
    }
}

/// How long the open attempt has taken, or the last one took.
fn took_ms(run: Opened<'_>, i: usize, picture: &Picture<'_>) -> Option<u64> {
    let task = &run.state.tasks[i];
    match &task.open {
        Some(open) => run.same_boot.then(|| picture.now_ms.saturating_sub(open.since_ms)),
        None => task.duration_ms,
    }
}

fn left(run: Opened<'_>, i: usize, picture: &Picture<'_>) -> Option<pace::Left> {
    run.state.tasks[i].open.as_ref()?;
    board::left(run.state, run.plan, i, took_ms(run, i, picture)?, picture.now_unix_ms)
}

/// A task's state: a sign, a word, and how they look.
fn standing(run: Opened<'_>, i: usize, picture: &Picture<'_>, look: Look) -> (&'static str, &'static str, Style) {
    let phase = run.state.tasks[i].phase;
    if run.stalled.contains(&i) {
        return ("‖", "stalled", look.warn());
    }
    let sign = match phase {
        Phase::Running => SPINNER[picture.turn % SPINNER.len()],
        other => sign(other),
    };
    (sign, facts::word(phase), look.phase(phase))
}

fn sign(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "·",
        Phase::Ready => "○",
        Phase::Running => "▸",
        Phase::Retrying => "↻",
        Phase::Done => "✓",
        Phase::Failed | Phase::TimedOut | Phase::Lost => "✗",
        Phase::Cancelled | Phase::Skipped => "–",
    }
}

fn task_row(line: &mut Line<'_>, run: Opened<'_>, i: usize, picture: &Picture<'_>, columns: &Columns, look: Look) {
    let (spec, task) = (&run.plan.tasks[i], &run.state.tasks[i]);
    let (sign, word, style) = standing(run, i, picture, look);
    line.cell(sign, 1, style).cell(word, 9, style).cell(spec.id.as_str(), columns.id, plain());
    let worker = task.worker.map(|w| w.to_string()).unwrap_or_default();
    line.cell(worker, 3, plain());
    let percent = task.percent.filter(|_| task.open.is_some());
    bar(line, percent, columns.bar, look);
    line.right(percent.map(|p| format!("{p} %")).unwrap_or_default(), 5, plain());
    line.right(took_ms(run, i, picture).map(short).unwrap_or_default(), 6, plain());
    if columns.left {
        let left = left(run, i, picture).filter(|left| left.ms > 0).map(|left| short(left.ms));
        line.right(left.unwrap_or_default(), 6, dim());
        let tries = if task.attempts > 1 { task.attempts.to_string() } else { String::new() };
        line.right(tries, 3, look.warn());
    }
    if let Some(slow) =
        took_ms(run, i, picture).filter(|_| task.open.is_some()).and_then(|ms| pace::slow(ms, spec.expected))
    {
        line.put(format!("{slow} "), look.warn());
    }
    line.put(facts::last_words(run, i, picture.now_ms), dim());
}

/// So many milliseconds in a column: `6.1s`, `59s`, `3m20s`, `2h05m`, `3d04h`.
fn short(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..10 => format!("{s}.{}s", ms % 1000 / 100),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

fn bar(line: &mut Line<'_>, percent: Option<u8>, width: usize, look: Look) {
    let Some(percent) = percent else {
        line.cell("", width, plain());
        return;
    };
    let full = usize::from(percent.min(100)) * width / 100;
    line.put("━".repeat(full), look.busy()).cell("─".repeat(width - full), width - full, dim());
}

fn detail(buffer: &mut Buffer, band: Band, run: Opened<'_>, picture: &Picture<'_>, view: &View, look: Look) {
    if band.height == 0 || run.plan.tasks.get(view.task).is_none() {
        return;
    }
    let focused = view.page != Page::Tasks || view.pane == Pane::Output;
    heading(buffer, band.y, &detail_heading(run, picture, view, look), focused, look);
    let height = usize::from(band.height) - 1;
    let facts = facts::of(run, view, picture);
    let shown = facts::rows(view, facts.len(), height);
    let mut y = band.y + 1;
    for (word, text) in facts.iter().take(shown) {
        Line::new(buffer, y).cell(word, 6, dim()).put(text, plain());
        y += 1;
    }
    output(buffer, Band { y, height: band.height - 1 - u16::try_from(shown).unwrap_or(0) }, picture, view, look);
}

/// `build ✓ done · attempt 1 of 2 · stdout 12 KiB · stderr 80 bytes · following`
fn detail_heading(run: Opened<'_>, picture: &Picture<'_>, view: &View, look: Look) -> String {
    let i = view.task;
    let (sign, word, _) = standing(run, i, picture, look);
    let mut parts = vec![format!("{} {sign} {word}", run.plan.tasks[i].id)];
    let tries = run.past.of(i);
    if let (Some(last), true) = (tries.last(), tries.len() > 1) {
        parts.push(format!("attempt {} of {}", view.attempt.unwrap_or(last.number), last.number));
    }
    let streams = ["stdout", "stderr"].iter().zip(&picture.output.streams).enumerate();
    let shown = |n: usize| match view.shows {
        Shows::Both => true,
        Shows::Out => n == 0,
        Shows::Err => n == 1,
    };
    for (_, (name, stream)) in streams.filter(|(n, (_, stream))| shown(*n) && stream.bytes > 0) {
        parts.push(format!("{name} {}", place(stream)));
    }
    parts.join(" · ")
}

/// How long a stream is, and which part of it is seen.
fn place(stream: &Stream) -> String {
    let all = facts::bytes(stream.bytes);
    match stream.until {
        None => all,
        Some(until) => format!("{} % of {all}, f follows", until * 100 / stream.bytes.max(1)),
    }
}

fn output(buffer: &mut Buffer, band: Band, picture: &Picture<'_>, view: &View, look: Look) {
    let rows = usize::from(band.height);
    if let Some(absent) = picture.output.absent.as_deref().filter(|_| rows > 0) {
        Line::new(buffer, band.y).put(absent, dim());
        return;
    }
    let [out, err] = &picture.output.streams;
    let last = |stream: &Stream, rows: usize| stream.lines.len().min(rows);
    // The end of stderr is what is wanted of a task that fails, but never at the price of the other.
    let (above, below) = match view.shows {
        Shows::Out => (last(out, rows), 0),
        Shows::Err => (0, last(err, rows)),
        Shows::Both if out.lines.is_empty() => (0, last(err, rows)),
        Shows::Both => {
            let below = last(err, (rows / 3).max(rows.saturating_sub(last(out, rows) + 1)));
            (last(out, rows - below - usize::from(below > 0)), below)
        }
    };
    let mut y = band.y;
    for text in &out.lines[out.lines.len() - above..] {
        Line::new(buffer, y).put(text, plain());
        y += 1;
    }
    if above > 0 && below > 0 {
        Line::new(buffer, y).put("stderr ", dim()).fill("┄", dim());
        y += 1;
    }
    for text in &err.lines[err.lines.len() - below..] {
        Line::new(buffer, y).put(text, look.warn());
        y += 1;
    }
    if above + below == 0 && rows > 0 {
        Line::new(buffer, y).put("no output yet", dim());
    }
}

/// Columns for the name of a worker.
const NAME: u16 = 5;

fn timeline(buffer: &mut Buffer, band: Band, run: Opened<'_>, picture: &Picture<'_>, view: &View, look: Look) {
    if band.height == 0 {
        return;
    }
    let (from, to) = span(run, picture);
    let took = when::ms(u64::try_from(to - from).unwrap_or(0));
    let until = if run.state.view.ended.is_some() { "its end" } else { "now" };
    heading(buffer, band.y, &format!("timeline · {took} from the beginning to {until}"), true, look);
    let rows = usize::from(band.height.saturating_sub(2));
    for (y, (worker, tries)) in (band.y + 1..).zip(run.past.workers().skip(view.first_worker).take(rows)) {
        Line::new(buffer, y).cell(worker.to_string(), usize::from(NAME) - 1, bold());
        for (task, one) in tries {
            let end = one.ended.unwrap_or(to);
            let columns = (column(one.began, from, to, view), column(end, from, to, view));
            attempt(buffer, y, columns, run.plan.tasks[task].id.as_str(), one, task == view.task, look);
        }
    }
    if band.height >= 2 {
        let legend = "━ done  ▒ running  ✗ failed, timed out, lost  – cancelled";
        Line::new(buffer, band.y + band.height - 1).put(legend, dim());
    }
}

/// From when to when the timeline goes, in milliseconds since 1970.
fn span(run: Opened<'_>, picture: &Picture<'_>) -> (i64, i64) {
    let from = when::unix_ms(&run.state.first_ts).unwrap_or(0);
    let now = i64::try_from(picture.now_unix_ms).unwrap_or(i64::MAX);
    let to = if run.state.view.ended.is_some() { when::unix_ms(&run.state.last_ts).unwrap_or(now) } else { now };
    (from, to.max(from.saturating_add(1)))
}

/// Where a moment is; the last column is the end.
fn column(at: i64, from: i64, to: i64, view: &View) -> u16 {
    let width = i64::from(view.size.0.saturating_sub(NAME + 1));
    let offset = (at - from).clamp(0, to - from) * width / (to - from);
    NAME.saturating_add(u16::try_from(offset).unwrap_or(0))
}

fn attempt(buffer: &mut Buffer, y: u16, (a, b): (u16, u16), id: &str, one: &Try, chosen: bool, look: Look) {
    let width = usize::from(b.saturating_sub(a).max(1));
    let fill = match one.phase {
        Phase::Done => "━",
        Phase::Failed | Phase::TimedOut | Phase::Lost => "✗",
        Phase::Cancelled | Phase::Skipped => "–",
        _ => "▒",
    };
    let mut style = look.phase(one.phase);
    if chosen {
        style = style.add_modifier(Modifier::REVERSED);
    }
    let mut line = Line::new(buffer, y);
    line.x = a.min(line.end);
    line.end = line.end.min(a.saturating_add(u16::try_from(width).unwrap_or(u16::MAX)));
    line.fill(fill, style);
    // A name that is cut says less than the sign.
    if columns(id) + 2 <= width {
        let mut line = Line::new(buffer, y);
        line.x = a + 1;
        line.put(id, style);
    }
}

fn help(buffer: &mut Buffer, look: Look) {
    buffer.reset();
    let rows = buffer.area.height;
    heading(buffer, 0, "keys", true, look);
    for (y, (key, what)) in (1..rows.saturating_sub(1)).zip(HELP) {
        Line::new(buffer, y).cell(key, 17, bold()).put(what, plain());
    }
}

fn foot(buffer: &mut Buffer, band: Band, picture: &Picture<'_>, view: &View, look: Look) {
    if band.height == 0 {
        return;
    }
    let mut line = Line::new(buffer, band.y);
    match view.over {
        Over::Ask(question) => {
            line.put(question_text(question, picture, view), look.warn().add_modifier(Modifier::BOLD));
        }
        Over::Filter => {
            line.put(format!("/{}", one_line(&view.filter, 64)), bold());
            line.put("▏  Enter keeps it, Esc clears it", dim());
        }
        Over::Nothing | Over::Help => match picture.note {
            Some(note) => drop(line.put(one_line(note, 400), look.warn())),
            None => keys(&mut line, view),
        },
    }
}

fn question_text(question: Question, picture: &Picture<'_>, view: &View) -> String {
    let id = view.run.as_ref().map_or("", |id| id.as_str());
    let id = id.get(..15).unwrap_or(id);
    match (question, picture.run) {
        (Question::CancelTask(i), Some(run)) => {
            let task = run.plan.tasks.get(i).map_or("", |t| t.id.as_str());
            format!("cancel task {task} and what needs it? [y/n]")
        }
        (Question::CancelRun | Question::CancelTask(_), _) => format!("cancel all of run {id}? [y/n]"),
        (Question::Retry, _) => format!("run again what run {id} left undone? [y/n]"),
    }
}

fn keys(line: &mut Line<'_>, view: &View) {
    let shown: &[(&str, &str)] = match view.page {
        Page::Tasks => &[
            ("q", "leave"),
            ("?", "keys"),
            ("Tab", "pane"),
            ("Enter", "detail"),
            ("l", "logs"),
            ("t", "timeline"),
            ("/", "filter"),
            ("c", "cancel"),
            ("r", "retry"),
        ],
        Page::Detail | Page::Log => &[
            ("Esc", "back"),
            ("?", "keys"),
            ("PgUp", "scroll"),
            ("f", "follow"),
            ("e", "out/err"),
            ("←→", "attempt"),
            ("n/p", "task"),
            ("c", "cancel"),
        ],
        Page::Timeline => &[("Esc", "back"), ("?", "keys"), ("↑↓", "workers"), ("n/p", "task"), ("c", "cancel run")],
    };
    for (n, (key, what)) in shown.iter().enumerate() {
        let gap = if n == 0 { "" } else { "  " };
        if line.room() < gap.len() + columns(key) + 1 + columns(what) {
            return;
        }
        line.put(gap, plain()).put(key, bold()).put(format!(" {what}"), dim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::top::testing::Scene;

    const SIZES: [(u16, u16); 3] = [(60, 15), (80, 24), (120, 40)];

    fn drawn(scene: &Scene, view: &View) -> Buffer {
        let mut buffer = Buffer::empty(Rect::new(0, 0, view.size.0, view.size.1));
        draw(&mut buffer, &scene.picture(), view);
        buffer
    }

    fn text(buffer: &Buffer) -> String {
        let width = usize::from(buffer.area.width).max(1);
        let row = |cells: &[ratatui::buffer::Cell]| {
            let row: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            row.trim_end().to_owned() + "\n"
        };
        buffer.content().chunks(width).map(row).collect()
    }

    fn snapshots(name: &str, scene: &Scene, change: impl Fn(&mut View)) {
        for size in SIZES {
            let mut view = scene.view(size);
            change(&mut view);
            view.settle(&scene.picture());
            insta::assert_snapshot!(format!("{name}_{}", size.0), text(&drawn(scene, &view)));
        }
    }

    #[test]
    fn the_list_of_tasks() {
        snapshots("tasks", &Scene::new(), |view| view.task = 1);
    }

    #[test]
    fn a_task_in_detail() {
        snapshots("detail", &Scene::new(), |view| (view.page, view.task) = (Page::Detail, 2));
    }

    #[test]
    fn the_timeline_of_a_run_that_goes_on_and_of_one_that_has_ended() {
        let mut scene = Scene::new();
        snapshots("timeline", &scene, |view| view.page = Page::Timeline);
        scene.end();
        snapshots("timeline_ended", &scene, |view| view.page = Page::Timeline);
    }

    #[test]
    fn the_help_and_a_question() {
        snapshots("help", &Scene::new(), |view| view.over = Over::Help);
        snapshots("question", &Scene::new(), |view| {
            (view.task, view.over) = (1, Over::Ask(Question::CancelTask(1)));
        });
    }

    #[test]
    fn what_others_wrote_moves_no_cursor() {
        let mut scene = Scene::new();
        scene.rows[0].said = Some("\u{1b}]0;title\u{7}said".into());
        scene.note = Some("note \u{1b}[2J\r\n of two lines".into());
        scene.output.absent = Some("gone".into());
        for page in [Page::Tasks, Page::Detail, Page::Log, Page::Timeline] {
            let mut view = scene.view((120, 40));
            view.page = page;
            let shown = text(&drawn(&scene, &view));
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()) && !shown.contains('\u{202e}'), "{shown}");
        }
    }

    #[test]
    fn no_size_is_too_small_and_none_too_large() {
        let mut scene = Scene::new();
        scene.stall(1);
        let empty = crate::ui::top::picture::Output::default();
        for width in [0, 1, 2, 3, 7, 20, 59, 200] {
            for height in [0, 1, 2, 3, 5, 8, 13, 60] {
                for page in [Page::Tasks, Page::Detail, Page::Log, Page::Timeline] {
                    for over in [Over::Nothing, Over::Help, Over::Filter, Over::Ask(Question::Retry)] {
                        let mut view = scene.view((width, height));
                        (view.page, view.over) = (page, over);
                        view.settle(&scene.picture());
                        drawn(&scene, &view);
                        let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
                        let nothing = Picture { runs: &[], run: None, output: &empty, ..scene.picture() };
                        draw(&mut buffer, &nothing, &view);
                    }
                }
            }
        }
    }

    #[test]
    fn without_colours_there_are_none_and_the_selection_is_seen() {
        let mut scene = Scene::new();
        let view = scene.view((80, 24));
        let coloured =
            |buffer: &Buffer| buffer.content().iter().filter(|c| c.fg != Color::Reset || c.bg != Color::Reset).count();
        let buffer = drawn(&scene, &view);
        assert_eq!(coloured(&buffer), 0);
        let marked: Vec<_> = buffer.content().iter().filter(|c| c.modifier.contains(Modifier::REVERSED)).collect();
        assert_eq!(marked.len(), 80);
        scene.colour = true;
        assert!(coloured(&drawn(&scene, &view)) > 20);
    }

    #[test]
    fn of_a_long_plan_only_what_is_seen_is_drawn() {
        let mut scene = Scene::new();
        let tasks: Vec<_> = (0..5000).map(|n| crate::logic::simulation::task(&format!("t{n}"))).collect();
        scene.plan.tasks = tasks;
        scene.state = crate::logic::state::State::new(&scene.plan);
        let mut view = scene.view((80, 24));
        view.task = 4321;
        view.settle(&scene.picture());
        let shown = text(&drawn(&scene, &view));
        assert!(shown.contains("t4321") && !shown.contains("t4300") && shown.lines().count() == 24, "{shown}");
    }

    #[test]
    fn durations_fit_a_column() {
        for (ms, text) in [(90, "0.0s"), (6190, "6.1s"), (59_999, "59s"), (200_000, "3m20s"), (7_500_000, "2h05m")] {
            assert_eq!(short(ms), text);
        }
        assert_eq!(short(273_600_000), "3d04h");
    }

    #[test]
    fn wide_characters_are_counted_by_columns() {
        assert_eq!(fit("漢字漢字", 5), "漢字…");
        assert_eq!(fit("漢字", 4), "漢字");
        assert_eq!(fit("abc", 2), "a…");
        assert_eq!(fit("abc", 0), "…");
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
    }
}
