//! Claude Code's `settings.json`, edited without being rewritten: cpw's hook entries are spliced in and cut out, and
//! every other byte stays as it was. It is a scanner for positions, not a parser to values: what a person or another tool
//! wrote (order, indentation, line ends, a byte order mark) is never serialised anew. No file is opened here.
//!
//! Taking out is the exact inverse of putting in without any record beside the file, because the layout itself tells what
//! cpw made. A container that cpw creates is symmetric (a line break after its opening bracket *and* before its closing
//! one, or white space on neither side); one that was there, empty, is filled asymmetrically and keeps what white space
//! it had before its closing bracket. A tool that formats the file anew makes everything symmetric: then an empty `hooks`
//! that somebody had there goes together with cpw's entries, which changes nothing for the client.

mod line;

use std::fmt;
use std::ops::Range;

use serde_json::{Value, json};

pub use line::{StatusLine, status_line, unwire_line, wire_line, wraps};

/// Where an administrator's settings are, on Linux.
pub const MANAGED: &str = "/etc/claude-code/managed-settings.json";

/// Why a settings file is left alone, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The line, from 1.
    pub line: usize,
    /// The character in that line, from 1.
    pub column: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.what)
    }
}

impl std::error::Error for Refused {}

/// How an entry calls cpw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A shell line that finds cpw on PATH and is silent where there is none: for files that a team shares.
    Shared,
    /// Without a shell, by absolute path: faster, for files of one machine.
    Exec(String),
}

/// Every subcommand that Claude Code may call, in this version or another: what an entry of ours is recognised by.
pub const HOOK_COMMANDS: [&str; 8] = [
    "user-prompt-submit",
    "pre-tool-use",
    "post-tool-use",
    "post-tool-batch",
    "stop",
    "watch",
    "session-start",
    "session-end",
];

/// One entry of the wiring.
struct Hook {
    event: &'static str,
    /// Whether the event is one of tools, which take a matcher.
    of_tools: bool,
    args: &'static [&'static str],
    /// In seconds. The client counts no answer after it; cpw ends itself before.
    timeout: u32,
    more: More,
}

