//! From drafts to a complete plan: ids are unique, every need names a task that exists, nothing waits for itself. Used for
//! plans that people write ([`plan_from_person`]) and for plans made from a rule (`model::expand`). All mistakes are
//! reported at once; ten thousand tasks in one chain neither recurse nor cost more than their number.

use std::collections::HashMap;
use std::rc::Rc;

use crate::base::ids::{CheckpointName, RunId, TaskId, Topic};
use crate::model::config::{CONDUCTOR_KEYS, Settings, default_claude, default_workers, header, settings};
use crate::model::draft::{self, Depth, MergeDraft, Scope, TaskDraft, VoteDraft};
use crate::model::glob::{self, Glob};
use crate::model::json::{self, MAX_BYTES, Node, Problem, Report, excerpt, path_of};
use crate::model::plan::{self, Action, MAX_TASKS, Merge, Plan, Task, VERSION};
use crate::model::template;
use crate::model::vote::{Choice, MAX_VOTERS, MAX_VOTES, Vote};

/// Keys of a plan.
pub const PLAN_KEYS: &[&str] =
    &["$schema", "version", "limits", "conductor", "durability", "resources", "tasks", "merge", "votes"];
/// Keys that stand only in plans that cpw wrote; accepted so that the plan of an old run can be run again, and given anew.
pub const PLAN_OWN: &[&str] = &["run", "session", "rule", "from", "orphan_grace"];
/// Keys of a plan that belong to the format, but not to this version.
pub const PLAN_LATER: &[&str] = &["signals"];
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
    /// An id or a glob over ids, maybe with a checkpoint behind an `@`, or a topic with what a vote about it is to say
    /// behind a `?`. Empty where a mistake was reported already.
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

/// A vote whose voters are to be resolved.
#[derive(Debug)]
pub(super) struct MadeVote<'a> {
    pub(super) from: usize,
    /// The topic as the file has it, for messages.
    pub(super) written: &'a str,
    /// The topic; empty where a mistake was reported already.
    pub(super) topic: String,
    pub(super) draft: &'a VoteDraft,
    pub(super) voters: Vec<(usize, Need)>,
    /// Whether the tasks stand for others, of which there may be more or fewer.
    pub(super) is_sample: bool,
}

/// What a plan's parts become once all names are resolved.
#[derive(Debug, Default)]
pub(super) struct Linked {
    pub(super) tasks: Vec<Task>,
    pub(super) merge: Vec<Merge>,
    pub(super) votes: Vec<Vote>,
}

/// What a need leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Edge {
    /// The task at this place, or a checkpoint of it.
    Task(usize, Option<CheckpointName>),
    /// The vote at this place.
    Vote(usize, Choice),
}

impl Edge {
    fn task(&self) -> Option<usize> {
        match self {
            Edge::Task(i, _) => Some(*i),
            Edge::Vote(..) => None,
        }
    }
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
        draft: None,
        expected: None,
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
    let votes = n.field("votes", &mut r, |n, r| Some(draft::votes(n, r, Scope::Plan))).unwrap_or_default();

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
    let votes = votes.iter().enumerate().map(|(from, draft)| {
        let (written, topic) = (draft.topic.as_str(), draft.topic.clone());
        MadeVote { from, written, topic, draft, voters: texts(&draft.voters), is_sample: false }
    });
    let Linked { tasks, merge, votes } = link("$", made, merges.collect(), votes.collect(), &mut r);
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
        votes,
    })
}

fn texts(needs: &[String]) -> Vec<(usize, Need)> {
    needs.iter().map(|id| Need::Text { id: id.clone(), written: None }).enumerate().collect()
}

pub(super) fn merge_of(m: MergeDraft) -> Merge {
    Merge { tool: m.tool, matches: m.matches, needs: Vec::new(), set: m.set }
}

