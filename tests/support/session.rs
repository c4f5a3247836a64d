//! A session of a simulated Claude Code: it calls the real program's hooks as the client does, by the wiring that `cpw init`
//! wrote, and keeps the client's rules. Hooks of one event run side by side, in a process group each; their output is read
//! to its end, whoever holds it open; an answer that the client would refuse is a failure. What a person or the system does
//! to a hook is here as well: it is not called, killed at some moment, interrupted, or nobody reads what it says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::support::world::{World, program};

/// A hook that has not ended after this hangs. Nothing that is asked for here takes a tenth of it.
pub(crate) const HANGS: Duration = Duration::from_mins(1);

/// Between the client's SIGTERM and its SIGKILL.
const GRACE: Duration = Duration::from_millis(1100);

/// A hook that took this long may have been ended by its own timer, in the middle of whatever it did.
const LIFETIME: Duration = Duration::from_millis(900);

/// The longest text for the model.
const MAX_CONTEXT: usize = 4000;

/// What happens to one hook, beside its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing.
    Lives,
    /// The client does not call it.
    Lost,
    /// SIGKILL after this time.
    Killed(Duration),
    /// SIGKILL as soon as the first byte of its answer is there.
    KilledAtAnswer,
    /// SIGKILL as soon as the file grows.
    KilledAtWrite(PathBuf),
    /// What it says cannot be written.
    Unread,
}

/// What a hook said and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// The answer, if all of it was written.
    pub(crate) out: Option<Value>,
    /// It ended by itself and in time; otherwise what it wrote down may be missing.
    pub(crate) whole: bool,
    /// When it ended.
    pub(crate) at: Instant,
}

impl Said {
    fn specific(&self, name: &str) -> Option<&Value> {
        self.out.as_ref()?.get("hookSpecificOutput")?.get(name)
    }

    /// Text for the model.
    pub(crate) fn context(&self) -> &str {
        self.specific("additionalContext").and_then(Value::as_str).unwrap_or_default()
    }

    /// Why the call is refused, if it is.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.specific("permissionDecision")?;
        Some(self.specific("permissionDecisionReason").and_then(Value::as_str).unwrap_or_default())
    }

    /// The input that replaces the call's own.
    pub(crate) fn input(&self) -> Option<&Value> {
        self.specific("updatedInput")
    }

    /// The line for the user.
    pub(crate) fn for_user(&self) -> &str {
        self.out.as_ref().and_then(|o| o["systemMessage"].as_str()).unwrap_or_default()
    }
}

/// A handler of the wiring.
#[derive(Debug, Clone)]
struct Handler {
    command: String,
    /// Where it has arguments it is started as it is, otherwise by a shell.
    args: Option<Vec<String>>,
    /// It runs in the background and wakes the session by its exit code.
    wakes: bool,
}

/// What the client does for each event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wiring(BTreeMap<String, Vec<Handler>>);

impl Wiring {
    /// What `cpw init` has written into the project, by all its forms. With two of them, two installations call the same
    /// hooks by other commands, and the client runs both.
    pub(crate) fn of(world: &World) -> Wiring {
        let mut wiring = Wiring::default();
        for text in ["settings", "settings.local"].iter().filter_map(|name| world.read(&format!(".claude/{name}.json")))
        {
            let settings: Value = serde_json::from_str(&text).expect("settings are JSON");
            wiring.add(&settings);
        }
        wiring
    }

    fn add(&mut self, settings: &Value) {
        for (event, groups) in settings["hooks"].as_object().expect("hooks") {
            for group in groups.as_array().into_iter().flatten() {
                let matcher = group["matcher"].as_str().unwrap_or_default();
                assert!(["", "*"].contains(&matcher), "{event}: {matcher}: not known to the simulated client");
                for hook in group["hooks"].as_array().into_iter().flatten() {
                    let command = hook["command"].as_str().expect("a command").to_owned();
                    assert!(hook["timeout"].as_f64().is_some_and(|t| t > 0.0), "{event}: {command}: no time limit");
                    let words =
                        |args: &Vec<Value>| args.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
                    let args = hook["args"].as_array().map(words);
                    let wakes = hook["asyncRewake"] == true;
                    self.0.entry(event.clone()).or_default().push(Handler { command, args, wakes });
                }
            }
        }
    }

