//! The files of `history/` in the state directory: one for each rule of a project, small, and replaced as a whole. One that
//! cannot be read is as none, and is replaced by the next run's.

use std::io;
use std::path::Path;

use anyhow::Context;

use crate::base::hex;
use crate::model::history::History;
use crate::model::plan::Plan;
use crate::store::home::State;
use crate::store::registry;
use crate::sys::dir::Dir;

/// The folder in the state directory.
const FOLDER: &str = "history";

/// The longest file that is read, in bytes.
const MAX: u64 = 1024 * 1024;

fn name(project: &Path, rule: &str) -> String {
    let key = [project.as_os_str().as_encoded_bytes(), b"\n", rule.as_bytes()].concat();
    format!("{}.json", &hex::sha256(&key)[..32])
}

fn read(dir: &Dir, name: &str) -> Option<History> {
    let bytes = dir.read_bounded(name, MAX).ok()?;
    serde_json::from_slice::<History>(&bytes).ok().filter(History::is_known)
}

/// Tells the tasks of a plan that was made from a rule how long they are expected to take, where that is known.
pub fn expect(state: &State, project: &Path, plan: &mut Plan) {
    let Some(rule) = &plan.rule else { return };
    let history = Dir::open(state.path().join(FOLDER)).ok().and_then(|dir| read(&dir, &name(project, rule)));
    if let Some(history) = history {
        history.expect(plan);
    }
}

/// Remembers how long the tasks of a run took, each by its place in the plan, once per run.
pub fn record(state: &State, project: &Path, plan: &Plan, took: &[(usize, u64)]) -> anyhow::Result<()> {
    let Some(rule) = &plan.rule else { return Ok(()) };
    let dir = Dir::open(state.folder(FOLDER)?)?;
    let name = name(project, rule);
    let mut history = read(&dir, &name).unwrap_or_default();
    if history.add(plan, took) {
        let bytes = serde_json::to_vec(&history)?;
        dir.write_atomic(&name, &bytes, 0o600, false).context("how long tasks took cannot be remembered")?;
    }
    Ok(())
}

/// Forgets the rules whose runs have all gone: the names of their tasks are the runs' own.
pub fn forget(state: &State) -> io::Result<()> {
    let dir = match Dir::open(state.path())?.sub(FOLDER) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for name in dir.names()? {
        let known = |history: &History| history.runs().iter().any(|run| registry::knows(state, run));
        if name.to_str().and_then(|name| read(&dir, name)).is_some_and(|history| !known(&history)) {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};

    #[test]
    fn what_is_no_history_is_ignored_and_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let state = State::open_at(&temp.path().join("state")).unwrap();
        let (project, other) = (Path::new("/p"), Path::new("/q"));
        let mut plan = plan(vec![task("a")]);
        expect(&state, project, &mut plan);
        assert_eq!(plan.tasks[0].expected, None, "there is none");
        record(&state, project, &plan, &[(0, 40)]).unwrap();
        let file = state.path().join(FOLDER).join(name(project, "rule"));
        let rights = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!(rights & 0o777, 0o600);
        for broken in [&b"{"[..], b"", b"{\"version\":2,\"runs\":[],\"tasks\":{\"a\":[1]},\"drafts\":{}}", b"[1]"] {
            std::fs::write(&file, broken).unwrap();
            expect(&state, project, &mut plan);
            assert_eq!(plan.tasks[0].expected, None);
            record(&state, project, &plan, &[(0, 40)]).unwrap();
            expect(&state, project, &mut plan);
            assert_eq!(plan.tasks[0].expected.take(), Some(40));
        }
        expect(&state, other, &mut plan);
        assert_eq!(plan.tasks[0].expected, None, "of another project");
        plan.rule = Some("../other".into());
        record(&state, project, &plan, &[(0, 1)]).unwrap();
        assert_eq!(std::fs::read_dir(state.path().join(FOLDER)).unwrap().count(), 2);
    }
}
