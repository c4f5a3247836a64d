//! Every folder of `examples/` does what its page says: the commands of the page are run as they stand, in a copy of the folder,
//! and the same work beside a real client, where what counts is what the model was shown. Nothing here depends on which task
//! is the faster one.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use serde_json::{Value, json};
use support::api::{Api, Request, Script, Turn, tool_use_id};
use support::client::{Client, Installed};
use support::offline::on_each_client;
use support::world::World;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A project that is a copy of an example.
fn project(name: &str) -> World {
    let world = World::new();
    copy(&example(name), &world.project());
    world
}

/// The same with cpw wired in and its rules approved; `before` is a script of the example that is run first.
fn wired(name: &str, before: &str) -> Arc<World> {
    let world = project(name);
    let out = shell(&world, &format!("{before}\ncpw init && cpw allow --yes"));
    assert!(out.status.success(), "{out:?}");
    Arc::new(world)
}

fn shell(world: &World, script: &str) -> Output {
    world.command("sh").args(["-ec", script]).output().unwrap()
}

/// The blocks of commands on an example's page.
fn blocks(name: &str) -> Vec<String> {
    let page = fs::read_to_string(example(name).join("README.md")).unwrap();
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Runs a block of an example's page, which ends with this exit code; what it said.
fn run(world: &World, block: &str, code: i32) -> String {
    let out = shell(world, block);
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{block}\n{said}");
    said
}

/// Plays a turn of the example's prompt with a client, and looks at what was sent and what is left.
fn play(
    installed: &Installed,
    (world, script): (Arc<World>, Script),
    prompt: &str,
    last: &str,
    check: impl Fn(&World, &[Request]),
) {
    let api = Api::start(script);
    let printed = Client::new(installed, &world, &api).mode("bypassPermissions").print(prompt);
    assert_eq!(printed.text(), last, "{:#?}", api.requests().last().map(Request::news));
    check(&world, &api.requests());
}

/// How often any request's last message was about this: what is told is told once.
fn told(requests: &[Request], text: &str) -> usize {
    requests.last().map_or(0, |last| last.count(text))
}

fn bash(command: &str) -> Turn {
    Turn::tool("Bash", json!({"command": command}))
}

#[test]
fn every_example_has_a_page_with_commands_and_a_line_in_readme() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let folders = fs::read_dir(example("")).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir());
    let names: Vec<String> = folders.map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(!blocks(&name).is_empty(), "{name}");
        assert!(readme.contains(&format!("examples/{name}")), "{name} is not in README");
    }
}

#[test]
fn large_files() {
    let world = project("large-files");
    let [block] = &blocks("large-files")[..] else { panic!("the page has another number of blocks") };
    let said = run(&world, block, 0);
    assert!(said.contains("3 done") && said.contains("january.csv: 120000 rows"), "{said}");
    drop(world);
    let make = || {
        let world = wired("large-files", "./prepare.sh");
        let path = |name: &str| world.project().join(name);
        let (read, write) = (json!({"file_path": path("february.csv")}), path("report.md"));
        let script = Script::new()
            .ask(move |request: &Request| {
                assert_eq!(request.count("cpw has started 3 tasks beside this conversation"), 1);
                Turn::tool("Read", read)
            })
            .ask(move |request: &Request| {
                // Not the file, which has 120,000 rows: what its worker found.
                let read = request.tool_result(&tool_use_id(0, 0)).expect("the read came back");
                assert!(read.contains("february.csv: 120000 rows, sum "), "{read}");
                Turn::tool("Write", json!({"file_path": write, "content": "# First quarter"}))
            })
            .then(Turn::text("The report is written."))
            .then(Turn::text("The report is written."));
        (world, script)
    };
    on_each_client(|installed| {
        play(installed, make(), THREE_MONTHS, "The report is written.", |world, requests| {
            let report = world.read("report.md").expect("the report");
            assert!(report.starts_with("# First quarter\n"), "{report}");
            for month in ["january", "february", "march"] {
                assert_eq!(report.matches(&format!("{month}.csv: 120000 rows")).count(), 1, "{report}");
                assert_eq!(told(requests, &format!("done: {month}.csv: \"{month}.csv: 120000 rows")), 1);
            }
            assert!(requests.len() <= 4, "{}", requests.len());
        });
    });
}

const THREE_MONTHS: &str = "Analyze january.csv, february.csv and march.csv and write report.md";

#[test]
fn benchmarks() {
    let world = project("benchmarks");
    let [block] = &blocks("benchmarks")[..] else { panic!("the page has another number of blocks") };
    let said = run(&world, block, 0);
    assert!(said.contains("3 done") && said.contains("modules/sort.sh: "), "{said}");
    drop(world);
    let make = || {
        let script = Script::new()
            .ask(|request: &Request| {
                assert_eq!(request.count("cpw has started 3 tasks beside this conversation"), 1);
                Turn::text("I will wait for the figures.")
            })
            .ask(|request: &Request| {
                for module in ["sort", "primes", "words"] {
                    assert_eq!(request.count(&format!("modules/{module}.sh: \"modules/{module}.sh: ")), 1);
                }
                Turn::text("All three are measured.")
            });
        (wired("benchmarks", ""), script)
    };
    // Stop has held until the last of them was in: at the cost of one request.
    on_each_client(|installed| {
        play(installed, make(), "Benchmark the modules", "All three are measured.", |_, requests| {
            assert_eq!(requests.len(), 2);
        });
    });
}

