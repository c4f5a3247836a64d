//! The status line: what `cpw statusline` says of a session's runs, that it says nothing and costs nothing else, and that the
//! client shows it while tasks run, below what another command says.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::process::{Command, Output, Stdio};

    use regex::Regex;
    use serde_json::{Value, json};

    use crate::support::api::{Api, Script, Turn};
    use crate::support::client::{Client, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::skip::skip;
    use crate::support::world::{World, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

    /// What the client says, as far as it matters here.
    fn payload(world: &World, session: &str) -> String {
        let project = world.project();
        json!({"session_id": session, "cwd": project, "workspace": {"current_dir": project, "project_dir": project}})
            .to_string()
    }

    fn rules() -> Value {
        let wait = |what: &str| format!("{what}; until [ -e \"$HOME/go\" ]; do sleep 0.02; done");
        json!({"version": 1, "conductor": {"gate": "off", "wake": false}, "rules": [{"name": "go", "when": {"prompt": "deploy"}, "tasks": [
            {"id": "quick", "shell": "true"},
            {"id": "bad", "shell": "exit 1"},
            {"id": "slow", "shell": wait("cpw progress 60 --eta 40s")}]}]})
    }

    fn project() -> World {
        let world = World::new();
        world.write(".claude/cpw.json", &rules().to_string());
        good(world.cpw(&["allow", "--yes"]));
        world
    }

    fn good(mut command: Command) -> String {
        let Output { status, stdout, stderr } = command.output().expect("cpw runs");
        assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).expect("text")
    }

    /// The user's own settings with a status line of ours, written by hand, that wraps this command.
    fn wire(world: &World, command: &str) {
        let line = format!("cpw statusline --wrap '{}'", command.replace('\'', r"'\''"));
        let folder = world.home().join(".claude");
        fs::create_dir_all(&folder).expect("a folder");
        let settings = json!({"statusLine": {"type": "command", "command": line}});
        fs::write(folder.join("settings.json"), settings.to_string()).expect("settings");
    }

    fn said(mut command: Command, stdin: &str, world: &World) -> (Option<i32>, String) {
        let path = world.path("stdin");
        fs::write(&path, stdin).expect("a file");
        command.stdin(File::open(path).expect("a file")).env("NO_COLOR", "1");
        let out = command.output().expect("cpw runs");
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{command:?}");
        (out.status.code(), String::from_utf8(out.stdout).expect("text"))
    }

    /// As the client calls it for a session.
    fn line(world: &World, args: &[&str], session: &str) -> (Option<i32>, String) {
        let mut command = world.cpw(&[&["statusline"], args].concat());
        command.env("CLAUDE_CODE_SESSION_ID", session);
        said(command, &payload(world, session), world)
    }

    /// The prompt that starts the rule's run, and the wait until all of it has begun.
    fn deploy(world: &World) {
        let mut command = world.cpw(&["user-prompt-submit"]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        let prompt = json!({"session_id": SESSION, "cwd": world.project(), "hook_event_name": "UserPromptSubmit",
            "prompt": "deploy it", "prompt_id": "p1"});
        said(command, &format!("{prompt}\n"), world);
        until(world, "slow has told", |run| run["tasks"][2]["percent"] == 60 && run["counts"]["open"] == 1);
    }

    fn until(world: &World, what: &str, is: impl Fn(&Value) -> bool) {
        let shown = || serde_json::from_str::<Value>(&good(world.cpw(&["status", "--json"]))).expect("JSON");
        let look = || Some(shown()).filter(|all| is(&all["runs"][0]));
        wait_for(LIMIT, look).unwrap_or_else(|| panic!("not yet: {what}: {:#}", shown()));
    }

    fn finish(world: &World) {
        fs::write(world.home().join("go"), "").expect("a file");
        until(world, "over", |run| run["state"] == "failed");
    }

    const FAR: &str = r"^cpw ▸ 1/3 done · 1 failed · W\d 60 % · 40 s\n$";

    fn is_far(text: &str) -> bool {
        Regex::new(FAR).expect("a pattern").is_match(text)
    }

    #[test]
    fn it_speaks_of_the_sessions_own_runs_while_they_go_on() {
        let world = project();
        assert_eq!(line(&world, &[], SESSION), (Some(0), String::new()), "there is nothing at all");
        deploy(&world);
        let (code, text) = line(&world, &[], SESSION);
        assert!(code == Some(0) && is_far(&text), "{text}");
        assert_eq!(line(&world, &[], "another-session"), (Some(0), String::new()));
        // Clients that do not tell the session in the environment tell it here.
        assert_eq!(said(world.cpw(&["statusline"]), &payload(&world, SESSION), &world).1, text);
        // Of no session at all: the project's.
        assert_eq!(said(world.cpw(&["statusline"]), "", &world).1, text);
        for odd in ["{", "[]", "nonsense", "{}", "{\"session_id\": 5}", "{\"session_id\": \"../x\"}", "\u{0}"] {
            assert_eq!(said(world.cpw(&["statusline"]), odd, &world), (Some(0), String::new()), "{odd}");
        }
        let mut narrow = world.cpw(&["statusline"]);
        narrow.env("CLAUDE_CODE_SESSION_ID", SESSION).env("COLUMNS", "25");
        assert_eq!(said(narrow, "", &world).1, "cpw ▸ 1/3 done · 1 failed\n");
        let mut coloured = world.cpw(&["statusline"]);
        coloured.env("CLAUDE_CODE_SESSION_ID", SESSION);
        assert!(good(coloured).contains("\u{1b}[31m1 failed\u{1b}[0m"));
        for switch in ["CPW_DISABLE", "CPW_DEPTH"] {
            let mut off = world.cpw(&["statusline"]);
            off.env("CLAUDE_CODE_SESSION_ID", SESSION).env(switch, "1");
            assert_eq!(said(off, "", &world).1, "", "{switch}");
        }
        let wrong = world.cpw(&["statusline", "--wrap"]).output().expect("cpw runs");
        assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");
        assert!(good(world.cpw(&["statusline", "--help"])).contains("refreshInterval"));
        finish(&world);
        assert_eq!(line(&world, &[], SESSION), (Some(0), String::new()), "it is over");
    }

    #[test]
    fn another_command_is_shown_above_and_neither_hides_the_other() {
        let world = project();
        let own = "cat >\"$HOME/heard\"; printf 'mine\\n  and a second line'";
        let heard = |world: &World| fs::read_to_string(world.home().join("heard")).expect("it was called");
        // Where nothing runs, cpw is that command.
        for (command, code, text) in
            [(own, 0, "mine\n  and a second line"), ("echo no; exit 3", 3, "no\n"), ("exec cat", 0, "")]
        {
            wire(&world, command);
            let (ended, shown) = line(&world, &["--wrap", command], SESSION);
            assert_eq!(ended, Some(code), "{command}");
            assert!(shown == text || command == "exec cat" && shown == payload(&world, SESSION), "{command}: {shown}");
        }
        assert_eq!(heard(&world), payload(&world, SESSION));
        // Also where cpw had to read stdin itself.
        let wrapped = || world.cpw(&["statusline", &format!("--wrap={own}")]);
        assert_eq!(said(wrapped(), "not JSON", &world), (Some(0), "mine\n  and a second line".into()));
        assert_eq!(heard(&world), "not JSON");
        deploy(&world);
        wire(&world, own);
        let (_, shown) = line(&world, &["--wrap", own], SESSION);
        assert!(shown.strip_prefix("mine\n  and a second line\n").is_some_and(is_far), "{shown}");
        assert_eq!(heard(&world), payload(&world, SESSION));
        let (_, shown) = said(wrapped(), &payload(&world, SESSION), &world);
        assert!(
            shown.starts_with("mine\n")
                && is_far(shown.lines().last().map(|l| format!("{l}\n")).as_deref().unwrap_or_default())
        );
        assert_eq!(heard(&world), payload(&world, SESSION));
        for broken in
            ["echo no; exit 3", "/no/such/program", "kill -9 $$", "echo $$ >\"$HOME/pid\"; echo no; sleep 300"]
        {
            wire(&world, broken);
            let (code, shown) = line(&world, &["--wrap", broken], SESSION);
            assert!(code == Some(0) && is_far(&shown), "{broken}: {shown}");
        }
        let pid = fs::read_to_string(world.home().join("pid")).expect("it was called");
        let alive =
            || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(wait_for(LIMIT, || (!alive()).then_some(())).is_some(), "who is too slow is ended");
        finish(&world);
    }

    /// What it asks of the system, by the names of the calls.
    fn calls(world: &World, session: &str) -> Option<Vec<String>> {
        let trace = world.path("trace");
        let mut command = world.command("/usr/bin/env");
        command.args(["strace", "-f", "-qq", "-o"]).arg(&trace).arg(crate::support::world::program()).arg("statusline");
        command.env("CLAUDE_CODE_SESSION_ID", session).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().ok().filter(std::process::ExitStatus::success)?;
        let text = fs::read_to_string(&trace).ok()?;
        Some(text.lines().filter_map(|l| l.split_once(' ').map(|(_, call)| call.trim_start().to_owned())).collect())
    }

    #[test]
    fn it_writes_nothing_waits_for_no_lock_and_where_nothing_runs_reads_one_file() {
        let world = project();
        let Some(nothing) = calls(&world, SESSION) else {
            skip("what the status line asks of the system", "no strace that may trace", "CPW_REQUIRE_STRACE");
            return;
        };
        deploy(&world);
        let (running, other) = (calls(&world, SESSION).expect("strace"), calls(&world, "another").expect("strace"));
        for (what, all) in [("nothing", &nothing), ("running", &running), ("other", &other)] {
            let writes = |c: &&String| {
                let opens =
                    c.starts_with("open") && (c.contains("O_WRONLY") || c.contains("O_RDWR") || c.contains("O_CREAT"));
                let changes = ["rename", "unlink", "mkdir", "ftruncate", "mknod", "link", "symlink", "utimens"];
                opens || changes.iter().any(|name| c.starts_with(name)) || c.contains("LOCK_EX")
            };
            // The log is opened as for hooks, which append to it.
            let log = |c: &&String| c.contains("events.jsonl") && c.contains("O_APPEND") && !c.contains("O_CREAT");
            let found: Vec<&String> = all.iter().filter(writes).filter(|c| !log(c)).collect();
            assert!(found.is_empty(), "{what}: {found:#?}");
            assert!(
                all.iter().all(|c| !c.starts_with("clone") && !c.starts_with("fork")),
                "{what}: it starts something"
            );
        }
        let opened = |all: &[String]| all.iter().filter(|c| c.starts_with("openat") && c.contains("/state")).count();
        assert!(opened(&other) <= 2, "{other:#?}");
        assert!(other.iter().all(|c| !c.starts_with("read(0")), "stdin is not even read");
        finish(&world);
    }

    #[test]
    fn the_client_shows_it_while_tasks_run_and_what_another_command_says_stays() {
        on_each_client(|client| {
            let world = project();
            good(world.cpw(&["init"]));
            let path = world.project().join(".claude/settings.json");
            let mut settings: Value =
                serde_json::from_str(&fs::read_to_string(&path).expect("settings")).expect("JSON");
            let command = "cpw statusline --wrap 'printf \"mine of %s\" \"$(cat | head -c 14)\"'";
            settings["statusLine"] = json!({"type": "command", "command": command, "refreshInterval": 1});
            fs::write(&path, settings.to_string()).expect("settings");
            let api = Api::start(Script::new().then(Turn::text("Begun.")).then(Turn::text("Over.")));
            let mut terminal = Client::new(client, &world, &api).open();
            let mine = "mine of {\"session_id\":";
            terminal.wait_for_text(&mine[..20], LIMIT);
            assert!(!terminal.screen().contains("cpw ▸"));
            terminal.submit("deploy it", LIMIT);
            let shown = terminal.wait_until(LIMIT, |screen| {
                let at = screen.find("mine of ").zip(screen.find("cpw ▸ 1/3 done · 1 failed · W"));
                at.is_some_and(|(mine, own)| mine < own) && screen.contains("60 % · 40 s")
            });
            shown.unwrap_or_else(|screen| panic!("no line:\n{screen}"));
            fs::write(world.home().join("go"), "").expect("a file");
            let gone = |screen: &str| screen.contains("mine of ") && !screen.contains("cpw ▸ ");
            terminal.wait_until(LIMIT, gone).unwrap_or_else(|screen| panic!("it stays:\n{screen}"));
            api.wait_for_requests(1, LIMIT);
        });
    }
}
