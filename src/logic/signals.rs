//! What tasks have said to the session and it has not been told yet, or that still holds: which signals are due at which
//! hook, which call one holds back, and the sentences about them.
//!
//! A signal that blocks calls holds until it is released, its time is over, or the attempt that sent it has ended; what it may
//! cost the session is bounded: after [`MAX_BLOCKS`] refusals on behalf of one task, all that task says can only inform. One
//! to Stop outlives its task, is handed over once, and then counts as released. Signals of a task that say the same to the
//! same calls are one: the last, with a count.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::ids::{TaskId, Topic, WorkerNo};
use crate::base::span::human;
use crate::base::text;
use crate::logic::conductor::{self, MAX_REFUSALS};
use crate::logic::view::{Phase, View};
use crate::model::event::{self, Event};
use crate::model::matcher::Matcher;
use crate::model::plan::WorkerText;
use crate::model::signal::{Addressee, BLOCK, INFORM};

/// The most signals that a run keeps for its session at once. What comes beyond takes the place of what is worth least.
pub const MAX_SIGNALS: usize = 32;

/// So many calls may be refused on behalf of one task; then it can only inform.
pub const MAX_BLOCKS: u32 = 20;

/// A signal that the session has not been told yet, or that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Signal {
    /// The sequence number of the event that made it, the last if there were several.
    pub id: u64,
    /// Who says it; of a verdict, one of those who vote.
    pub task: TaskId,
    /// What people call the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// By which worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerNo>,
    /// In which attempt.
    #[serde(default)]
    pub attempt: u32,
    /// To whom.
    pub hook: Addressee,
    /// Whether it blocks; else it informs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blocks: bool,
    /// What it says. The task's words, unless the signal is cpw's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// A file with more, relative to the run's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Which calls it means; all where absent.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matcher: Option<String>,
    /// Whether it means calls on the task's own claims only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
    /// Whether it holds on when its task has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    /// When it ends by itself, `CLOCK_MONOTONIC` in milliseconds on the run's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// How many such it stands for.
    pub count: u32,
    /// It holds back one call, and is over then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
    /// cpw's own: how a critical task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<Phase>,
    /// cpw's own: what a vote about this came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Topic>,
}

impl Signal {
    /// Whether it holds calls back as long as it stands.
    pub fn is_barrier(&self) -> bool {
        self.hook == Addressee::PreToolUse && self.blocks
    }

    /// Whether its time is over. `same_boot`: the clock is the one that the run began with.
    pub fn is_expired(&self, now_ms: u64, same_boot: bool) -> bool {
        self.expires.is_some_and(|at| !same_boot || at <= now_ms)
    }

    fn says_the_same(&self, other: &Signal) -> bool {
        type Key<'s> = (&'s TaskId, Addressee, bool, Option<&'s str>, bool, Option<Phase>, bool, Option<&'s Topic>);
        fn key(s: &Signal) -> Key<'_> {
            (&s.task, s.hook, s.blocks, s.matcher.as_deref(), s.own, s.critical, s.once, s.topic.as_ref())
        }
        key(self) == key(other)
    }
}

/// When something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Between two steps.
    Step,
    /// The session wants to stop.
    Stop,
    /// The user has typed.
    Prompt,
    /// The session is idle, and would be woken.
    Idle,
}

/// A call of the session, as far as signals depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The tool.
    pub tool: &'a str,
    /// What it is about, where that is no file.
    pub target: &'a str,
    /// The forms of the file that it works on, absolute and normalised.
    pub paths: &'a [String],
    /// The files that it is on in any way, which a command may plainly name, each by its forms.
    pub files: &'a [Vec<String>],
    /// The project's root.
    pub project: &'a str,
}

/// The moment of a question: `CLOCK_MONOTONIC` in milliseconds, and the boot to which it belongs.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// The time.
    pub ms: u64,
    /// The boot.
    pub boot_id: &'a str,
}

impl View {
    /// Folds a signal of an attempt that is open.
    pub(super) fn add_signal(&mut self, event: &Event, p: &event::Signal) {
        let Some(task) = &event.task else { return };
        let (label, attempt) = match self.tasks.get(task) {
            Some(brief) if brief.phase == Phase::Running && event.attempt == Some(brief.attempt) => {
                (brief.label.clone(), brief.attempt)
            }
            _ => return,
        };
        if !matches!(p.exit, INFORM | BLOCK) {
            return;
        }
        let spent = self.blocks.get(task).is_some_and(|n| *n >= MAX_BLOCKS);
        self.keep_signal(Signal {
            id: event.seq,
            task: task.clone(),
            label,
            worker: event.worker,
            attempt,
            hook: p.hook,
            blocks: p.exit == BLOCK && (p.hook == Addressee::Stop || !spent),
            message: p.message.clone(),
            data: p.data.clone(),
            matcher: p.matcher.clone(),
            own: p.own,
            sticky: p.sticky,
            expires: p.expires,
            count: u32::try_from(p.more).unwrap_or(u32::MAX).saturating_add(1),
            once: false,
            critical: None,
            topic: None,
        });
    }

