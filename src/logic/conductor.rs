//! What the session is told and how its tool calls are answered, as pure functions of a run's view: which claim or merge a
//! call meets, and cpw's own sentences with bounded, neutralised fields. The texts state facts; they never instruct.

use std::fmt::Write as _;
use std::time::Duration;

use crate::base::ids::{TaskId, WorkerNo};
use crate::base::span::human;
use crate::base::text;
use crate::logic::signals::{self, Now, Occasion};
use crate::logic::view::{Brief, Happened, MergeState, News, Phase, View};
use crate::model::glob::{self, Glob};
use crate::model::plan::{Plan, WorkerText};

/// The longest context that announces a run, in characters.
pub const START_CHARS: usize = 600;

/// Equal refusals in a row after which a call passes with a note.
pub const MAX_REFUSALS: u32 = 3;

/// Hand-overs by Stop in a row, during one prompt's turn.
pub const MAX_STOPS: u32 = 3;

/// The input field that names the file, for the tools that work on one.
pub fn path_field(tool: &str) -> Option<&'static str> {
    match tool {
        "Read" | "Edit" | "Write" | "MultiEdit" => Some("file_path"),
        "NotebookEdit" => Some("notebook_path"),
        _ => None,
    }
}

/// Removes `.`, `..` and doubled slashes from an absolute path, as text.
pub fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// What stands behind the last slash.
fn file_name(path: &str) -> &str {
    path.rfind('/').map_or(path, |at| &path[at + 1..])
}

/// Whether `claim`, a file or glob relative to the project or absolute, means the file at `path`.
pub fn claims(claim: &str, project: &str, path: &str) -> bool {
    let name = file_name(claim);
    // A plain path means no file of another name, and most claims are such.
    let may = name == file_name(path) || matches!(name, "" | "." | "..") || glob::has_meta(claim);
    may && is_meant(claim, project, path)
}

fn is_meant(claim: &str, project: &str, path: &str) -> bool {
    if claim.starts_with('/') {
        return claim == path || Glob::path(claim).is_ok_and(|g| g.matches(path));
    }
    if normalise(&format!("{project}/{claim}")) == path {
        return true;
    }
    let below = path.strip_prefix(project).and_then(|rest| rest.strip_prefix('/'));
    below.is_some_and(|below| Glob::path(claim.trim_start_matches("./")).is_ok_and(|g| g.matches(below)))
}

fn is_claimed_by(brief: &Brief, project: &str, paths: &[String]) -> bool {
    is_claimed_among(&brief.claims, project, paths)
}

/// Whether one of these claims means one of `paths`.
pub(super) fn is_claimed_among(all: &[String], project: &str, paths: &[String]) -> bool {
    all.iter().any(|claim| paths.iter().any(|path| claims(claim, project, path)))
}

/// The unfinished task that claims one of `paths` (absolute and normalised: as named, and with links resolved).
pub fn claimed<'v>(view: &'v View, project: &str, paths: &[String]) -> Option<(&'v TaskId, &'v Brief)> {
    view.tasks.iter().find(|(_, b)| !b.phase.is_final() && is_claimed_by(b, project, paths))
}

/// The finished task that claimed one of `paths` and has a result, where such are kept.
pub fn finished_claim<'v>(view: &'v View, project: &str, paths: &[String]) -> Option<(&'v TaskId, &'v Brief)> {
    view.tasks.iter().find(|(_, b)| b.phase == Phase::Done && b.result.is_some() && is_claimed_by(b, project, paths))
}

/// The merge that a call of `tool` meets, if it is still to be applied. `field` gives an input field as text.
pub fn merge_for<'v>(
    view: &'v View,
    tool: &str,
    field: impl Fn(&str) -> Option<String>,
) -> Option<(usize, &'v MergeState)> {
    view.merges.iter().enumerate().find(|(_, m)| {
        !m.used
            && !m.waived
            && m.rule.tool == tool
            && m.rule.matches.iter().all(|(name, pattern)| {
                field(name).is_some_and(|value| Glob::text(pattern).is_ok_and(|g| g.matches(&value)))
            })
    })
}

/// How the needs of a merge stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Some have no outcome yet.
    Open,
    /// All are done.
    Done,
    /// All have an outcome, not all are done.
    Failed,
}

