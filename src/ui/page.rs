//! A run as one page of HTML that needs nothing else: no network, no font, no file beside it. All that is drawn stands in it
//! as elements, so that it can be printed and read without scripts; its one script only adds pointing, keys, zoom and sorting.
//!
//! Every text of others passes [`esc`]. Should that ever be forgotten somewhere, the page's own policy still runs no script but
//! the one whose hash it names.

use std::fmt::Write as _;

use chrono::DateTime;
use sha2::{Digest as _, Sha256};

use crate::base::text::one_line;
use crate::logic::timeline::{Attempt, Micros, Moment, Told, Turn, What};
use crate::logic::view::{Counts, Phase};
use crate::model::event::{Answer, Verdict};
use crate::ui::bounds::{self, span};
use crate::ui::lines;
use crate::ui::picture::Picture;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// Beyond so many tasks texts are kept shorter, so that the page stays small.
const MANY: usize = 300;

/// The most rows of the list of steps, and of what the session was told, and the most marks between the bars.
const MAX_ROWS: usize = 200;

/// See [`MAX_ROWS`].
const MAX_MARKS: usize = 2000;

/// So far beyond its end, in parts of its length, a run is drawn, for what the session was told of it.
const BEYOND: Micros = 8;

/// The page.
pub fn html(picture: &Picture<'_>) -> String {
    let mut page = Page::new(picture);
    page.head();
    page.title();
    page.cards();
    page.bounded();
    page.gantt();
    page.steps();
    page.tasks();
    page.session();
    page.foot();
    page.out
}

