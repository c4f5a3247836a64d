//! From drafts to a complete plan: ids are unique, every need names a task that exists, nothing waits for itself. Used for
//! plans that people write ([`plan_from_person`]) and for plans made from a rule (`model::expand`). All mistakes are
//! reported at once; ten thousand tasks in one chain neither recurse nor cost more than their number.

use std::collections::HashMap;
use std::rc::Rc;

use crate::base::ids::{CheckpointName, RunId, TaskId};
use crate::model::config::{CONDUCTOR_KEYS, Settings, default_claude, default_workers, header, settings};
use crate::model::draft::{self, Depth, MergeDraft, Scope, TaskDraft};
use crate::model::glob::{self, Glob};
use crate::model::json::{self, MAX_BYTES, Node, Problem, Report, excerpt, path_of};
use crate::model::plan::{self, Action, MAX_TASKS, Merge, Plan, Task, VERSION};
use crate::model::template;

/// Keys of a plan.
pub const PLAN_KEYS: &[&str] =
    &["$schema", "version", "limits", "conductor", "durability", "resources", "tasks", "merge"];
/// Keys that stand only in plans that cpw wrote; accepted so that the plan of an old run can be run again, and given anew.
pub const PLAN_OWN: &[&str] = &["run", "session", "rule", "from", "orphan_grace"];
/// Keys of a plan that belong to the format, but not to this version.
pub const PLAN_LATER: &[&str] = &["signals", "votes"];
/// Keys of a plan's `limits`.
pub const PLAN_LIMIT_KEYS: &[&str] =
    &["max_workers", "max_claude", "task_timeout", "run_timeout", "retries", "max_budget_usd"];

/// The most needs that a plan may have in all, globs resolved.
pub const MAX_NEEDS: usize = 200_000;

/// What the machine has, for the number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Processors that may be used.
    pub cores: usize,
    /// Memory in MiB.
    pub mem_mib: u64,
}

/// What holds where a plan or rule says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Defaults<'a> {
    /// The config's settings, completed by the user-wide ones.
    pub settings: &'a Settings,
    /// The machine.
    pub machine: Machine,
}

/// A need before it is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Need {
    /// The task at this place, or a checkpoint of it.
    Made(usize, Option<CheckpointName>),
    /// An id or a glob over ids, maybe with a checkpoint behind an `@`. Empty where a mistake was reported already.
    Text {
        /// As it is looked up.
        id: String,
        /// As the file has it, if that is something else.
        written: Option<String>,
    },
}

/// A task whose needs are to be resolved.
#[derive(Debug)]
pub(super) struct Made<'a> {
    /// Its place in the file, for messages.
    pub(super) from: usize,
    /// Its id as the file has it, for messages.
    pub(super) written: &'a str,
    /// The task, without needs.
    pub(super) task: Task,
    /// Its needs, each with its place in the file.
    pub(super) needs: Vec<(usize, Need)>,
}

/// A merge whose needs are to be resolved.
#[derive(Debug)]
pub(super) struct MadeMerge {
    pub(super) from: usize,
    pub(super) merge: Merge,
    pub(super) needs: Vec<(usize, Need)>,
}

/// Gives a draft its final form. `id` is valid and unique; needs are left out.
pub(super) fn task_of(draft: &TaskDraft, id: TaskId, action: Action, defaults: &Settings) -> Task {
    Task {
        id,
        title: draft.title.clone(),
        action,
        needs: Vec::new(),
        claims: draft.claims.clone(),
        resources: draft.resources.clone(),
        timeout: draft.timeout.unwrap_or_else(|| defaults.task_timeout()),
        retries: draft.retries.unwrap_or_else(|| defaults.retries()),
        backoff: draft.backoff.unwrap_or_default(),
        allow_failure: draft.allow_failure,
        critical: draft.critical,
        signals: draft.signals.clone(),
        summary: draft.summary.clone(),
        env: draft.env.clone(),
        cwd: draft.cwd.clone(),
        isolate: draft.isolate,
        priority: draft.priority,
        item: draft.item.clone(),
    }
}

