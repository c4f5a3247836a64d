//! Looking back: `cpw logs`, `cpw events` and `cpw replay`, as they are typed, on real runs.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use crate::support::world::{World, wait_for};

    const LIMIT: Duration = Duration::from_mins(1);

    fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
        wait_for(LIMIT, || happened().then_some(())).unwrap_or_else(|| panic!("did not happen: {what}"));
    }

    /// What a command has printed and how it has ended.
    struct Said {
        out: String,
        err: String,
        code: Option<i32>,
    }

    fn cpw(world: &World, args: &[&str]) -> Said {
        let output = world.cpw(args).output().expect("cpw runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code() }
    }

    /// Starts a run in the background; its folder.
    fn detach(world: &World, plan: &str) -> PathBuf {
        world.write("plan.json", plan);
        let said = cpw(world, &["run", "plan.json", "--detach"]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        world.project().join(".claude/runs").join(said.out.trim())
    }

    fn finish(world: &World) {
        assert!(cpw(world, &["wait", "--run"]).code.is_some());
    }

    /// The one file of the workers' logs by that name.
    fn log_of(run: &Path, name: &str) -> Option<PathBuf> {
        let workers = fs::read_dir(run.join("workers")).ok()?;
        workers.flatten().map(|w| w.path().join("logs").join(name)).find(|path| path.exists())
    }

    /// Two tasks that write in turns.
    const TURNS: &str = r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
        {"id": "first", "shell": "echo a1; until [ -e go2 ]; do sleep 0.02; done; echo a2; echo e2 >&2; until [ -e go3 ]; do sleep 0.02; done"},
        {"id": "second", "shell": "until [ -e go1 ]; do sleep 0.02; done; echo b1; until [ -e go3 ]; do sleep 0.02; done"}]}"#;

    #[test]
    fn the_output_of_several_tasks_is_merged_as_it_was_written() {
        let world = World::new();
        let run = detach(&world, TURNS);
        let noted = |name: &str, bytes: &str| {
            wait_until(&format!("{name} {bytes}"), || {
                let times = log_of(&run, name).and_then(|path| fs::read_to_string(path).ok());
                times.is_some_and(|text| text.lines().any(|line| line.ends_with(bytes)))
            });
        };
        noted("first.1.times", " 3 0");
        world.write("go1", "");
        noted("second.1.times", " 3 0");
        world.write("go2", "");
        noted("first.1.times", " 6 3");
        world.write("go3", "");
        finish(&world);

        let texts = |args: &[&str]| {
            let said = cpw(&world, args);
            assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{args:?}");
            let text = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
            said.out.lines().map(text).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(texts(&["logs"]), "a1 b1 a2 e2");
        assert_eq!(texts(&["logs", "-n", "2"]), "a2 e2");
        assert_eq!(texts(&["logs", "-n", "3", "--out"]), "a1 b1 a2");
        assert_eq!(texts(&["logs", "--err"]), "e2");
        assert_eq!(texts(&["logs", "sec", "first", "-n", "9", "-f"]), "a1 b1 a2 e2");
        assert_eq!(texts(&["logs", "--attempt", "2"]), "");
        assert_eq!(cpw(&world, &["logs", "first"]).out, "a1\na2\ne2\n", "one task, as it is");
        assert_eq!(texts(&["logs", "*s*", "--no-prefix", "-n", "1"]), "e2");

        let prefix = regex::Regex::new(r"(?m)^\+0:0\d:\d\d\.\d W[12] (first |second) [ !]│ [abe]\d$").expect("a regex");
        let timed = cpw(&world, &["logs", "--since-start"]).out;
        assert_eq!(prefix.find_iter(&timed).count(), 4, "{timed}");
        let of_day = regex::Regex::new(r"^\d\d:\d\d:\d\d\.\d a1\n").expect("a regex");
        let timed = cpw(&world, &["logs", "first", "-t"]).out;
        assert!(of_day.is_match(&timed), "{timed}");

        // Nobody has to have noted anything.
        for name in ["first.1.times", "second.1.times"] {
            fs::remove_file(log_of(&run, name).expect("its notes")).expect("removed");
        }
        let merged = texts(&["logs"]);
        assert!(["a1 a2 e2 b1", "b1 a1 a2 e2"].contains(&merged.as_str()), "{merged}");

        let wrong = cpw(&world, &["logs", "third*"]);
        assert_eq!(wrong.code, Some(3));
        assert!(wrong.err.contains("no task of this run matches 'third*'") && wrong.err.contains("first, second"));
    }
}
