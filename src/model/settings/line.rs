//! The `statusLine` of a settings file: cpw's own line goes into the command that is there, which stays in it twice: as what
//! cpw runs and appends its line to, and, byte for byte, as what runs where cpw is missing. So taking out is cutting off what
//! stands in front.

use std::ops::Range;

use serde_json::{Value, json};

use super::{
    Document, Edit, Form, Left, New, Refused, Scan, Style, apply, is_assignment, is_blank, simple_commands, utf8,
};

/// The key in settings.
const KEY: &str = "statusLine";

/// What the command says where there was no status line before, in place of that.
const NOTHING: &str = "exit 0";

/// Whose status line a settings file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusLine {
    /// One that [`wire_line`] has made, or made out of another.
    Ours,
    /// One that calls cpw and was written by hand.
    ByHand,
    /// Somebody else's.
    Other,
}

/// A status line as it stands in a text.
pub(super) struct Found {
    /// Its command, with quotes.
    span: Range<usize>,
    call: Call,
}

enum Call {
    /// Of our making: what it was before, as it would stand between quotes; none where there was none.
    Ours(Option<Before>),
    ByHand,
    Other(Before),
}

/// A command that was there before.
struct Before {
    command: String,
    /// As it is written in the file.
    raw: String,
}

/// Puts cpw's line into the status line of a settings file; `None` is a file that does not exist. A command that is there
/// is wrapped. Returns the input's bytes if there is nothing to do.
pub fn wire_line(file: Option<&[u8]>, form: &Form) -> Result<Vec<u8>, Refused> {
    // The client asks again only when something happens; a run goes on meanwhile. Where none does, an answer costs a millisecond.
    let new = json!({"type": "command", "command": command(form, None), "refreshInterval": 2});
    let whole = || Style::new().render(&json!({KEY: new}), Some(""));
    let Some(bytes) = file else { return Ok(format!("{}\n", whole()).into_bytes()) };
    let text = utf8(bytes)?;
    if is_blank(text) {
        // As in `install`: the space tells that the file was there.
        return Ok(format!("{text} {}", whole()).into_bytes());
    }
    let document = Document::read(text, false)?;
    let Some(found) = find(&document)? else {
        let style = Style::of(&document);
        let edit = style.append(text, &document.root, &[New { key: Some(KEY), value: new.clone() }]);
        return Ok(apply(text, vec![edit]).into_bytes());
    };
    let before = match found.call {
        Call::ByHand => return Ok(bytes.to_vec()),
        Call::Ours(before) => before,
        Call::Other(before) => Some(before),
    };
    let wanted = command(form, before.as_ref().map(|b| b.command.as_str()));
    if serde_json::from_str(&text[found.span.clone()]).is_ok_and(|now: String| now == wanted) {
        return Ok(bytes.to_vec());
    }
    let raw = match &before {
        Some(before) => format!("{}{}", encode(&head(form, Some(&before.command))), before.raw),
        None => encode(&wanted),
    };
    Ok(apply(text, vec![Edit { span: found.span, text: format!("\"{raw}\"") }]).into_bytes())
}

/// Takes cpw's line out again and leaves what was there before, to the byte. `None`: the file holds nothing else of
/// anybody's, and is to be removed.
pub fn unwire_line(bytes: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
    let text = utf8(bytes)?;
    if is_blank(text) {
        return Ok(Some(bytes.to_vec()));
    }
    let document = Document::read(text, false)?;
    let line = find(&document).unwrap_or_default();
    Ok(match document.take_out(|_, _, _| false, line, &mut Vec::new()) {
        Left::Nothing => None,
        Left::Text(text) => Some(text.into_bytes()),
    })
}

/// Whose status line the file has, if it has one that the client would run.
pub fn status_line(bytes: &[u8]) -> Result<Option<StatusLine>, Refused> {
    let text = utf8(bytes)?;
    if is_blank(text) {
        return Ok(None);
    }
    Ok(find(&Document::read(text, false)?)?.map(|found| match found.call {
        Call::Ours(_) => StatusLine::Ours,
        Call::ByHand => StatusLine::ByHand,
        Call::Other(_) => StatusLine::Other,
    }))
}

/// Whether the status line of a settings file is one of cpw that wraps the command `wrapped`. `variable` tells what a shell puts
/// in for `$NAME`, between quotes of either kind, since what stands there is the user's own.
pub fn wraps(bytes: &[u8], wrapped: &str, variable: &dyn Fn(&str) -> Option<String>) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let settings: Value = serde_json::from_str(text.trim_start_matches('\u{FEFF}')).unwrap_or_default();
    let Some(command) = settings.pointer("/statusLine/command").and_then(Value::as_str) else { return false };
    if let Some((_, before)) = read(command) {
        return before.as_deref() == Some(wrapped);
    }
    let is_meant = |named: &str| named == wrapped || filled(named, variable) == wrapped;
    let calls = simple_commands(command).unwrap_or_default();
    calls.iter().filter_map(|words| wrapped_by(words)).any(is_meant)
}