/// Reads a plan that a person wrote, for `cpw run PLAN`. What it leaves out comes from `defaults`; of limits the smaller
/// holds. The result is complete and needs no further check.
pub fn plan_from_person(bytes: &[u8], run: RunId, defaults: &Defaults<'_>) -> Result<Plan, Vec<Problem>> {
    let mut r = Report::default();
    let Some(value) = json::read(bytes, &mut r) else {
        return Err(r.into_problems());
    };
    let n = Node::root(&value);
    let known: Vec<&str> = PLAN_KEYS.iter().chain(PLAN_OWN).copied().collect();
    if !n.keys(&mut r, &known, PLAN_LATER) {
        return Err(r.into_problems());
    }
    header(&n, &mut r);
    let settings = settings(&n, &mut r, PLAN_LIMIT_KEYS, CONDUCTOR_KEYS).over(defaults.settings);
    let resources = n.field("resources", &mut r, |n, r| Some(draft::used(n, r))).unwrap_or_default();
    let drafts = if let Some(n) = n.get("tasks") {
        if n.value().as_array().is_some_and(Vec::is_empty) {
            n.wrong(&mut r, "is empty: the plan would do nothing");
        }
        if n.value().as_array().is_some_and(|a| a.len() > MAX_TASKS) {
            n.wrong(&mut r, format!("has more than {MAX_TASKS} tasks"));
            return Err(r.into_problems());
        }
        draft::tasks(&n, &mut r, Scope::Plan, Depth::Full)
    } else {
        n.wrong(&mut r, "has no tasks");
        Vec::new()
    };
    let merges = n.field("merge", &mut r, |n, r| Some(draft::merges(n, r, Scope::Plan))).unwrap_or_default();

    let mut made = Vec::with_capacity(drafts.len());
    let mut taken: HashMap<String, usize> = HashMap::with_capacity(drafts.len());
    for (from, draft) in drafts.iter().enumerate() {
        // An id that is missing or bad was reported where it was read.
        let Ok(id) = TaskId::new(&draft.id) else {
            continue;
        };
        if let Some(first) = taken.get(&draft.id.to_ascii_lowercase()) {
            let what = format!("\"{id}\" is the id of $.tasks[{first}] too");
            let hint = "ids are unique, upper and lower case being equal".to_owned();
            r.add(path_of("$", &[("tasks", Some(from)), ("id", None)]), what, Some(hint));
            continue;
        }
        taken.insert(draft.id.to_ascii_lowercase(), from);
        let task = task_of(draft, id, draft.action.clone(), &settings);
        made.push(Made { from, written: &draft.id, task, needs: texts(&draft.needs) });
    }
    let merges = merges.into_iter().enumerate().map(|(from, m)| {
        let needs = texts(&m.needs);
        MadeMerge { from, merge: merge_of(m), needs }
    });
    let (tasks, merge) = link("$", made, merges.collect(), &mut r);
    let claude = tasks.iter().any(|t| t.claude().is_some());
    let workers = default_workers(defaults.machine.cores, defaults.machine.mem_mib, claude);
    let at_once = claude.then(|| default_claude(defaults.machine.mem_mib));
    r.finish(Plan {
        version: VERSION,
        run,
        session: None,
        rule: None,
        from: None,
        orphan_grace: None,
        limits: settings.run_limits(workers, at_once),
        durability: settings.durability(),
        conductor: settings.conductor(),
        tasks,
        merge,
        resources,
    })
}

fn texts(needs: &[String]) -> Vec<(usize, Need)> {
    needs.iter().map(|id| Need::Text { id: id.clone(), written: None }).enumerate().collect()
}

pub(super) fn merge_of(m: MergeDraft) -> Merge {
    Merge { tool: m.tool, matches: m.matches, needs: Vec::new(), set: m.set }
}