/// Resolves all needs and checks that they can be met. `base` is the JSON path of what holds `tasks`, `merge` and `votes`.
pub(super) fn link(
    base: &str,
    made: Vec<Made<'_>>,
    merges: Vec<MadeMerge>,
    votes: Vec<MadeVote<'_>>,
    r: &mut Report,
) -> Linked {
    let ids: Vec<TaskId> = made.iter().map(|m| m.task.id.clone()).collect();
    let written: Vec<&str> = made.iter().map(|m| m.written).collect();
    let mut resolver = Resolver::new(&ids, &written);
    let polls = link_votes(base, votes, &mut resolver, r);
    resolver.topics = polls.iter().map(|(vote, _)| vote.topic.clone()).collect();
    let mut edges: Vec<Vec<Edge>> = Vec::with_capacity(made.len());
    for (own, m) in made.iter().enumerate() {
        let path = |need| path_of(base, &[("tasks", Some(m.from)), ("needs", Some(need))]);
        let needs = resolver.resolve(&m.needs, Some(own), path, r);
        let opposed =
            |e: &&Edge| matches!(e, Edge::Vote(v, Choice::Proceed) if needs.contains(&Edge::Vote(*v, Choice::Abort)));
        if let Some(Edge::Vote(vote, _)) = needs.iter().find(opposed) {
            let what = format!("needs both outcomes of the vote \"{}\", which has one", polls[*vote].0.topic);
            r.add(path_of(base, &[("tasks", Some(m.from)), ("needs", None)]), what, None);
        }
        edges.push(needs);
    }
    let electorates: Vec<&[usize]> = polls.iter().map(|(_, voters)| voters.as_slice()).collect();
    let topics: Vec<String> = polls.iter().map(|(vote, _)| format!("{}?", vote.topic)).collect();
    cycles(base, &made, &edges, (&topics, &electorates), r);
    let mut out_merges = Vec::with_capacity(merges.len());
    for m in merges {
        let path = |need| path_of(base, &[("merge", Some(m.from)), ("needs", Some(need))]);
        let needs: Vec<usize> = resolver.resolve(&m.needs, None, path, r).iter().filter_map(Edge::task).collect();
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
                    Some(at) if !needs.contains(at) => {
                        let hint = Some("add it to this merge's needs".to_owned());
                        r.add(path(), format!("uses the result of \"{id}\" without waiting for it"), hint);
                    }
                    Some(_) => {}
                }
            }
        }
        merge.needs = needs.iter().map(|i| ids[*i].clone()).collect();
        out_merges.push(merge);
    }
    let need = |edge: Edge| match edge {
        Edge::Task(i, None) => plan::Need::End(ids[i].clone()),
        Edge::Task(i, Some(name)) => plan::Need::Checkpoint(ids[i].clone(), name),
        Edge::Vote(vote, choice) => plan::Need::Verdict(polls[vote].0.topic.clone(), choice),
    };
    let named = edges.into_iter().map(|needs| needs.into_iter().map(need).collect());
    let tasks = made.into_iter().zip(named).map(|(m, needs)| Task { needs, ..m.task }).collect();
    Linked { tasks, merge: out_merges, votes: polls.into_iter().map(|(vote, _)| vote).collect() }
}