/// Text of others as HTML: one harmless line of at most `max` characters.
fn esc(text: &str, max: usize) -> String {
    let line = one_line(text, max);
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The hash by which the page's policy knows its script.
fn hash_of(script: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hash = Sha256::digest(script.as_bytes());
    let mut out = String::from("sha256-");
    for three in hash.chunks(3) {
        let bits = three.iter().chain(&[0, 0]).take(3).fold(0_u32, |bits, b| bits << 8 | u32::from(*b));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// A moment for people: `2026-01-02 03:04:05 UTC`.
fn utc(at: Micros) -> String {
    DateTime::from_timestamp_micros(at)
        .map_or_else(|| "a day far away".into(), |t| t.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// The class that gives a bar its colour and pattern.
fn class(phase: Phase) -> &'static str {
    match phase {
        Phase::Done => "d",
        Phase::Failed => "f",
        Phase::TimedOut => "o",
        Phase::Lost => "l",
        Phase::Running => "r",
        Phase::Waiting | Phase::Ready | Phase::Retrying | Phase::Cancelled | Phase::Skipped => "c",
    }
}

fn word(phase: Phase) -> &'static str {
    if phase == Phase::TimedOut { "timed out" } else { phase.word() }
}

/// US dollars: `$0.25`.
fn dollars(usd: f64) -> String {
    if usd > 0.0 && usd < 0.01 { format!("${usd:.4}") } else { format!("${usd:.2}") }
}

fn count(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

struct Page<'p> {
    picture: &'p Picture<'p>,
    out: String,
    /// Where the drawing ends.
    edge: Micros,
    /// Attempts that are on the path which bounded the run.
    on_path: Vec<bool>,
    /// Characters of a text of others.
    room: usize,
}

impl<'p> Page<'p> {
    fn new(picture: &'p Picture<'p>) -> Page<'p> {
        let timeline = picture.timeline;
        let told = timeline.turns.iter().map(|t| t.at.to).max().unwrap_or(timeline.run.to);
        let beyond = (timeline.run.length() / BEYOND).max(1000);
        let mut on_path = vec![false; timeline.attempts.len()];
        for segment in &timeline.path {
            if let What::Work(a) | What::Lease(a) = segment.what {
                on_path[a] = true;
            }
        }
        let room = if picture.plan.tasks.len() > MANY { 80 } else { 200 };
        let edge = told.clamp(timeline.run.to, timeline.run.to + beyond);
        Page { picture, out: String::new(), edge, on_path, room }
    }

    /// Adds to the page. Writing to a string cannot fail.
    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.out.write_fmt(text);
    }

    /// Where a moment is drawn, in percent from the left.
    fn left(&self, at: Micros) -> f64 {
        let run = self.picture.timeline.run;
        let width = (self.edge - run.from).max(1);
        #[expect(clippy::cast_precision_loss, reason = "for a drawing")]
        let part = (at - run.from).clamp(0, width) as f64 / width as f64;
        part * 100.0
    }

    /// The place of a stretch as a style.
    fn place(&self, from: Micros, to: Micros) -> String {
        let (left, right) = (self.left(from), self.left(to));
        format!("left:{}%;width:{}%", short(left), short(right - left))
    }

    fn id(&self, task: usize) -> &'p str {
        self.picture.plan.tasks[task].id.as_str()
    }

    /// How long after the beginning of the run.
    fn after(&self, at: Micros) -> String {
        span((at - self.picture.timeline.run.from).max(0))
    }

    fn head(&mut self) {
        let run = esc(self.picture.plan.run.as_str(), 64);
        let policy = format!(
            "default-src 'none'; style-src 'unsafe-inline'; script-src '{}'; base-uri 'none'; form-action 'none'",
            hash_of(SCRIPT)
        );
        self.add(format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"referrer\" content=\"no-referrer\">\n<meta name=\"generator\" content=\"cpw {}\">\n\
             <title>cpw run {run}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
            env!("CARGO_PKG_VERSION")
        ));
    }

    fn title(&mut self) {
        let Picture { plan, state, timeline, project, note, .. } = *self.picture;
        let name = plan.rule.as_deref().map_or_else(|| "A plan".to_owned(), |rule| esc(rule, 100));
        let (class, status, reason) = match &timeline.ended {
            Some(end) => {
                let class = match end.status {
                    Verdict::Ok => "ok",
                    Verdict::Failed => "failed",
                    Verdict::Cancelled => "cancelled",
                };
                (class, lines::verdict(end.status), esc(&end.reason, 300))
            }
            None => ("active", "not over", format!("as of {}", utc(timeline.run.to))),
        };
        let (project, run, trace) = (esc(project, 100), esc(plan.run.as_str(), 64), esc(&state.trace, 64));
        let from = plan.from.as_ref().map(|from| format!(" · continues <code>{}</code>", esc(from.as_str(), 64)));
        self.add(format_args!(
            "<header>\n<h1>{name} <span class=\"pill {class}\">{status}</span></h1>\n<p>{reason}</p>\n\
             <p class=soft>in {project} · began {} · run <code>{run}</code>{} · trace <code>{trace}</code></p>\n</header>\n",
            utc(timeline.run.from),
            from.unwrap_or_default(),
        ));
        if let Some(note) = note {
            self.add(format_args!("<section class=note role=note>{}</section>\n", esc(note, 500)));
        }
    }

    fn card(&mut self, what: &str, value: &str, more: &str) {
        self.add(format_args!("<div><span>{what}</span><b>{value}</b><span>{more}</span></div>\n"));
    }

    fn cards(&mut self) {
        let Picture { state, timeline, .. } = *self.picture;
        let wall = timeline.run.length();
        self.add(format_args!("<section class=cards aria-label=\"In figures\">\n"));
        self.card(if timeline.ended.is_some() { "took" } else { "so far" }, &span(wall), "");
        let Counts { done, total, .. } = state.view.counts;
        let tally = lines::tally(state.view.counts);
        self.card("tasks", &format!("{done} of {total} done"), if done == total { "" } else { &tally });
        let most = timeline.running().iter().map(|(_, n)| *n).max().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a figure with one decimal")]
        let average = timeline.work() as f64 / wall.max(1) as f64;
        let at_once = format!("{average:.1} at once on average, {most} at most; the limit is {}", timeline.max_workers);
        self.card("work of all attempts", &span(timeline.work()), &at_once);
        let waits = timeline.path.iter().filter(|s| matches!(s.what, What::Wait(..) | What::Lease(_) | What::Vote(_)));
        let waited: Micros = waits.map(|s| s.at.length()).sum();
        self.card("waiting on the path", &span(waited), "of the path that bounded the run");
        let (calls, stop) = timeline.held();
        let told = timeline.turns.iter().filter(|t| matches!(t.what, Told::News { .. })).count();
        if !timeline.turns.is_empty() {
            let more = format!("calls {}, Stop {}; told {}", span(calls), span(stop), count(told, "time", "times"));
            self.card("session held", &span(calls + stop), &more);
        }
        let tokens: u64 = timeline.attempts.iter().map(|a| a.usage.tokens).sum();
        if tokens > 0 || state.spent_usd > 0.0 {
            self.card("cost", &dollars(state.spent_usd), &format!("{tokens} tokens"));
        }
        self.add(format_args!("</section>\n"));
    }

    fn bounded(&mut self) {
        let Picture { plan, timeline, .. } = *self.picture;
        let sentence = esc(&bounds::sentence(timeline, plan), 2000);
        self.add(format_args!("<section>\n<h2>What bounded the run</h2>\n<p class=lead>{sentence}</p>\n"));
        if let Some(text) = bounds::unlimited(timeline) {
            self.add(format_args!("<p>{}</p>\n", esc(&text, 300)));
        }
        self.add(format_args!("</section>\n"));
    }

    fn gantt(&mut self) {
        let few = if self.picture.timeline.workers.len() <= 24 { " few" } else { "" };
        self.add(format_args!(
            "<section id=timeline>\n<div class=head><h2>Timeline</h2></div>\n\
             <div class=scroll tabindex=0 role=group aria-label=Timeline><div class=\"rows{few}\">\n"
        ));
        self.axis();
        self.path_lane();
        self.profile();
        self.session_lane();
        self.worker_lanes();
        self.lease_lane();
        self.add(format_args!("</div></div>\n"));
        self.legend();
        self.add(format_args!("</section>\n"));
    }

    fn lane(&mut self, name: &str, class: &str) {
        self.add(format_args!("<div class=\"lane {class}\"><div class=n>{name}</div><div class=t>"));
    }

    fn close_lane(&mut self) {
        self.out.push_str("</div></div>\n");
    }

    fn axis(&mut self) {
        let run = self.picture.timeline.run;
        let step = tick(self.edge - run.from);
        let mut lines = String::new();
        self.lane("", "axis");
        let mut at = run.from;
        while at <= self.edge {
            let left = self.left(at);
            let right = if left > 94.0 { " class=e" } else { "" };
            let label = if at == run.from { "0 s".to_owned() } else { span(at - run.from) };
            self.add(format_args!("<span{right} style=\"left:{}%\">{label}</span>", short(left)));
            let _ = write!(lines, "<i style=\"left:{}%\"></i>", short(left));
            at += step;
        }
        self.close_lane();
        let end = short(self.left(run.to));
        self.add(format_args!(
            "<div class=grid aria-hidden=true>{lines}<i class=end style=\"left:{end}%\"></i></div>\n"
        ));
    }

    fn path_lane(&mut self) {
        let Picture { plan, timeline, .. } = *self.picture;
        self.lane("bound by", "");
        let least = (self.edge - timeline.run.from) / 2000;
        for segment in timeline.path.iter().filter(|s| s.at.length() >= least) {
            let step = esc(&bounds::step(segment, timeline, plan), 100);
            let class = if matches!(segment.what, What::Work(_)) { "s" } else { "s w" };
            let (place, length) = (self.place(segment.at.from, segment.at.to), span(segment.at.length()));
            self.add(format_args!(
                "<span class=\"{class}\" style=\"{place}\" title=\"{step}: {length}\">{step}</span>"
            ));
        }
        self.close_lane();
    }

    /// How many tasks ran at once.
    fn profile(&mut self) {
        let timeline = self.picture.timeline;
        let steps = timeline.running();
        let most = steps.iter().map(|(_, n)| *n).max().unwrap_or(0);
        let top = most.max(timeline.max_workers.min(64) as usize).max(1);
        #[expect(clippy::cast_precision_loss, reason = "for a drawing")]
        let height = |n: usize| short(38.0 - 36.0 * n as f64 / top as f64);
        let mut points = String::new();
        let (mut last_x, mut level) = (String::new(), 0);
        let mut peak = 0;
        for (at, n) in steps.iter().copied().chain([(timeline.run.to, 0)]) {
            let x = short((self.left(at) * 10.0).round());
            // Of what falls on one point, the highest is drawn.
            if x == last_x {
                peak = peak.max(n);
                level = n;
                continue;
            }
            if !last_x.is_empty() {
                let _ = write!(points, "{last_x},{} ", height(peak.max(level)));
                if peak != level {
                    let _ = write!(points, "{last_x},{} ", height(level));
                }
            }
            let _ = write!(points, "{x},{} ", height(level));
            (last_x, level, peak) = (x, n, n);
        }
        let _ = write!(points, "{last_x},38");
        self.lane("running", "");
        let limit = height(timeline.max_workers.min(64) as usize);
        self.add(format_args!(
            "<svg class=area viewBox=\"0 0 1000 40\" preserveAspectRatio=none role=img aria-label=\"Tasks at once: {most} at most\">\
             <polygon points=\"0,38 {points}\"/><polyline points=\"0,38 {points}\"/>\
             <line x1=0 x2=1000 y1={limit} y2={limit} /></svg>"
        ));
        self.close_lane();
    }

    fn session_lane(&mut self) {
        let timeline = self.picture.timeline;
        if timeline.turns.is_empty() {
            return;
        }
        self.lane("session", "");
        let edge = self.edge;
        let within = timeline.turns.iter().filter(|t| t.at.to <= edge);
        for turn in within.take(MAX_MARKS) {
            let text = format!("{}: {}", self.after(turn.at.to), self.turn(turn));
            if turn.at.length() > 0 {
                let place = self.place(turn.at.from, turn.at.to);
                self.add(format_args!("<i class=h style=\"{place}\" title=\"{text}\"></i>"));
            }
            let class = match turn.what {
                Told::News { .. } => "m",
                Told::Answered { answer: Answer::Block, .. } => "m x",
                Told::Answered { .. } => continue,
            };
            let left = short(self.left(turn.at.to));
            self.add(format_args!("<i class=\"{class}\" style=\"left:{left}%\" title=\"{text}\"></i>"));
        }
        self.close_lane();
    }

    fn worker_lanes(&mut self) {
        let timeline = self.picture.timeline;
        let by_worker = |w| timeline.attempts.iter().enumerate().filter(move |(_, a)| a.worker == Some(w) && !a.taken);
        let mut marks = MAX_MARKS;
        for life in &timeline.workers {
            self.lane(&life.worker.to_string(), "");
            let (from, to) = (life.lived.from, life.lived.to.min(self.edge));
            let place = self.place(from, to);
            let end = match (life.lost, life.left) {
                (true, _) => "found dead",
                (false, true) => "left",
                (false, false) => "there",
            };
            let title = format!("{}: {} to {}, {end}", life.worker, self.after(from), self.after(life.lived.to));
            self.add(format_args!("<i class=life style=\"{place}\" title=\"{title}\"></i>"));
            for (a, attempt) in by_worker(life.worker) {
                self.bar(a, attempt);
            }
            for moment in timeline.moments.iter().filter(|m| m.worker == Some(life.worker)) {
                if marks == 0 {
                    break;
                }
                marks -= 1;
                self.mark(moment);
            }
            self.close_lane();
        }
    }

    fn mark(&mut self, moment: &Moment) {
        let left = short(self.left(moment.at));
        let task = moment.task.map_or("", |i| self.id(i));
        let text = esc(&moment.text, self.room);
        let (kind, after) = (moment.kind.replace('_', " "), self.after(moment.at));
        self.add(format_args!("<i class=m style=\"left:{left}%\" title=\"{after}: {task} {kind} {text}\"></i>"));
    }

    fn bar(&mut self, a: usize, attempt: &Attempt) {
        let place = self.place(attempt.ran.from, attempt.ran.to);
        let (class, title) = (class(attempt.outcome), self.story(attempt));
        let path = if self.on_path[a] { " p" } else { "" };
        let sources: Vec<String> = match self.picture.before(a) {
            Some(before) => vec![before.to_string()],
            None => self.picture.sources(attempt.task).map(|(by, _)| by.to_string()).collect(),
        };
        let needs = if sources.is_empty() { String::new() } else { format!(" data-n=\"{}\"", sources.join(" ")) };
        let (task, id) = (attempt.task, self.id(attempt.task));
        self.add(format_args!(
            "<a class=\"b {class}{path}\" id=b{a} href=#t{task} style=\"{place}\"{needs} title=\"{title}\">{id}"
        ));
        #[expect(clippy::cast_precision_loss, reason = "for a drawing")]
        let part = |at: Micros| (at - attempt.ran.from) as f64 * 100.0 / attempt.ran.length().max(1) as f64;
        for waited in &attempt.leased {
            let (left, right) = (part(waited.from), part(waited.to));
            self.add(format_args!("<u style=\"left:{}%;width:{}%\"></u>", short(left), short(right - left)));
        }
        self.out.push_str("</a>");
    }

    /// An attempt in a sentence.
    fn story(&self, attempt: &Attempt) -> String {
        let Picture { plan, timeline, .. } = *self.picture;
        let again = if attempt.number > 1 { format!(", attempt {}", attempt.number) } else { String::new() };
        let verb = if attempt.outcome == Phase::Running { "running for" } else { "after" };
        let mut text = format!(
            "{}{again}: {} {verb} {}, begun at {}",
            self.id(attempt.task),
            word(attempt.outcome),
            span(attempt.ran.length()),
            self.after(attempt.ran.from),
        );
        let waited = attempt.ran.from - attempt.ready;
        if waited >= 1000 {
            let _ = write!(text, ", having waited {} {}", span(waited), bounds::why(attempt.why, timeline, plan));
        }
        let leased: Micros = attempt.leased.iter().map(|s| s.length()).sum();
        if leased > 0 {
            let _ = write!(text, "; {} of it waiting for a lease", span(leased));
        }
        if attempt.usage.cost_usd > 0.0 {
            let _ = write!(text, "; {}", dollars(attempt.usage.cost_usd));
        }
        // In the table below it stands once more, for those that said something well.
        if let Some(line) = attempt.line.as_deref().filter(|_| attempt.outcome != Phase::Done) {
            let _ = write!(text, "; {line}");
        }
        esc(&text, 2 * self.room + 200)
    }

    fn lease_lane(&mut self) {
        let timeline = self.picture.timeline;
        if timeline.leases.is_empty() {
            return;
        }
        self.lane("leases", "");
        let edge = self.edge;
        for lease in timeline.leases.iter().filter(|l| l.at.from < edge).take(MAX_MARKS) {
            let (what, who) = (esc(&lease.resources.join(", "), 100), lease.task.map_or("the session", |i| self.id(i)));
            let (class, verb) = if lease.held { ("q", "held") } else { ("q w", "waited for") };
            let (place, length) = (self.place(lease.at.from, lease.at.to), span(lease.at.length()));
            let title = format!("{what} {verb} by {who} for {length}");
            self.add(format_args!("<span class=\"{class}\" style=\"{place}\" title=\"{title}\">{what}</span>"));
        }
        self.close_lane();
    }

    fn legend(&mut self) {
        let timeline = self.picture.timeline;
        self.add(format_args!("<div class=legend>"));
        for phase in [Phase::Done, Phase::Failed, Phase::TimedOut, Phase::Lost, Phase::Cancelled, Phase::Running] {
            if timeline.attempts.iter().any(|a| a.outcome == phase && !a.taken) {
                self.add(format_args!("<span><i class=\"b {}\"></i>{}</span>", class(phase), word(phase)));
            }
        }
        self.add(format_args!("<span><i class=\"b d p\"></i>on the path that bounded the run</span>"));
        if timeline.path.iter().any(|s| !matches!(s.what, What::Work(_))) {
            self.add(format_args!("<span><i class=\"s w\"></i>waiting</span>"));
        }
        if !timeline.turns.is_empty() {
            self.add(format_args!(
                "<span><i class=h></i>session held</span><span><i class=m></i>session told</span>\
                 <span><i class=\"m x\"></i>call refused</span>"
            ));
        }
        self.add(format_args!("</div>\n"));
    }

    fn steps(&mut self) {
        let Picture { plan, timeline, .. } = *self.picture;
        self.add(format_args!("<section>\n<h2>The path, step by step</h2>\n<ol class=path>\n"));
        let least = timeline.run.length() / 500;
        let mut longest: Vec<usize> =
            (0..timeline.path.len()).filter(|&i| timeline.path[i].at.length() >= least).collect();
        longest.sort_by_key(|&i| std::cmp::Reverse(timeline.path[i].at.length()));
        longest.truncate(MAX_ROWS);
        longest.sort_unstable();
        let most = longest.iter().map(|&i| timeline.path[i].at.length()).max().unwrap_or(1).max(1);
        for &i in &longest {
            let segment = &timeline.path[i];
            let text = match segment.what {
                What::Wait(task, why) => {
                    let why = bounds::why(why, timeline, plan);
                    format!("<a href=#t{task}>{}</a> waited {}", self.id(task), esc(&why, 200))
                }
                What::Work(a) | What::Lease(a) => {
                    let step = esc(&bounds::step(segment, timeline, plan), 200);
                    format!("<a href=#t{}>{step}</a>", timeline.attempts[a].task)
                }
                What::Vote(_) | What::Nothing => esc(&bounds::step(segment, timeline, plan), 200),
            };
            let class = if matches!(segment.what, What::Work(_)) { "" } else { " class=w" };
            #[expect(clippy::cast_precision_loss, reason = "for a drawing")]
            let width = segment.at.length() as f64 * 100.0 / most as f64;
            let (length, width) = (span(segment.at.length()), short(width));
            self.add(format_args!(
                "<li><span>{text}</span><span>{length}</span><i{class} style=\"width:{width}%\"></i></li>\n"
            ));
        }
        self.add(format_args!("</ol>\n"));
        let left = timeline.path.len() - longest.len();
        if left > 0 {
            let told: Micros = longest.iter().map(|&i| timeline.path[i].at.length()).sum();
            let (steps, rest) = (count(left, "shorter step", "shorter steps"), span(timeline.run.length() - told));
            self.add(format_args!("<p class=soft>and {steps} between, {rest} together</p>\n"));
        }
        self.add(format_args!("</section>\n"));
    }

    fn tasks(&mut self) {
        self.add(format_args!(
            "<section>\n<div class=head><h2>Tasks</h2></div>\n<div class=wide><table id=tasks>\n<thead><tr><th>Task</th><th>State</th>\
             <th>Worker</th><th class=a>Ready</th><th class=a>Waited</th><th class=a>Took</th>"
        ));
        let costs = self.picture.state.tasks.iter().any(|t| t.usage.cost_usd > 0.0);
        if costs {
            self.add(format_args!("<th class=a>Cost</th>"));
        }
        self.add(format_args!("<th>Needs</th><th>What came of it</th></tr></thead>\n<tbody>\n"));
        for i in 0..self.picture.plan.tasks.len() {
            self.row(i, costs);
        }
        self.add(format_args!("</tbody></table></div>\n</section>\n"));
    }

    fn row(&mut self, i: usize, costs: bool) {
        let Picture { plan, state, timeline, .. } = *self.picture;
        let (task, told) = (&plan.tasks[i], &state.tasks[i]);
        let attempts: Vec<&Attempt> =
            self.picture.attempts_of(i).iter().map(|&a| &timeline.attempts[a]).filter(|a| !a.taken).collect();
        let title = task.label().map(|t| format!("<small>{}</small>", esc(&t, self.room))).unwrap_or_default();
        let tries = if attempts.len() > 1 { format!(" × {}", attempts.len()) } else { String::new() };
        let id = self.id(i);
        let link = match self.picture.attempts_of(i).last().filter(|_| !attempts.is_empty()) {
            Some(a) => format!("<a href=#b{a}>{id}</a>"),
            None => id.to_owned(),
        };
        let (class, word) = (class(told.phase), if told.is_taken { "taken over" } else { word(told.phase) });
        self.add(format_args!("<tr id=t{i}><td>{link}{title}<td><span class=\"k {class}\">{word}</span>{tries}"));
        let mut workers: Vec<String> = attempts.iter().filter_map(|a| a.worker).map(|w| w.to_string()).collect();
        workers.dedup();
        self.add(format_args!("<td data-l=on>{}", workers.join(", ")));
        match attempts.first() {
            Some(first) => {
                let waited: Micros = attempts.iter().map(|a| a.ran.from - a.ready).sum();
                let took: Micros = attempts.iter().map(|a| a.ran.length()).sum();
                let ready = first.ready - timeline.run.from;
                for (label, value) in [("ready after", ready), ("waited", waited), ("took", took)] {
                    let (ms, text) = (value / 1000, span(value));
                    self.add(format_args!("<td class=a data-l=\"{label}\" data-s={ms}>{text}"));
                }
            }
            None => self.add(format_args!("<td class=a data-s=-1><td class=a data-s=-1><td class=a data-s=-1>")),
        }
        if costs {
            let usd = told.usage.cost_usd;
            let shown = if usd > 0.0 { dollars(usd) } else { String::new() };
            self.add(format_args!("<td class=a data-s={usd}>{shown}"));
        }
        let needs: Vec<String> = task.needs.iter().take(8).map(|need| esc(&need.to_string(), 130)).collect();
        let more = if task.needs.len() > 8 { format!(" and {} more", task.needs.len() - 8) } else { String::new() };
        let label = if needs.is_empty() { "" } else { " data-l=needs" };
        let said = told.line.as_deref().map(|said| esc(said, self.room)).unwrap_or_default();
        self.add(format_args!("<td{label}>{}{more}<td>{said}\n", needs.join(", ")));
    }

    /// What the session did, or was told, in a few words.
    fn turn(&self, turn: &Turn) -> String {
        let hook = esc(&turn.hook, 40);
        match &turn.what {
            Told::News { news, signals, chars } => {
                let signals =
                    if *signals > 0 { format!(" and {}", count(*signals, "signal", "signals")) } else { String::new() };
                let length = if *chars > 0 { format!(" in {chars} characters") } else { String::new() };
                format!("{hook} told the session {}{signals}{length}", count(*news, "piece of news", "pieces of news"))
            }
            Told::Answered { answer, reason, tool } => {
                let tool = tool.as_deref().map(|tool| format!(" {}", esc(tool, 60))).unwrap_or_default();
                let held =
                    if turn.at.length() > 0 { format!(" for {}", span(turn.at.length())) } else { String::new() };
                let said = match answer {
                    Answer::Block => "was refused",
                    Answer::Rewrite => "was given other input",
                    Answer::Held => "was let through",
                    Answer::Inject => "was let through with a note",
                    Answer::Wake => "woke the session",
                };
                let waited = if held.is_empty() { String::new() } else { format!("held{held}, ") };
                format!("{hook}{tool}: {waited}{said}: {}", esc(reason, self.room))
            }
        }
    }

    fn session(&mut self) {
        let timeline = self.picture.timeline;
        if timeline.turns.is_empty() {
            return;
        }
        self.add(format_args!(
            "<section>\n<h2>What the session was told and held for</h2>\n<div class=wide><table id=told>\n<thead><tr><th class=a>After</th>\
             <th>What</th></tr></thead>\n<tbody>\n"
        ));
        for turn in timeline.turns.iter().take(MAX_ROWS) {
            let (after, text) = (self.after(turn.at.to), self.turn(turn));
            self.add(format_args!("<tr><td class=a>{after}<td>{text}\n"));
        }
        self.add(format_args!("</tbody></table></div>\n"));
        if let Some(more) = timeline.turns.len().checked_sub(MAX_ROWS).filter(|n| *n > 0) {
            self.add(format_args!("<p class=soft>and {more} more: <code>cpw events</code> shows them all</p>\n"));
        }
        self.add(format_args!("</section>\n"));
    }

    fn foot(&mut self) {
        self.add(format_args!(
            "<footer>Made by cpw {} from the run's log. This page loads nothing and sends nothing; all times are UTC, and all \
             spans are by the wall clock of the log.</footer>\n<script>\n",
            env!("CARGO_PKG_VERSION")
        ));
        // The script's hash is of all between the tags.
        self.out.truncate(self.out.len() - 1);
        self.out.push_str(SCRIPT);
        self.out.push_str("</script>\n</body>\n</html>\n");
    }
}