/// Resolves all needs and checks that they can be met. `base` is the JSON path of what holds `tasks` and `merge`.
pub(super) fn link(base: &str, made: Vec<Made<'_>>, merges: Vec<MadeMerge>, r: &mut Report) -> (Vec<Task>, Vec<Merge>) {
    let ids: Vec<TaskId> = made.iter().map(|m| m.task.id.clone()).collect();
    let written: Vec<&str> = made.iter().map(|m| m.written).collect();
    let mut resolver = Resolver::new(&ids, &written);
    let mut edges: Vec<Vec<(usize, Option<CheckpointName>)>> = Vec::with_capacity(made.len());
    for (own, m) in made.iter().enumerate() {
        let path = |need| path_of(base, &[("tasks", Some(m.from)), ("needs", Some(need))]);
        edges.push(resolver.resolve(&m.needs, Some(own), path, r));
    }
    cycles(base, &made, &edges, r);
    let mut out_merges = Vec::with_capacity(merges.len());
    for m in merges {
        let path = |need| path_of(base, &[("merge", Some(m.from)), ("needs", Some(need))]);
        let needs = resolver.resolve(&m.needs, None, path, r);
        let mut merge = m.merge;
        for (field, text) in &merge.set {
            let asked = template::names(text).filter_map(|n| n.strip_prefix("result.").or(n.strip_prefix("path.")));
            for id in asked {
                let path = || path_of(base, &[("merge", Some(m.from)), ("set", None), (field, None)]);
                match resolver.by_id.get(id) {
                    None => {
                        let hint = r.did_you_mean(id, written.iter().copied());
                        r.add(path(), format!("names the task \"{}\", which does not exist", excerpt(id)), hint);
                    }
                    Some(at) if !needs.iter().any(|(i, _)| i == at) => {
                        let hint = Some("add it to this merge's needs".to_owned());
                        r.add(path(), format!("uses the result of \"{id}\" without waiting for it"), hint);
                    }
                    Some(_) => {}
                }
            }
        }
        merge.needs = needs.iter().map(|(i, _)| ids[*i].clone()).collect();
        out_merges.push(merge);
    }
    let need = |(i, checkpoint): (usize, Option<CheckpointName>)| match checkpoint {
        None => plan::Need::End(ids[i].clone()),
        Some(name) => plan::Need::Checkpoint(ids[i].clone(), name),
    };
    let named = edges.into_iter().map(|needs| needs.into_iter().map(need).collect());
    let tasks = made.into_iter().zip(named).map(|(m, needs)| Task { needs, ..m.task }).collect();
    (tasks, out_merges)
}

/// Finds the tasks that needs name.
struct Resolver<'a> {
    ids: &'a [TaskId],
    /// The ids as the file has them.
    written: &'a [&'a str],
    by_id: HashMap<&'a str, usize>,
    /// What a glob matches, kept because many tasks write the same one.
    globs: HashMap<String, Rc<[usize]>>,
    /// How many times a task took part in the resolution of a need, by the stamp of the last.
    stamps: Vec<usize>,
    stamp: usize,
    total: usize,
}