    /// The same without an event: a wiring of a person's own.
    pub(crate) fn without(mut self, event: &str) -> Wiring {
        self.0.remove(event);
        for handler in self.0.values_mut().flatten() {
            handler.command = handler.command.replace(" --batched", "");
            handler.args.iter_mut().for_each(|args| args.retain(|a| a != "--batched"));
        }
        self
    }

    /// Whether an event is wired.
    pub(crate) fn has(&self, event: &str) -> bool {
        self.0.contains_key(event)
    }

    /// How many processes an event starts.
    pub(crate) fn count(&self, event: &str) -> usize {
        self.0.get(event).map_or(0, |all| all.iter().filter(|h| !h.wakes).count())
    }
}

/// One session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: String,
    /// The prompt of the current turn.
    pub(crate) prompt: String,
    /// The client tells its hooks in the environment who they are called for; older ones do so on stdin alone.
    pub(crate) tells: bool,
    /// A terminal, not `-p`.
    pub(crate) interactive: bool,
    /// The client's process.
    pub(crate) client: u32,
}

impl Session {
    /// A session in a terminal.
    pub(crate) fn new(id: &str) -> Session {
        Session { id: id.to_owned(), prompt: "p1".into(), tells: true, interactive: true, client: std::process::id() }
    }

    /// A payload with the fields that every event has.
    pub(crate) fn payload(&self, world: &World, event: &str, more: &Value) -> Value {
        let mut all = json!({
            "session_id": self.id,
            "transcript_path": world.home().join("transcript.jsonl"),
            "cwd": world.project(),
            "prompt_id": self.prompt,
            "permission_mode": "acceptEdits",
            "effort": {"level": "medium"},
            "hook_event_name": event,
        });
        let fields: Map<String, Value> = more.as_object().cloned().unwrap_or_default();
        all.as_object_mut().expect("an object").extend(fields);
        all
    }

    /// `command` as the client starts a hook of this session: in a group of its own, with the client's variables.
    pub(crate) fn settle(&self, world: &World, command: &mut Command) {
        command.process_group(0).env("CLAUDE_PROJECT_DIR", world.project());
        command.env("CLAUDECODE", "1").env("CLAUDE_CODE_CHILD_SESSION", "1");
        let (entrypoint, attended) = if self.interactive { ("cli", "1") } else { ("sdk-cli", "0") };
        command.env("CLAUDE_CODE_ENTRYPOINT", entrypoint).env("CLAUDE_CODE_SESSION_ATTENDED", attended);
        if self.tells {
            command.env("CLAUDE_CODE_SESSION_ID", &self.id).env("CLAUDE_PID", self.client.to_string());
        }
    }

    /// Starts all hooks of an event, each with the fate that `fate` gives it. Those that run in the background are left out:
    /// see [`Session::watch`].
    pub(crate) fn begin(
        &self,
        world: &World,
        wiring: &Wiring,
        event: &str,
        more: &Value,
        fate: &mut dyn FnMut() -> Fate,
    ) -> Vec<Hook> {
        self.start(world, wiring, event, more, false, fate)
    }

    /// Starts what an event leaves in the background.
    pub(crate) fn watch(&self, world: &World, wiring: &Wiring, event: &str, more: &Value) -> Vec<Hook> {
        self.start(world, wiring, event, more, true, &mut || Fate::Lives)
    }

    fn start(
        &self,
        world: &World,
        wiring: &Wiring,
        event: &str,
        more: &Value,
        wakes: bool,
        fate: &mut dyn FnMut() -> Fate,
    ) -> Vec<Hook> {
        let payload = format!("{}\n", self.payload(world, event, more));
        let handlers = wiring.0.get(event).into_iter().flatten().filter(|h| h.wakes == wakes);
        let fates = handlers.map(|h| (h, fate())).filter(|(_, fate)| *fate != Fate::Lost);
        let start = |(handler, fate): (&Handler, Fate)| {
            let mut command = world.command(if handler.args.is_some() { &handler.command } else { "/bin/sh" });
            match &handler.args {
                Some(args) => command.args(args),
                None => command.arg("-c").arg(&handler.command),
            };
            self.settle(world, &mut command);
            let mut hook = Hook::start(command, event, payload.as_bytes(), fate);
            hook.wakes = wakes;
            hook
        };
        fates.map(start).collect()
    }