/// What a call of cpw's status line wraps.
fn wrapped_by(words: &[String]) -> Option<&str> {
    let mut words = words.iter().map(String::as_str).skip_while(|w| *w == "exec" || is_assignment(w));
    words.next().filter(|w| *w == "cpw" || w.ends_with("/cpw"))?;
    words.next().filter(|w| *w == "statusline")?;
    let flag = words.next()?;
    flag.strip_prefix("--wrap=").or_else(|| words.next().filter(|_| flag == "--wrap"))
}

/// A text with the values of its variables, and of a `~/` that it begins with.
fn filled(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let home = || variable("HOME").unwrap_or_default();
    let text = text.strip_prefix("~/").map_or_else(|| text.to_owned(), |rest| format!("{}/{rest}", home()));
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, behind)) = rest.split_once('$') {
        out.push_str(before);
        let braced = behind.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let end = behind.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(behind.len());
        let (name, tail) = braced.unwrap_or_else(|| behind.split_at(end));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            out.push('$');
            rest = behind;
        } else {
            out.push_str(&variable(name).unwrap_or_default());
            rest = tail;
        }
    }
    out + rest
}

/// The status line of a text. Refuses one that the client would not run, or of which cpw does not know what it is.
pub(super) fn find(document: &Document<'_>) -> Result<Option<Found>, Refused> {
    let Some((_, member)) = document.root.member(KEY) else { return Ok(None) };
    let scan = Scan { text: document.text };
    let object = scan.object(member.value, &format!("\"{KEY}\""))?;
    let text = |key: &str| object.member(key).map(|(_, item)| (scan.decode(item.value..item.end), item));
    match text("type") {
        Some((Value::String(kind), _)) if kind == "command" => {}
        Some((_, item)) => {
            let what =
                format!("the \"type\" of \"{KEY}\" is not \"command\", which is all that cpw can put its line into");
            return Err(scan.refuse(item.value, what));
        }
        None => return Err(scan.refuse(member.value, format!("\"{KEY}\" has no \"type\""))),
    }
    let Some((command, item)) = text("command") else {
        return Err(scan.refuse(member.value, format!("\"{KEY}\" has no \"command\"")));
    };
    let Value::String(command) = command else {
        return Err(scan.refuse(item.value, format!("the \"command\" of \"{KEY}\" is not a text that cpw can read")));
    };
    let raw = &document.text[item.value + 1..item.end - 1];
    let call = match read(&command) {
        Some((head, before)) => Call::Ours(before.map(|before| behind(raw, &head, before))),
        None if calls_us(&command) => Call::ByHand,
        None => Call::Other(Before { raw: raw.to_owned(), command }),
    };
    Ok(Some(Found { span: item.value..item.end, call }))
}

impl Found {
    /// Takes it out: the text that was there before comes back by an edit; true: the whole entry is to go.
    pub(super) fn take_out(self, edits: &mut Vec<Edit>) -> bool {
        match self.call {
            Call::Ours(None) => true,
            Call::Ours(Some(before)) => {
                edits.push(Edit { span: self.span, text: format!("\"{}\"", before.raw) });
                false
            }
            Call::ByHand | Call::Other(_) => false,
        }
    }
}

/// Whether `key` is the one that an entry of ours has.
pub(super) fn is_key(key: Option<&str>) -> bool {
    key == Some(KEY)
}

/// What was there before, as it was written, where the file still has it so; else written anew.
fn behind(raw: &str, head: &str, command: String) -> Before {
    let same = |tail: &str| serde_json::from_str(&format!("\"{tail}\"")).is_ok_and(|text: String| text == command);
    let tail = raw.strip_prefix(&encode(head)).filter(|tail| same(tail)).map(str::to_owned);
    Before { raw: tail.unwrap_or_else(|| encode(&command)), command }
}

/// The whole command.
fn command(form: &Form, before: Option<&str>) -> String {
    format!("{}{}", head(form, before), before.unwrap_or(NOTHING))
}

/// What stands in front of the command that was there before.
fn head(form: &Form, before: Option<&str>) -> String {
    let wrap = before.map(|before| format!(" --wrap {}", quoted(before))).unwrap_or_default();
    match form {
        Form::Shared => format!("{SHARED}{wrap}; "),
        Form::Exec(path) => {
            let path = word(path);
            format!("[ -x {path} ] && exec {path} statusline{wrap}; ")
        }
    }
}