/// What else an entry says.
enum More {
    Nothing,
    /// What the user sees while the client waits for it.
    Status(&'static str),
    /// The client does not wait for it, and takes a turn when it ends with exit code 2: what the user sees then, and what
    /// the model reads first.
    Wakes(&'static str, &'static str),
}

const fn hook(event: &'static str, args: &'static [&'static str], timeout: u32, more: More) -> Hook {
    Hook { event, of_tools: false, args, timeout, more }
}

const fn of_tools(event: &'static str, args: &'static [&'static str], timeout: u32) -> Hook {
    Hook { event, of_tools: true, args, timeout, more: More::Nothing }
}

const WIRING: [Hook; 8] = [
    hook("SessionStart", &["session-start"], 10, More::Nothing),
    hook("UserPromptSubmit", &["user-prompt-submit"], 10, More::Nothing),
    of_tools("PreToolUse", &["pre-tool-use"], 600),
    of_tools("PostToolUse", &["post-tool-use", "--batched"], 10),
    hook("PostToolBatch", &["post-tool-batch"], 10, More::Nothing),
    hook("Stop", &["stop"], 86_400, More::Status("cpw: waiting for workers")),
    hook("Stop", &["watch"], 86_400, More::Wakes("cpw: news from the workers", "cpw: news from the workers:")),
    hook("SessionEnd", &["session-end"], 5, More::Nothing),
];

impl Hook {
    fn handler(&self, form: &Form) -> Value {
        let mut handler = match form {
            // `exec`: no shell stays behind. `command -v` is a builtin: where cpw is missing nothing is forked at all.
            Form::Shared => json!({
                "type": "command",
                "command": format!("command -v cpw >/dev/null 2>&1 || exit 0; exec cpw {}", self.args.join(" ")),
                "timeout": self.timeout,
            }),
            Form::Exec(path) => {
                json!({"type": "command", "command": path, "args": self.args, "timeout": self.timeout})
            }
        };
        let more = match self.more {
            More::Nothing => json!({}),
            More::Status(text) => json!({"statusMessage": text}),
            More::Wakes(line, lead) => json!({"asyncRewake": true, "rewakeSummary": line, "rewakeMessage": lead}),
        };
        if let (Some(object), Value::Object(more)) = (handler.as_object_mut(), more) {
            object.extend(more);
        }
        handler
    }

    fn group(&self, form: &Form) -> Value {
        if self.of_tools {
            json!({"matcher": "*", "hooks": [self.handler(form)]})
        } else {
            json!({"hooks": [self.handler(form)]})
        }
    }

    /// Whether a group with this matcher is asked for everything that this hook wants to see.
    fn fits(&self, matcher: Option<&Value>) -> bool {
        !self.of_tools || matches!(matcher.map(Value::as_str), None | Some(Some("" | "*")))
    }
}

/// Puts cpw's entries into a settings file; `None` is a file that does not exist. An entry that is there already, in this
/// form, stays; one of another form or version is replaced where it stands. Returns the input's bytes if there is nothing
/// to do.
pub fn install(file: Option<&[u8]>, form: &Form) -> Result<Vec<u8>, Refused> {
    let Some(bytes) = file else {
        return Ok(format!("{}\n", whole(form)).into_bytes());
    };
    let text = utf8(bytes)?;
    if is_blank(text) {
        // The space before the brace tells `uninstall` that the file was there, blank.
        return Ok(format!("{text} {}", whole(form)).into_bytes());
    }
    let brought_up = match bring_up(text, form)? {
        Left::Text(text) => text,
        // Only entries in wrong places were there, and nothing else.
        Left::Nothing => return install(None, form),
    };
    if is_blank(&brought_up) {
        return install(Some(brought_up.as_bytes()), form);
    }
    Ok(add_missing(&brought_up, form)?.into_bytes())
}

/// Takes cpw's entries and its status line out of a settings file, with whatever around them cpw had made. `None`: the file holds nothing but
/// what `install` wrote into a new one, and is to be removed. Returns the input's bytes if there is nothing to do.
pub fn uninstall(bytes: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
    let text = utf8(bytes)?;
    if is_blank(text) {
        return Ok(Some(bytes.to_vec()));
    }
    let document = Document::read(text, false)?;
    let mut edits = Vec::new();
    // A status line of another shape is none of ours.
    let line = line::find(&document).unwrap_or_default();
    Ok(match document.take_out(|_, _, handler| handler.ours.is_some(), line, &mut edits) {
        Left::Nothing => None,
        Left::Text(text) => Some(text.into_bytes()),
    })
}

/// A command that the client calls for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The event.
    pub event: String,
    /// For which tools, as it is written; none: for all.
    pub matcher: Option<String>,
    /// The command: a program where there are `args`, else a line for a shell.
    pub command: String,
    /// Its arguments.
    pub args: Option<Vec<String>>,
    /// Whether it is one of cpw.
    pub ours: bool,
}

impl Call {
    /// Whether the client makes it for a tool: a matcher of letters, digits, `_`, `-`, `,`, `|` and spaces is a list of names,
    /// any other an expression that may stand anywhere in the name.
    pub fn sees(&self, tool: &str) -> bool {
        let written = match self.matcher.as_deref() {
            None | Some("" | "*") => return true,
            Some(written) => written,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-,| ".contains(c);
        if written.chars().all(plain) {
            return written.split([',', '|']).any(|name| name.trim() == tool);
        }
        // One that we cannot read may mean anything.
        regex::Regex::new(written).map_or(true, |expression| expression.is_match(tool))
    }

    /// Whether it is, to the letter, a line that [`install`] writes into a file that a team shares.
    pub fn is_shared_line(&self) -> bool {
        let is_it = |hook: &Hook| hook.handler(&Form::Shared)["command"] == *self.command;
        self.args.is_none() && WIRING.iter().any(is_it)
    }
}

/// The commands that a settings file calls, of cpw and others.
pub fn calls(bytes: &[u8]) -> Result<Vec<Call>, Refused> {
    let text = utf8(bytes)?;
    if is_blank(text) {
        return Ok(Vec::new());
    }
    let document = Document::read(text, false)?;
    let mut calls = Vec::new();
    for event in &document.events {
        for group in &event.groups {
            let matcher = group.matcher.as_ref().and_then(Value::as_str).map(str::to_owned);
            for handler in &group.handlers {
                let Some(command) = handler.value.get("command").and_then(Value::as_str) else { continue };
                let words = |args: &Vec<Value>| args.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                calls.push(Call {
                    event: event.name.clone(),
                    matcher: matcher.clone(),
                    command: command.to_owned(),
                    args: handler.value.get("args").and_then(Value::as_array).map(words),
                    ours: handler.ours.is_some(),
                });
            }
        }
    }
    Ok(calls)
}

/// The calls of cpw that a settings file makes: event, and the command as it is written there.
pub fn wired(bytes: &[u8]) -> Result<Vec<(String, String)>, Refused> {
    let text = utf8(bytes)?;
    if is_blank(text) {
        return Ok(Vec::new());
    }
    let document = Document::read(text, false)?;
    let mut calls = Vec::new();
    for event in &document.events {
        for handler in event.groups.iter().flat_map(|g| &g.handlers) {
            if handler.ours.is_some() {
                let command = handler.value.get("command").and_then(Value::as_str).unwrap_or_default();
                calls.push((event.name.clone(), command.to_owned()));
            }
        }
    }
    Ok(calls)
}

/// The subcommands that a settings file which calls cpw at all does not call, as one that an older cpw has wired.
pub fn missing(bytes: &[u8]) -> Result<Vec<&'static str>, Refused> {
    let text = utf8(bytes)?;
    if is_blank(text) {
        return Ok(Vec::new());
    }
    let document = Document::read(text, false)?;
    let calls = |event: &str, call: Option<&str>| {
        let groups = document.events.iter().filter(|e| e.name == event).flat_map(|e| &e.groups);
        groups.flat_map(|g| &g.handlers).any(|h| h.ours.is_some() && h.ours == call)
    };
    let (there, missing): (Vec<&Hook>, Vec<&Hook>) =
        WIRING.iter().partition(|hook| calls(hook.event, hook.args.first().copied()));
    let named = missing.iter().filter_map(|hook| hook.args.first().copied());
    Ok(if there.is_empty() { Vec::new() } else { named.collect() })
}

/// The subcommand of cpw that a handler calls, in exec form or in a shell line that does nothing else.
fn ours(handler: &Value) -> Option<&'static str> {
    let command = handler.get("command")?.as_str()?;
    match handler.get("args") {
        Some(args) => {
            let args: Vec<&str> = args.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
            call_of_cpw(command, &args)
        }
        None => shell_call(command),
    }
}

/// A program of that name may be another one: ours takes its subcommand and flags, and nothing else.
fn call_of_cpw(program: &str, args: &[&str]) -> Option<&'static str> {
    let is_cpw = program == "cpw" || program.ends_with("/cpw");
    let (first, flags) = args.split_first()?;
    HOOK_COMMANDS.into_iter().find(|known| is_cpw && known == first && flags.iter().all(|flag| flag.starts_with("--")))
}

