//! `cpw signal`: a task says something to the session, as if its worker were one of the session's hooks. What is wrong with
//! it is said here, to the task; nothing of that reaches the session.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::exit::{Exit, Wrong};
use crate::base::hex;
use crate::base::redact::redact;
use crate::base::span::Span;
use crate::base::text::one_line;
use crate::cmd::inside::{self, Inside};
use crate::logic::view::View;
use crate::model::config::MAX_HOLD;
use crate::model::event::{Body, Signal, SignalReleased};
use crate::model::json;
use crate::model::matcher::Matcher;
use crate::model::signal::{Addressee, BLOCK, May, Right, may_send};
use crate::store::file;
use crate::sys::clock;
use crate::sys::lock;
use crate::sys::poll;
use crate::ui::print;

/// The longest message, in characters; what is longer goes into a file.
const MAX_MESSAGE: usize = 300;

/// What `--release` means without an id.
const ALL: &str = "all";

/// The longest JSON that is read, in bytes.
const MAX_JSON: u64 = 1024 * 1024;

/// Inside a task: say something to the session, or keep it from doing something
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, in a task's command:\n  \
    cpw signal --hook post-tool-use --exit 0 --message '60 % complete, about 30 s'\n  \
    cpw signal --hook pre-tool-use --exit 2 --match 'Bash(psql*)' --message 'the schema is being migrated'\n  \
    cpw signal --hook stop --exit 2 --message 'CRITICAL: staging deployment failed'\n  \
    cpw signal --release\n\n\
    Hooks: pre-tool-use (with the next matching call), post-tool-use (with the next news), stop, user-prompt-submit (with the\n\
    next prompt). Codes: 0 informs; 2 blocks: on pre-tool-use every matching call until it is released, its --ttl is over or\n\
    its task has ended, on post-tool-use the next matching call, on stop once; any other code is a warning in the log.\n\
    What a task may send is set by its `signals` in the rule. Without them: 0 everywhere, 2 on pre-tool-use for calls on its\n\
    own claims, and on stop if it is `critical`.\n\
    A task's signals beyond 10 a second wait for the next one; those that only repeat the last are counted instead.\n\
    Prints the signal's id. Exit code: 0 · 1 the attempt is over · 3 not inside a task, not allowed, or wrong")]
pub struct Args {
    /// The hook that is to say it
    #[arg(long, required_unless_present = "release", value_name = "HOOK")]
    hook: Option<String>,
    /// The code with which it says it: 0 informs, 2 blocks
    #[arg(long, required_unless_present = "release", value_name = "CODE", allow_negative_numbers = true)]
    exit: Option<String>,
    /// What it says, in one line of at most 300 characters
    #[arg(long)]
    message: Option<String>,
    /// A hook's answer as JSON, from a file or '-': additionalContext, data, decision "block", reason
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// The calls it means, such as 'Bash(psql*)' or 'Edit(src/*.rs)'; all where absent
    #[arg(long = "match", value_name = "TOOL(GLOB)")]
    matcher: Option<String>,
    /// When it ends by itself, such as 60s
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// Let it hold on when the task has ended, until --ttl
    #[arg(long)]
    sticky: bool,
    /// Take back a signal by its id, or all of the task
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = ALL, conflicts_with_all = ["hook", "exit", "message", "json", "matcher", "ttl", "sticky"])]
    release: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let inside = inside::attempt("signal")?;
    if let Some(id) = args.release.as_deref() {
        let id = if id == ALL { None } else { Some(id.parse().map_err(|_| no_id(id))?) };
        // What is said again from now on is no repetition.
        if let Some(pace) = &mut Pace::open(&inside)? {
            pace.keep(&Spell::default());
        }
        let reason = "the task released it".to_owned();
        inside.say(Body::SignalReleased(SignalReleased { id, reason })).context("nothing was released")?;
        return Ok(Exit::Ok);
    }
    let Wanted { mut signal, file } = Wanted::read(args)?;
    let id = paced(&inside, &sum(&signal, file.as_deref()), |more| {
        signal.more = more;
        signal.data = file.as_deref().map(|text| keep(&inside, &redact(text))).transpose()?;
        inside.say_with(|view, seq| {
            signal.id = seq;
            signal.own = match allowed(view, &inside, &signal) {
                May::Yes => false,
                May::OnOwnClaims => true,
                May::No => return Err(refused(view, &inside, &signal)),
            };
            Ok(Body::Signal(signal.clone()))
        })
    })?;
    print::out(id);
    Ok(Exit::Ok)
}

