//! The shape of the source, guarded by reading it: which room may use which, that the pure rooms stay pure, that the
//! operating system's crates stay in one room, and who may write to the terminal or end the process. A rule that is broken
//! is named with file and line.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Per room, the rooms that it may name beside itself. `hook` and `cmd`, the two faces, never name each other.
const MAY_USE: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("model", &["base"]),
    ("logic", &["base", "model"]),
    ("sys", &["base", "model"]),
    ("store", &["base", "model", "logic", "sys"]),
    ("actor", &["base", "model", "logic", "sys", "store"]),
    ("ui", &["base", "model", "logic", "sys"]),
    ("hook", &["base", "model", "logic", "sys", "store", "actor"]),
    ("cmd", &["base", "model", "logic", "sys", "store", "actor", "ui"]),
    ("cli", &["base", "ui", "cmd"]),
    ("lib", &[]),
    ("main", &["hook", "cli"]),
];

/// What a room may name of another one, where that is not all of it.
const ONLY: &[(&str, &str, &str)] = &[("sys", "model", "model::event")];

/// Words that make a function depend on more than its arguments: files, processes, clocks, the operating system.
const IMPURE: &[&str] = &[
    r"\bstd::fs\b",
    r"\bstd::process\b",
    r"\bstd::env\b",
    r"\bstd::net\b",
    r"\bstd::thread\b",
    r"\bSystemTime\b",
    r"\bInstant\b",
    r"\bUtc::now\b",
    r"\bLocal::now\b",
    r"\bnix::",
    r"\blibc::",
    r"\bfs2::",
];

/// A source file: its room, its path below `src`, and its lines without comments, texts and tests.
struct Source {
    room: String,
    name: String,
    lines: Vec<(usize, String)>,
}

fn sources() -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![top.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned();
                let room = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
                // A file of tests, or of means for them.
                if matches!(path.file_stem().unwrap().to_str(), Some("tests" | "testing")) {
                    continue;
                }
                found.push(Source { room, name, lines: code(&std::fs::read_to_string(&path).unwrap()) });
            }
        }
    }
    assert!(found.len() > 60, "the sources were not found: {}", found.len());
    found
}

/// The lines of a file up to its tests, which stand last, each with its number; comments and texts are taken out.
fn code(text: &str) -> Vec<(usize, String)> {
    let strings = Regex::new(r##"r#".*?"#|"(?:[^"\\]|\\.)*""##).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let tests = (1..lines.len()).find(|&i| lines[i].starts_with("mod tests") && lines[i].ends_with('{'));
    let mut out = Vec::new();
    for (i, line) in lines[..tests.unwrap_or(lines.len())].iter().enumerate() {
        let line = strings.replace_all(line, "\"\"");
        out.push((i + 1, line.split("//").next().unwrap_or_default().to_owned()));
    }
    out
}

/// Every path below `crate` or `cpw` that the code names, two names deep, with its line. Groups like `crate::{a, b::c}` and
/// `crate::model::{event, plan}` are taken apart.
fn paths(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let start = Regex::new(r"\b(?:crate|cpw)::").unwrap();
    let mut text = String::new();
    let mut number_at: BTreeMap<usize, usize> = BTreeMap::new();
    for (number, line) in lines {
        number_at.insert(text.len(), *number);
        text.push_str(line);
        text.push('\n');
    }
    let mut found = Vec::new();
    for m in start.find_iter(&text) {
        let line = number_at.range(..=m.start()).next_back().map_or(0, |(_, n)| *n);
        found.extend(expand("", &text[m.end()..]).0.into_iter().map(|path| (line, path)));
    }
    found
}

/// The paths that `rest` begins with, and how much of it they take.
fn expand(prefix: &str, rest: &str) -> (Vec<String>, usize) {
    let join = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    let space = rest.len() - rest.trim_start().len();
    let body = &rest[space..];
    if let Some(inner) = body.strip_prefix('{') {
        let (mut all, mut at) = (Vec::new(), 0);
        loop {
            at += inner[at..].len() - inner[at..].trim_start_matches([',', ' ', '\n']).len();
            if at >= inner.len() || inner[at..].starts_with('}') {
                return (all, space + at + 2);
            }
            let (some, taken) = expand(prefix, &inner[at..]);
            all.extend(some);
            at += taken.max(1);
        }
    }
    let word = body.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(body.len());
    let name = &body[..word];
    match body[word..].strip_prefix("::") {
        Some(after) if name.starts_with(char::is_lowercase) => {
            let (all, taken) = expand(&join(name), after);
            (all, space + word + 2 + taken)
        }
        _ => (vec![join(name)], space + word),
    }
}

fn check(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

fn forbidden(source: &Source) -> Vec<String> {
    let (_, may) = MAY_USE
        .iter()
        .find(|(room, _)| *room == source.room)
        .unwrap_or_else(|| panic!("{} is in no room: add it to MAY_USE", source.name));
    let mut broken = Vec::new();
    for (line, path) in paths(&source.lines) {
        let used = path.split("::").next().unwrap_or_default();
        let at = format!("src/{}:{line}", source.name);
        if used == source.room {
            continue;
        }
        if !may.contains(&used) {
            broken.push(format!("{at}: {} must not use {path}", source.room));
        }
        for (room, other, only) in ONLY {
            let within = path == *only || path.starts_with(&format!("{only}::"));
            if *room == source.room && *other == used && !within {
                broken.push(format!("{at}: {room} may use nothing of {other} but {only}, not {path}"));
            }
        }
    }
    broken
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let all = sources();
    for (room, _) in MAY_USE {
        assert!(all.iter().any(|s| s.room == *room), "there is no room {room}");
    }
    check(&all.iter().flat_map(forbidden).collect::<Vec<_>>());
}

#[test]
fn the_pure_rooms_know_no_file_process_or_clock() {
    let words: Vec<Regex> = IMPURE.iter().map(|w| Regex::new(w).unwrap()).collect();
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| matches!(s.room.as_str(), "model" | "logic")) {
        for (line, text) in &source.lines {
            if let Some(word) = words.iter().find(|w| w.is_match(text)) {
                broken.push(format!("src/{}:{line}: {} in a pure room: {}", source.name, word.as_str(), text.trim()));
            }
        }
    }
    check(&broken);
}

#[test]
fn the_operating_system_stays_in_its_room() {
    // `fs2` behind a colon of its own is the crate; `std::os::unix::fs` is not.
    let crates = Regex::new(r"\b(nix|libc|fs2)::|\buse (nix|libc|fs2)\b|\bunsafe\b").unwrap();
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| s.room != "sys") {
        for (line, text) in source.lines.iter().filter(|(_, text)| crates.is_match(text)) {
            broken.push(format!("src/{}:{line}: belongs into sys: {}", source.name, text.trim()));
        }
    }
    check(&broken);
}

