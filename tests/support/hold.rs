//! Telling that a hook waits.

use std::path::Path;

/// Whether a hook holds in a run of `project`: the name of its bell says for what it waits.
pub(crate) fn is_held(project: &Path) -> bool {
    let is_hooks = |name: &str| [".stop", ".outcomes"].iter().any(|c| name.ends_with(c)) || name.contains(".task-");
    let runs = std::fs::read_dir(project.join(".claude/runs")).into_iter().flatten().flatten();
    let mut bells = runs.filter_map(|run| std::fs::read_dir(run.path().join("bells")).ok()).flatten().flatten();
    bells.any(|bell| bell.file_name().to_str().is_some_and(|name| !name.starts_with('.') && is_hooks(name)))
}