    /// Calls all hooks of an event and waits for them.
    pub(crate) fn call(&self, world: &World, wiring: &Wiring, event: &str, more: &Value) -> Result<Vec<Said>, String> {
        let hooks = self.begin(world, wiring, event, more, &mut || Fate::Lives);
        hooks.into_iter().map(Hook::finish).collect()
    }

    /// One hook of the program itself, without a wiring.
    pub(crate) fn hook(&self, world: &World, name: &str, event: &str, more: &Value) -> Hook {
        let mut command = world.command(program());
        command.arg(name);
        self.settle(world, &mut command);
        let payload = format!("{}\n", self.payload(world, event, more));
        Hook::start(command, event, payload.as_bytes(), Fate::Lives)
    }
}

/// A hook that runs.
#[derive(Debug)]
pub(crate) struct Hook {
    child: Child,
    event: String,
    fate: Fate,
    begun: Instant,
    said: Receiver<(Option<Vec<u8>>, Vec<u8>)>,
    interrupted: bool,
    /// It runs in the background, and wakes the session by ending with 2.
    wakes: bool,
}

/// Reads to the end; at the first byte, `first` is called.
fn read_all(mut from: impl Read, first: impl FnOnce()) -> Vec<u8> {
    let mut first = Some(first);
    let mut all = Vec::new();
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut part) {
        if let Some(first) = first.take() {
            first();
        }
        all.extend_from_slice(&part[..n]);
    }
    all
}