/// The votes, each with its voters' places.
fn link_votes(
    base: &str,
    votes: Vec<MadeVote<'_>>,
    resolver: &mut Resolver<'_>,
    r: &mut Report,
) -> Vec<(Vote, Vec<usize>)> {
    if votes.len() > MAX_VOTES {
        r.add(path_of(base, &[("votes", None)]), format!("would make more than {MAX_VOTES} votes"), None);
        return Vec::new();
    }
    let mut out: Vec<(Vote, Vec<usize>)> = Vec::with_capacity(votes.len());
    for MadeVote { from, written, topic, draft, voters, is_sample } in votes {
        let path = |key| path_of(base, &[("votes", Some(from)), (key, None)]);
        let at = |voter| path_of(base, &[("votes", Some(from)), ("voters", Some(voter))]);
        let places: Vec<usize> = resolver.resolve(&voters, None, at, r).iter().filter_map(Edge::task).collect();
        let count = u32::try_from(places.len()).unwrap_or(u32::MAX);
        if places.len() > MAX_VOTERS {
            r.add(path("voters"), format!("are {count} tasks, more than {MAX_VOTERS}"), None);
        }
        // Where no voter was found, that was said.
        if let Some(quorum) = draft.quorum.filter(|quorum| *quorum > count && count > 0 && !is_sample) {
            let what = format!("is {quorum}, but there are only {count} voters");
            r.add(path("quorum"), what, Some("leave it out for more than half of them".into()));
        }
        // A topic that is missing or bad was reported where it was read.
        let Ok(topic) = Topic::new(&topic) else { continue };
        if out.iter().any(|(vote, _)| vote.topic.as_str().eq_ignore_ascii_case(topic.as_str())) {
            let what = format!("\"{}\" is voted about twice", excerpt(written));
            r.add(path("topic"), what, Some("topics are unique, upper and lower case being equal".into()));
            continue;
        }
        let vote = Vote {
            topic,
            voters: places.iter().map(|i| resolver.ids[*i].clone()).collect(),
            quorum: draft.quorum.unwrap_or_else(|| draft.rule.quorum(count)),
            rule: draft.rule,
            deadline: draft.deadline,
            default: draft.default,
            on_abort: draft.on_abort,
        };
        out.push((vote, places));
    }
    out
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
    /// What is voted about.
    topics: Vec<Topic>,
}