/// Writes what a task says, of which `sum` is a hash, by `write`, which returns its number in the log and is told how often
/// the same was only counted before. Of what only repeats the last word within the second, the number of that.
pub(super) fn paced(inside: &Inside, sum: &str, write: impl FnOnce(u64) -> anyhow::Result<u64>) -> anyhow::Result<u64> {
    let Some(mut pace) = Pace::open(inside)? else { return write(0) };
    match pace.admit(sum) {
        Admitted::Repeats(id) => Ok(id),
        Admitted::Yes(spell) => {
            let id = write(spell.more)?;
            pace.keep(&Spell { said: sum.to_owned(), id, written: spell.written + 1, more: 0, ..spell });
            Ok(id)
        }
    }
}

/// A hash of what a signal says and to whom; when it expires is no part of it.
fn sum(signal: &Signal, file: Option<&str>) -> String {
    let Signal { hook, exit, message, matcher, sticky, .. } = signal;
    hex::sha256(format!("{hook:?} {exit} {message:?} {matcher:?} {sticky} {file:?}").as_bytes())
}

/// What a task has said within a second, signals and checkpoints, kept beside its logs, so that a loop of signals does not fill the log.
struct Pace {
    file: File,
}

/// A second of a task's signals.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Spell {
    /// When it began, `CLOCK_MONOTONIC` in milliseconds.
    since_ms: u64,
    /// Lines in it.
    written: u32,
    /// Hash of what the last one said.
    said: String,
    /// Its id.
    id: u64,
    /// How often the same was said since and not written.
    more: u64,
}

/// Whether a signal is written.
enum Admitted {
    /// It is, in this spell.
    Yes(Spell),
    /// It says what the line with this id has said within the same second, and is only counted.
    Repeats(u64),
}

impl Pace {
    /// So many lines a task writes within [`Pace::SECOND`].
    const MOST: u32 = 10;

    /// See [`Pace::MOST`].
    const SECOND: Duration = Duration::from_secs(1);

    /// How long what is kept is, in bytes: its largest numbers fit.
    const LENGTH: usize = 256;

    /// For how long another signal of the same task is waited for.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// Where its file cannot be had, signals are written as they come; an error where too many others are before this one.
    fn open(inside: &Inside) -> anyhow::Result<Option<Pace>> {
        let name = format!("{}.{}.signals", inside.task, inside.attempt);
        let file = inside.folder.worker(inside.worker).and_then(|w| w.sub("logs")?.open_rw(name));
        let Ok(file) = file else { return Ok(None) };
        if lock::lock_exclusive(&file, Pace::PATIENCE).unwrap_or(true) {
            return Ok(Some(Pace { file }));
        }
        bail!("the task says far more than {} things a second; this was not written", Pace::MOST)
    }

    /// Lets a signal through that says `said`. What is new is never left out: it waits for the next second instead, which
    /// costs nobody but its task.
    fn admit(&mut self, said: &str) -> Admitted {
        let mut spell = self.read();
        let passed = clock::mono_ms().checked_sub(spell.since_ms).map(Duration::from_millis);
        let left = passed.and_then(|passed| Pace::SECOND.checked_sub(passed)).filter(|left| !left.is_zero());
        if let Some(left) = left.filter(|_| spell.written >= Pace::MOST) {
            if spell.said == said {
                spell.more = spell.more.saturating_add(1);
                self.keep(&spell);
                return Admitted::Repeats(spell.id);
            }
            drop(poll::wait(&[], Some(left)));
        }
        if left.is_none() || spell.written >= Pace::MOST {
            spell = Spell { since_ms: clock::mono_ms(), written: 0, ..spell };
        }
        Admitted::Yes(spell)
    }

    fn read(&mut self) -> Spell {
        let mut text = [0; 512];
        let n = self.file.read_at(&mut text, 0).unwrap_or(0);
        serde_json::from_slice(&text[..n]).unwrap_or_default()
    }

    /// Should that fail, signals are written as they come. All of them are of one length, so that nothing is left of the
    /// last one: to cut the file first would cost more than all else.
    fn keep(&mut self, spell: &Spell) {
        if let Ok(mut text) = serde_json::to_vec(spell) {
            text.resize(text.len().max(Pace::LENGTH), b' ');
            drop(self.file.write_all_at(&text, 0));
        }
    }
}