/// Reads as much shell as our own lines need: simple commands, of which one is cpw and the others only look whether it is
/// there. A line that also does something else belongs to whoever wrote it.
fn shell_call(line: &str) -> Option<&'static str> {
    let mut found = None;
    for words in simple_commands(line)? {
        let words: Vec<&str> =
            words.iter().map(String::as_str).skip_while(|w| *w == "exec" || is_assignment(w)).collect();
        let Some((program, args)) = words.split_first() else { continue };
        let (program, call) = (*program, call_of_cpw(program, args));
        let guard = matches!(program, "command" | "type" | "hash" | "test" | "[" | "exit" | "true" | ":");
        match call {
            Some(call) if found.is_none() => found = Some(call),
            None if guard => {}
            _ => return None,
        }
    }
    found
}

/// The words of each simple command, without redirections. `None` for quotes that do not end and for substitutions.
fn simple_commands(line: &str) -> Option<Vec<Vec<String>>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars().chain(std::iter::once('\n'));
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some('"') | None, '`') => return None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().push(chars.next()?),
            (Some('"'), '\\') => match chars.next()? {
                next @ ('$' | '`' | '"' | '\\') => word.get_or_insert_default().push(next),
                next => word.get_or_insert_default().extend(['\\', next]),
            },
            (None, _) if c.is_whitespace() || matches!(c, ';' | '|' | '&') => {
                // `2>&1`: the `&` belongs to the redirection.
                if c == '&' && word.as_ref().is_some_and(|w| w.ends_with('>')) {
                    word.get_or_insert_default().push(c);
                    continue;
                }
                if let (Some(w), Some(command)) = (word.take(), commands.last_mut())
                    && !is_redirection(&w)
                {
                    command.push(w);
                }
                if matches!(c, ';' | '|' | '&' | '\n') {
                    commands.push(Vec::new());
                }
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    quote.is_none().then_some(commands)
}

/// Of a variable of ours; who sets another one wants more than ours does.
fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    name.starts_with("CPW_") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Of output that nobody wants; a file that something is written to is somebody's.
fn is_redirection(word: &str) -> bool {
    let target = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(['>', '<']);
    target.is_some_and(|target| matches!(target.trim_start_matches('>'), "/dev/null" | "&1" | "&2"))
}

/// What is left of a text after entries were taken out.
enum Left {
    Text(String),
    /// The file was made by `install` and holds nothing else.
    Nothing,
}