/// In a file that a team shares: what cpw is called by where it is on PATH.
const SHARED: &str = "command -v cpw >/dev/null 2>&1 && exec cpw statusline";

/// Takes a command of our making apart: what stands in front of the one that was there before, and that.
fn read(command: &str) -> Option<(String, Option<String>)> {
    let rest = command.strip_prefix(SHARED).or_else(|| behind_exec(command))?;
    if rest.strip_prefix("; ") == Some(NOTHING) {
        return Some((String::new(), None));
    }
    let (before, tail) = first_word(rest.strip_prefix(" --wrap ")?)?;
    let tail = tail.strip_prefix("; ")?;
    Some((command[..command.len() - tail.len()].to_owned(), Some(before)))
}

/// What stands behind a call of cpw by its path.
fn behind_exec(command: &str) -> Option<&str> {
    let rest = command.strip_prefix("[ -x ")?;
    let (path, behind) = first_word(rest)?;
    let written = &rest[..rest.len() - behind.len()];
    let behind = behind.strip_prefix(" ] && exec ")?.strip_prefix(written)?.strip_prefix(" statusline")?;
    path.ends_with("/cpw").then_some(behind)
}

/// Whether a command calls `cpw statusline` at all.
fn calls_us(command: &str) -> bool {
    let is_call = |words: Vec<String>| {
        let mut words = words.into_iter().skip_while(|w| w == "exec" || is_assignment(w));
        words.next().is_some_and(|w| w == "cpw" || w.ends_with("/cpw"))
            && words.next().is_some_and(|w| w == "statusline")
    };
    simple_commands(command).is_some_and(|all| all.into_iter().any(is_call))
}

/// A text as one word for a shell.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The word that a command begins with, as [`word`] writes one, and what follows.
fn first_word(text: &str) -> Option<(String, &str)> {
    if !text.starts_with('\'') {
        let end = text.find(' ')?;
        return Some((text[..end].to_owned(), &text[end..]));
    }
    let mut out = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.strip_prefix('\'')?.split_once('\'')?;
        out.push_str(part);
        let Some(more) = behind.strip_prefix(r"\'") else { return Some((out, behind)) };
        out.push('\'');
        rest = more;
    }
}

/// A text as it stands between the quotes of a JSON string.
fn encode(text: &str) -> String {
    let whole = Value::from(text).to_string();
    whole[1..whole.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_line_wraps_is_told_from_everything_else() {
        let variable = |name: &str| (name == "HOME").then(|| "/home/u".to_owned());
        let of = |command: &str, wrapped: &str| {
            let settings = json!({"statusLine": {"type": "command", "command": command}}).to_string();
            wraps(settings.as_bytes(), wrapped, &variable)
        };
        for (command, wrapped) in [
            ("cpw statusline --wrap ./line.sh", "./line.sh"),
            ("exec /opt/cpw statusline --wrap='a \"b\"'", "a \"b\""),
            (r#"cpw statusline --wrap "a \"$HOME\" \x""#, r#"a "/home/u" \x"#),
            ("cpw statusline --wrap \"$HOME/line.sh\"", "/home/u/line.sh"),
            ("cpw statusline --wrap ~/line.sh", "/home/u/line.sh"),
            ("cpw statusline --wrap 'echo ${HOME} $'", "echo ${HOME} $"),
            ("CPW_LOG=debug cpw statusline --wrap '$(cat | head -c 1)'", "$(cat | head -c 1)"),
        ] {
            assert!(of(command, wrapped), "{command}");
        }
        for before in ["./line.sh", "it's `a` \"$b\"; exit 3", "two\nlines"] {
            for form in [Form::Shared, Form::Exec("/opt/a b/cpw".into())] {
                let made = command(&form, Some(before));
                assert!(of(&made, before) && !of(&made, "touch x"), "{made}");
            }
        }
        for (command, wrapped) in [
            ("cpw statusline", ""),
            ("cpw statusline --wrap a", "b"),
            ("cpw statusline --wrap a b", "b"),
            ("echo cpw statusline --wrap a", "a"),
            ("cpw status --wrap a", "a"),
            ("cpw statusline --wrap", "a"),
            ("a", "a"),
            ("cpw statusline --wrap `a`", "a"),
            ("cpw statusline --wrap '$X; a'", "; a; a"),
        ] {
            assert!(!of(command, wrapped), "{command}");
        }
        for odd in ["", "{", "[]", "{\"statusLine\": 1}", "{\"statusLine\": {\"command\": 1}}"] {
            assert!(!wraps(odd.as_bytes(), "a", &variable), "{odd}");
        }
    }
}