fn no_id(given: &str) -> Wrong {
    let what = format!("--release '{}' is no id of a signal", one_line(given, 60));
    Wrong::with_hint(what, "`cpw signal` prints the id; without one all signals of the task are taken back")
}

/// What is to be sent, as far as the command line tells.
struct Wanted {
    signal: Signal,
    /// What belongs into its file.
    file: Option<String>,
}

impl Wanted {
    /// All mistakes at once.
    fn read(args: &Args) -> Result<Wanted, Wrong> {
        let mut wrong: Vec<String> = Vec::new();
        let given = args.hook.as_deref().unwrap_or_default();
        let hook = Addressee::by_name(given).unwrap_or_else(|| {
            let names: Vec<&str> = Addressee::NAMES.iter().map(|(name, _)| *name).collect();
            wrong.push(format!("--hook '{}' is none; possible are {}", one_line(given, 60), names.join(", ")));
            Addressee::PostToolUse
        });
        let code = args.exit.as_deref().unwrap_or_default();
        let mut exit = code.parse::<u8>().map_or(-1, i32::from);
        if exit < 0 {
            let code = one_line(code, 60);
            wrong.push(format!("--exit '{code}' is no exit code; 0 informs, 2 blocks, 1 and 3 to 255 are warnings"));
        }
        if let Some(text) = &args.matcher
            && let Err(e) = Matcher::parse(text)
        {
            wrong.push(format!("--match '{}': {e}", one_line(text, 120)));
        }
        let tools = matches!(hook, Addressee::PreToolUse | Addressee::PostToolUse);
        if args.matcher.is_some() && !tools {
            wrong.push(format!("--match is about tool calls, and {} is about none", hook.name()));
        }
        let ttl = args.ttl.as_deref().and_then(|text| {
            let span = Span::parse(text).filter(|s| s.as_ms() > 0 && *s <= MAX_HOLD);
            if span.is_none() {
                wrong.push(format!("--ttl '{}': a duration is written 30s, 5m or 1h, at most 12h", one_line(text, 60)));
            }
            span
        });
        if args.sticky && args.ttl.is_none() {
            wrong.push("--sticky needs --ttl: what its task no longer holds must end by itself".into());
        }
        let mut message = args.message.as_deref().map(str::trim).filter(|m| !m.is_empty()).map(str::to_owned);
        let mut more = Vec::new();
        if let Some(path) = &args.json {
            match answer(path) {
                Ok(answer) => {
                    if answer.blocks {
                        exit = BLOCK;
                    }
                    for text in [answer.reason, answer.context].into_iter().flatten() {
                        if message.is_none() {
                            message = Some(text);
                        } else {
                            more.push(text);
                        }
                    }
                    more.extend(answer.data.map(|data| data.to_string()));
                }
                Err(problems) => wrong.extend(problems),
            }
        }
        if message.is_none() && more.is_empty() && wrong.is_empty() {
            wrong.push("it says nothing: give --message, or --json with additionalContext, reason or data".into());
        }
        if !wrong.is_empty() {
            return Err(Wrong::with_hint(wrong.join("\n     "), "nothing was sent; see `cpw signal --help`"));
        }
        let line = message.as_deref().map(|m| one_line(m, MAX_MESSAGE));
        // What only lacks a secret now has all that can be kept of it.
        let whole = message.map(|m| redact(&m).into_owned());
        if let Some(whole) = whole.filter(|m| line.as_ref() != Some(m)) {
            more.insert(0, whole);
        }
        let expires = ttl.map(|ttl| clock::mono_ms().saturating_add(ttl.as_ms()));
        let signal = Signal {
            id: 0,
            hook,
            exit,
            message: line,
            data: None,
            matcher: args.matcher.as_deref().map(|m| m.trim().to_owned()),
            own: false,
            sticky: args.sticky,
            expires,
            more: 0,
        };
        Ok(Wanted { signal, file: (!more.is_empty()).then(|| more.join("\n\n")) })
    }
}

/// What a hook's answer in JSON says, of what a task may say.
#[derive(Default)]
struct Answer {
    context: Option<String>,
    data: Option<Value>,
    reason: Option<String>,
    blocks: bool,
}