/// Who writes to stdout, stderr or the terminal, or ends the process; everybody else returns what there is to say.
const SPEAKERS: &[(&str, &str)] = &[
    ("ui/", "the terminal is this room's business"),
    ("hook/answer.rs", "the answer of a hook is protocol, not text for a person"),
    ("hook/mod.rs", "a panic must end a hook with exit code 0"),
];

#[test]
fn only_a_few_write_or_leave() {
    let words = Regex::new(r"\be?print(ln)?!|\bprocess::(exit|abort)\b|\bstd(out|err)\(\)\.(lock|write)").unwrap();
    let mut broken = Vec::new();
    for source in sources() {
        if SPEAKERS.iter().any(|(place, _)| source.name.starts_with(place)) {
            continue;
        }
        for (line, text) in source.lines.iter().filter(|(_, text)| words.is_match(text)) {
            broken.push(format!("src/{}:{line}: must not write or leave itself: {}", source.name, text.trim()));
        }
    }
    check(&broken);
}

/// Who names the library that fills a terminal's screen: where it is drawn, and where columns are counted as it counts them.
const DRAWERS: &[&str] = &["ui/fit.rs", "ui/top/draw.rs", "ui/top/screen.rs"];

#[test]
fn the_terminal_library_stays_where_screens_are_drawn() {
    let crates = Regex::new(r"\b(ratatui|crossterm)\b").unwrap();
    let mut broken = Vec::new();
    let mut found = 0;
    for source in sources() {
        let named: Vec<_> = source.lines.iter().filter(|(_, text)| crates.is_match(text)).collect();
        if DRAWERS.contains(&source.name.as_str()) {
            found += usize::from(!named.is_empty());
            continue;
        }
        let at = |(line, text): &(usize, String)| format!("src/{}:{line}: draws itself: {}", source.name, text.trim());
        broken.extend(named.into_iter().map(at));
    }
    assert_eq!(found, DRAWERS.len(), "who draws has another name now");
    check(&broken);
}

#[test]
fn these_checks_can_fail() {
    let planted = |room: &str, text: &str| {
        let source = Source { room: room.into(), name: format!("{room}/planted.rs"), lines: code(text) };
        forbidden(&source)
    };
    for (room, text) in [
        ("base", "use crate::model::event;"),
        ("model", "fn f() { crate::sys::clock::mono_ms(); }"),
        ("logic", "use crate::store::{log, run};"),
        ("sys", "use crate::model::plan;"),
        ("sys", "use crate::model::{event::Process, plan};"),
        ("store", "use crate::{\n    base::ids,\n    actor::crew,\n};"),
        ("ui", "use crate::store::run;"),
        ("hook", "use crate::cmd;"),
        ("hook", "use crate::ui::print;"),
        ("cmd", "use crate::hook::Hook;"),
        ("cli", "use crate::store::run;"),
    ] {
        assert!(!planted(room, text).is_empty(), "{room}: {text}");
    }
    for (room, text) in [
        ("base", "// use crate::model;\nconst A: &str = \"crate::model\";"),
        ("sys", "use crate::model::event::{Process, Body};\nuse crate::base::env;"),
        ("store", "use crate::{base::ids, sys::{dir::Dir, lock}};"),
        ("model", "use crate::model::{check, plan};\nmod tests {\n use crate::sys::clock;\n}"),
    ] {
        assert_eq!(planted(room, text), Vec::<String>::new(), "{room}: {text}");
    }
    let names: Vec<String> = paths(&code("use crate::{base::{env, ids::*}, cmd};")).into_iter().map(|p| p.1).collect();
    assert_eq!(names, ["base::env", "base::ids::*", "cmd"]);
}