    /// Raises what the session must hear of a vote before it stops, in cpw's own words.
    pub(super) fn raise(&mut self, id: u64, task: TaskId, topic: Topic, message: String) {
        self.keep_signal(Signal {
            id,
            task,
            label: None,
            worker: None,
            attempt: 0,
            hook: Addressee::Stop,
            blocks: true,
            message: Some(message),
            data: None,
            matcher: None,
            own: false,
            sticky: false,
            expires: None,
            count: 1,
            once: false,
            critical: None,
            topic: Some(topic),
        });
    }

    /// Keeps a signal until it is told, or over.
    pub(super) fn keep_signal(&mut self, new: Signal) {
        if let Some(same) = self.signals.iter_mut().find(|s| s.says_the_same(&new)) {
            let count = same.count.saturating_add(new.count);
            *same = Signal { count, ..new };
            return;
        }
        if self.signals.len() >= MAX_SIGNALS {
            // What blocks is worth more than what informs, most of all what the session must hear before it stops; and what
            // is newer more than what is older.
            let own = |s: &Signal| s.critical.is_some() || s.topic.is_some();
            let worth = |s: &Signal| (s.blocks, s.blocks && s.hook == Addressee::Stop, own(s));
            // Who says the most gives way first: a task that never stops talking costs the others nothing.
            let share = |task: &TaskId| {
                self.signals.iter().filter(|s| s.task == *task).count() + usize::from(new.task == *task)
            };
            let all = self.signals.iter().enumerate().filter(|(_, s)| worth(s) <= worth(&new));
            match all.min_by_key(|(_, s)| (std::cmp::Reverse(share(&s.task)), worth(s))).map(|(at, _)| at) {
                Some(at) => drop(self.signals.remove(at)),
                None => return,
            }
        }
        self.signals.push(new);
    }

    /// An attempt has ended: what it held back is free.
    pub(super) fn release_signals_of(&mut self, task: &TaskId) {
        self.signals.retain(|s| s.task != *task || !s.is_barrier() || s.sticky);
    }

    /// The session was told these.
    pub(super) fn told_signals(&mut self, ids: &[u64]) {
        let mut held = Vec::new();
        self.signals.retain(|s| {
            let told = ids.contains(&s.id);
            // Feedback on a call that has run holds the next one like it.
            if told && s.hook == Addressee::PostToolUse && s.blocks {
                held.push(Signal { hook: Addressee::PreToolUse, once: true, sticky: false, ..s.clone() });
            }
            !told
        });
        let is_open =
            |s: &Signal| self.tasks.get(&s.task).is_some_and(|b| b.phase == Phase::Running && b.attempt == s.attempt);
        held.retain(is_open);
        for signal in held {
            self.keep_signal(signal);
        }
    }

    /// A call was refused on behalf of signal `id`.
    pub(super) fn refused_for(&mut self, id: u64) {
        let Some(at) = self.signals.iter().position(|s| s.id == id) else { return };
        let task = self.signals[at].task.clone();
        if self.signals[at].once {
            self.signals.remove(at);
        }
        let spent = self.blocks.entry(task.clone()).or_insert(0);
        *spent = spent.saturating_add(1);
        if *spent >= MAX_BLOCKS {
            for s in self.signals.iter_mut().filter(|s| s.task == task && s.hook != Addressee::Stop) {
                s.blocks = false;
            }
        }
    }

    /// The signals that are told on an occasion, what blocks first.
    pub fn due(&self, occasion: Occasion, now: Now<'_>) -> Vec<&Signal> {
        let same_boot = self.boot_id == now.boot_id;
        let due = |s: &&Signal| is_due(s, occasion) && !s.is_expired(now.ms, same_boot);
        let mut due: Vec<&Signal> = self.signals.iter().filter(due).collect();
        due.sort_by_key(|s| (!s.blocks, s.id));
        due
    }

    /// Whether something keeps the session from stopping before it is told.
    pub fn needs_the_session(&self, now: Now<'_>) -> bool {
        self.due(Occasion::Stop, now).iter().any(|s| s.hook == Addressee::Stop && s.blocks)
    }
}