/// Replaces entries of other forms where they stand, and takes out those that this version does not wire or has twice.
fn bring_up(text: &str, form: &Form) -> Result<Left, Refused> {
    let document = Document::read(text, true)?;
    let style = Style::of(&document);
    let mut edits = Vec::new();
    // Per entry of the wiring, the one that stays: the first that calls the right subcommand in a group with the right matcher.
    let mut kept: Vec<Range<usize>> = Vec::new();
    let wired = |event| WIRING.iter().filter(move |hook| hook.event == event);
    for (event, hook) in document.events.iter().flat_map(|event| wired(&event.name).map(move |hook| (event, hook))) {
        let stays = event
            .groups
            .iter()
            .filter(|group| hook.fits(group.matcher.as_ref()))
            .flat_map(|group| &group.handlers)
            .find(|handler| handler.ours == hook.args.first().copied());
        let Some(stays) = stays else { continue };
        kept.push(stays.span.clone());
        let wanted = hook.handler(form);
        if stays.value != wanted {
            let many_lines = text[stays.span.clone()].contains('\n');
            let indent = many_lines.then(|| line_indent(text, stays.span.start));
            edits.push(Edit { span: stays.span.clone(), text: style.render(&wanted, indent) });
        }
    }
    Ok(document.take_out(|_, _, handler| handler.ours.is_some() && !kept.contains(&handler.span), None, &mut edits))
}

/// Adds a group of ours to every event of the wiring that has none.
fn add_missing(text: &str, form: &Form) -> Result<String, Refused> {
    let document = Document::read(text, true)?;
    let style = Style::of(&document);
    let mut edits = Vec::new();
    let mut members = Vec::new();
    for name in events() {
        let wanted = WIRING.iter().filter(|hook| hook.event == name);
        let Some(event) = document.events.iter().find(|event| event.name == name) else {
            members.push(New { key: Some(name), value: groups(name, form) });
            continue;
        };
        let is_there = |hook: &&Hook| {
            event
                .groups
                .iter()
                .flat_map(|g| &g.handlers)
                .any(|h| h.ours.is_some() && h.ours == hook.args.first().copied())
        };
        let missing: Vec<New> =
            wanted.filter(|hook| !is_there(hook)).map(|hook| New { key: None, value: hook.group(form) }).collect();
        if !missing.is_empty() {
            edits.push(style.append(text, &event.list, &missing));
        }
    }
    match &document.hooks {
        _ if members.is_empty() => {}
        Some(hooks) => edits.push(style.append(text, hooks, &members)),
        None => edits.push(style.append(text, &document.root, &[New { key: Some("hooks"), value: all_hooks(form) }])),
    }
    Ok(apply(text, edits))
}

/// The events of the wiring, each once.
fn events() -> Vec<&'static str> {
    let mut events: Vec<&str> = WIRING.iter().map(|hook| hook.event).collect();
    events.dedup();
    events
}

/// Our groups of an event.
fn groups(event: &str, form: &Form) -> Value {
    WIRING.iter().filter(|hook| hook.event == event).map(|hook| hook.group(form)).collect()
}

fn all_hooks(form: &Form) -> Value {
    Value::Object(events().into_iter().map(|event| (event.to_owned(), groups(event, form))).collect())
}

/// A settings file of ours alone, without a final line feed.
fn whole(form: &Form) -> String {
    Style::new().render(&json!({ "hooks": all_hooks(form) }), Some(""))
}

/// A replacement of a part of the text.
struct Edit {
    span: Range<usize>,
    text: String,
}

/// Applies edits, which never overlap: nothing is edited inside of what is cut out.
fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| edit.span.start);
    let mut out = String::with_capacity(text.len() + edits.iter().map(|e| e.text.len()).sum::<usize>());
    let mut at = 0;
    for edit in edits {
        out.push_str(&text[at..edit.span.start]);
        out.push_str(&edit.text);
        at = edit.span.end;
    }
    out.push_str(&text[at..]);
    out
}

// The document: positions of what cpw may touch.

struct Document<'a> {
    text: &'a str,
    root: Container,
    hooks: Option<Container>,
    /// In the order of the members of `hooks`.
    events: Vec<Event>,
}

struct Event {
    name: String,
    /// Which member of `hooks` it is.
    index: usize,
    list: Container,
    groups: Vec<Group>,
}

struct Group {
    /// Which item of the event's list it is.
    index: usize,
    matcher: Option<Value>,
    list: Container,
    handlers: Vec<Handler>,
}

struct Handler {
    span: Range<usize>,
    value: Value,
    ours: Option<&'static str>,
}

/// An object or array: where its brackets are, and its items.
struct Container {
    open: usize,
    close: usize,
    items: Vec<Item>,
}

struct Item {
    /// Of a member, its key.
    key: Option<String>,
    /// Where the item begins: at the key or at the value.
    start: usize,
    value: usize,
    end: usize,
}

