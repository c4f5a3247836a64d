//! `examples/plugin`: what is in it cannot drift from the program, the client's own check accepts it, and a session that loads
//! it by `--plugin-dir` shows the model what the settings of `cpw init` would: hooks, the skill, the commands. Beside
//! `cpw init` each hook runs twice, and the model hears everything once all the same.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::path::{Path, PathBuf};

use cpw::model::settings::{Form, install};
use cpw::model::{config, json as problems};
use regex::Regex;
use serde_json::{Value, json};
use support::api::{Api, Request, Script, Turn};
use support::client::{Client, Installed, LIMIT};
use support::offline::on_each_client;
use support::world::{World, wait_for};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/plugin")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

#[test]
fn its_hooks_are_those_of_cpw_init_and_its_version_is_ours() {
    let wired = String::from_utf8(install(None, &Form::Shared).unwrap()).unwrap();
    assert_eq!(page("hooks/hooks.json"), wired, "copy it: cpw init --print in an empty folder");
    let manifest: Value = serde_json::from_str(&page(".claude-plugin/plugin.json")).unwrap();
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(page("LICENSE"), page("../../LICENSE"));
}

#[test]
fn what_the_skill_teaches_is_true() {
    let page = page("skills/cpw/rules.md");
    let blocks: Vec<&str> = page.split("```json\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
    let [rules, plan] = blocks[..] else { panic!("a rule and a plan: {blocks:?}") };
    config::check(rules.as_bytes()).unwrap_or_else(|wrong| panic!("{}", problems::list(&wrong)));
    let world = World::new();
    world.write("plan.json", plan);
    let out = world.cpw(&["plan", "plan.json"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Every command line of cpw that a page names is one that there is.
#[test]
fn the_commands_that_it_names_exist() {
    let commands = cpw::cli::definition();
    let call = Regex::new(r"\bcpw ([a-z][a-z-]+)").unwrap();
    for name in ["README.md", "skills/cpw/SKILL.md", "skills/cpw/rules.md", "commands/status.md", "commands/cancel.md"]
    {
        let page = page(name);
        for code in page.split('`').skip(1).step_by(2) {
            for found in call.captures_iter(code) {
                let known = commands.find_subcommand(&found[1]).is_some() || code.starts_with("cpw has started");
                assert!(known, "{name}: {code}");
            }
        }
    }
}

#[test]
fn the_client_accepts_it_without_a_warning() {
    on_each_client(|installed| {
        let world = World::new();
        let mut command = world.command(&installed.path);
        command.args(["plugin", "validate"]).arg(folder());
        let out = command.env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1").env("DISABLE_AUTOUPDATER", "1").output();
        let out = out.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && said.contains("Validation passed"), "{said}");
        assert!(!said.contains("warning") && !said.contains('\u{26a0}'), "{said}");
    });
}

#[cfg(test)]
const PROMPT: &str = "Analyze api.py and db.py";

/// Tasks that end once a file is there.
#[cfg(test)]
fn project() -> World {
    let world = World::new();
    world.write("api.py", "1\n");
    world.write("db.py", "2\n");
    let task = r#"echo "Findings about $CPW_ITEM"; until [ -e "$HOME/go" ]; do sleep 0.02; done"#;
    let config = json!({"version": 1, "rules": [{
        "name": "analyze",
        "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
        "for_each": "files",
        "tasks": [{"id": "analyze-{{item.stem}}", "shell": task}],
    }]});
    world.write(".claude/cpw.json", &config.to_string());
    let out = world.cpw(&["allow", "--yes"]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    world
}

/// A prompt that starts two tasks, which end while the model answers; what it was shown, request by request.
#[cfg(test)]
fn play(installed: &Installed, world: &World) -> Vec<Request> {
    let go = world.home().join("go");
    let script = Script::new()
        .ask(move |_: &Request| {
            std::fs::write(&go, "").unwrap();
            Turn::text("Begun.")
        })
        .then(Turn::text("Finished."));
    let api = Api::start(script);
    let printed = Client::new(installed, world, &api).arg("--plugin-dir").arg(folder()).print(PROMPT);
    assert_eq!(printed.text(), "Finished.");
    api.requests()
}

#[cfg(test)]
fn assert_told_once(world: &World, requests: &[Request]) {
    assert_eq!(requests.len(), 2, "{:?}", requests.iter().map(Request::news).collect::<Vec<_>>());
    for fact in ["cpw has started 2 tasks beside", "done: api.py: \"Findings", "done: db.py: \"Findings"] {
        assert_eq!(requests[1].count(fact), 1, "{fact}: {:?}", requests[1].news());
    }
    let runs = std::fs::read_dir(world.project().join(".claude/runs")).unwrap().flatten();
    let runs: Vec<_> = runs.map(|e| e.file_name()).filter(|name| name.to_string_lossy().starts_with("20")).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
}

#[test]
fn a_session_that_loads_it_has_hooks_skill_and_commands() {
    on_each_client(|installed| {
        let world = project();
        let requests = play(installed, &world);
        assert_told_once(&world, &requests);
        let shown = requests[0].body.to_string();
        assert!(shown.contains("cpw:cpw") && shown.contains("that W2 is done; where the results are"), "no skill");
        // The command expands to what `cpw status` says; nothing but that may run without asking.
        let api = Api::start(Script::new().then(Turn::text("Two tasks are done.")));
        let printed = Client::new(installed, &world, &api).mode("default").arg("--plugin-dir").arg(folder());
        assert_eq!(printed.print("/cpw:status").text(), "Two tasks are done.");
        let [request] = &api.requests()[..] else { panic!("{} requests", api.requests().len()) };
        assert_eq!(request.count("How it stands, as `cpw status` says"), 1);
        assert!(request.count("2 done") > 0 && request.count("analyze") > 0, "{:?}", request.texts_shown());
    });
}

#[test]
fn beside_cpw_init_everything_is_told_once() {
    on_each_client(|installed| {
        let world = project();
        let out = world.cpw(&["init", "--local"]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let requests = play(installed, &world);
        assert_told_once(&world, &requests);
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("the workers leave");
    });
}