#[test]
fn deploy() {
    let world = project("deploy");
    let [failing, mended] = &blocks("deploy")[..] else { panic!("the page has another number of blocks") };
    let said = run(&world, failing, 1);
    assert!(said.contains("testing") && said.contains("1 skipped"), "{said}");
    assert!(!world.project().join("servers/production").exists());
    let said = run(&world, mended, 0);
    assert!(said.contains("3 done"), "{said}");
    assert_eq!(world.read("servers/production/app"), world.read("app"));
    drop(world);
    let make = || {
        let script = Script::new()
            .ask(|_: &Request| bash("./deploy.sh production"))
            .ask(|request: &Request| {
                assert_eq!(request.tool_failed(&tool_use_id(0, 0)), Some(true));
                let why = request.tool_result(&tool_use_id(0, 0)).expect("a result");
                assert!(why.contains("testing failed"), "{why}");
                Turn::text("I will stop here.")
            })
            .then(Turn::text("Testing failed, so production stays as it is."))
            .then(Turn::text("Testing failed, so production stays as it is."));
        (wired("deploy", ""), script)
    };
    on_each_client(|installed| {
        play(
            installed,
            make(),
            "Deploy the app",
            "Testing failed, so production stays as it is.",
            |world, requests| {
                for part in [
                    "CRITICAL: testing failed (exit 1).",
                    "CRITICAL: \"Production deployment\" blocked: testing failed.",
                ] {
                    assert_eq!(told(requests, part), 1, "{part}: {:?}", requests.last().map(Request::news));
                }
                assert!(!world.project().join("servers/production").exists());
                assert_eq!(requests.len(), 3);
            },
        );
    });
}

#[test]
fn review() {
    let world = project("review");
    let [block] = &blocks("review")[..] else { panic!("the page has another number of blocks") };
    let said = run(&world, block, 0);
    assert!(said.contains("4 done"), "{said}");
    assert!(world.read("greet.sh").unwrap().contains("hello, ${1:-you}"));
    drop(world);
    let make = |spoil: &'static str| {
        let voted = || Turn::text("They have voted.");
        // Where the verdict comes before the last reviewer is over, that one's end is a third request.
        (wired("review", spoil), Script::new().then(Turn::text("The reviewers are at it.")).then(voted()).then(voted()))
    };
    on_each_client(|installed| {
        play(installed, make(""), "Review the change", "They have voted.", |world, requests| {
            assert_eq!(
                told(requests, "Consensus: proceed (change: 2 for"),
                1,
                "{:?}",
                requests.last().map(Request::news)
            );
            assert!(world.read("greet.sh").unwrap().contains("hello, ${1:-you}"));
            assert_eq!(requests.len(), 2);
        });
    });
    // A line that ends in a space: two of three are against it.
    let spoiled = "sed -i '/^+echo/s/$/ /' change.diff";
    on_each_client(|installed| {
        play(installed, make(spoiled), "Review the change", "They have voted.", |world, requests| {
            let critical = "CRITICAL: change was voted down";
            assert_eq!(told(requests, critical), 1, "{:?}", requests.last().map(Request::news));
            assert_eq!(world.read("greet.sh").unwrap(), "#!/bin/sh\necho \"hello\"\n");
            assert!((2..=3).contains(&requests.len()), "{}", requests.len());
        });
    });
}

#[test]
fn pipeline() {
    let world = project("pipeline");
    let [block] = &blocks("pipeline")[..] else { panic!("the page has another number of blocks") };
    let said = run(&world, block, 0);
    assert!(said.contains("3 done") && said.contains("2 tests passed"), "{said}");
    assert!(world.project().join("out/app.tar").exists());
    let log = fs::read_to_string(run_log(&world)).unwrap();
    let at = |kind: &str, task: &str| {
        let is = |e: &Value| e["t"] == kind && e["task"] == task;
        log.lines().position(|l| serde_json::from_str(l).is_ok_and(|e: Value| is(&e))).unwrap()
    };
    assert!(
        at("checkpoint", "build") < at("started", "test") && at("done", "build") < at("started", "package"),
        "{log}"
    );
    drop(world);
    let make = || {
        let script = Script::new().then(Turn::text("It is being built.")).then(Turn::text("It is packed."));
        (wired("pipeline", ""), script)
    };
    on_each_client(|installed| {
        play(installed, make(), "Build the package", "It is packed.", |world, requests| {
            for said in ["done: test: \"2 tests passed\"", "All workers of rule pipeline are finished: 3 done."] {
                assert_eq!(told(requests, said), 1, "{said}: {:?}", requests.last().map(Request::news));
            }
            assert!(world.project().join("out/app.tar").exists());
            assert_eq!(requests.len(), 2);
        });
    });
}

/// The log of the only run.
fn run_log(world: &World) -> PathBuf {
    let all = fs::read_dir(world.project().join(".claude/runs")).unwrap().map(|e| e.unwrap().path());
    let runs = all.filter(|path| !path.ends_with("project"));
    runs.map(|run| run.join("events.jsonl")).find(|log| log.exists()).unwrap()
}