impl Container {
    fn member(&self, key: &str) -> Option<(usize, &Item)> {
        self.items.iter().enumerate().find(|(_, item)| item.key.as_deref() == Some(key))
    }

    /// Whether it was there, empty, before `install` filled it: see the module's paragraph.
    fn was_empty(&self, text: &str) -> bool {
        let (Some(first), Some(last)) = (self.items.first(), self.items.last()) else { return false };
        let before = &text[self.open + 1..first.start];
        let after = &text[last.end..self.close];
        match (before.contains('\n'), after.contains('\n')) {
            (false, false) => before.is_empty() != after.is_empty(),
            (before, after) => before != after,
        }
    }

    /// Cuts out the items that `goes` names. True: none would be left, and nothing was cut.
    fn cut(&self, goes: impl Fn(usize) -> bool, edits: &mut Vec<Edit>) -> bool {
        if self.items.is_empty() {
            return false;
        }
        let Some(first_kept) = (0..self.items.len()).find(|i| !goes(*i)) else { return true };
        if first_kept > 0 {
            edits.push(Edit { span: self.items[0].start..self.items[first_kept].start, text: String::new() });
        }
        let mut last_kept = first_kept;
        for i in first_kept + 1..=self.items.len() {
            if i < self.items.len() && goes(i) {
                continue;
            }
            if i - last_kept > 1 {
                let span = self.items[last_kept].end..self.items[i - 1].end;
                edits.push(Edit { span, text: String::new() });
            }
            last_kept = i;
        }
        false
    }

    /// As [`Container::cut`], but a container that was there, empty, stays so.
    fn cut_or_empty(&self, text: &str, goes: impl Fn(usize) -> bool, edits: &mut Vec<Edit>) -> bool {
        if !self.cut(goes, edits) {
            return false;
        }
        let Some(last) = self.items.last().filter(|_| self.was_empty(text)) else { return true };
        edits.push(Edit { span: self.open + 1..last.end, text: String::new() });
        false
    }
}

impl<'a> Document<'a> {
    /// Checks the whole text and finds what concerns cpw. `strict`: an event that cpw is to be added to must have the
    /// shape that the client demands; else what has another shape is passed over.
    fn read(text: &'a str, strict: bool) -> Result<Self, Refused> {
        let scan = Scan { text };
        let start = scan.space(bom(text));
        let end = scan.value(start)?;
        let rest = scan.space(end);
        if rest < text.len() {
            return Err(scan.refuse(rest, "there is something behind the end of the JSON value"));
        }
        let root = scan.object(start, "the settings")?;
        let mut document = Document { text, root, hooks: None, events: Vec::new() };
        let Some((_, member)) = document.root.member("hooks") else { return Ok(document) };
        let hooks = scan.object(member.value, "\"hooks\"")?;
        for (index, item) in hooks.items.iter().enumerate() {
            let name = item.key.clone().unwrap_or_default();
            let strict = strict && WIRING.iter().any(|hook| hook.event == name);
            if !strict && scan.peek(item.value) != Some(b'[') {
                continue;
            }
            let list = scan.array(item.value, &format!("\"hooks.{name}\""))?;
            let mut groups = Vec::new();
            for (index, item) in list.items.iter().enumerate() {
                groups.extend(scan.group(index, item, &format!("\"hooks.{name}[{index}]\""), strict)?);
            }
            document.events.push(Event { name, index, list, groups });
        }
        document.hooks = Some(hooks);
        Ok(document)
    }

    /// Takes out the entries that `goes` names and our part of the status `line`, and whatever of cpw's making that leaves
    /// empty; applies `edits` too.
    fn take_out(
        self,
        goes: impl Fn(&Event, &Group, &Handler) -> bool,
        line: Option<line::Found>,
        edits: &mut Vec<Edit>,
    ) -> Left {
        let text = self.text;
        let mut events_gone = Vec::new();
        for event in &self.events {
            let mut groups_gone = Vec::new();
            for group in &event.groups {
                // Positions in `handlers` are those in the list: `Scan::group` makes one for each item.
                if group.list.cut(|i| goes(event, group, &group.handlers[i]), edits) {
                    groups_gone.push(group.index);
                }
            }
            if event.list.cut_or_empty(text, |i| groups_gone.contains(&i), edits) {
                events_gone.push(event.index);
            }
        }
        let all_gone = self.hooks.is_some_and(|hooks| hooks.cut_or_empty(text, |i| events_gone.contains(&i), edits));
        let root = &self.root;
        let line_gone = line.is_some_and(|line| line.take_out(edits));
        let is_gone = |i: usize| {
            let key = root.items[i].key.as_deref();
            (all_gone && key == Some("hooks")) || (line_gone && line::is_key(key))
        };
        if root.cut_or_empty(text, is_gone, edits) {
            let (before, after) = (&text[..root.open], &text[root.close + 1..]);
            let many_lines = text[root.open..root.items[0].start].contains('\n');
            if many_lines && before.is_empty() && after == "\n" {
                return Left::Nothing;
            }
            if many_lines && let Some(blank) = before.strip_suffix(' ') {
                return Left::Text(format!("{blank}{after}"));
            }
            edits.push(Edit { span: root.open + 1..root.close, text: String::new() });
        }
        Left::Text(apply(text, std::mem::take(edits)))
    }
}

