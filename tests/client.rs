//! The real client, offline: what cpw's hooks rely on, each fact with trivial hooks, and that the means of these tests can
//! be trusted. For Linux, since only its namespaces keep the client from reaching outside.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::api::{Api, Script, Turn, UNSCRIPTED, tool_use_id};
use support::client::{Client, LIMIT};
use support::offline::{network_namespace, offline, on_each_client, outer_network_namespace};
use support::world::{MARK, World, wait_for};

/// An entry of `hooks` in the settings: this program for every call of the event.
#[cfg(test)]
fn hook(program: &Path) -> Value {
    json!([{"hooks": [{"type": "command", "command": program, "timeout": 60}]}])
}

#[cfg(test)]
fn read(file: &Path) -> Turn {
    Turn::tool("Read", json!({"file_path": file}))
}

#[test]
fn prompt_hook_gives_the_model_context() {
    on_each_client(|installed| {
        let world = World::new();
        let add =
            r#"{"hookSpecificOutput": {"hookEventName": "UserPromptSubmit", "additionalContext": "three workers"}}"#;
        let add = world.script("add.sh", &format!("cat > prompt.json\necho '{add}'"));
        world.settings(&json!({"hooks": {"UserPromptSubmit": hook(&add)}}));
        let api = Api::start(Script::new().then(Turn::text("Understood.")));

        let printed = Client::new(installed, &world, &api).print("Look around");

        assert_eq!(printed.text(), "Understood.");
        let requests = api.requests();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].count("UserPromptSubmit hook additional context: three workers"), 1);
        assert!(requests[0].texts_shown().iter().any(|text| text.contains("Look around")));
        let prompt: Value = serde_json::from_str(&world.read("prompt.json").expect("the hook ran")).expect("JSON");
        assert_eq!(prompt["prompt"], "Look around");
    });
}

#[test]
fn tool_hook_refuses_one_call_of_a_step() {
    on_each_client(|installed| {
        let world = World::new();
        let (taken, free) = (world.write("taken.txt", "alpha"), world.write("free.txt", "beta"));
        let deny = r#"{"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny",
            "permissionDecisionReason": "W1 has it"}}"#;
        let deny = world.script("deny.sh", &format!("grep -q taken.txt && echo '{deny}'\nexit 0"));
        world.settings(&json!({"hooks": {"PreToolUse": hook(&deny)}}));
        let both = read(&taken).and_tool("Read", json!({"file_path": free}));
        let api = Api::start(Script::new().then(both).then(Turn::text("Done.")));

        let printed = Client::new(installed, &world, &api).print("Read both");

        assert_eq!(printed.text(), "Done.");
        let requests = api.requests();
        assert_eq!(requests.len(), 2);
        let (first, second) = (tool_use_id(0, 0), tool_use_id(0, 1));
        assert_eq!(requests[1].tool_failed(&first), Some(true));
        // The current client puts `PreToolUse:Read hook error: ` before it.
        assert!(requests[1].tool_result(&first).is_some_and(|text| text.ends_with("W1 has it")));
        assert_eq!(requests[1].tool_failed(&second), Some(false));
        assert!(requests[1].tool_result(&second).is_some_and(|text| text.contains("beta")));
    });
}

#[test]
fn tool_hook_replaces_the_input() {
    on_each_client(|installed| {
        let world = World::new();
        let report = world.project().join("report.md");
        let rewrite = json!({"hookSpecificOutput": {"hookEventName": "PreToolUse",
            "updatedInput": {"file_path": report, "content": "by the hook"}}});
        let rewrite = world.script("rewrite.sh", &format!("echo '{rewrite}'"));
        world.settings(&json!({"hooks": {"PreToolUse": hook(&rewrite)}}));
        let write = Turn::tool("Write", json!({"file_path": report, "content": "by the model"}));
        let api = Api::start(Script::new().then(write).then(Turn::text("Written.")));

        let printed = Client::new(installed, &world, &api).print("Write the report");

        assert_eq!(printed.text(), "Written.");
        assert_eq!(api.requests().len(), 2);
        assert_eq!(world.read("report.md").as_deref(), Some("by the hook"));
    });
}