/// How the needs of a merge stand. A task that the view does not know has no outcome yet.
pub fn needs_of(view: &View, merge: &MergeState) -> Needs {
    let phases = merge.rule.needs.iter().map(|id| view.tasks.get(id).map_or(Phase::Waiting, |b| b.phase));
    let mut all_done = true;
    for phase in phases {
        if !phase.is_final() {
            return Needs::Open;
        }
        all_done &= phase == Phase::Done;
    }
    if all_done { Needs::Done } else { Needs::Failed }
}

/// What people call a task: its title or item, else its id. Foreign text, neutralised.
pub(super) fn name_of(task: &TaskId, label: Option<&str>) -> String {
    // A file's name stands as it is; anything that could be a sentence is quoted, as a worker's words are.
    let is_word = |l: &str| l.chars().count() <= 80 && l.chars().all(|c| c.is_alphanumeric() || "._-/+@,".contains(c));
    label.map_or_else(
        || task.to_string(),
        |l| if is_word(l) { l.to_owned() } else { text::quoted_for_model(&text::one_line(l, 80)) },
    )
}

/// Where a result is. The end of the path is the task's own word.
pub(super) fn place(shown: &str, result: &str) -> String {
    format!("{shown}/{}", text::one_line(&result.replace(['<', '>'], " "), 400))
}

pub(super) fn who(worker: Option<WorkerNo>) -> String {
    worker.map_or_else(|| "a worker".into(), |w| w.to_string())
}

/// How a task stands, in a few words: `W1 80 %`, `W2 done`, `analyze-ui waiting`.
fn standing(task: &TaskId, brief: &Brief) -> String {
    match (brief.phase, brief.worker) {
        (Phase::Running, Some(w)) => match brief.percent {
            Some(p) => format!("{w} {p} % ({})", name_of(task, brief.label.as_deref())),
            None => format!("{w} working on {}", name_of(task, brief.label.as_deref())),
        },
        (Phase::Done, Some(w)) => format!("{w} done ({})", name_of(task, brief.label.as_deref())),
        (phase, _) => format!("{} {}", name_of(task, brief.label.as_deref()), phase.word().replace('_', " ")),
    }
}

/// The longest of what the running tasks said they still need.
fn eta(view: &View) -> Option<String> {
    let longest = view.running().filter_map(|(_, b)| b.eta_s).max()?;
    Some(format!("about {}", human(Duration::from_secs(longest))))
}

/// How far the whole run is, in percent, where a running task has said so of itself. A run of one task is as far as that.
fn percent(view: &View) -> Option<u64> {
    let counts = view.counts;
    let told: Vec<u64> = view.running().filter_map(|(_, b)| b.percent.map(u64::from)).collect();
    if told.is_empty() || counts.total < 2 {
        return None;
    }
    let over = u64::from(counts.total.saturating_sub(counts.open()));
    Some((over * 100 + told.iter().sum::<u64>()) / u64::from(counts.total))
}

/// `Workers still processing: W1 80 %, W3 45 % (62 % of all, about 30 s)`, or nothing when none is.
pub fn still_processing(view: &View) -> Option<String> {
    let open = view.counts.open();
    if open == 0 {
        return None;
    }
    let running: Vec<String> = view.running().take(12).map(|(id, b)| standing(id, b)).collect();
    let mut out = if running.is_empty() {
        "Workers still to come".to_owned()
    } else {
        format!("Workers still processing: {}", running.join(", "))
    };
    let others = open.saturating_sub(u32::try_from(view.running().count()).unwrap_or(u32::MAX));
    if others > 0 {
        let _ = write!(out, "; {others} more task{} waiting", if others == 1 { "" } else { "s" });
    }
    let far = percent(view).map(|p| format!("{p} % of all"));
    let pace: Vec<String> = [far, eta(view)].into_iter().flatten().collect();
    if !pace.is_empty() {
        let _ = write!(out, " ({})", pace.join(", "));
    }
    Some(out)
}