impl<'a> Resolver<'a> {
    fn new(ids: &'a [TaskId], written: &'a [&'a str]) -> Self {
        let mut by_id = HashMap::with_capacity(ids.len());
        for (i, id) in ids.iter().enumerate() {
            by_id.entry(id.as_str()).or_insert(i);
        }
        Resolver { ids, written, by_id, globs: HashMap::new(), stamps: vec![0; ids.len()], stamp: 0, total: 0 }
    }

    /// The places of the needed tasks, each once (and once for each checkpoint), in the order in which they were written.
    fn resolve(
        &mut self,
        needs: &[(usize, Need)],
        own: Option<usize>,
        path: impl Fn(usize) -> String,
        r: &mut Report,
    ) -> Vec<(usize, Option<CheckpointName>)> {
        self.stamp += 1;
        let mut out: Vec<(usize, Option<CheckpointName>)> = Vec::new();
        for (at, need) in needs {
            let mut checkpoint = None;
            let found: Rc<[usize]> = match need {
                Need::Made(i, name) => {
                    checkpoint.clone_from(name);
                    Rc::new([*i])
                }
                Need::Text { id, .. } if id.is_empty() => continue,
                Need::Text { id, written } => {
                    let (id, name) = split_need(id);
                    checkpoint = name.and_then(|name| CheckpointName::new(name).ok());
                    let Some(found) = self.find(id, own) else {
                        let written = written.as_deref().map_or(id, |written| split_need(written).0);
                        let shown = excerpt(written);
                        let what = if glob::has_meta(id) {
                            format!("\"{shown}\" matches no other task")
                        } else {
                            format!("names the task \"{shown}\", which does not exist")
                        };
                        let hint = r.did_you_mean(written, self.written.iter().copied());
                        r.add(path(*at), what, hint);
                        continue;
                    };
                    found
                }
            };
            let is_glob = matches!(need, Need::Text { id, .. } if glob::has_meta(split_need(id).0));
            for &i in found.iter() {
                if own == Some(i) {
                    // A glob that also covers its own task means the others.
                    if !is_glob {
                        r.add(path(*at), format!("\"{}\" needs itself", excerpt(self.written[i])), None);
                    }
                    continue;
                }
                let new = match &checkpoint {
                    None => std::mem::replace(&mut self.stamps[i], self.stamp) != self.stamp,
                    Some(_) => !out.contains(&(i, checkpoint.clone())),
                };
                if new {
                    self.total += 1;
                    if self.total > MAX_NEEDS {
                        let hint = "put a task in between that the others need".to_owned();
                        r.add("$", format!("the tasks have more than {MAX_NEEDS} needs in all"), Some(hint));
                        return out;
                    }
                    out.push((i, checkpoint.clone()));
                }
            }
        }
        out
    }

    /// What an id or glob names; a glob that matches nothing but the asking task names nothing.
    fn find(&mut self, s: &str, own: Option<usize>) -> Option<Rc<[usize]>> {
        if let Some(i) = self.by_id.get(s) {
            return Some(Rc::new([*i]));
        }
        if !glob::has_meta(s) {
            return None;
        }
        if !self.globs.contains_key(s) {
            let pattern = Glob::text(s).ok()?;
            let hits = self.ids.iter().enumerate().filter(|(_, id)| pattern.matches(id.as_str()));
            let hits: Vec<usize> = hits.map(|(i, _)| i).collect();
            self.globs.insert(s.to_owned(), hits.into());
        }
        let found = self.globs.get(s)?;
        found.iter().any(|i| own != Some(*i)).then(|| found.clone())
    }
}

/// A need as it is written: the task, and the checkpoint behind an `@`.
pub(super) fn split_need(text: &str) -> (&str, Option<&str>) {
    text.split_once('@').map_or((text, None), |(task, name)| (task, Some(name)))
}

/// Reports circles of needs, each with the names along it. Walks with its own stack: a chain may be as long as a plan.
fn cycles(base: &str, made: &[Made<'_>], edges: &[Vec<(usize, Option<CheckpointName>)>], r: &mut Report) {
    /// One circle often shows itself in several ways; more than these help nobody.
    const REPORTED: usize = 5;
    #[derive(Clone, Copy, PartialEq)]
    enum Color {
        New,
        Open,
        Closed,
    }
    let mut color = vec![Color::New; made.len()];
    let mut found = 0;
    for start in 0..made.len() {
        if color[start] != Color::New {
            continue;
        }
        color[start] = Color::Open;
        let mut stack = vec![(start, 0)];
        while let Some((node, next)) = stack.last_mut() {
            let node = *node;
            let Some(&(to, _)) = edges[node].get(*next) else {
                color[node] = Color::Closed;
                stack.pop();
                continue;
            };
            *next += 1;
            match color[to] {
                Color::Closed => {}
                Color::New => {
                    color[to] = Color::Open;
                    stack.push((to, 0));
                }
                Color::Open => {
                    found += 1;
                    if found > REPORTED {
                        return;
                    }
                    let first = stack.iter().position(|(n, _)| *n == to).unwrap_or(0);
                    let mut circle: Vec<usize> = stack[first..].iter().map(|(n, _)| *n).collect();
                    // Told from the task that stands first in the file, so that one circle is told once.
                    let lowest = (0..circle.len()).min_by_key(|i| made[circle[*i]].from).unwrap_or(0);
                    circle.rotate_left(lowest);
                    report_cycle(base, made, &circle, r);
                }
            }
        }
    }
}

fn report_cycle(base: &str, made: &[Made<'_>], circle: &[usize], r: &mut Report) {
    let name = |i: &usize| made[*i].written;
    let mut names: Vec<&str> = circle.iter().take(8).map(name).collect();
    if circle.len() > 10 {
        names.push("…");
    }
    if circle.len() > 8 {
        names.extend(circle.iter().skip(8.max(circle.len() - 2)).map(name));
    }
    names.extend(circle.first().map(name));
    let from = circle.first().map_or(0, |i| made[*i].from);
    let path = path_of(base, &[("tasks", Some(from)), ("needs", None)]);
    r.add(path, format!("tasks need each other in a circle: {}", names.join(" -> ")), Some("take one need out".into()));
}

/// The bytes of `plan.json`, if they are not too many.
pub fn to_bytes(plan: &Plan) -> Result<Vec<u8>, Problem> {
    let wrong = |what| Problem { path: "$".into(), what, hint: Some("split the work into several plans".into()) };
    let bytes = serde_json::to_vec(plan).map_err(|e| wrong(e.to_string()))?;
    if bytes.len() > MAX_BYTES {
        return Err(wrong(format!("the plan is {} bytes long, more than {MAX_BYTES}", bytes.len())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::base::span::{Limit, Span};

    fn read(bytes: &[u8]) -> Result<Plan, Vec<Problem>> {
        let settings = Settings::default();
        let machine = Machine { cores: 4, mem_mib: 8192 };
        plan_from_person(bytes, RunId::new("r1").unwrap(), &Defaults { settings: &settings, machine })
    }

    fn plan(value: &Value) -> Plan {
        read(value.to_string().as_bytes()).unwrap_or_else(|p| panic!("{p:#?}"))
    }

    fn problems(value: &Value) -> Vec<Problem> {
        read(value.to_string().as_bytes()).err().unwrap_or_default()
    }

    fn tasks(tasks: &Value) -> Value {
        json!({"version": 1, "tasks": tasks})
    }

    #[test]
    fn every_mistake_is_reported_at_its_place() {
        let run = json!(["x"]);
        let table: Vec<(Value, &[&str])> = vec![
            (json!({"version": 1}), &["$"]),
            (json!({"tasks": []}), &["$", "$.tasks"]),
            (json!({"version": 1, "tasks": [], "votes": [], "signals": []}), &["$.votes", "$.signals", "$.tasks"]),
            (json!({"version": 1, "task": [], "tasks": [{"id": "a", "run": ["x"]}]}), &["$.task"]),
            (tasks(&json!({})), &["$.tasks"]),
            (tasks(&json!([7])), &["$.tasks[0]"]),
            (tasks(&json!([{"run": run}])), &["$.tasks[0]"]),
            (tasks(&json!([{"id": "a"}])), &["$.tasks[0]"]),
            (tasks(&json!([{"id": "a-{{item}}", "run": run}])), &["$.tasks[0].id"]),
            (tasks(&json!([{"id": "-a", "run": run}])), &["$.tasks[0].id"]),
            (tasks(&json!([{"id": "a..b", "run": run}])), &["$.tasks[0].id"]),
            (tasks(&json!([{"id": "x".repeat(65), "run": run}])), &["$.tasks[0].id"]),
            (tasks(&json!([{"id": "a", "run": run}, {"id": "A", "run": run}])), &["$.tasks[1].id"]),
            (tasks(&json!([{"id": "a", "run": run, "needs": ["a"]}])), &["$.tasks[0].needs[0]"]),
            (
                tasks(&json!([{"id": "a", "run": run, "needs": ["b", "c*"]}])),
                &["$.tasks[0].needs[0]", "$.tasks[0].needs[1]"],
            ),
            (tasks(&json!([{"id": "a", "run": run, "needs": ["*"]}])), &["$.tasks[0].needs[0]"]),
            (
                tasks(&json!([{"id": "a", "run": run, "needs": ["b"]}, {"id": "b", "run": run, "needs": ["a"]}])),
                &["$.tasks[0].needs"],
            ),
            (tasks(&json!([{"id": "a", "shell": "x", "run": run}])), &["$.tasks[0]"]),
            (tasks(&json!([{"id": "a", "run": ["x", "{{item}}"]}])), &[]),
            (
                tasks(
                    &json!([{"id": "a", "run": run, "timeout": "0s", "retries": 101, "priority": -1001, "env": {"CLAUDE_X": "1"}}]),
                ),
                &["$.tasks[0].timeout", "$.tasks[0].retries", "$.tasks[0].env.CLAUDE_X", "$.tasks[0].priority"],
            ),
            (
                json!({"version": 1, "limits": {"max_runs": 1}, "conductor": {"wake": "yes"}, "tasks": [{"id": "a", "run": ["x"]}]}),
                &["$.limits.max_runs", "$.conductor.wake"],
            ),
            (
                json!({"version": 1, "tasks": [{"id": "a", "run": ["x"]}], "merge": [
                {"tool": "Write", "needs": ["b"], "set": {"c": "{{result.b}} {{path.a}} {{prompt}} {{input.x}}"}}]}),
                &["$.merge[0].set.c", "$.merge[0].needs[0]", "$.merge[0].set.c", "$.merge[0].set.c"],
            ),
        ];
        for (value, want) in table {
            let found = problems(&value);
            let got: Vec<&str> = found.iter().map(|p| p.path.as_str()).collect();
            assert_eq!(got, want, "{value:#}\n{found:#?}");
        }
    }

    #[test]
    fn circles_are_named() {
        let found = problems(&tasks(&json!([
            {"id": "start", "run": ["x"], "needs": ["a"]},
            {"id": "a", "run": ["x"], "needs": ["b"]},
            {"id": "b", "run": ["x"], "needs": ["c"]},
            {"id": "c", "run": ["x"], "needs": ["a"]}])));
        assert_eq!(found.len(), 1);
        assert!(found[0].what.ends_with("a -> b -> c -> a"), "{}", found[0].what);
        assert_eq!(found[0].path, "$.tasks[1].needs");
    }

    #[test]
    fn needs_are_resolved_once_each() {
        let plan = plan(&tasks(&json!([
            {"id": "all", "run": ["x"], "needs": ["t-1", "*", "t-1"]},
            {"id": "t-1", "run": ["x"]},
            {"id": "t-2", "run": ["x"]}])));
        let needs: Vec<&str> = plan.tasks[0].needs.iter().map(|n| n.task().unwrap().as_str()).collect();
        assert_eq!(needs, ["t-1", "t-2"]);
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let text = json!({"version": 1, "limits": {"task_timeout": "5m", "retries": 3, "max_workers": 2},
            "conductor": {"wait": "1s"},
            "tasks": [{"id": "a", "run": ["x"]}, {"id": "b", "shell": "y", "timeout": "none", "retries": 0, "backoff": "2m"}]});
        let plan = plan(&text);
        assert_eq!(plan.tasks[0].timeout, Limit(Some(Span::from_secs(300))));
        assert_eq!((plan.tasks[0].retries, plan.tasks[1].retries), (3, 0));
        assert_eq!(plan.tasks[1].timeout, Limit(None));
        assert_eq!(plan.tasks[1].backoff.max, Span::from_secs(120));
        assert_eq!((plan.limits.max_workers, plan.conductor.wait), (2, Span::from_secs(1)));
        assert_eq!((plan.run.as_str(), plan.session, plan.rule), ("r1", None, None));
    }

    #[test]
    fn a_plan_that_cpw_wrote_can_be_run_again() {
        let text = json!({"version": 1, "tasks": [
            {"id": "a", "run": ["x", "{{item}}"], "env": {"K": "v"}, "cwd": "src", "priority": 2, "allow_failure": true,
                "claims": ["a/**"], "summary": "(x)", "title": "t", "item": "i", "isolate": "worktree"},
            {"id": "b", "claude": {"prompt": "p", "model": "m", "tools": ["Read"], "max_turns": 2, "max_budget_usd": 0.5,
                "schema": {"type": "object"}}, "needs": ["a"]}],
            "merge": [{"tool": "Write", "match": {"file_path": "*.md"}, "needs": ["*"], "set": {"content": "{{result.a}}"}}]});
        let mut first = plan(&text);
        first.rule = Some("some".into());
        let again = read(&to_bytes(&first).unwrap()).unwrap_or_else(|p| panic!("{p:#?}"));
        first.rule = None;
        assert_eq!(again, first);
    }

    /// Sixty layers of two tasks that each need both of the next: as many paths as nobody can walk, but few tasks.
    #[test]
    fn many_paths_are_not_walked_one_by_one() {
        let ladder: Vec<Value> = (0..60)
            .flat_map(|i| ["a", "b"].map(|side| (i, side)))
            .map(|(i, side)| {
                let needs = if i == 59 { vec![] } else { vec![format!("a{}", i + 1), format!("b{}", i + 1)] };
                json!({"id": format!("{side}{i}"), "run": ["x"], "needs": needs})
            })
            .collect();
        assert_eq!(plan(&tasks(&json!(ladder))).tasks.len(), 120);
    }

    proptest! {
        /// Whatever the needs are: a plan that is accepted has an order in which it can run, one that is not names why.
        #[test]
        fn accepted_plans_can_run(edges in prop::collection::vec((0..8_usize, 0..8_usize), 0..14)) {
            let all: Vec<Value> = (0..8)
                .map(|i| {
                    let needs: Vec<String> = edges.iter().filter(|e| e.0 == i).map(|e| format!("t{}", e.1)).collect();
                    json!({"id": format!("t{i}"), "run": ["x"], "needs": needs})
                })
                .collect();
            let mut done = [false; 8];
            for _ in 0..8 {
                for i in 0..8 {
                    done[i] = done[i] || edges.iter().filter(|e| e.0 == i).all(|e| done[e.1]);
                }
            }
            let accepted = read(tasks(&json!(all)).to_string().as_bytes());
            prop_assert_eq!(accepted.is_ok(), done.iter().all(|d| *d), "{:?}", accepted);
        }
    }
}