impl<'a> Resolver<'a> {
    fn new(ids: &'a [TaskId], written: &'a [&'a str]) -> Self {
        let mut by_id = HashMap::with_capacity(ids.len());
        for (i, id) in ids.iter().enumerate() {
            by_id.entry(id.as_str()).or_insert(i);
        }
        let stamps = vec![0; ids.len()];
        Resolver { ids, written, by_id, globs: HashMap::new(), stamps, stamp: 0, total: 0, topics: Vec::new() }
    }

    /// What is needed, each task once (and once for each checkpoint), in the order in which it was written.
    fn resolve(
        &mut self,
        needs: &[(usize, Need)],
        own: Option<usize>,
        path: impl Fn(usize) -> String,
        r: &mut Report,
    ) -> Vec<Edge> {
        self.stamp += 1;
        let mut out: Vec<Edge> = Vec::new();
        for (at, need) in needs {
            if let Need::Text { id, .. } = need
                && let Some((topic, choice)) = split_verdict(id)
            {
                match self.topics.iter().position(|t| t.as_str() == topic) {
                    Some(vote) if out.contains(&Edge::Vote(vote, choice)) => {}
                    Some(vote) => out.push(Edge::Vote(vote, choice)),
                    None => {
                        let what = format!("names the vote \"{}\", which does not exist", excerpt(topic));
                        let hint = r.did_you_mean(topic, self.topics.iter().map(Topic::as_str));
                        r.add(path(*at), what, hint);
                    }
                }
                continue;
            }
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
                    Some(_) => !out.contains(&Edge::Task(i, checkpoint.clone())),
                };
                if new {
                    self.total += 1;
                    if self.total > MAX_NEEDS {
                        let hint = "put a task in between that the others need".to_owned();
                        r.add("$", format!("the tasks have more than {MAX_NEEDS} needs in all"), Some(hint));
                        return out;
                    }
                    out.push(Edge::Task(i, checkpoint.clone()));
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

/// A need of a verdict as it is written: the topic, and what is to come out.
pub(super) fn split_verdict(text: &str) -> Option<(&str, Choice)> {
    let (topic, choice) = text.rsplit_once('?')?;
    Some((topic, Choice::by_name(choice)?))
}

/// Reports circles of needs, each with the names along it. Walks with its own stack: a chain may be as long as a plan. A
/// verdict needs all its voters: they are the last of the nodes, by their names, with those who vote.
fn cycles(base: &str, made: &[Made<'_>], edges: &[Vec<Edge>], votes: (&[String], &[&[usize]]), r: &mut Report) {
    /// One circle often shows itself in several ways; more than these help nobody.
    const REPORTED: usize = 5;
    #[derive(Clone, Copy, PartialEq)]
    enum Color {
        New,
        Open,
        Closed,
    }
    let (topics, electorates) = votes;
    let mut color = vec![Color::New; made.len() + electorates.len()];
    let mut found = 0;
    let next_of = |node: usize, next: usize| match edges.get(node) {
        Some(needs) => needs.get(next).map(|edge| match edge {
            Edge::Task(i, _) => *i,
            Edge::Vote(vote, _) => made.len() + vote,
        }),
        None => electorates[node - made.len()].get(next).copied(),
    };
    for start in 0..made.len() {
        if color[start] != Color::New {
            continue;
        }
        color[start] = Color::Open;
        let mut stack = vec![(start, 0)];
        while let Some((node, next)) = stack.last_mut() {
            let node = *node;
            let Some(to) = next_of(node, *next) else {
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
                    let place = |i: &usize| made.get(circle[*i]).map_or(usize::MAX, |m| m.from);
                    let lowest = (0..circle.len()).min_by_key(place).unwrap_or(0);
                    circle.rotate_left(lowest);
                    report_cycle(base, made, topics, &circle, r);
                }
            }
        }
    }
}

fn report_cycle(base: &str, made: &[Made<'_>], topics: &[String], circle: &[usize], r: &mut Report) {
    let name = |i: &usize| made.get(*i).map_or_else(|| topics[*i - made.len()].as_str(), |m| m.written);
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
            (json!({"version": 1, "tasks": [], "votes": [], "signals": []}), &["$.signals", "$.tasks"]),
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
            {"id": "c", "run": ["x"], "needs": ["ship?proceed", "a@half"]},
            {"id": "b", "claude": {"prompt": "p", "model": "m", "tools": ["Read"], "max_turns": 2, "max_budget_usd": 0.5,
                "schema": {"type": "object"}}, "needs": ["a"]}],
            "merge": [{"tool": "Write", "match": {"file_path": "*.md"}, "needs": ["*"], "set": {"content": "{{result.a}}"}}],
            "votes": [{"topic": "ship", "voters": ["a", "b"], "rule": "unanimous", "deadline": "90s", "on_abort": "none"}]});
        let mut first = plan(&text);
        first.rule = Some("some".into());
        let again = read(&to_bytes(&first).unwrap()).unwrap_or_else(|p| panic!("{p:#?}"));
        first.rule = None;
        assert_eq!(again, first);
    }

    /// A plan of the tasks `a`, `b` and `c`, of which `c` has these needs, with these votes.
    fn voting(needs: &Value, votes: &Value) -> Value {
        json!({"version": 1, "votes": votes, "tasks": [{"id": "a", "run": ["x"]}, {"id": "b", "run": ["x"]},
            {"id": "c", "run": ["x"], "needs": needs}]})
    }

    #[test]
    fn v11_a_vote_that_cannot_be_held_is_refused_at_its_place() {
        let of = |change: &dyn Fn(&mut Value)| {
            let mut vote = json!({"topic": "t", "voters": ["a", "b"]});
            change(&mut vote);
            voting(&json!(["t?proceed"]), &json!([vote]))
        };
        let twice = json!([{"topic": "t", "voters": ["a"]}, {"topic": "T", "voters": ["b"]}]);
        let many: Vec<Value> = (0..65).map(|i| json!({"topic": format!("t{i}"), "voters": ["a"]})).collect();
        let table: Vec<(Value, &[&str])> = vec![
            (of(&|_| ()), &[]),
            (of(&|v| v["quorum"] = json!(2)), &[]),
            (of(&|v| v["quorum"] = json!(3)), &["$.votes[0].quorum"]),
            (of(&|v| v["quorum"] = json!(0)), &["$.votes[0].quorum"]),
            (of(&|v| v["voters"] = json!([])), &["$.votes[0].voters"]),
            (of(&|v| v["voters"] = json!(["nobody", "z*"])), &["$.votes[0].voters[0]", "$.votes[0].voters[1]"]),
            (of(&|v| v["voters"] = json!(["a@x", "t?abort"])), &["$.votes[0].voters[0]", "$.votes[0].voters[1]"]),
            (of(&|v| drop(v.as_object_mut().unwrap().remove("voters"))), &["$.votes[0]"]),
            (of(&|v| drop(v.as_object_mut().unwrap().remove("topic"))), &["$.votes[0]", "$.tasks[2].needs[0]"]),
            (of(&|v| v["topic"] = json!("../t")), &["$.votes[0].topic", "$.tasks[2].needs[0]"]),
            (of(&|v| v["rule"] = json!("most")), &["$.votes[0].rule"]),
            (of(&|v| v["default"] = json!("none")), &["$.votes[0].default"]),
            (of(&|v| v["on_abort"] = json!("stop")), &["$.votes[0].on_abort"]),
            (of(&|v| v["deadline"] = json!("0s")), &["$.votes[0].deadline"]),
            (of(&|v| v["until"] = json!("1s")), &["$.votes[0].until"]),
            (voting(&json!([]), &twice), &["$.votes[1].topic"]),
            (voting(&json!([]), &json!(many)), &["$.votes"]),
            (voting(&json!(["u?proceed"]), &json!([{"topic": "t", "voters": ["a"]}])), &["$.tasks[2].needs[0]"]),
            (voting(&json!(["t?maybe"]), &json!([{"topic": "t", "voters": ["a"]}])), &["$.tasks[2].needs[0]"]),
            (
                voting(&json!(["t?proceed", "t?abort"]), &json!([{"topic": "t", "voters": ["a"]}])),
                &["$.tasks[2].needs"],
            ),
        ];
        for (value, want) in table {
            let found = problems(&value);
            let got: Vec<&str> = found.iter().map(|p| p.path.as_str()).collect();
            assert_eq!(got, want, "{value:#}\n{found:#?}");
        }
        let merge = json!({"version": 1, "tasks": [{"id": "a", "run": ["x"]}], "votes": [{"topic": "t", "voters": ["a"]}],
            "merge": [{"tool": "Write", "needs": ["t?proceed"]}]});
        assert_eq!(problems(&merge)[0].path, "$.merge[0].needs[0]");
        let many: Vec<Value> = (0..257).map(|i| json!({"id": format!("t{i}"), "run": ["x"]})).collect();
        let all = json!({"version": 1, "tasks": many, "votes": [{"topic": "t", "voters": ["*"]}]});
        assert_eq!(problems(&all)[0].path, "$.votes[0].voters");
    }

    #[test]
    fn a_voter_does_not_need_the_verdict_of_its_own_vote() {
        let circle = |needs: &Value, voters: &Value| {
            let found = problems(&voting(needs, &json!([{"topic": "t", "voters": voters}])));
            found.iter().map(|p| p.what.clone()).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(circle(&json!(["t?proceed"]), &json!(["a", "b"])), "");
        assert!(circle(&json!(["t?abort"]), &json!(["*"])).ends_with("c -> t? -> c"));
        let mut plan = voting(&json!(["t?proceed"]), &json!([{"topic": "t", "voters": ["a"]}]));
        plan["tasks"][0]["needs"] = json!(["b"]);
        plan["tasks"][1]["needs"] = json!(["c@half"]);
        let found = problems(&plan);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].what.ends_with("a -> b -> c -> t? -> a"), "{}", found[0].what);
        assert_eq!(found[0].path, "$.tasks[0].needs");
    }

    #[test]
    fn what_a_vote_leaves_out_depends_on_its_rule() {
        let of = |vote: Value| plan(&voting(&json!([]), &json!([vote]))).votes.remove(0);
        let vote = of(json!({"topic": "t", "voters": ["*", "a"]}));
        let names: Vec<&str> = vote.voters.iter().map(TaskId::as_str).collect();
        assert_eq!((names, vote.quorum, vote.default), (vec!["a", "b", "c"], 2, Choice::Abort));
        assert_eq!(of(json!({"topic": "t", "voters": ["a", "b"]})).quorum, 2);
        assert_eq!(of(json!({"topic": "t", "voters": ["*"], "rule": "unanimous"})).quorum, 3);
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
