//! The pages are complete: every key that a schema has, every kind of event with its keys, every hook. A key that is added to
//! the code without a word about it fails here. And they are true as far as a program can tell: links and the files and tests
//! that they name are there, every command is one that cpw understands, and every piece of JSON fits its schema.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[path = "support/schema.rs"]
mod judge;
#[cfg(test)]
#[path = "support/shell.rs"]
mod shell;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cpw::hook::Hook;
use cpw::model::event::Body;
use cpw::model::schema;
use judge::fits;
use regex::Regex;
use serde_json::{Value, json};
use shell::{Until, calls, understood};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Every file below these folders whose name ends so.
fn files(folders: &[&str], ending: &str) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// All pages that people read, each with its path.
fn pages() -> Vec<(PathBuf, String)> {
    let found = files(&["README.md", "docs", "examples"], ".md");
    assert!(found.len() > 14, "{found:?}");
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The blocks between fences, each with its mark; what is left is the text.
fn blocks(text: &str) -> (Vec<(String, String)>, String) {
    let (mut found, mut rest) = (Vec::new(), String::new());
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(mark)) => open = Some((mark.to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some((_, block)), None) => block.extend([line, "\n"]),
            (None, None) => rest.extend([line, "\n"]),
        }
    }
    assert!(open.is_none(), "a block does not end: {open:?}");
    (found, rest)
}

/// What stands between backquotes in the text; in a table a bar is escaped.
fn quoted(text: &str) -> Vec<String> {
    Regex::new("`([^`\n]+)`").unwrap().captures_iter(text).map(|c| c[1].replace("\\|", "|")).collect()
}

/// Every name of a property, wherever it stands in a schema, as `parent.name`, and every fixed value of one.
fn names(schema: &Value, parent: &str, found: &mut BTreeSet<(String, String)>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => {
                        for (name, value) in properties {
                            found.insert((parent.to_owned(), name.clone()));
                            names(value, name, found);
                        }
                    }
                    ("enum", Value::Array(values)) => {
                        found
                            .extend(values.iter().filter_map(Value::as_str).map(|v| (parent.to_owned(), v.to_owned())));
                    }
                    ("$defs", Value::Object(defs)) => defs.iter().for_each(|(name, value)| names(value, name, found)),
                    ("description" | "examples" | "required" | "pattern", _) => {}
                    _ => names(value, parent, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, parent, found)),
        _ => {}
    }
}

/// The part of a page below a heading that names `title`, up to the next heading of any level.
fn section<'t>(page: &'t str, title: &str) -> Option<&'t str> {
    let at = page
        .match_indices("\n## ")
        .map(|(at, _)| at + 1)
        .find(|at| page[*at..].lines().next().unwrap_or_default().contains(title))?;
    let rest = &page[at..];
    Some(&rest[..rest.find("\n## ").unwrap_or(rest.len())])
}

fn says(text: &str, name: &str) -> bool {
    Regex::new(&format!("[`\".]{}[`\"]", regex::escape(name))).unwrap().is_match(text)
}

#[test]
fn every_key_of_configs_and_plans_is_explained() {
    let page = page("docs/config.md");
    for (title, schema) in [("config", schema::config_schema()), ("plan", schema::plan_schema())] {
        let mut found = BTreeSet::new();
        names(&schema, title, &mut found);
        assert!(found.len() > 40, "{found:?}");
        for (parent, name) in found {
            // Keys of `limits`, a task and so on have a section of their own; others stand with their parent.
            let place = section(&page, &format!("`{parent}`")).unwrap_or(&page);
            assert!(says(place, &name), "docs/config.md does not explain {parent}.{name} ({title}) in its place");
        }
    }
}

#[test]
fn every_kind_of_event_is_explained() {
    let page = page("docs/events.md");
    for name in Body::NAMES {
        assert!(page.contains(&format!("\n| `{name}` |")), "docs/events.md has no row for {name}");
    }
    let rows = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    let known: BTreeSet<&str> = Body::NAMES.iter().copied().collect();
    let envelope = ["t", "seq", "ts", "worker", "task", "attempt", "payload"];
    for row in rows {
        assert!(known.contains(row) || envelope.contains(&row), "docs/events.md explains {row}, which does not exist");
    }
    let mut envelope = BTreeSet::new();
    names(&schema::event_schema(), "event", &mut envelope);
    for (_, name) in envelope {
        assert!(says(&page, &name), "docs/events.md does not explain {name}");
    }
}