/// What the session learns when a run begins, at most [`START_CHARS`] characters.
pub fn started(plan: &Plan, shown: &str) -> String {
    let names: Vec<String> =
        plan.tasks.iter().map(|t| name_of(&t.id, t.title.as_deref().or(t.item.as_deref()))).collect();
    let n = names.len();
    let claims = plan.tasks.iter().any(|t| !t.claims.is_empty());
    let head = format!("cpw has started {n} task{} beside this conversation", if n == 1 { "" } else { "s" });
    let tail = format!(
        ". Finished results are reported here as they come, with their paths below {shown}.{}{}",
        if claims { " Files that a task works on are handed over when it is done." } else { "" },
        if plan.merge.is_empty() {
            ""
        } else {
            " Results are also put into the tool calls that the project's rules name."
        },
    );
    let room = START_CHARS.saturating_sub(head.chars().count() + tail.chars().count() + 20);
    format!("{head}: {}{tail}", join_within(&names, room))
}

/// Joins names with commas within a number of characters; what does not fit is counted.
fn join_within(names: &[String], room: usize) -> String {
    let mut out = String::new();
    for (i, name) in names.iter().enumerate() {
        let more = names.len() - i;
        if out.chars().count() + name.chars().count() + 2 > room && i > 0 {
            let _ = write!(out, " and {more} more");
            return out;
        }
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(name);
    }
    out
}

fn news_line(news: &News, view: &View, shown: &str) -> String {
    let Some(task) = &news.task else {
        let counts = view.counts;
        let mut parts = vec![format!("{} done", counts.done)];
        for (n, word) in [(counts.failed, "failed"), (counts.skipped, "skipped"), (counts.cancelled, "cancelled")] {
            if n > 0 {
                parts.push(format!("{n} {word}"));
            }
        }
        let rule = view.rule.as_deref().map_or_else(String::new, |r| format!(" of rule {}", text::one_line(r, 60)));
        let reason = news.line.as_deref().filter(|_| counts.done < counts.total);
        let reason = reason.map_or_else(String::new, |r| format!(" ({})", text::one_line(r, 120)));
        return format!("All workers{rule} are finished: {}{reason}.", parts.join(", "));
    };
    let name = name_of(task, news.label.as_deref());
    let mut out = match news.what {
        Happened::Done => format!("{} done: {name}", who(news.worker)),
        Happened::Failed => format!("{} failed: {name}", who(news.worker)),
        Happened::Cancelled => format!("{name} was cancelled"),
        Happened::Skipped => {
            format!(
                "{name} was skipped, because of {}",
                news.line.as_deref().map_or_else(String::new, |l| text::one_line(l, 80))
            )
        }
        Happened::Ended => name,
    };
    if let Some(line) = &news.line {
        match (news.what, view.conductor.worker_text) {
            // Reasons of failures are cpw's own words, summaries are the worker's.
            (Happened::Done, WorkerText::Line) => {
                let _ = write!(out, ": {}", text::quoted_for_model(line));
            }
            (Happened::Failed, _) => {
                let _ = write!(out, " ({})", text::one_line(&line.replace(['<', '>'], " "), 160));
            }
            _ => {}
        }
    }
    if let Some(result) = &news.result {
        let _ = write!(out, " — result: {}", place(shown, result));
    }
    out
}

/// What a delivery says, and which news it covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The text; empty when there is nothing new.
    pub text: String,
    /// Sequence numbers of the news that it covers.
    pub news: Vec<u64>,
    /// Ids of the signals that it covers.
    pub signals: Vec<u64>,
}

/// When a run has used up its `news_tokens`, the most characters that a delivery has; what is told then are failures, what
/// keeps the session, and the end.
const SHORT_CHARS: usize = 400;

/// Characters of a token, as usual English text has them.
const TOKEN_CHARS: u64 = 4;

/// Whether the run has cost the session what it may cost in news.
fn is_spent(view: &View) -> bool {
    view.told_chars / TOKEN_CHARS >= u64::from(view.conductor.news_tokens)
}

/// Whether there is anything to tell on an occasion, without making the text.
pub fn has_news(view: &View, occasion: Occasion, now: Now<'_>) -> bool {
    if is_spent(view) {
        return view.news.iter().any(matters) || view.due(occasion, now).iter().any(|s| s.blocks);
    }
    !view.news.is_empty() || !view.due(occasion, now).is_empty()
}

/// Whether it is told however much was told before.
fn matters(news: &News) -> bool {
    matches!(news.what, Happened::Failed | Happened::Ended)
}

