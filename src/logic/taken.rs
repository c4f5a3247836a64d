//! Which resources of a run are taken, and which of its tasks with resources could start beside those that run. That they do
//! not start, and wait in vain, is a matter of order within one run; who holds a resource at all is `logic::leases`' business.

use std::collections::BTreeSet;

use crate::logic::state::State;

/// What a file begins with in its normal form.
const FILE: &str = "file:";

/// The project's own folder, in its normal form.
const PROJECT: &str = "file:.";

/// Resources in their normal form, found by overlap.
#[derive(Debug, Default)]
struct Taken<'r> {
    whole: BTreeSet<&'r str>,
    /// The folders above the files that are taken.
    above: BTreeSet<&'r str>,
}

impl<'r> Taken<'r> {
    fn add(&mut self, resources: &'r [String]) {
        for resource in resources {
            self.whole.insert(resource);
            self.above.extend(folders(resource));
        }
    }

    /// Whether one of them is taken, or is a file below or above one that is.
    fn meets(&self, resources: &[String]) -> bool {
        resources.iter().any(|r| {
            let r = r.as_str();
            self.whole.contains(r) || self.above.contains(r) || folders(r).any(|folder| self.whole.contains(folder))
        })
    }
}

/// The folders above a file, by whole components, in their normal form.
fn folders(resource: &str) -> impl Iterator<Item = &str> {
    let path = if resource.starts_with(FILE) { resource } else { "" };
    let in_project = !path.is_empty() && path != PROJECT && !path[FILE.len()..].starts_with('/');
    let above = path.match_indices('/').map(|(at, _)| &path[..at]).filter(|folder| folder.len() > FILE.len());
    above.chain(in_project.then_some(PROJECT))
}

/// The tasks with resources that could start now, the first to go first, and at most `most`: what is due again at `now_ms`,
/// then what is ready. `claude`: whether a headless client could start.
///
/// A task that has to wait keeps those behind it from what it waits for, so that one that needs a lot is not passed by for
/// ever by those that need little. A client for which there is no room keeps nothing.
pub fn unbarred(state: &State, now_ms: u64, claude: bool, most: usize) -> Vec<usize> {
    let mut out = Vec::new();
    if state.resources.is_empty() || most == 0 {
        return out;
    }
    let of = |i: usize| state.resources.get(&i).map(Vec::as_slice);
    let mut taken = Taken::default();
    for resources in state.running.iter().filter_map(|&i| of(i)) {
        taken.add(resources);
    }
    let due = state.retrying.iter().take_while(|(at, _)| *at <= now_ms).map(|&(_, i)| i);
    for i in due.chain(state.ready_leased.iter().map(|&(_, i)| i)) {
        let Some(resources) = of(i).filter(|_| claude || !state.is_claude(i)) else { continue };
        if !taken.meets(resources) {
            out.push(i);
            if out.len() == most {
                break;
            }
        }
        taken.add(resources);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_meet_by_whole_components_and_names_only_themselves() {
        let meets = |taken: &str, asked: &str| {
            let (taken, asked) = ([taken.to_owned()], [asked.to_owned()]);
            let mut all = Taken::default();
            all.add(&taken);
            all.meets(&asked)
        };
        for (a, b, want) in [
            ("db", "db", true),
            ("db", "db2", false),
            ("file:src/app", "file:src/app/x.rs", true),
            ("file:src/app", "file:src/apple.rs", false),
            ("file:/srv", "file:/srv/a/b", true),
            ("file:/srv/a", "file:/srv/b", false),
            ("port:80", "port:8080", false),
            ("file:.", "file:src/app", true),
            ("file:.", "file:/srv", false),
            ("file:.", "db", false),
        ] {
            assert_eq!((meets(a, b), meets(b, a)), (want, want), "{a} {b}");
        }
    }
}