/// Whether a signal is told on an occasion. What was meant for a call that never came is told when the session stops.
fn is_due(signal: &Signal, occasion: Occasion) -> bool {
    match signal.hook {
        Addressee::PreToolUse => !signal.blocks && matches!(occasion, Occasion::Stop | Occasion::Prompt),
        Addressee::PostToolUse => true,
        Addressee::Stop => match occasion {
            Occasion::Stop => true,
            Occasion::Idle => signal.blocks,
            Occasion::Step | Occasion::Prompt => false,
        },
        Addressee::UserPromptSubmit => occasion == Occasion::Prompt,
    }
}

/// The signal that holds a call back, if one does, the oldest first. Whether its worker lives is for the caller to look.
pub fn barrier<'v>(view: &'v View, call: Call<'_>, now: Now<'_>) -> Option<&'v Signal> {
    view.signals.iter().find(|s| s.is_barrier() && concerns(view, s, call, now))
}

/// The signals that accompany a call: they inform, and wait for a call like this.
pub fn companions<'v>(view: &'v View, call: Call<'_>, now: Now<'_>) -> impl Iterator<Item = &'v Signal> {
    let meant = move |s: &&Signal| s.hook == Addressee::PreToolUse && !s.blocks && concerns(view, s, call, now);
    view.signals.iter().filter(meant)
}

fn concerns(view: &View, s: &Signal, call: Call<'_>, now: Now<'_>) -> bool {
    if s.is_expired(now.ms, view.boot_id == now.boot_id) {
        return false;
    }
    // One that cannot be read was checked when it was sent: it is of a later version, and means nothing here.
    let meant = s
        .matcher
        .as_deref()
        .is_none_or(|m| Matcher::parse(m).is_ok_and(|m| m.matches(call.tool, call.target, call.paths, call.project)));
    let claims = || view.tasks.get(&s.task).map_or(&[][..], |b| &b.claims);
    // Whether two names that differ in case are one file is for a claim's own answer to find out.
    let is_own = |file: &Vec<String>| conductor::is_claimed_among(claims(), call.project, file, &|_, _| false);
    meant && (!s.own || call.files.iter().any(is_own))
}

/// What of a task's own words is shown, with the file that has more.
fn words(s: &Signal, view: &View, shown: &str) -> String {
    let mut out = String::new();
    let hidden = view.conductor.worker_text == WorkerText::None && s.critical.is_none();
    match &s.message {
        Some(_) if hidden => out.push_str("its words are in the run's log"),
        Some(message) => out.push_str(&text::quoted_for_model(message)),
        None => out.push_str("no words"),
    }
    if let Some(data) = &s.data {
        let _ = write!(out, " — data: {}", conductor::place(shown, data));
    }
    if s.count > 1 {
        let _ = write!(out, " (the last of {} such)", s.count);
    }
    out
}

fn name(s: &Signal) -> String {
    conductor::name_of(&s.task, s.label.as_deref())
}

/// One line about a signal that is told.
pub fn line(s: &Signal, view: &View, shown: &str) -> String {
    let reason = s.message.as_deref().unwrap_or_default();
    if s.topic.is_some() {
        return reason.to_owned();
    }
    match s.critical {
        Some(Phase::Skipped) if TaskId::new(reason).is_ok() => {
            format!("CRITICAL: {} blocked: {reason} failed.", name(s))
        }
        Some(Phase::Skipped) => {
            format!("CRITICAL: {} blocked: {}.", name(s), text::for_model(&text::one_line(reason, 200)))
        }
        Some(_) => format!("CRITICAL: {} failed{}.", name(s), conductor::because(reason, view.conductor.worker_text)),
        None => format!("{} (task {}) says: {}", conductor::who(s.worker), s.task, words(s, view, shown)),
    }
}

/// Why a call is refused that a signal holds back: who says so, and until when. `refused`: how often it was before.
pub fn refusal(s: &Signal, view: &View, shown: &str, now: Now<'_>, refused: u32) -> String {
    let mut out =
        format!("{} (task {}) holds this call back: {}.", conductor::who(s.worker), s.task, words(s, view, shown));
    let left = s.expires.map(|at| human(Duration::from_millis(at.saturating_sub(now.ms))));
    let until = match (s.once, s.sticky, left) {
        (true, _, _) => " The same call made again passes.".to_owned(),
        (_, true, Some(left)) => format!(" That lasts {left} more."),
        (_, false, Some(left)) => format!(" That lasts until the task ends or says so, at most {left} more."),
        (_, _, None) => " That lasts until the task ends or says so.".to_owned(),
    };
    out.push_str(&until);
    if refused >= MAX_REFUSALS {
        // Of a sticky one the task may be long over.
        let way = if s.sticky { "with `cpw off`" } else { "by cancelling the task" };
        let _ = write!(
            out,
            " It has been refused {refused} times and will be until then; other calls are free, and the user can end it \
             {way}."
        );
    }
    out
}