// The scanner.

fn utf8(bytes: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
        Scan { text: &good }.refuse(good.len(), "this is not UTF-8")
    })
}

/// The length of a byte order mark.
fn bom(text: &str) -> usize {
    if text.starts_with('\u{FEFF}') { '\u{FEFF}'.len_utf8() } else { 0 }
}

fn is_blank(text: &str) -> bool {
    Scan { text }.space(bom(text)) == text.len()
}

/// The white space that begins the line of position `at`.
fn line_indent(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('\n').map_or(bom(text), |i| i + 1);
    let line = &text[start..at];
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

struct Scan<'a> {
    text: &'a str,
}

impl Scan<'_> {
    fn peek(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn refuse(&self, at: usize, what: impl Into<String>) -> Refused {
        let before = &self.text[..at];
        let line_start = before.rfind('\n').map_or(bom(before), |i| i + 1);
        Refused {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what: what.into(),
        }
    }

    /// Something else than `wanted` stands at `at`.
    fn unexpected(&self, at: usize, wanted: &str) -> Refused {
        let what = match self.text[at..].chars().next() {
            None => format!("the file ends where {wanted} should be"),
            Some('/') => "a comment; JSON has none, and the client ignores a file that is not JSON".into(),
            Some(c) => format!("{c:?} stands where {wanted} should be"),
        };
        self.refuse(at, what)
    }

    fn space(&self, mut at: usize) -> usize {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek(at) {
            at += 1;
        }
        at
    }

    /// The end of the value at `at`, which is checked to its last byte. Without recursion: depth costs heap, not stack.
    fn value(&self, at: usize) -> Result<usize, Refused> {
        let mut at = at;
        let mut closers: Vec<u8> = Vec::new();
        loop {
            at = match self.peek(at) {
                Some(open @ (b'{' | b'[')) => {
                    // `{` + 2 and `[` + 2 are the closing brackets.
                    let close = open + 2;
                    let next = self.space(at + 1);
                    if self.peek(next) == Some(close) {
                        next + 1
                    } else {
                        closers.push(close);
                        at = if open == b'{' { self.key(next)? } else { next };
                        continue;
                    }
                }
                Some(b'"') => self.string(at)?,
                Some(b'-' | b'0'..=b'9') => self.number(at)?,
                _ => self.literal(at)?,
            };
            loop {
                let Some(&close) = closers.last() else { return Ok(at) };
                let next = self.space(at);
                match self.peek(next) {
                    Some(b',') => {
                        let item = self.space(next + 1);
                        if self.peek(item) == Some(close) {
                            return Err(self.refuse(next, "a comma without anything behind it; JSON allows none here"));
                        }
                        at = if close == b'}' { self.key(item)? } else { item };
                        break;
                    }
                    Some(c) if c == close => {
                        closers.pop();
                        at = next + 1;
                    }
                    _ => return Err(self.unexpected(next, &format!("',' or '{}'", close as char))),
                }
            }
        }
    }

    /// Past a key and its colon: where the value begins.
    fn key(&self, at: usize) -> Result<usize, Refused> {
        if self.peek(at) != Some(b'"') {
            return Err(self.unexpected(at, "a key in double quotes"));
        }
        let colon = self.space(self.string(at)?);
        if self.peek(colon) != Some(b':') {
            return Err(self.unexpected(colon, "':'"));
        }
        Ok(self.space(colon + 1))
    }

    fn string(&self, start: usize) -> Result<usize, Refused> {
        let mut at = start + 1;
        loop {
            match self.peek(at) {
                None => return Err(self.refuse(start, "a string that does not end")),
                Some(b'"') => return Ok(at + 1),
                Some(b'\\') => {
                    at += match self.peek(at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u') if (at + 2..at + 6).all(|i| self.peek(i).is_some_and(|b| b.is_ascii_hexdigit())) => {
                            6
                        }
                        _ => return Err(self.refuse(at, "an escape that JSON does not know")),
                    }
                }
                Some(0..=0x1F) => return Err(self.refuse(at, "a line break or control character inside a string")),
                Some(_) => at += 1,
            }
        }
    }

    fn number(&self, start: usize) -> Result<usize, Refused> {
        let digits = |from: usize| {
            let mut at = from;
            while self.peek(at).is_some_and(|b| b.is_ascii_digit()) {
                at += 1;
            }
            if at == from { Err(self.unexpected(at, "a digit")) } else { Ok(at) }
        };
        let first = start + usize::from(self.peek(start) == Some(b'-'));
        let mut at = if self.peek(first) == Some(b'0') { first + 1 } else { digits(first)? };
        if self.peek(at) == Some(b'.') {
            at = digits(at + 1)?;
        }
        if let Some(b'e' | b'E') = self.peek(at) {
            let sign = usize::from(matches!(self.peek(at + 1), Some(b'+' | b'-')));
            at = digits(at + 1 + sign)?;
        }
        Ok(at)
    }

    fn literal(&self, at: usize) -> Result<usize, Refused> {
        let known = ["true", "false", "null"].into_iter().find(|word| self.text[at..].starts_with(word));
        known.map(|word| at + word.len()).ok_or_else(|| self.unexpected(at, "a value"))
    }

    /// The members of the object at `at`, of a text that [`Scan::value`] has checked. Refuses a key that is there twice:
    /// which one counts is the reader's secret.
    fn object(&self, at: usize, name: &str) -> Result<Container, Refused> {
        if self.peek(at) != Some(b'{') {
            return Err(self.refuse(at, format!("{name} must be an object")));
        }
        let mut items: Vec<Item> = Vec::new();
        let mut next = self.space(at + 1);
        while self.peek(next) != Some(b'}') {
            let key_end = self.string(next)?;
            let raw = &self.text[next..key_end];
            // Lone surrogates cannot be decoded; such a key is none that cpw looks for.
            let key = serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned());
            if items.iter().any(|item| item.key.as_ref() == Some(&key)) {
                return Err(self.refuse(next, format!("the key {key:?} is there twice in {name}")));
            }
            let value = self.key(next)?;
            let end = self.value(value)?;
            items.push(Item { key: Some(key), start: next, value, end });
            next = self.past_comma(end);
        }
        Ok(Container { open: at, close: next, items })
    }

    fn array(&self, at: usize, name: &str) -> Result<Container, Refused> {
        if self.peek(at) != Some(b'[') {
            return Err(self.refuse(at, format!("{name} must be an array")));
        }
        let mut items = Vec::new();
        let mut next = self.space(at + 1);
        while self.peek(next) != Some(b']') {
            let end = self.value(next)?;
            items.push(Item { key: None, start: next, value: next, end });
            next = self.past_comma(end);
        }
        Ok(Container { open: at, close: next, items })
    }

    fn past_comma(&self, end: usize) -> usize {
        let next = self.space(end);
        if self.peek(next) == Some(b',') { self.space(next + 1) } else { next }
    }

    /// A group of handlers: `{"matcher": …, "hooks": […]}`.
    fn group(&self, index: usize, item: &Item, name: &str, strict: bool) -> Result<Option<Group>, Refused> {
        if !strict && self.peek(item.value) != Some(b'{') {
            return Ok(None);
        }
        let object = self.object(item.value, name)?;
        let Some((_, hooks)) = object.member("hooks") else {
            return if strict { Err(self.refuse(item.value, format!("{name} has no \"hooks\""))) } else { Ok(None) };
        };
        if !strict && self.peek(hooks.value) != Some(b'[') {
            return Ok(None);
        }
        let matcher = object.member("matcher").map(|(_, m)| self.decode(m.value..m.end));
        let list = self.array(hooks.value, &format!("the \"hooks\" of {name}"))?;
        let mut handlers = Vec::with_capacity(list.items.len());
        for (i, handler) in list.items.iter().enumerate() {
            if self.peek(handler.value) == Some(b'{') {
                self.object(handler.value, &format!("handler {i} of {name}"))?;
            } else if strict {
                return Err(self.refuse(handler.value, format!("handler {i} of {name} must be an object")));
            }
            let span = handler.value..handler.end;
            let value = self.decode(span.clone());
            let ours = ours(&value);
            handlers.push(Handler { span, value, ours });
        }
        Ok(Some(Group { index, matcher, list, handlers }))
    }

    /// A value to look into. What serde cannot hold (depth, lone surrogates) is nothing of ours and becomes null.
    fn decode(&self, span: Range<usize>) -> Value {
        serde_json::from_str(&self.text[span]).unwrap_or_default()
    }
}