/// The keys of each payload, read from the types' own source: what serde writes is what stands there.
#[test]
fn every_key_of_an_event_is_explained() {
    let (page, source) = (page("docs/events.md"), page("src/model/event.rs"));
    let kinds = Regex::new(r#"(?m)^    (\w+)\((\w+)\) = "(\w+)","#).unwrap();
    let fields = Regex::new(r#"(?m)(?:rename = "(\w+)"[^\n]*\n)?^    pub (\w+):"#).unwrap();
    let mut seen = 0;
    for kind in kinds.captures_iter(&source) {
        let head = format!("pub struct {} {{", &kind[2]);
        let body = source.split(&head).nth(1).unwrap().split("\n}").next().unwrap();
        let row = page.lines().find(|l| l.starts_with(&format!("| `{}` |", &kind[3]))).unwrap();
        for field in fields.captures_iter(body) {
            seen += 1;
            let name = field.get(1).or(field.get(2)).unwrap().as_str();
            assert!(says(row, name), "docs/events.md: the row of {} does not name {name}", &kind[3]);
        }
    }
    assert!(seen > 40, "only {seen} keys were found");
}

#[test]
fn every_hook_is_explained() {
    let page = page("docs/hooks.md");
    for (name, hook) in Hook::ALL {
        assert!(page.contains(&format!("`cpw {name}`")), "docs/hooks.md says nothing about {name}");
        assert!(page.contains(&format!("{hook:?}")), "docs/hooks.md says nothing about {hook:?}");
    }
}

#[test]
fn every_room_is_in_the_architecture() {
    let page = page("docs/architecture.md");
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(says(&page, name), "docs/architecture.md says nothing about {name}");
    }
}

/// The name under which a heading can be linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let (_, text) = blocks(text);
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut seen = 0;
    for (path, text) in pages() {
        for target in link.captures_iter(&blocks(&text).1).map(|c| c[1].to_owned()).filter(|t| !t.contains("://")) {
            seen += 1;
            let (file, name) = target.split_once('#').unwrap_or((&target, ""));
            let there = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(there.exists(), "{}: {target} leads nowhere", path.display());
            if !name.is_empty() {
                let found = anchors(&fs::read_to_string(&there).unwrap());
                assert!(found.contains(name), "{}: {target}: no such heading, but {found:?}", path.display());
            }
        }
    }
    assert!(seen > 40, "only {seen} links were found");
}

/// Files that pages speak of as those of anybody's project.
const MADE_UP: [&str; 4] = ["src/api.test.py", "src/app", "src/app/x.rs", "src/apple.rs"];

#[test]
fn files_and_tests_that_are_named_exist() {
    let file = Regex::new(r"^(?:(?:src|tests|docs|examples|benches|fuzz|\.ci)/[\w./-]*\w|\w+\.rs)$").unwrap();
    let test = Regex::new(r"^(tests|src)/([\w/]+\.rs)::(\w+)$").unwrap();
    let sources = files(&["src", "tests", "benches"], ".rs");
    let mut seen = (0, 0);
    for (path, text) in pages().into_iter().filter(|(path, _)| !path.starts_with(root().join("examples"))) {
        for name in quoted(&blocks(&text).1) {
            let shown = path.display();
            if let Some(found) = test.captures(&name) {
                seen.1 += 1;
                let source = page(&format!("{}/{}", &found[1], &found[2]));
                assert!(source.contains(&format!("fn {}(", &found[3])), "{shown}: there is no test {name}");
            } else if file.is_match(&name) && !MADE_UP.contains(&name.as_str()) {
                seen.0 += 1;
                let there = root().join(&name).exists() || sources.iter().any(|source| source.ends_with(&name));
                assert!(there, "{shown}: there is no {name}");
            }
        }
    }
    assert!(seen.0 > 40 && seen.1 > 5, "{seen:?} were found");
}