#[test]
fn step_hook_gives_context_once_a_step() {
    on_each_client(|installed| {
        let world = World::new();
        let (a, b) = (world.write("a.txt", "alpha"), world.write("b.txt", "beta"));
        let add = r#"{"hookSpecificOutput": {"hookEventName": "PostToolBatch", "additionalContext": "W2 done"}}"#;
        let add = world.script("add.sh", &format!("echo '{add}'"));
        world.settings(&json!({"hooks": {"PostToolBatch": hook(&add)}}));
        let both = read(&a).and_tool("Read", json!({"file_path": b}));
        let api = Api::start(Script::new().then(both).then(read(&a)).then(Turn::text("Done.")));

        let printed = Client::new(installed, &world, &api).print("Read both");

        assert_eq!(printed.text(), "Done.");
        let counts: Vec<usize> = api.requests().iter().map(|request| request.count("W2 done")).collect();
        assert_eq!(counts, [0, 1, 2]);
        let news = api.requests()[2].news();
        assert_eq!(news.iter().filter(|text| text.contains("W2 done")).count(), 1, "{news:#?}");
    });
}

#[test]
fn holding_stop_hook_costs_no_request() {
    on_each_client(|installed| {
        let world = World::new();
        let hold = world.script("hold.sh", "sleep 2\ntouch held");
        world.settings(&json!({"hooks": {"Stop": hook(&hold)}}));
        let api = Api::start(Script::new().then(Turn::text("The report is ready.")));

        let printed = Client::new(installed, &world, &api).print("Report");

        assert_eq!(printed.text(), "The report is ready.");
        assert!(world.read("held").is_some() && printed.took >= Duration::from_secs(2), "{:?}", printed.took);
        assert_eq!(api.requests().len(), 1);
        assert_eq!(api.unused(), 0);
    });
}

#[test]
fn session_in_a_terminal_answers() {
    on_each_client(|installed| {
        let world = World::new();
        let hold = world.script("hold.sh", "touch stopped");
        world.settings(&json!({"hooks": {"Stop": hook(&hold)}}));
        let api = Api::start(Script::new().then(Turn::text("The first answer.")));
        let mut terminal = Client::new(installed, &world, &api).open();

        terminal.submit("Say something", LIMIT);
        terminal.wait_for_text("The first answer.", LIMIT);
        wait_for(LIMIT, || world.read("stopped")).expect("the Stop hook ran");

        // A turn that has shown something: before that, the current client takes the prompt back in silence.
        let file = world.write("a.txt", "alpha");
        api.continue_with(Script::new().then(read(&file)).then(Turn::text("Never seen.").after(LIMIT)));
        terminal.submit("Take your time", LIMIT);
        let requests = api.wait_for_requests(3, LIMIT);
        assert!(requests[2].at > requests[1].at);
        terminal.escape();
        terminal.wait_for_text("Interrupted", LIMIT);

        api.continue_with(Script::new().then(Turn::text("The last answer.")));
        terminal.submit("And now", LIMIT);
        let screen = terminal.wait_for_text("The last answer.", LIMIT);
        assert!(!screen.contains("Never seen."), "{screen}");
        assert_eq!(api.requests().len(), 4);
    });
}

#[test]
fn terminal_asks_nothing_of_a_first_start() {
    on_each_client(|installed| {
        for mode in ["default", "acceptEdits", "bypassPermissions"] {
            let world = World::new();
            let api = Api::start(Script::new().then(Turn::text("An answer.")));
            let mut terminal = Client::new(installed, &world, &api).mode(mode).open();
            terminal.submit("Say something", LIMIT);
            terminal.wait_for_text("An answer.", LIMIT);
            // By two Ctrl-C, as a person would.
            terminal.type_text("\x03");
            terminal.wait_for_text("again to exit", LIMIT);
            terminal.type_text("\x03");
            let status = terminal.process().wait(LIMIT).expect("the client leaves");
            assert!(status.success(), "{mode}: {status}");
        }
    });
}

#[test]
fn only_loopback_is_there() {
    on_each_client(|installed| {
        // From this process, where the stand-in is, and from a process of the client's.
        let error = TcpStream::connect_timeout(&"192.0.2.1:443".parse().expect("an address"), LIMIT).map(drop);
        let error = error.expect_err("an outside address was reached");
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
        assert_ne!(network_namespace(), outer_network_namespace());

        let world = World::new();
        let look = "readlink /proc/self/ns/net; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; \
            bash -c 'echo > /dev/tcp/192.0.2.1/443' 2>&1 | grep -o 'Network is unreachable' | head -n 1";
        let api =
            Api::start(Script::new().then(Turn::tool("Bash", json!({"command": look}))).then(Turn::text("Seen.")));
        let printed = Client::new(installed, &world, &api).mode("bypassPermissions").print("Look");
        assert_eq!(printed.text(), "Seen.");
        let seen = api.requests()[1].tool_result(&tool_use_id(0, 0)).expect("a result");
        assert_eq!(seen, format!("{}\nlo\nNetwork is unreachable", network_namespace()));
    });
}