/// A number with at most three decimals.
fn short(n: f64) -> String {
    let text = format!("{n:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// How far two marks of the axis are from each other, in microseconds: a round figure that leaves five to ten of them.
fn tick(width: Micros) -> Micros {
    const ROUND: [Micros; 14] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
    let least = (width / 10).max(1);
    // Below a second by tens, above by what clocks have.
    let mut fine = 1;
    while fine < 1_000_000 {
        for part in [1, 2, 5] {
            if part * fine >= least {
                return part * fine;
            }
        }
        fine *= 10;
    }
    let round = ROUND.iter().map(|s| s * 1_000_000).find(|step| *step >= least);
    round.unwrap_or_else(|| {
        let hour = 3_600_000_000;
        (least / hour + 1) * hour
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_others_leaves_its_place() {
        assert_eq!(
            esc("</script><img src=x onerror=\"a('b')\">\u{202e}\n&amp;", 200),
            "&lt;/script&gt;&lt;img src=x onerror=&quot;a(&#39;b&#39;)&quot;&gt; &amp;amp;"
        );
        assert_eq!(esc("abcdef", 4), "abc…");
    }

    #[test]
    fn a_hash_is_written_as_policies_have_it() {
        // As `printf … | openssl dgst -sha256 -binary | base64` has them.
        assert_eq!(hash_of(""), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(hash_of("alert('Hello, world.');"), "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=");
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"), "it would end where it says so");
    }

    #[test]
    fn the_axis_has_five_to_eleven_marks_at_round_figures() {
        for width in [7, 1000, 30_000, 999_999, 3_600_000, 57_000_000, 294_000_000, 4_000_000_000, 90_000_000_000] {
            let step = tick(width);
            assert!((4..=10).contains(&(width / step)), "{width}: {step}");
        }
        assert_eq!((tick(57_000_000), tick(294_000_000)), (10_000_000, 30_000_000));
        assert_eq!(tick(0), 1);
    }

    #[test]
    fn numbers_are_short() {
        for (n, text) in [(0.0, "0"), (-0.000_01, "0"), (12.5, "12.5"), (100.0, "100"), (33.333_333, "33.333")] {
            assert_eq!(short(n), text);
        }
        assert_eq!(
            (dollars(0.25), dollars(0.0031), dollars(12.0)),
            ("$0.25".into(), "$0.0031".into(), "$12.00".into())
        );
    }
}
