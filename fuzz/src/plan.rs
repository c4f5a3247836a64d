//! Plans and configs as people write them: any bytes are one, or a list of mistakes; what is accepted can be written and is
//! accepted again, and is then the same.

use cpw::base::ids::RunId;
use cpw::logic::state::State;
use cpw::logic::view::View;
use cpw::model::check::{Defaults, Machine, plan_from_person, to_bytes};
use cpw::model::config::{self, Config, Settings};
use cpw::model::describe;
use cpw::model::expand::{Match, expand};
use cpw::model::json::{self, MAX_BYTES, Problem};
use cpw::model::plan::{MAX_TASKS, Plan};
use cpw::model::words::Words;
use serde_json::Value;

/// Any bytes as a plan of a person, as a `plan.json` of a run, and as a project's config and a user's.
pub fn check(bytes: &[u8]) {
    by_hand(bytes);
    if let Ok(plan) = serde_json::from_slice::<Plan>(bytes) {
        // Its hash is looked at later than this.
        State::new(&plan);
    }
    project(bytes);
    if let Err(problems) = config::user_config(bytes) {
        are_told(&problems);
    }
}

pub(super) fn are_told(problems: &[Problem]) {
    assert!(!problems.is_empty(), "refused without a reason");
    for problem in problems {
        // Of JSON that cannot be read, a line; of a value, its path.
        let has_place = problem.path.starts_with('$') || problem.path.starts_with("line ");
        assert!(has_place && !problem.what.is_empty(), "{problem:?}");
    }
    json::list(problems);
}

fn read(bytes: &[u8]) -> Result<Plan, Vec<Problem>> {
    let settings = Settings::default();
    let machine = Machine { cores: 4, mem_mib: 8192 };
    plan_from_person(bytes, RunId::new("r1").expect("an id"), &Defaults { settings: &settings, machine })
}

fn by_hand(bytes: &[u8]) {
    let plan = match read(bytes) {
        Ok(plan) => plan,
        Err(problems) => return are_told(&problems),
    };
    is_good(&plan);
    let written = to_bytes(&plan).expect("what was read can be written");
    let again = read(&written).unwrap_or_else(|p| panic!("{p:?}\n{}", String::from_utf8_lossy(&written)));
    assert_eq!(again, plan);
}

/// What a run begins with.
fn is_good(plan: &Plan) {
    let written = to_bytes(plan).expect("a plan that can be written");
    let again = serde_json::from_slice::<Plan>(&written).expect("a plan that can be read");
    assert_eq!(&again, plan);
    let state = State::new(plan);
    let queues = [&state.ready, &state.ready_claude, &state.ready_leased];
    assert!(queues.iter().any(|queue| !queue.is_empty()), "nothing can begin");
    assert_eq!(state.view, View::new(plan));
    assert!(
        plan.tasks.iter().all(|t| t.needs.iter().all(|n| n.task().is_none_or(|task| state.index_of(task).is_some()))),
        "a need of nothing"
    );
    describe::plan_text(plan);
}

fn project(bytes: &[u8]) {
    let config = match config::check(bytes) {
        Ok(config) => config,
        Err(problems) => return are_told(&problems),
    };
    assert_eq!(config::parse(bytes).as_ref(), Ok(&config), "approved, and then read otherwise");
    let value: Value = serde_json::from_slice(bytes).expect("a config is JSON");
    shown(&config, &value);
    let written = value.to_string();
    let again = config::check(written.as_bytes());
    assert_eq!(again.as_ref(), Ok(&config));
    start(&config, PROMPT);
}

/// What is shown of a config before it is approved, on a machine that has every other program and file.
pub(super) fn shown(config: &Config, written: &Value) -> String {
    let has = |name: &str| name.len().is_multiple_of(2);
    let program = |name: &str| if has(name) { Ok(format!("/usr/bin/{name}")) } else { Err("not found".to_owned()) };
    let is_project_file = |path: &str, _: &str| has(path);
    describe::what_could_run(
        config,
        written,
        &describe::Machine { program: &program, is_project_file: &is_project_file },
    )
}

/// A prompt that most rules can do something with.
pub(super) const PROMPT: &str = "Analyze a.py, b/c.py and -d.py, then \"run\" {{item}} of x, y and z";

/// What the rules make of a prompt, if it names these files beside its own.
pub(super) fn start(config: &Config, prompt: &str) {
    let words = Words::read(prompt);
    let mut files = vec!["a.py".to_owned(), "b/c.py".to_owned(), "-d.py".to_owned()];
    files.extend(words.mentions().iter().cloned());
    for rule in &config.rules {
        rule.is_excluded(words.own());
        let hits = rule.prompt_matches(words.own());
        words.asks_any(hits.iter().map(|hit| hit.at.clone()));
        let texts = hits.first().map(|hit| hit.group_texts(words.own())).unwrap_or_default();
        let found = Match {
            rule,
            prompt,
            prompt_file: "prompt.txt",
            files: rule.files_that_count(&files),
            globbed: files.clone(),
            groups: texts.into_iter().map(str::to_owned).collect(),
        };
        let machine = Machine { cores: 4, mem_mib: 8192 };
        let defaults = Defaults { settings: &config.settings, machine };
        match expand(&found, RunId::new("r1").expect("an id"), None, &defaults) {
            Ok(plan) => {
                is_good(&plan);
                assert!(plan.tasks.len() <= MAX_TASKS, "{} tasks", plan.tasks.len());
                assert!(to_bytes(&plan).is_ok_and(|bytes| bytes.len() <= 2 * MAX_BYTES), "longer than any plan");
            }
            Err(problems) => are_told(&problems),
        }
    }
}