#[test]
fn script_belongs_to_the_session_alone() {
    on_each_client(|installed| {
        let world = World::new();
        let agent = json!({"description": "help", "prompt": "Help me", "subagent_type": "general-purpose",
            "run_in_background": false});
        let nested = format!("{} -p 'The nested prompt' --model claude-opus-5-5", installed.path.display());
        let script = Script::new()
            .then(Turn::tool("Agent", agent))
            .ask(move |request| {
                let helped = request.tool_result(&tool_use_id(0, 0)).is_some_and(|text| text.contains("ok"));
                assert!(helped, "{request:#?}");
                Turn::tool("Bash", json!({"command": nested}))
            })
            .then(Turn::tool("Bash", json!({"command": "echo \"$EXTRA\""})));
        let api = Api::start(script);
        api.beside("The nested prompt", Script::new().then(Turn::text("The nested answer.")));
        let client = Client::new(installed, &world, &api).mode("bypassPermissions");
        let printed = client.env("EXTRA", "from the test").arg("--no-session-persistence").print("Do it");

        assert_eq!(printed.text(), UNSCRIPTED);
        let requests = api.requests();
        assert_eq!(requests.len(), 4);
        assert_eq!(requests[2].tool_result(&tool_use_id(1, 0)).as_deref(), Some("The nested answer."));
        assert_eq!(requests[3].tool_result(&tool_use_id(2, 0)).as_deref(), Some("from the test"));
        assert_eq!(api.requests_beside("The nested prompt").len(), 1);
        let agents = api.others().iter().filter(|r| r.headers.contains_key("x-claude-code-agent-id")).count();
        assert_eq!(agents, 1);
    });
}

#[test]
fn client_can_be_killed_in_the_middle_of_a_turn() {
    on_each_client(|installed| {
        let world = World::new();
        let api = Api::start(Script::new().then(Turn::text("Too late.").after(LIMIT)));
        let start = Instant::now();
        let mut printing = Client::new(installed, &world, &api).start_print("Say something");
        api.wait_for_requests(1, LIMIT);
        printing.process().signal(Signal::SIGKILL);
        let printed = printing.wait(LIMIT);
        assert_eq!((printed.code, printed.signal), (None, Some(9)));
        assert!(printed.result.is_null() && printed.stderr.is_empty(), "{printed:#?}");
        assert!(printed.lines.iter().any(|line| line["subtype"] == "init"), "{printed:#?}");
        drop(api);
        assert!(start.elapsed() < LIMIT, "the stand-in waits for its slow answers when it closes");
    });
}

#[test]
fn failed_assertion_in_a_script_fails_the_test() {
    on_each_client(|installed| {
        let world = World::new();
        let api = Api::start(Script::new().ask(|_| panic!("this panic is part of the test")));
        let printed = Client::new(installed, &world, &api).print("Say something");
        assert_eq!(printed.text(), "THE SCRIPT FAILED");
        assert_eq!(api.requests().len(), 1);
        catch_unwind(AssertUnwindSafe(|| drop(api))).expect_err("the stand-in kept it to itself");
    });
}

#[test]
fn stand_in_is_ready_for_the_next_test_at_once() {
    offline(|| {
        let api = Api::start(Script::new());
        let address = api.url();
        drop(api);
        let address = address.trim_start_matches("http://").parse().expect("an address");
        TcpStream::connect_timeout(&address, LIMIT).expect_err("it still answers");
    });
}

#[test]
fn world_notices_what_outlives_it() {
    let world = World::new().patience(Duration::ZERO);
    let mut left = world.command("sleep").arg("600").spawn().expect("it starts");
    let failed = catch_unwind(AssertUnwindSafe(|| drop(world))).expect_err("the world was left in silence");
    let message = failed.downcast_ref::<String>().expect("a message");
    assert!(message.contains("sleep 600"), "{message}");
    let status = left.wait().expect("our own child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[test]
fn program_runs_in_a_clean_environment() {
    let world = World::new();
    let output = world.cpw(&["--version"]).output().expect("it was built");
    assert!(output.status.success(), "{output:?}");
    let output = world.command("env").output().expect("env is there");
    let names: Vec<&str> = std::str::from_utf8(&output.stdout)
        .expect("UTF-8")
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .collect();
    assert_eq!(names, ["CPW_STATE_DIR", MARK, "HOME", "LANG", "PATH", "TERM", "TMPDIR"]);
}