// The file's own way of laying out JSON.

struct Style<'a> {
    line_end: &'static str,
    /// What one level adds to the indentation.
    unit: &'a str,
    /// Whether the file spreads over lines at all.
    many_lines: bool,
    /// Whether a space follows colons and commas on one line.
    spaced: bool,
}

/// A member or item to be added.
struct New {
    key: Option<&'static str>,
    value: Value,
}

impl<'a> Style<'a> {
    fn new() -> Self {
        Style { line_end: "\n", unit: "  ", many_lines: true, spaced: true }
    }

    fn of(document: &Document<'a>) -> Self {
        let (text, root) = (document.text, &document.root);
        let mut style = Style::new();
        if text.find('\n').is_some_and(|at| text[..at].ends_with('\r')) {
            style.line_end = "\r\n";
        }
        let Some(first) = root.items.first() else { return style };
        style.many_lines = text[root.open..root.close].contains('\n');
        let lead = &text[root.open + 1..first.start];
        // A closing bracket alone on its line tells the outer indentation best.
        let closing = line_indent(text, root.close);
        let before = text[..root.close].strip_suffix(closing);
        let outer =
            if before.is_some_and(|text| text.ends_with('\n')) { closing } else { line_indent(text, root.open) };
        style.unit = match lead.rfind('\n') {
            Some(at) => lead[at + 1..].strip_prefix(outer).unwrap_or("  "),
            None if text.contains("\n\t") => "\t",
            None => "  ",
        };
        style.spaced = style.many_lines || text[..first.value].ends_with([' ', '\t']);
        style
    }