fn answer(path: &str) -> Result<Answer, Vec<String>> {
    const POSSIBLE: &str = "possible are hookSpecificOutput.additionalContext, hookSpecificOutput.data, data, decision \"block\" and reason";
    let text = read(path).map_err(|e| vec![format!("--json {}: {e:#}", one_line(path, 200))])?;
    // Read strictly: of two fields by one name a client could take the other one.
    let value =
        json::parse(&text).map_err(|all| all.iter().map(|wrong| format!("--json: {wrong}")).collect::<Vec<_>>())?;
    let Value::Object(fields) = value else { return Err(vec![format!("--json is not an object; {POSSIBLE}")]) };
    let mut out = Answer::default();
    let mut wrong = Vec::new();
    out.take(&fields, "", &mut wrong);
    if let Some(specific) = fields.get("hookSpecificOutput") {
        match specific {
            Value::Object(fields) => out.take(fields, "hookSpecificOutput.", &mut wrong),
            _ => wrong.push("hookSpecificOutput is not an object".to_owned()),
        }
    }
    if wrong.is_empty() {
        Ok(out)
    } else {
        Err(wrong.into_iter().map(|w| format!("--json: {w}; {POSSIBLE}")).collect())
    }
}

impl Answer {
    fn take(&mut self, fields: &Map<String, Value>, below: &str, wrong: &mut Vec<String>) {
        for (name, value) in fields {
            let shown = format!("{below}{}", one_line(name, 60));
            match (name.as_str(), value) {
                ("hookSpecificOutput", _) if below.is_empty() => {}
                ("hookEventName", _) if !below.is_empty() => {}
                ("additionalContext", Value::String(text)) => self.context = Some(text.clone()),
                ("reason", Value::String(text)) => self.reason = Some(text.clone()),
                ("data", value) => self.data = Some(value.clone()),
                ("decision", Value::String(word)) if word == "block" => self.blocks = true,
                ("updatedInput" | "permissionDecision" | "continue" | "decision", _) => {
                    wrong.push(format!(
                        "{shown} is not for a task to say: its plan's merge changes calls, the user allows them"
                    ));
                }
                ("additionalContext" | "reason", _) => wrong.push(format!("{shown} is not a text")),
                _ => wrong.push(format!("{shown} is unknown")),
            }
        }
    }
}

fn read(path: &str) -> anyhow::Result<Vec<u8>> {
    if path != "-" {
        return file::read(path.as_ref(), MAX_JSON)?.context("there is no such file");
    }
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_JSON + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_JSON {
        bail!("it is longer than {MAX_JSON} bytes");
    }
    Ok(text)
}

/// Writes what is too long for a line beside the worker's logs. Returns where it is, below the run's folder.
fn keep(inside: &Inside, text: &str) -> anyhow::Result<String> {
    let name = format!("{}.{}.{}-{}", inside.task, inside.attempt, clock::mono_ms(), std::process::id());
    let dir = inside.folder.worker(inside.worker)?.create_sub("signals", 0o700)?;
    dir.write_atomic(&name, text.as_bytes(), 0o600, false).context("cannot keep what the signal says")?;
    Ok(format!("workers/{}/signals/{name}", inside.worker))
}

fn allowed(view: &View, inside: &Inside, signal: &Signal) -> May {
    let critical = view.tasks.get(&inside.task).is_some_and(|b| b.critical);
    may_send(view.rights.get(&inside.task).map(Vec::as_slice), critical, signal.hook, signal.exit)
}