impl Hook {
    /// Starts a hook's command and says `payload` to it.
    pub(crate) fn start(mut command: Command, event: &str, payload: &[u8], fate: Fate) -> Hook {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if fate == Fate::Unread {
            // No pipe with a closed end: another child that is being started may hold that end open for a moment.
            command.stdout(File::options().write(true).open("/dev/full").expect("/dev/full"));
        }
        let watched = match &fate {
            Fate::KilledAtWrite(path) => Some((path.clone(), length(path))),
            _ => None,
        };
        let mut child = command.spawn().expect("the hook starts");
        let stdout = child.stdout.take();
        let group = Pid::from_raw(child.id().cast_signed());
        // As long as it is not waited for, its number is nobody else's.
        let end = move || kill(group, Signal::SIGKILL).unwrap_or(());
        // It may leave without having read it; a pipe has room for all of it.
        child.stdin.take().expect("a pipe").write_all(payload).ok();
        let mut stderr = child.stderr.take().expect("a pipe");
        let (send, said) = channel();
        let at_answer = fate == Fate::KilledAtAnswer;
        std::thread::spawn(move || {
            let out = stdout.map(|stdout| {
                read_all(stdout, || {
                    if at_answer {
                        end();
                    }
                })
            });
            // Nobody waits for it where the hook was given up.
            send.send((out, read_all(&mut stderr, || ()))).ok();
        });
        if let Fate::Killed(after) = fate {
            std::thread::sleep(after);
            end();
        }
        if let Some((path, before)) = watched {
            // A short while: it does not write at all where there is nothing to write.
            let until = Instant::now() + Duration::from_millis(60);
            while length(&path) == before && Instant::now() < until {
                std::hint::spin_loop();
            }
            end();
        }
        Hook { child, event: event.to_owned(), fate, begun: Instant::now(), said, interrupted: false, wakes: false }
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Whether it holds: its bell hangs in a run of the project.
    pub(crate) fn is_holding(&self, project: &Path) -> bool {
        let own = format!("{}.", self.child.id());
        let runs = fs::read_dir(project.join(".claude/runs")).into_iter().flatten().flatten();
        let mut bells = runs.filter_map(|run| fs::read_dir(run.path().join("bells")).ok()).flatten().flatten();
        bells.any(|bell| bell.file_name().to_str().is_some_and(|name| name.starts_with(&own)))
    }

    /// What Esc does: SIGTERM to its group, SIGKILL a little later, and whatever it says is thrown away.
    pub(crate) fn interrupt(&mut self) {
        self.interrupted = true;
        if self.is_over() {
            return;
        }
        let group = Pid::from_raw(self.child.id().cast_signed());
        killpg(group, Signal::SIGTERM).ok();
        let until = Instant::now() + GRACE;
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.is_over() {
            killpg(group, Signal::SIGKILL).ok();
        }
    }

    /// Waits for it, and checks what holds for every hook.
    pub(crate) fn finish(mut self) -> Result<Said, String> {
        let event = self.event.clone();
        let said = self.said.recv_timeout(HANGS);
        if said.is_err() {
            let what = if self.is_over() { "somebody keeps its output open" } else { "does not end" };
            self.child.kill().ok();
            self.child.wait().ok();
            return Err(format!("{event}: {what}"));
        }
        let (out, err) = said.map_err(|e| format!("{event}: {e}"))?;
        let status = self.child.wait().expect("it is our child");
        let at = Instant::now();
        if self.wakes && status.code() == Some(2) {
            // What wakes is what is on stderr; the model reads it as it reads everything else.
            let text = String::from_utf8(err).map_err(|e| format!("watch: {e}"))?;
            let length = text.chars().count();
            if !out.is_none_or(|out| out.is_empty()) || length == 0 || length > MAX_CONTEXT {
                return Err(format!("watch: wakes with {length} characters: {text}"));
            }
            return Ok(Said { out: Some(json!({"hookSpecificOutput": {"additionalContext": text}})), whole: true, at });
        }
        let killed = matches!(self.fate, Fate::Killed(_) | Fate::KilledAtAnswer | Fate::KilledAtWrite(_));
        let is_end = |s: ExitStatus| s.code() == Some(0) || (s.signal().is_some() && (killed || self.interrupted));
        if !is_end(status) || !err.is_empty() {
            return Err(format!("{event}: {status}: {}", String::from_utf8_lossy(&err)));
        }
        let out = match out {
            None => None,
            Some(bytes) if bytes.is_empty() => None,
            Some(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => Some(value),
                Err(_) if status.signal().is_some() => None,
                Err(e) => return Err(format!("{event}: {e}: {}", String::from_utf8_lossy(&bytes))),
            },
        };
        if let Some(value) = &out {
            check(value, &event).map_err(|e| format!("{event}: {e}: {value}"))?;
        }
        let whole = status.code() == Some(0) && self.begun.elapsed() < LIFETIME && self.fate != Fate::Unread;
        Ok(Said { out, whole: whole && !killed && !self.interrupted, at })
    }
}

/// Whether the client would accept an answer to `event`, and cpw may give it. An empty one stands for any.
fn check(value: &Value, event: &str) -> Result<(), String> {
    let top = value.as_object().ok_or("no object")?;
    if let Some(odd) = top.keys().find(|k| !["systemMessage", "hookSpecificOutput"].contains(&k.as_str())) {
        return Err(format!("has {odd}"));
    }
    let Some(specific) = top.get("hookSpecificOutput").filter(|_| !event.is_empty()) else { return Ok(()) };
    let specific = specific.as_object().ok_or("hookSpecificOutput is no object")?;
    let mut allowed = vec!["hookEventName", "additionalContext"];
    if event == "PreToolUse" {
        allowed.extend(["permissionDecision", "permissionDecisionReason", "updatedInput"]);
    }
    if let Some(odd) = specific.keys().find(|k| !allowed.contains(&k.as_str())) {
        return Err(format!("has {odd}"));
    }
    if specific.get("hookEventName").and_then(Value::as_str) != Some(event) {
        return Err("names another event".into());
    }
    if specific.get("permissionDecision").is_some_and(|d| d != "deny") {
        return Err("decides something else than deny".into());
    }
    for name in ["additionalContext", "permissionDecisionReason"] {
        let Some(text) = specific.get(name) else { continue };
        let length = text.as_str().ok_or(format!("{name} is no text"))?.chars().count();
        if length == 0 || length > MAX_CONTEXT {
            return Err(format!("{name} has {length} characters"));
        }
    }
    Ok(())
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}

/// A step of the model: calls of tools at the same time, with the hooks of each side by side.
#[derive(Debug, Clone)]
pub(crate) struct ToolCall {
    pub(crate) tool: &'static str,
    pub(crate) input: Value,
    /// It comes from a subagent.
    pub(crate) agent: bool,
}

/// What became of a call.
#[derive(Debug)]
pub(crate) struct Called {
    /// Why it was refused, if it was.
    pub(crate) refused: Option<String>,
    /// With what input it ran.
    pub(crate) input: Value,
    /// Everything that was said before it ran.
    pub(crate) before: Vec<Said>,
    /// And after.
    pub(crate) after: Vec<Said>,
}

impl ToolCall {
    fn fields(&self, id: &str) -> Value {
        let mut fields = json!({"tool_name": self.tool, "tool_input": self.input, "tool_use_id": id});
        if self.agent {
            fields["agent_id"] = "a1c07".into();
            fields["agent_type"] = "Explore".into();
        }
        fields
    }
}

impl Session {
    /// Carries out one step as the client does: all hooks before the tools at once, then the tools, then all hooks after
    /// them, then what is called once a step. Of several rewrites the one that came last counts; a refusal wins. `spoil`
    /// says whether another hook's rewrite wins over all of them. What the step's end says comes second.
    pub(crate) fn step(
        &self,
        world: &World,
        wiring: &Wiring,
        number: usize,
        calls: &[ToolCall],
        fate: &mut dyn FnMut() -> Fate,
        spoil: &mut dyn FnMut() -> bool,
    ) -> Result<(Vec<Called>, Vec<Said>), String> {
        let id = |i: usize| format!("toolu_{}_{number}_{i}", self.prompt);
        let begin = |(i, call): (usize, &ToolCall), fate: &mut dyn FnMut() -> Fate| {
            self.begin(world, wiring, "PreToolUse", &call.fields(&id(i)), fate)
        };
        let hooks: Vec<Vec<Hook>> = calls.iter().enumerate().map(|c| begin(c, fate)).collect();
        let mut done = Vec::new();
        for (call, hooks) in calls.iter().zip(hooks) {
            let before = hooks.into_iter().map(Hook::finish).collect::<Result<Vec<_>, _>>()?;
            let heard = before.iter().filter(|s| s.out.is_some());
            let refused = heard.clone().find_map(Said::refusal).map(ToOwned::to_owned);
            let last = heard.filter(|s| s.input().is_some()).max_by_key(|s| s.at);
            let mut input = last.and_then(Said::input).unwrap_or(&call.input).clone();
            if last.is_some() && spoil() {
                input = call.input.clone();
            }
            done.push(Called { refused, input, before, after: Vec::new() });
        }
        let mut after = Vec::new();
        for (i, (call, called)) in calls.iter().zip(&done).enumerate() {
            let mut fields = call.fields(&id(i));
            fields["tool_input"] = called.input.clone();
            fields["tool_response"] = json!({"type": "text", "text": "done"});
            fields["duration_ms"] = 3.into();
            let runs = called.refused.is_none();
            after.push(if runs { self.begin(world, wiring, "PostToolUse", &fields, fate) } else { Vec::new() });
        }
        for (called, hooks) in done.iter_mut().zip(after) {
            called.after = hooks.into_iter().map(Hook::finish).collect::<Result<_, _>>()?;
        }
        let own: Vec<Value> =
            calls.iter().filter(|c| !c.agent).enumerate().map(|(i, call)| call.fields(&id(i))).collect();
        if own.is_empty() {
            return Ok((done, Vec::new()));
        }
        let hooks = self.begin(world, wiring, "PostToolBatch", &json!({"tool_calls": own}), fate);
        let end = hooks.into_iter().map(Hook::finish).collect::<Result<_, _>>()?;
        Ok((done, end))
    }
}