/// Everything that is new in a run and due on an occasion, most important first, within `max` characters. What does not fit
/// is counted, and covered all the same: it can be looked up.
pub fn news(view: &View, shown: &str, max: usize, occasion: Occasion, now: Now<'_>) -> Message {
    if !has_news(view, occasion, now) {
        return Message::default();
    }
    let max = if is_spent(view) { max.min(SHORT_CHARS) } else { max };
    let due = view.due(occasion, now);
    let mut sorted: Vec<&News> = view.news.iter().collect();
    sorted.sort_by_key(|n| (n.what, n.seq));
    // The failure of a critical task is told as such.
    let is_told = |n: &&News| due.iter().any(|s| s.id == n.seq);
    let (ends, others): (Vec<&News>, Vec<&News>) =
        sorted.iter().filter(|n| !is_told(n)).partition(|n| n.what == Happened::Ended);
    let left_out = |n: usize| format!("and {n} more, all under {shown}/workers.");
    let mut last: Vec<String> = ends.iter().map(|n| news_line(n, view, shown)).collect();
    if view.ended.is_none()
        && let Some(still) = still_processing(view)
    {
        last.push(format!("{}.", text::one_line(&still, max / 3)));
    }
    // What always comes has its room first.
    let reserved: usize = last.iter().map(|l| l.chars().count() + 1).sum();
    let mut room = max.saturating_sub(reserved + left_out(others.len() + due.len()).chars().count() + 1);
    let mut lines = Vec::new();
    let mut more = 0;
    let (urgent, told): (Vec<_>, Vec<_>) = due.iter().partition(|s| s.blocks);
    let (failed, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|n| n.what == Happened::Failed);
    let signal = |s: &&signals::Signal| signals::line(s, view, shown);
    let item = |n: &News| news_line(n, view, shown);
    let all = urgent.into_iter().map(signal).chain(failed.into_iter().map(item));
    let all = all.chain(told.into_iter().map(signal)).chain(rest.into_iter().map(item));
    for line in all {
        match room.checked_sub(line.chars().count() + 1) {
            Some(rest) => {
                room = rest;
                lines.push(line);
            }
            None => more += 1,
        }
    }
    if more > 0 {
        lines.push(left_out(more));
    }
    lines.extend(last);
    let mut out = lines.join("\n");
    if out.chars().count() > max {
        out = out.chars().take(max.saturating_sub(1)).chain(['…']).collect();
    }
    let signals = due.iter().map(|s| s.id).collect();
    Message { text: out, news: sorted.iter().map(|n| n.seq).collect(), signals }
}

/// Why a call on a claimed file is refused: who has it and how far it is.
pub fn claim_refusal(task: &TaskId, brief: &Brief, path: &str, now_ms: u64) -> String {
    let path = text::one_line(&path.replace(['<', '>'], " "), 200);
    let mut out = match (brief.phase, brief.worker) {
        (Phase::Running, Some(w)) => {
            let since = human(Duration::from_millis(now_ms.saturating_sub(brief.since_ms)));
            format!("{path} is being worked on by {w} (task {task}), for {since}")
        }
        _ => format!("{path} is claimed by task {task}, which has not started yet"),
    };
    if let Some(p) = brief.percent {
        let _ = write!(out, ", {p} % done");
    }
    if let Some(eta) = brief.eta_s {
        let _ = write!(out, ", about {} left", human(Duration::from_secs(eta)));
    }
    out.push_str(". Its result is reported here when it is done; other files are free.");
    out
}

/// What accompanies a call on a claimed file that goes through.
pub fn claim_note(task: &TaskId, brief: &Brief, shown: &str) -> String {
    let mut out = format!("Task {task} has worked on this file: {}", brief.phase.word().replace('_', " "));
    if let Some(result) = &brief.result {
        let _ = write!(out, "; its result is in {}", place(shown, result));
    }
    out.push('.');
    out
}

/// What accompanies a call on a file that a task still works on, when it goes through all the same.
pub fn claim_passed(task: &TaskId, brief: &Brief) -> String {
    let holder = who(brief.worker);
    format!("{holder} (task {task}) still works on this file; its result is reported here when it is done.")
}

