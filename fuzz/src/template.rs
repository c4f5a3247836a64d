//! Templates: whatever text a rule has and whatever its values are, a value stands there as it is, is never read again, and
//! makes neither a further argument nor code of itself.

use cpw::base::ids::{RunId, check_id};
use cpw::model::check::{Defaults, Machine};
use cpw::model::code;
use cpw::model::config::{self, Config};
use cpw::model::draft::{ITEM_NAMES, PROMPT_NAMES};
use cpw::model::expand::{Match, expand};
use cpw::model::plan::{Action, Plan};
use cpw::model::template::{self, Piece};
use serde_json::{Value, json};

/// A character of no text that anybody writes: what stands between two of them was a value.
const MARK: char = '\u{10fffe}';

/// What an argument may begin with only where the rule says so.
const SPECIAL: [char; 3] = ['-', '+', '@'];

/// Lines of text: a template, two values, then the arguments of a program.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).replace([MARK, '\0'], "");
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (given, first, second) = (next(), next(), next());
    let values = [first, second];
    is_literal(given, &values);
    is_escaped(given, first);
    let argv: Vec<&str> = lines.take(20).collect();
    has_no_hole(&argv);
    becomes_a_plan(given, first, second, &argv);
}

/// Which value a name has.
fn choose<'v>(name: &str, values: &[&'v str; 2]) -> Option<&'v str> {
    (name != "unknown").then(|| values[name.len() % 2])
}

/// Filled with marks that are then replaced, a template is what it is when it is filled with the values: so nothing has
/// looked into them.
fn is_literal(given: &str, values: &[&str; 2]) {
    let filled = template::fill(given, |name| choose(name, values).map(str::to_owned));
    let mark = |name: &str| choose(name, values).map(|_| format!("{MARK}{}{MARK}", name.len() % 2));
    let mut marked = template::fill(given, mark);
    for (i, value) in values.iter().enumerate() {
        marked = marked.replace(&format!("{MARK}{i}{MARK}"), value);
    }
    assert_eq!(filled, marked, "{given:?}");
    let room: usize = template::names(given).map(|name| choose(name, values).map_or(name.len() + 4, str::len)).sum();
    assert!(filled.len() <= given.len() + room, "{given:?} has grown");
    if !given.contains("{{") {
        assert_eq!(filled, given);
    }
    let whole: usize = template::pieces(given)
        .map(|piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Name(name) => name.len() + 4,
        })
        .sum();
    assert!(whole <= given.len(), "{given:?} has more in its pieces");
}

/// Escaped text is text, also beside text of others.
fn is_escaped(given: &str, other: &str) {
    let escaped = template::escape(given);
    assert_eq!(template::names(&escaped).count(), 0, "{escaped:?}");
    let both = format!("{}{escaped}", template::escape(other));
    assert_eq!(template::fill(&both, |_| Some("FILLED".into())), format!("{other}{given}"));
}

/// Behind `sh -c` no template is let through, whatever stands before; what has no template is nobody's business.
fn has_no_hole(argv: &[&str]) {
    let words: Vec<String> = argv.iter().map(|w| (*w).to_owned()).collect();
    for (at, word) in words.iter().enumerate() {
        let hole = code::hole(&words[..at], word);
        if template::names(word).next().is_none() {
            assert_eq!(hole, None, "{words:?}");
        }
    }
    for shell in [["sh", "-c"], ["/bin/bash", "-ec"], ["python3", "-c"], ["perl", "-ne"]] {
        let before: Vec<String> = words.iter().map(String::as_str).chain(shell).map(str::to_owned).collect();
        assert!(code::hole(&before, "x {{item}}").is_some(), "{before:?}");
    }
}

fn rule(config: &[u8]) -> Option<Config> {
    // What is wrong with it is told; that it is, is what fuzzing plans is about.
    config::check(config).ok()
}

fn becomes_a_plan(given: &str, item: &str, prompt: &str, argv: &[&str]) {
    let run: Vec<&str> = std::iter::once("x").chain(argv.iter().copied()).chain([given]).collect();
    let of = |tasks: Value, merge: Value| {
        let rule = json!({"name": "r", "when": {"prompt": "x"}, "for_each": "files", "tasks": tasks, "merge": merge});
        json!({"version": 1, "rules": [rule]}).to_string()
    };
    let set = json!([{"tool": "Write", "needs": ["*"], "set": {"content": given}}]);
    // Each alone, since one mistake refuses all of a config.
    let all = [
        of(json!([{"id": "t-{{item}}", "run": run, "env": {"N": given}, "claims": ["{{item}}"]}]), json!([])),
        of(json!([{"id": "t-{{item.stem}}", "run": ["x", given, "{{item}}", "{{prompt}}"]}]), json!([])),
        of(json!([{"id": "s", "shell": given}]), json!([])),
        of(json!([{"id": "t-{{item.stem}}", "run": ["x", "{{item}}"]}]), set),
    ];
    for config in all.iter().filter_map(|text| rule(text.as_bytes())) {
        let found = Match {
            rule: &config.rules[0],
            prompt,
            prompt_file: "prompt.txt",
            files: vec![item.to_owned(), "other.py".to_owned()],
            globbed: Vec::new(),
            groups: Vec::new(),
        };
        let machine = Machine { cores: 4, mem_mib: 8192 };
        let defaults = Defaults { settings: &config.settings, machine };
        if let Ok(plan) = expand(&found, RunId::new("r1").expect("an id"), None, &defaults) {
            is_faithful(&config, &plan, item, prompt, given);
        }
    }
}

fn is_faithful(config: &Config, plan: &Plan, item: &str, prompt: &str, given: &str) {
    for task in &plan.tasks {
        assert!(check_id(task.id.as_str()).is_ok());
        let draft = config.rules[0].tasks.iter().find(|draft| match (&draft.action, &task.action) {
            (Action::Run(_), Action::Run(_)) | (Action::Shell(_), Action::Shell(_)) => true,
            (_, _) => false,
        });
        match (&task.action, &draft.expect("what it was made from").action) {
            (Action::Run(argv), Action::Run(templates)) => {
                assert_eq!(argv.len(), templates.len(), "{templates:?} has become {argv:?}");
                for (argument, template) in argv.iter().zip(templates) {
                    // Behind a value that is empty, the rule's own text may begin an option.
                    let own = template::pieces(template).find_map(|piece| match piece {
                        Piece::Text(text) => Some(text),
                        Piece::Name(_) => None,
                    });
                    let may = own.is_some_and(|text| text.starts_with(SPECIAL));
                    assert!(may || !argument.starts_with(SPECIAL), "{template:?} has become {argument:?}");
                    if template == "{{prompt}}" {
                        assert!(argument == prompt || *argument == format!(" {prompt}"));
                    }
                    if template == "{{item}}" {
                        let is_item = argument == item || *argument == format!("./{item}") || argument == "other.py";
                        assert!(is_item && task.item.as_ref() == Some(argument), "{argument:?}");
                    }
                }
            }
            (Action::Shell(script), _) => assert_eq!(script, given, "a script was changed"),
            (_, _) => {}
        }
    }
    for merge in &plan.merge {
        // What was known is text by now; what comes later is what the rule has named, and nothing that a value looks like.
        let later = template::names(given).filter(|name| !ITEM_NAMES.contains(name) && !PROMPT_NAMES.contains(name));
        assert!(template::names(&merge.set["content"]).eq(later), "{given:?} has become {:?}", merge.set);
    }
}