#[test]
fn every_command_is_one_that_cpw_understands() {
    use clap::error::ErrorKind::{InvalidValue, MissingRequiredArgument};
    let mut seen = 0;
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        // These show what goes wrong, and are the help itself, which has its own tests.
        if path.ends_with("docs/errors.md") || path.ends_with("docs/cli.md") {
            continue;
        }
        let (blocks, text) = blocks(&text);
        let shown = blocks.iter().filter(|(mark, _)| matches!(mark.as_str(), "sh" | "text" | "console"));
        let lines = shown.flat_map(|(_, block)| block.lines().map(|l| (true, l.trim_start_matches("$ ").to_owned())));
        // What is shortened (`cpw lease …`) or has choices in it is a way of speaking.
        let spoken = |line: &String| line.contains(['…', '▸', '[', '<', '\\']) && !line.contains('\'');
        let named = quoted(&text).into_iter().filter(|q| !spoken(q)).map(|line| (false, line));
        for (whole, line) in lines.chain(named) {
            // `cpw` alone is its name.
            for words in calls(&line, Until::End).into_iter().filter(|words| words.len() > 1) {
                seen += 1;
                let short = |e: &clap::Error| {
                    let ends_early = words.last().is_some_and(|word| word.starts_with("--"));
                    e.kind() == MissingRequiredArgument || (e.kind() == InvalidValue && ends_early)
                };
                // In a sentence a command may be called by its name alone.
                if let Some(e) = understood(&words).err().filter(|e| whole || !short(e)) {
                    wrong.push(format!("{}: {line}: {e}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 150, "only {seen} commands were found");
}

#[test]
fn the_judge_of_schemas_finds_mistakes() {
    let (config, plan) = (schema::config_schema(), schema::plan_schema());
    let good = json!({"version": 1, "tasks": [{"id": "a", "run": ["x"], "timeout": "5m"}]});
    assert_eq!(fits(&plan, &plan, &good, "$"), Ok(()));
    for (pointer, value) in [
        ("/version", json!(2)),
        ("/tasks/0/timeout", json!("5")),
        ("/tasks/0/run", json!([])),
        ("/tasks/0", json!({"id": "a"})),
        ("/tasks/0", json!({"id": "a", "run": ["x"], "shell": "x"})),
        ("/tasks/0", json!({"id": "a..b", "run": ["x"]})),
        ("/tasks/0", json!({"id": "a", "run": ["x"], "retries": 1000})),
        ("/tasks/0", json!({"id": "a", "run": ["x"], "retry": 1})),
        ("/tasks/0", json!({"id": "a", "run": ["x"], "signals": ["stop"]})),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        assert!(fits(&plan, &plan, &bad, "$").is_err(), "{bad}");
    }
    assert!(fits(&config, &config, &json!({"rules": []}), "$").is_err());
}

/// What a piece of JSON on a page is, and whether it fits. Keys without braces around them are a part of something: of any
/// that has all of them.
fn judge(text: &str) -> Result<(), String> {
    let (config, plan, event) = (schema::config_schema(), schema::plan_schema(), schema::event_schema());
    let part = text.trim_start().starts_with('"');
    let value = if part { serde_json::from_str(&format!("{{{text}}}")) } else { serde_json::from_str(text) };
    let value: Value = value.map_err(|e| format!("{e}: {text}"))?;
    let has = |key: &str| value.get(key).is_some();
    if part {
        let (in_config, in_plan) = ([&config["$defs"], &config["properties"]], [&plan["$defs"], &plan["properties"]]);
        let below = |parts: [&Value; 2]| parts.iter().flat_map(|p| p.as_object().unwrap().values().cloned()).collect();
        let below = |whole: &Value, parts| -> Vec<Value> { [vec![whole.clone()], below(parts)].concat() };
        let places = [(&config, below(&config, in_config)), (&plan, below(&plan, in_plan))];
        let fit = places.iter().flat_map(|(whole, places)| places.iter().map(move |place| (*whole, place))).any(
            |(whole, place)| {
                let of = |(key, value): (&String, &Value)| {
                    place["properties"].get(key).is_some_and(|rule| fits(whole, rule, value, key).is_ok())
                };
                value.as_object().unwrap().iter().all(of)
            },
        );
        return if fit { Ok(()) } else { Err(format!("no part of a config or plan: {text}")) };
    }
    match () {
        () if has("seq") => fits(&event, &event, &value, "$"),
        () if has("when") => judge(&json!({"version": 1, "rules": [value]}).to_string()),
        () if has("rules") => {
            fits(&config, &config, &value, "$")?;
            cpw::model::config::check(text.as_bytes()).map(drop).map_err(|problems| format!("{problems:#?}"))
        }
        () if has("tasks") => fits(&plan, &plan, &value, "$"),
        // An entry of the client's settings.
        () if value["type"] == "command" => Ok(()),
        () => Err(format!("it is neither config, plan, rule nor event: {text}")),
    }
}

#[test]
fn every_piece_of_json_fits_its_schema() {
    let mut pieces: Vec<(PathBuf, String)> = Vec::new();
    for (path, text) in pages() {
        let json = blocks(&text).0.into_iter().filter(|(mark, _)| mark == "json");
        pieces.extend(json.map(|(_, block)| (path.clone(), block)));
        // A key with its value, in a sentence.
        let keys = quoted(&blocks(&text).1).into_iter().filter(|q| q.starts_with('"') && q.contains("\": "));
        pieces.extend(keys.filter(|q| !q.contains('…')).map(|q| (path.clone(), q)));
    }
    for path in files(&["examples"], ".json") {
        if path.ends_with("cpw.json") || path.parent().is_some_and(|folder| folder.ends_with("examples")) {
            pieces.push((path.clone(), fs::read_to_string(path).unwrap()));
        }
    }
    for path in files(&["tests/logs/v1"], "events.jsonl") {
        let text = fs::read_to_string(&path).unwrap();
        pieces.extend(text.lines().map(|line| (path.clone(), line.to_owned())));
    }
    assert!(pieces.len() > 12, "{}", pieces.len());
    let wrong = |(path, text): &(PathBuf, String)| judge(text).err().map(|e| format!("{}: {e}", path.display()));
    let wrong: Vec<String> = pieces.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