    fn gap(&self) -> &'static str {
        if self.spaced { " " } else { "" }
    }

    /// The edit that adds `news` behind the items of `container`, which stay in front of them.
    fn append(&self, text: &str, container: &Container, news: &[New]) -> Edit {
        let deeper = format!("{}{}", line_indent(text, container.open), self.unit);
        // Where the additions stand on lines of their own, with which indentation; and what precedes the first.
        let (at, lead, indent) = if let Some(last) = container.items.last() {
            let before = match container.items.len() {
                1 => &text[container.open + 1..last.start],
                n => &text[container.items[n - 2].end..last.start],
            };
            let indent = match before.rfind('\n') {
                Some(at) => Some(before[at + 1..].chars().take_while(|c| c.is_whitespace()).collect()),
                None if text[container.open..container.close].contains('\n') => Some(deeper),
                None => None,
            };
            (last.end, None, indent)
        } else {
            let inside = &text[container.open + 1..container.close];
            let lead = match (self.many_lines, inside.contains('\n'), inside.is_empty()) {
                (true, false, _) => format!("{}{deeper}", self.line_end),
                (true, true, _) | (false, _, true) => " ".to_owned(),
                (false, _, false) => String::new(),
            };
            (container.open + 1, Some(lead), self.many_lines.then_some(deeper))
        };
        let separator = match &indent {
            Some(indent) => format!(",{}{indent}", self.line_end),
            None => format!(",{}", self.gap()),
        };
        let mut out = lead.unwrap_or_else(|| separator.clone());
        for (i, new) in news.iter().enumerate() {
            if i > 0 {
                out.push_str(&separator);
            }
            if let Some(key) = new.key {
                out.push_str(&self.render_key(key));
            }
            self.write(&mut out, &new.value, indent.as_deref());
        }
        Edit { span: at..at, text: out }
    }

    fn render_key(&self, key: &str) -> String {
        format!("{}:{}", Value::from(key), self.gap())
    }

    fn render(&self, value: &Value, indent: Option<&str>) -> String {
        let mut out = String::new();
        self.write(&mut out, value, indent);
        out
    }

    /// Writes a value; over lines if it has an indentation, arrays of plain values always on one.
    fn write(&self, out: &mut String, value: &Value, indent: Option<&str>) {
        let (open, close, items): (char, char, Vec<(String, &Value)>) = match value {
            Value::Object(o) => ('{', '}', o.iter().map(|(k, v)| (self.render_key(k), v)).collect()),
            Value::Array(a) => ('[', ']', a.iter().map(|v| (String::new(), v)).collect()),
            plain => return out.push_str(&plain.to_string()),
        };
        let plain = open == '[' && items.iter().all(|(_, v)| !v.is_object() && !v.is_array());
        let inner = indent.filter(|_| !plain).map(|indent| format!("{indent}{}", self.unit));
        out.push(open);
        for (i, (key, item)) in items.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            match &inner {
                Some(inner) => {
                    out.push_str(self.line_end);
                    out.push_str(inner);
                }
                None if i > 0 => out.push_str(self.gap()),
                None => {}
            }
            out.push_str(key);
            self.write(out, item, inner.as_deref());
        }
        if let (Some(_), Some(indent)) = (&inner, indent) {
            out.push_str(self.line_end);
            out.push_str(indent);
        }
        out.push(close);
    }
}