/// Why a call that meets a merge is refused while its needs are open.
pub fn merge_refusal(view: &View, merge: &MergeState) -> String {
    let states: Vec<String> = merge
        .rule
        .needs
        .iter()
        .take(20)
        .map(|id| view.tasks.get(id).map_or_else(|| format!("{id} waiting"), |b| standing(id, b)))
        .collect();
    let eta = eta(view).map_or_else(String::new, |e| format!(", {e}"));
    format!("The results that belong into this call are not all there yet: {}{eta}.", states.join(", "))
}

/// Why a call that meets a merge is refused once when a task it needs has failed.
pub fn merge_failed(view: &View, merge: &MergeState, shown: &str) -> String {
    let mut out = String::from("Not every result that belongs into this call exists:");
    for id in merge.rule.needs.iter().take(40) {
        let Some(brief) = view.tasks.get(id) else { continue };
        let _ = write!(out, "\n- {}", standing(id, brief));
        if let Some(result) = &brief.result {
            let _ = write!(out, " — result: {}", place(shown, result));
        }
    }
    out.push_str("\nThe same call made again passes unchanged.");
    out
}

/// The heading above one result where results are put into a tool's input.
pub fn result_heading(task: &TaskId, brief: &Brief) -> String {
    let worker = brief.worker.map_or_else(String::new, |w| format!(", {w}"));
    format!("## {} ({task}{worker})", name_of(task, brief.label.as_deref()))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::logic::simulation::{done, plan, run_started, task};
    use crate::model::event::{Body, Done, Ended, Event, Progress, ResultFile, RunEnded, Started, Verdict};
    use crate::model::plan::{Merge, Task};

    const SHOWN: &str = ".claude/runs/20260101-000000-0123456789abcdef0123";

    const NOW: Now<'_> = Now { ms: 5000, boot_id: "boot" };

    fn told(view: &View, max: usize) -> Message {
        news(view, SHOWN, max, Occasion::Step, NOW)
    }

    /// The view of a run of these tasks, of which all have begun.
    fn begun(tasks: Vec<Task>) -> View {
        let plan = plan(tasks);
        let mut view = View::new(&plan);
        tell(&mut view, None, run_started(&plan, "boot"));
        for t in &plan.tasks {
            tell(
                &mut view,
                Some(t.id.as_str()),
                Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 1000, budget_usd: None }),
            );
        }
        view
    }

    fn tell(view: &mut View, task: Option<&str>, body: Body) {
        let seq = view.seq + 1;
        let task = task.map(|t| TaskId::new(t).unwrap());
        let (worker, attempt) = (task.as_ref().map(|_| WorkerNo(1)), task.as_ref().map(|_| 1));
        view.apply(&Event { seq, ts: String::new(), worker, task, attempt, body });
    }

    fn ended(reason: &str) -> Body {
        Body::RunEnded(RunEnded {
            status: Verdict::Failed,
            reason: reason.into(),
            done: 0,
            failed: 0,
            skipped: 0,
            cancelled: 0,
        })
    }

    fn failed(reason: &str) -> Body {
        Body::Failed(Ended { reason: reason.into(), ..Ended::default() })
    }

    fn claimed_in(claim: &str, project: &str, path: &str) -> bool {
        let mut t = task("a");
        t.claims = vec![claim.into()];
        claimed(&begun(vec![t]), project, &[normalise(path)]).is_some()
    }

    #[test]
    fn a_claim_means_its_files_and_no_others() {
        for (claim, path, expected) in [
            ("src/app.rs", "/p/src/app.rs", true),
            ("./src/app.rs", "/p/src/app.rs", true),
            ("src/app.rs", "/p/./src//x/../app.rs", true),
            ("/p/src/app.rs", "/p/src/app.rs", true),
            ("src/app", "/p/src/apple.rs", false),
            ("src/app", "/p/src/app", true),
            ("src/app.rs", "/p/src/app.rs.orig", false),
            ("src/app.rs", "/q/src/app.rs", false),
            ("src/app.rs", "/pp/src/app.rs", false),
            ("app.rs", "/papp.rs", false),
            ("src/*.rs", "/p/src/app.rs", true),
            ("src/*.rs", "/p/src/deep/app.rs", false),
            ("src/**/*.rs", "/p/src/deep/app.rs", true),
            ("**", "/p/anything", true),
            ("**", "/elsewhere/anything", false),
            ("/elsewhere/*", "/elsewhere/anything", true),
            ("a\\[1\\].py", "/p/a[1].py", true),
            ("a\\[1\\].py", "/p/a1.py", false),
            ("../p/src/app.rs", "/p/src/app.rs", true),
            ("src/../lib/app.rs", "/p/lib/app.rs", true),
        ] {
            assert_eq!(claimed_in(claim, "/p", path), expected, "{claim} {path}");
        }
        // The project's own path is never read as a pattern.
        assert!(claimed_in("src/*.rs", "/home/x [y]/{z}", "/home/x [y]/{z}/src/a.rs"));
        assert!(!claimed_in("src/*.rs", "/home/[xy]", "/home/x/src/a.rs"));
    }

    #[test]
    fn a_claim_ends_with_its_task() {
        let mut t = task("a");
        t.claims = vec!["a.py".into()];
        let mut view = begun(vec![t]);
        let path = ["/p/a.py".to_owned()];
        assert!(claimed(&view, "/p", &path).is_some());
        tell(&mut view, Some("a"), done("x"));
        assert!(claimed(&view, "/p", &path).is_none());
    }

    #[test]
    fn a_merge_is_met_by_its_tool_and_fields_only_and_once() {
        let mut plan = plan(vec![task("a")]);
        plan.merge.push(Merge {
            tool: "Write".into(),
            matches: BTreeMap::from([("file_path".into(), "*report.md".into())]),
            needs: vec![TaskId::new("a").unwrap()],
            set: BTreeMap::new(),
        });
        let mut view = View::new(&plan);
        let met = |view: &View, tool: &str, path: Option<&str>| {
            merge_for(view, tool, |f| path.filter(|_| f == "file_path").map(ToOwned::to_owned)).is_some()
        };
        assert!(met(&view, "Write", Some("/p/report.md")));
        assert!(!met(&view, "Edit", Some("/p/report.md")));
        assert!(!met(&view, "Write", Some("/p/report.md.bak")));
        assert!(!met(&view, "Write", None));
        assert_eq!(needs_of(&view, &view.merges[0]), Needs::Open);
        view.merges[0].waived = true;
        assert!(!met(&view, "Write", Some("/p/report.md")));
        view.merges[0] = MergeState { used: true, waived: false, ..view.merges[0].clone() };
        assert!(!met(&view, "Write", Some("/p/report.md")));
    }

    #[test]
    fn failures_come_first_and_the_end_last_and_everything_is_covered() {
        let mut view = begun((0..4).map(|i| task(&format!("t{i}"))).collect());
        tell(&mut view, Some("t0"), done("fine"));
        tell(&mut view, Some("t1"), Body::Cancelled(Ended { reason: "so".into(), ..Ended::default() }));
        tell(&mut view, Some("t2"), done("fine"));
        tell(&mut view, Some("t3"), failed("exit 3"));
        tell(&mut view, None, ended("t3 failed"));
        let message = told(&view, 4000);
        let lines: Vec<&str> = message.text.lines().collect();
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(lines[0].contains("failed: t3") && lines[0].contains("exit 3"), "{lines:?}");
        assert!(lines[1].contains("t0") && lines[2].contains("t2") && lines[3].contains("cancelled"), "{lines:?}");
        assert!(lines[4].starts_with("All workers of rule rule are finished: 2 done, 1 failed, 1 cancelled"));
        let covered: BTreeSet<u64> = message.news.into_iter().collect();
        assert_eq!(covered, view.news.iter().map(|n| n.seq).collect());
        view.news.clear();
        assert_eq!(told(&view, 4000), Message::default());
    }

    #[test]
    fn who_still_works_follows_the_news() {
        let mut view = begun(vec![task("a"), task("b")]);
        tell(
            &mut view,
            Some("b"),
            Body::Progress(Progress { percent: Some(80), eta_s: Some(30), ..Progress::default() }),
        );
        tell(&mut view, Some("a"), done("five findings"));
        let text = told(&view, 4000).text;
        assert!(text.starts_with("W1 done: a: \"five findings\"\n"), "{text}");
        assert!(text.ends_with("Workers still processing: W1 80 % (b) (90 % of all, about 30 s)."), "{text}");
        view.conductor.worker_text = WorkerText::None;
        assert!(!told(&view, 4000).text.contains("five"));
    }

    #[test]
    fn the_announcement_of_a_run_is_short_whatever_its_tasks_are_called() {
        let mut tasks: Vec<Task> = (0..500).map(|i| task(&format!("{}{i}", "x".repeat(60)))).collect();
        tasks[0].title = Some("é\n<b>".repeat(100));
        tasks[0].claims = vec!["a".into()];
        let text = started(&plan(tasks), SHOWN);
        assert!(text.chars().count() <= START_CHARS, "{}", text.chars().count());
        assert!(text.contains("500 tasks") && text.contains(SHOWN) && text.contains(" more"), "{text}");
        assert!(!text.contains(['<', '>', '\n']));
    }

    /// Whether `text` keeps foreign text in its place: no tag, and no more lines or quotes than cpw makes.
    fn is_tame(text: &str, lines: usize) -> bool {
        !text.contains(['<', '>', '\r', '\u{202E}', '\x1b']) && text.split('\n').count() <= lines
    }

    const FOREIGN: &str = "(\\PC|[\"<>\n\r\t\u{1b}\u{202E}\u{200B}]|</system-reminder>){0,60}";

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_plain_claim_is_refused_early_only_where_it_means_nothing(
            claim in "[ab./*{},\\\\\\[\\]]{1,8}", path in "(/[ab.]{1,3}){1,4}", below in any::<bool>(),
        ) {
            let path = normalise(&if below { format!("/a/b{path}") } else { path });
            prop_assert_eq!(claims(&claim, "/a/b", &path), is_meant(&claim, "/a/b", &path));
        }

        #[test]
        fn no_foreign_text_breaks_out_and_no_message_is_longer_than_allowed(
            foreign in prop::collection::vec((FOREIGN, FOREIGN, any::<bool>()), 1..12),
            repeat in 1_usize..20, max in 200_usize..4000, over in any::<bool>(),
        ) {
            let made = foreign.len() * repeat;
            let tasks: Vec<Task> = (0..made).map(|i| {
                let mut t = task(&format!("t{i}"));
                t.title = Some(foreign[i % foreign.len()].0.clone());
                t.claims = vec!["a.py".into()];
                t
            }).collect();
            let mut view = begun(tasks);
            let first = TaskId::new("t0").unwrap();
            let brief = view.tasks[&first].clone();
            let refusal = claim_refusal(&first, &brief, &foreign[0].1, 5000);
            prop_assert!(is_tame(&refusal, 1) && refusal.chars().count() < 600, "{refusal}");
            prop_assert!(is_tame(&claim_note(&first, &brief, SHOWN), 1));
            let still = still_processing(&view).unwrap();
            prop_assert!(is_tame(&still, 1));
            // Some tasks still run, or all is over.
            let ends = if over { made } else { made - 1 };
            for i in 0..ends {
                let (_, said, fine) = &foreign[i % foreign.len()];
                let result = Some(ResultFile { path: format!("workers/W1/out/t{i}.1/result.{said}"), bytes: 1, sha256: String::new() });
                let body = if *fine {
                    Body::Done(Done { exit: 0, duration_ms: 1, result, summary: Some(said.clone()), ..Done::default() })
                } else {
                    Body::Failed(Ended { reason: said.clone(), result, ..Ended::default() })
                };
                tell(&mut view, Some(&format!("t{i}")), body);
            }
            if over {
                tell(&mut view, None, ended(&"x and more failed ".repeat(20)));
            }
            let message = told(&view, max);
            prop_assert!(message.text.chars().count() <= max, "{} > {max}: {}", message.text.chars().count(), message.text);
            prop_assert!(is_tame(&message.text, view.news.len() + 2), "{}", message.text);
            prop_assert!(!message.text.is_empty() || view.news.is_empty());
            prop_assert!(!message.text.starts_with('\n'));
            let covered: BTreeSet<u64> = message.news.into_iter().collect();
            prop_assert_eq!(covered, view.news.iter().map(|n| n.seq).collect::<BTreeSet<u64>>());
        }
    }
}
