//! What the model promises that only the world outside shows: the starter's script in a real shell, and the time that
//! large plans take.

use cpw::base::ids::RunId;
use cpw::model::check::{Defaults, Machine, plan_from_person};
use cpw::model::config;
use cpw::model::plan::Action;
use cpw::model::starter::STARTER;
use serde_json::{Value, json};

/// The script runs where `sh` and `awk` are, in a folder without git, on a file with an unpleasant name.
#[test]
fn the_starter_script_reports_on_a_file() {
    let config = config::check(STARTER.as_bytes()).unwrap_or_else(|p| panic!("{p:#?}"));
    let Action::Shell(script) = &config.rules[0].tasks[0].action else {
        panic!("the starter's task is a script");
    };
    let dir = tempfile::tempdir().unwrap();
    let name = "a b;$(touch oops)=1.py";
    std::fs::write(dir.path().join(name), "x\nlonger %d line\n# TODO: mend\n").unwrap();
    let run = |item: &str| {
        let mut sh = std::process::Command::new("sh");
        sh.arg("-c").arg(script).env("CPW_ITEM", item).env("GIT_CEILING_DIRECTORIES", dir.path());
        sh.current_dir(dir.path()).output().unwrap()
    };
    let output = run(name);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "3 lines, longest 14 characters (line 2), TODO marks: 1\n- line 3: # TODO: mend\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(!run("missing.py").status.success());
}

#[test]
fn ten_thousand_tasks_in_a_chain_and_all_mistakes_of_ten_thousand() {
    let chain: Vec<Value> = (0..10_000)
        .map(|i| json!({"id": format!("t{i}"), "run": ["x"], "needs": if i == 0 { vec![] } else { vec![format!("t{}", i - 1)] }}))
        .collect();
    let begin = std::time::Instant::now();
    let read = |tasks: &[Value]| {
        let settings = config::Settings::default();
        let defaults = Defaults { settings: &settings, machine: Machine { cores: 4, mem_mib: 8192 } };
        let text = json!({"version": 1, "tasks": tasks}).to_string();
        plan_from_person(text.as_bytes(), RunId::new("r1").unwrap(), &defaults)
    };
    assert_eq!(read(&chain).unwrap().tasks.len(), 10_000);
    let mut circle = chain.clone();
    circle[0]["needs"] = json!(["t9999"]);
    let found = read(&circle).unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(found[0].what.len() < 200, "{}", found[0].what);
    let wrong: Vec<Value> =
        (0..10_000).map(|i| json!({"id": format!("t{i}"), "run": ["x"], "needs": [format!("u{i}")]})).collect();
    assert_eq!(read(&wrong).unwrap_err().len(), 10_000);
    let dense: Vec<Value> =
        (0..10_000).map(|i| json!({"id": format!("t{i}"), "run": ["x"], "needs": ["t*"]})).collect();
    assert!(read(&dense).unwrap_err().iter().any(|p| p.path == "$"));
    // All of it together is far from this; what is quadratic is far beyond.
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    let many: Vec<Value> = (0..=10_000).map(|i| json!({"id": format!("t{i}"), "run": ["x"]})).collect();
    assert_eq!(read(&many).unwrap_err()[0].path, "$.tasks");
}
