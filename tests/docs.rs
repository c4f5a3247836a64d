//! The pages below `docs` are complete: every key that a schema has, every kind of event with its keys, every hook. A key
//! that is added to the code without a word about it fails here.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::Path;

use cpw::hook::Hook;
use cpw::model::event::Body;
use cpw::model::schema;
use regex::Regex;
use serde_json::Value;

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
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