/// Why a signal is refused, and what could be sent.
fn refused(view: &View, inside: &Inside, signal: &Signal) -> anyhow::Error {
    let right = format!("{}:{}", signal.hook.name(), signal.exit);
    if (signal.hook, signal.exit) == (Addressee::UserPromptSubmit, BLOCK) {
        let what = format!("{right} would erase the user's words; no task may send it");
        return Wrong::with_hint(what, "inform with --exit 0").into();
    }
    let critical = view.tasks.get(&inside.task).is_some_and(|b| b.critical);
    let rights = view.rights.get(&inside.task).map(Vec::as_slice);
    let possible = Right::ALL.split(", ").filter_map(|r| Right::parse(r).ok());
    let may: Vec<String> =
        possible.filter(|r| may_send(rights, critical, r.hook, r.exit) != May::No).map(|r| r.to_string()).collect();
    let may = if may.is_empty() { "warnings only".to_owned() } else { may.join(", ") };
    let what = format!("task {} may not send {right}; it may send {may}", inside.task);
    Wrong::with_hint(what, format!("its rule allows it with \"signals\": [\"{right}\"]")).into()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn wanted(line: &[&str]) -> Result<Wanted, String> {
        let args = Line::try_parse_from([&["signal"], line].concat()).map_err(|e| e.to_string())?;
        Wanted::read(&args.args).map_err(|e| e.what)
    }

    #[test]
    fn every_mistake_is_told_at_once_with_what_is_possible() {
        let said = wanted(&[
            "--hook",
            "pre_tool",
            "--exit",
            "two",
            "--message",
            "x",
            "--match",
            "bash",
            "--ttl",
            "soon",
            "--sticky",
        ]);
        let said = said.err().unwrap();
        for part in [
            "--hook 'pre_tool'",
            "user-prompt-submit",
            "--exit 'two'",
            "2 blocks",
            "--match 'bash'",
            "Bash(psql*)",
            "--ttl 'soon'",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        for (line, part) in [
            (&["--hook", "stop", "--exit", "2"][..], "says nothing"),
            (&["--hook", "stop", "--exit", "2", "--message", " "], "says nothing"),
            (&["--hook", "stop", "--exit", "2", "--message", "x", "--match", "Bash"], "about none"),
            (&["--hook", "stop", "--exit", "256", "--message", "x"], "no exit code"),
            (&["--hook", "stop", "--exit", "-1", "--message", "x"], "no exit code"),
            (&["--hook", "pre-tool-use", "--exit", "2", "--message", "x", "--sticky"], "needs --ttl"),
            (&["--hook", "stop", "--exit", "2", "--message", "x", "--ttl", "13h"], "at most 12h"),
            (&["--hook", "stop", "--exit", "2", "--json", "/nowhere/x"], "no such file"),
        ] {
            let said = wanted(line).err().unwrap();
            assert!(said.contains(part), "{line:?}: {said}");
        }
        assert!(wanted(&["--release", "--hook", "stop"]).is_err());
        assert!(wanted(&["--message", "x"]).is_err());
    }

    #[test]
    fn a_hooks_answer_is_taken_apart_and_what_is_not_a_tasks_to_say_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("answer.json");
        let path = file.to_str().unwrap();
        let with = |json: &str| {
            std::fs::write(&file, json).unwrap();
            wanted(&["--hook", "post-tool-use", "--exit", "0", "--json", path])
        };
        let long = "x".repeat(400);
        let json = serde_json::json!({"decision": "block", "reason": "no",
            "hookSpecificOutput": {"hookEventName": "PostToolUse", "additionalContext": long, "data": {"a": [1]}}});
        let got = with(&json.to_string()).ok().unwrap();
        assert_eq!((got.signal.exit, got.signal.message.as_deref()), (2, Some("no")));
        assert_eq!(got.file.unwrap(), format!("{long}\n\n{{\"a\":[1]}}"));
        let got =
            with(&serde_json::json!({"hookSpecificOutput": {"additionalContext": long}}).to_string()).ok().unwrap();
        assert_eq!(got.signal.message.unwrap().chars().count(), MAX_MESSAGE);
        assert_eq!(got.file.unwrap(), long);
        for bad in [
            "[]",
            "{",
            r#"{"continue": false}"#,
            r#"{"decision": "approve"}"#,
            r#"{"hookSpecificOutput": {"updatedInput": {}}}"#,
            r#"{"hookSpecificOutput": {"permissionDecision": "allow"}}"#,
            r#"{"hookSpecificOutput": {"additionalContext": 1}}"#,
            r#"{"systemMessage": "x"}"#,
            r#"{"updatedInput": {}, "reason": "x"}"#,
            r#"{"reason": "x", "reason": "y"}"#,
            r#"{"reason": "x", "decision": "approve", "decision": "block"}"#,
            r#"{"reason": "x", "hookSpecificOutput": {"permissionDecision": "allow"}, "hookSpecificOutput": {}}"#,
            r#"{"hookSpecificOutput": {"hookSpecificOutput": {"permissionDecision": "allow"}, "additionalContext": "x"}}"#,
            "\u{feff}{\"reason\": \"x\"}",
            "{}",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }
}
