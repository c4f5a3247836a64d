//! From a rule that matches a prompt to the plan of a run: one task per item of `for_each`, templates filled, ids made
//! unique, needs resolved. Values fill text inside one argument or field and are never parsed again.
//!
//! A task is made once per item if one of its fields uses an item template, or if its script, an argument or a variable
//! mentions `CPW_ITEM`; otherwise it is made once, like a last task that sums up. A need with an item template means the
//! same item; a need equal to the id of a task that is made per item means the same item from within another such task,
//! and all of them from elsewhere; a glob ranges over the ids as they were made.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::base::ids::{CheckpointName, MAX_ID, RunId, SessionId, TaskId, fold_id};
use crate::model::check::{
    Defaults, Linked, Made, MadeMerge, MadeVote, Need, link, split_need, split_verdict, task_of,
};
use crate::model::config::{ForEach, Rule, Settings, default_claude, default_workers};
use crate::model::draft::{ITEM_NAMES, MAX_STRING, MergeDraft, TaskDraft};
use crate::model::glob;
use crate::model::json::{MAX_BYTES, Problem, Report, excerpt, path_of};
use crate::model::plan::{Action, ClaudeTask, MAX_TASKS, Merge, Plan, Task, VERSION};
use crate::model::resource;
use crate::model::template::{self, Piece};

/// A rule that matches, with what its tasks are made from.
#[derive(Debug, Clone)]
pub struct Match<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The whole prompt, for `{{prompt}}`.
    pub prompt: &'a str,
    /// Where the prompt will be written, for `{{prompt_file}}`.
    pub prompt_file: &'a str,
    /// Existing files that the prompt names, in its order, for `"for_each": "files"`.
    pub files: Vec<String>,
    /// Existing files that match the glob, sorted, for `"for_each": {"glob": …}`.
    pub globbed: Vec<String>,
    /// The texts of the regex's groups 1, 2, …, for `"for_each": {"group": n}`.
    pub groups: Vec<String>,
}

/// What programs take for the beginning of an option (`-x`, `+x`), or of the name of a file that holds arguments (`@x`).
const SPECIAL: [char; 3] = ['-', '+', '@'];

/// The values of one task.
struct Values<'a> {
    item: Option<&'a str>,
    /// From 1.
    index: usize,
    prompt: &'a str,
    prompt_file: &'a str,
    /// Whether the items are the rule's own words, not names that came with the prompt or the disk.
    own_words: bool,
}

impl Values<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let item = self.item.unwrap_or_default();
        let path = item.trim_end_matches('/');
        let (dir, file) = path.rsplit_once('/').unwrap_or((".", path));
        // A leading dot is part of the name: `.env` has no extension.
        let (stem, ext) = match file.rsplit_once('.') {
            Some((stem, ext)) if !stem.is_empty() => (stem, ext),
            _ => (file, ""),
        };
        Some(match name {
            "item" => item.into(),
            "item.name" => file.into(),
            "item.stem" => stem.into(),
            "item.dir" => if dir.is_empty() { "/" } else { dir }.into(),
            "item.ext" => ext.into(),
            "index" => self.index.to_string().into(),
            "prompt" => self.prompt.into(),
            "prompt_file" => self.prompt_file.into(),
            _ => return None,
        })
    }

    fn text(&self, template: &str) -> String {
        template::fill(template, |name| self.get(name).map(Cow::into_owned))
    }

    /// One argument. A value at its beginning cannot make an option of it, nor a file to read arguments from.
    fn argument(&self, template: &str) -> String {
        let filled = self.text(template);
        let first = template::pieces(template).find(|piece| match piece {
            Piece::Text(_) => true,
            Piece::Name(name) => self.get(name).is_some_and(|value| !value.is_empty()),
        });
        let Some(Piece::Name(name)) = first else {
            return filled;
        };
        let is_item = ITEM_NAMES.contains(&name);
        if !filled.starts_with(SPECIAL) || (is_item && self.own_words) {
            filled
        } else if is_item {
            format!("./{filled}")
        } else {
            format!(" {filled}")
        }
    }

    /// A glob in which values stand for themselves. Claims name files without a leading `./`.
    fn glob(&self, template: &str) -> String {
        template::fill(template, |name| self.get(name).map(|v| glob::escape(v.strip_prefix("./").unwrap_or(&v))))
    }

    /// An id: values are folded into its alphabet; one of which nothing would be left is replaced by the item's number.
    fn id(&self, template: &str) -> String {
        template::fill(template, |name| {
            let folded = fold_id(&self.get(name)?);
            let folded = folded.trim_end_matches('-');
            Some(if folded.is_empty() { self.index.to_string() } else { folded.to_owned() })
        })
    }

    /// A template of `set` with the values that are known now; those that come later stay.
    fn partly(&self, template: &str) -> String {
        if template::names(template).all(|n| self.get(n).is_none()) {
            return template.to_owned();
        }
        let mut out = String::new();
        for piece in template::pieces(template) {
            match piece {
                // Escaped as well: with the value behind it, it could look like a placeholder.
                Piece::Text(text) => out.push_str(&template::escape(text)),
                Piece::Name(name) => {
                    out.push_str(&self.get(name).map_or_else(|| format!("{{{{{name}}}}}"), |v| template::escape(&v)));
                }
            }
        }
        out
    }
}

/// The items of a match, each once, in order: none if the rule has no `for_each`, or nothing was found for it.
pub fn items(m: &Match<'_>) -> Vec<String> {
    let file = |f: &String| if f.starts_with(SPECIAL) { format!("./{f}") } else { f.clone() };
    let all: Vec<String> = match &m.rule.for_each {
        None => Vec::new(),
        Some(ForEach::Files) => m.files.iter().map(file).collect(),
        Some(ForEach::Glob(_)) => m.globbed.iter().map(file).collect(),
        Some(ForEach::List(list)) => list.clone(),
        Some(ForEach::Group(n)) => m.groups.get(n - 1).map(|g| split_group(g)).unwrap_or_default(),
    };
    let mut seen = HashSet::new();
    all.into_iter().filter(|i| !i.is_empty() && !i.contains('\0') && seen.insert(i.clone())).collect()
}

/// Cuts a list in a sentence into its parts: at commas, semicolons and line ends, and at "and" and its like between
/// words. Quotes around a part, list marks before it and punctuation after it are dropped.
pub fn split_group(text: &str) -> Vec<String> {
    const AND: [&str; 4] = ["and", "und", "et", "&"];
    const QUOTES: [char; 9] = ['"', '\'', '`', '“', '”', '„', '‘', '’', '«'];
    let mut out = Vec::new();
    for part in text.split([',', ';', '\n', '，', '、']) {
        let mut words: Vec<&str> = Vec::new();
        let mut close = |words: &mut Vec<&str>| {
            let item: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
            let item = item.trim_start_matches(['-', '*', '•', ' ']);
            let item = item.trim_end_matches(['.', '!', '?', ':', ' ']).trim_matches(QUOTES).trim_matches('»').trim();
            let item = item.trim_start_matches(SPECIAL);
            if !item.is_empty() {
                out.push(item.to_owned());
            }
            words.clear();
        };
        let mut rest = part.split_whitespace().peekable();
        while let Some(word) = rest.next() {
            // `y` is also a name: in "x, y and z" nothing stands before it.
            let is_y = word.eq_ignore_ascii_case("y") && !words.is_empty() && rest.peek().is_some();
            if is_y || AND.iter().any(|a| word.eq_ignore_ascii_case(a)) {
                close(&mut words);
            } else {
                words.push(word);
            }
        }
        close(&mut words);
    }
    out
}

/// Makes the plan of a run from a match. A rule whose `for_each` finds nothing is a problem at its `for_each`.
pub fn expand(
    m: &Match<'_>,
    run: RunId,
    session: Option<SessionId>,
    defaults: &Defaults<'_>,
) -> Result<Plan, Vec<Problem>> {
    let mut r = Report::default();
    let prompt = m.prompt.replace('\0', "");
    let items = items(m);
    let Linked { tasks, merge, votes } =
        build(m.rule, &items, &prompt, m.prompt_file, defaults.settings, false, &mut r);
    let claude = tasks.iter().any(|t| t.claude().is_some());
    let workers = default_workers(defaults.machine.cores, defaults.machine.mem_mib, claude);
    let at_once = claude.then(|| default_claude(defaults.machine.mem_mib));
    r.finish(Plan {
        version: VERSION,
        run,
        session,
        rule: Some(m.rule.name.clone()),
        from: None,
        orphan_grace: None,
        limits: defaults.settings.run_limits(workers, at_once),
        durability: defaults.settings.durability(),
        conductor: defaults.settings.conductor(),
        tasks,
        merge,
        resources: BTreeMap::new(),
        votes,
    })
}

/// Makes a plan from two stand-in items, or the rule's own list, and reports what is wrong with it whatever the prompt:
/// needs of tasks that do not exist, circles, equal ids.
pub(super) fn probe(rule: &Rule, settings: &Settings, r: &mut Report) {
    let items = match &rule.for_each {
        None => Vec::new(),
        Some(ForEach::List(list)) => list.clone(),
        Some(_) => vec!["alpha/one.aa".to_owned(), "beta/two.bb".to_owned()],
    };
    let is_sample = !matches!(rule.for_each, None | Some(ForEach::List(_)));
    build(rule, &items, "a prompt", "prompt.txt", settings, is_sample, r);
}

/// Builds the tasks, merges and votes of a rule. `is_sample`: the items stand for others.
fn build(
    rule: &Rule,
    items: &[String],
    prompt: &str,
    prompt_file: &str,
    settings: &Settings,
    is_sample: bool,
    r: &mut Report,
) -> Linked {
    let base = path_of("$", &[("rules", Some(rule.index))]);
    if rule.for_each.is_some() && items.is_empty() {
        r.add(path_of(&base, &[("for_each", None)]), "found nothing to make tasks from", None);
        return Linked::default();
    }
    let per_item: Vec<bool> = rule.tasks.iter().map(|t| rule.for_each.is_some() && t.is_per_item()).collect();
    let count: usize = per_item.iter().map(|each| if *each { items.len() } else { 1 }).sum();
    if count > MAX_TASKS {
        r.add(path_of(&base, &[("tasks", None)]), format!("would make {count} tasks, more than {MAX_TASKS}"), None);
        return Linked::default();
    }
    equal_ids(rule, &base, r);

    let own_words = matches!(rule.for_each, Some(ForEach::List(_)));
    let once = Values { item: None, index: 1, prompt, prompt_file, own_words };
    let each =
        |i: usize| Values { item: items.get(i).map(String::as_str), index: i + 1, prompt, prompt_file, own_words };

    // The ids of tasks that are made once are promised to whoever needs them, so they are given first.
    let mut names = Names::default();
    let mut order: Vec<(usize, Option<usize>)> = Vec::with_capacity(count);
    for (d, each) in per_item.iter().enumerate() {
        if *each {
            order.extend((0..items.len()).map(|i| (d, Some(i))));
        } else {
            order.push((d, None));
        }
    }
    let mut ids: Vec<Option<TaskId>> = vec![None; order.len()];
    for pass in [false, true] {
        for (slot, (d, i)) in order.iter().enumerate().filter(|(_, (_, i))| i.is_some() == pass) {
            let values = i.map_or_else(|| Values { ..once }, each);
            ids[slot] = names.unique(&values.id(&rule.tasks[*d].id), slot + 1);
        }
    }
    // Where the first task of each draft is; its items follow.
    let mut first = vec![0; rule.tasks.len()];
    for (slot, (d, _)) in order.iter().enumerate().rev() {
        first[*d] = slot;
    }
    let by_id = rule.tasks.iter().enumerate().map(|(d, t)| (t.id.as_str(), d)).collect();
    let family = Family { by_id, per_item: &per_item, first: &first, items: items.len() };

    let mut left = MAX_BYTES;
    let mut made = Vec::with_capacity(order.len());
    for ((d, i), id) in order.into_iter().zip(ids) {
        let draft = &rule.tasks[d];
        let values = i.map_or_else(|| Values { ..once }, each);
        let Some(id) = id else {
            r.add(path_of(&base, &[("tasks", Some(d)), ("id", None)]), "no id could be made", None);
            return Linked::default();
        };
        let at = path_of(&base, &[("tasks", Some(d))]);
        let Some(task) = fill_task(draft, id, &values, settings, &at, &mut left, r) else {
            return Linked::default();
        };
        made.push(Made { from: d, written: &draft.id, task, needs: family.needs(&draft.needs, i, &values) });
    }
    let mut merges = Vec::new();
    for (from, draft) in rule.merge.iter().enumerate() {
        let each_item = rule.for_each.is_some() && draft.is_per_item();
        for i in 0..if each_item { items.len() } else { 1 } {
            let item = each_item.then_some(i);
            let values = item.map_or_else(|| Values { ..once }, each);
            let merge = fill_merge(draft, &values);
            for (field, _) in merge.matches.iter().filter(|(_, g)| g.len() > glob::MAX_PATTERN) {
                let path = path_of(&base, &[("merge", Some(from)), ("match", None), (field, None)]);
                r.add(path, format!("with its value {}", glob::BadGlob::TooLong), None);
            }
            let size: usize = merge.set.values().chain(merge.matches.values()).map(String::len).sum();
            if !spend(&mut left, size, &base, r) {
                return Linked::default();
            }
            merges.push(MadeMerge { from, merge, needs: family.needs(&draft.needs, item, &values) });
        }
    }
    let mut polls = Vec::new();
    for (from, draft) in rule.votes.iter().enumerate() {
        let each_item = rule.for_each.is_some() && draft.is_per_item();
        for i in 0..if each_item { items.len() } else { 1 } {
            let item = each_item.then_some(i);
            let values = item.map_or_else(|| Values { ..once }, each);
            let topic = fold_id(&values.id(&draft.topic));
            let voters = family.needs(&draft.voters, item, &values);
            polls.push(MadeVote { from, written: &draft.topic, topic, draft, voters, is_sample });
        }
    }
    link(&base, made, merges, polls, r)
}

fn equal_ids(rule: &Rule, base: &str, r: &mut Report) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (d, draft) in rule.tasks.iter().enumerate() {
        if let Some(first) = seen.get(&draft.id.to_ascii_lowercase()) {
            let path = path_of(base, &[("tasks", Some(d)), ("id", None)]);
            let what = format!("\"{}\" is the id of {} too", draft.id, path_of(base, &[("tasks", Some(*first))]));
            r.add(path, what, Some("ids are unique, upper and lower case being equal".into()));
        } else {
            seen.insert(draft.id.to_ascii_lowercase(), d);
        }
    }
}

/// Who is meant by a need that is written as a rule writes it.
struct Family<'a> {
    by_id: HashMap<&'a str, usize>,
    per_item: &'a [bool],
    first: &'a [usize],
    items: usize,
}

impl Family<'_> {
    fn needs(&self, needs: &[String], item: Option<usize>, values: &Values<'_>) -> Vec<(usize, Need)> {
        let mut out = Vec::with_capacity(needs.len());
        for (at, need) in needs.iter().enumerate() {
            if let Some((topic, choice)) = split_verdict(need) {
                let id = format!("{}?{choice}", fold_id(&values.id(topic)));
                let written = (id != *need).then(|| need.clone());
                out.push((at, Need::Text { id, written }));
                continue;
            }
            let (task, name) = split_need(need);
            let checkpoint = name.and_then(|name| CheckpointName::new(name).ok());
            let made = |i: usize| (at, Need::Made(i, checkpoint.clone()));
            match (self.by_id.get(task).copied(), item) {
                (Some(d), Some(i)) if self.per_item[d] => out.push(made(self.first[d] + i)),
                (Some(d), None) if self.per_item[d] => {
                    out.extend((0..self.items).map(|i| made(self.first[d] + i)));
                }
                (Some(d), _) => out.push(made(self.first[d])),
                (None, _) => {
                    let mut id = values.id(task);
                    if template::names(task).next().is_some() && !glob::has_meta(&id) {
                        id = fold_id(&id);
                    }
                    if let Some(name) = name {
                        id = format!("{id}@{name}");
                    }
                    let written = (id != *need).then(|| need.clone());
                    out.push((at, Need::Text { id, written }));
                }
            }
        }
        out
    }
}

/// Ids that were given, ignoring case.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
    next: HashMap<String, usize>,
}

impl Names {
    /// `wish` folded into the alphabet, with `-2`, `-3` … where it was given before.
    fn unique(&mut self, wish: &str, number: usize) -> Option<TaskId> {
        let mut wish = fold_id(wish);
        if wish.is_empty() {
            wish = format!("task-{number}");
        }
        let key = wish.to_ascii_lowercase();
        let mut candidate = wish.clone();
        let next = self.next.entry(key).or_insert(1);
        while !self.taken.insert(candidate.to_ascii_lowercase()) {
            *next += 1;
            let suffix = format!("-{next}");
            let cut = wish.len().min(MAX_ID - suffix.len());
            candidate = format!("{}{suffix}", &wish[..cut]);
        }
        TaskId::new(&candidate).ok()
    }
}

/// Takes `size` bytes from what a plan may hold.
fn spend(left: &mut usize, size: usize, at: &str, r: &mut Report) -> bool {
    if let Some(rest) = left.checked_sub(size) {
        *left = rest;
        return true;
    }
    let hint = "use {{prompt_file}} instead of {{prompt}}".to_owned();
    r.add(at, format!("makes a plan of more than {MAX_BYTES} bytes"), Some(hint));
    false
}

/// One task with its values. `None` once the plan is too large.
fn fill_task(
    draft: &TaskDraft,
    id: TaskId,
    values: &Values<'_>,
    settings: &Settings,
    at: &str,
    left: &mut usize,
    r: &mut Report,
) -> Option<Task> {
    /// What a task takes in `plan.json` beside its texts.
    const FRAME: usize = 120;
    let mut size = FRAME;
    let mut keep = |s: String| {
        size += s.len();
        s
    };
    let action = match &draft.action {
        Action::Run(argv) => Action::Run(argv.iter().map(|a| keep(values.argument(a))).collect()),
        Action::Shell(script) => Action::Shell(keep(script.clone())),
        Action::Claude(c) => Action::Claude(ClaudeTask { prompt: keep(values.text(&c.prompt)), ..c.clone() }),
    };
    let mut task = task_of(draft, id, action, settings);
    task.title = draft.title.as_ref().map(|t| keep(values.text(t)));
    task.claims = draft.claims.iter().map(|c| keep(values.glob(c))).collect();
    task.resources = draft.resources.iter().map(|c| keep(values.text(c))).collect();
    task.env = draft.env.iter().map(|(k, v)| (k.clone(), keep(values.text(v)))).collect();
    task.cwd = draft.cwd.as_ref().map(|c| keep(values.text(c)));
    task.item = values.item.map(|i| keep(i.to_owned()));
    task.draft = task.item.as_ref().map(|_| keep(draft.id.clone()));

    let too_long = |s: &String| s.len() > MAX_STRING;
    let argv = match &task.action {
        Action::Run(argv) => argv.as_slice(),
        _ => &[],
    };
    for (i, long) in argv.iter().enumerate().filter(|(_, a)| too_long(a)) {
        let hint = "use {{prompt_file}} instead of {{prompt}}".to_owned();
        let what = format!("becomes {} bytes long, more than a program can be given", long.len());
        r.add(path_of(at, &[("run", Some(i))]), what, Some(hint));
    }
    for (name, long) in task.env.iter().filter(|(_, v)| too_long(v)) {
        let what = format!("becomes {} bytes long, more than a program can be given", long.len());
        r.add(
            path_of(at, &[("env", None), (name, None)]),
            what,
            Some("use {{prompt_file}} instead of {{prompt}}".into()),
        );
    }
    // Values are escaped, so that length is all they can spoil.
    for (i, _) in task.claims.iter().enumerate().filter(|(_, c)| c.len() > glob::MAX_PATTERN) {
        r.add(path_of(at, &[("claims", Some(i))]), format!("with its value {}", glob::BadGlob::TooLong), None);
    }
    for (i, resource) in task.resources.iter().enumerate().filter(|(i, _)| !draft.resources[*i].is_empty()) {
        if let Err(e) = resource::read(resource) {
            r.add(
                path_of(at, &[("resources", Some(i))]),
                format!("becomes \"{}\", which {e}", excerpt(resource)),
                None,
            );
        }
    }
    if let (Some(template), Some(cwd)) = (&draft.cwd, &task.cwd)
        && !values.own_words
        && template::names(template).next().is_some()
        && (cwd.starts_with('/') || cwd.split('/').any(|part| part == ".."))
    {
        r.add(path_of(at, &[("cwd", None)]), "a template leads out of the project", None);
    }
    spend(left, size, at, r).then_some(task)
}

fn fill_merge(draft: &MergeDraft, values: &Values<'_>) -> Merge {
    let map = |from: &BTreeMap<String, String>, fill: &dyn Fn(&str) -> String| {
        from.iter().map(|(k, v)| (k.clone(), fill(v))).collect::<BTreeMap<_, _>>()
    };
    Merge {
        tool: draft.tool.clone(),
        matches: map(&draft.matches, &|s| values.glob(s)),
        needs: Vec::new(),
        set: map(&draft.set, &|s| values.partly(s)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::base::ids::check_id;
    use crate::model::check::Machine;
    use crate::model::config::{self, Config};

    fn rule_config(rule: &Value) -> Config {
        let text = json!({"version": 1, "rules": [rule]}).to_string();
        config::check(text.as_bytes()).unwrap_or_else(|p| panic!("{p:#?}"))
    }

    fn try_expand(config: &Config, files: &[&str], prompt: &str, groups: &[&str]) -> Result<Plan, Vec<Problem>> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let m = Match {
            rule: &config.rules[0],
            prompt,
            prompt_file: "/runs/r/prompt.txt",
            files: own(files),
            globbed: own(files),
            groups: own(groups),
        };
        let machine = Machine { cores: 2, mem_mib: 4096 };
        expand(&m, RunId::new("r").unwrap(), None, &Defaults { settings: &config.settings, machine })
    }

    fn plan(rule: &Value, files: &[&str]) -> Plan {
        try_expand(&rule_config(rule), files, "Analyze {{item}}", &[]).unwrap_or_else(|p| panic!("{p:#?}"))
    }

    fn ids(plan: &Plan) -> Vec<&str> {
        plan.tasks.iter().map(|t| t.id.as_str()).collect()
    }

    fn argv(task: &Task) -> &[String] {
        match &task.action {
            Action::Run(argv) => argv,
            other => panic!("{other:?}"),
        }
    }

    fn names<T: std::fmt::Display>(list: &[T]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_checkpoint_is_that_of_each_task_which_the_need_names() {
        let plan = plan(
            &each(&json!([
                {"id": "build-{{item.stem}}", "run": ["b", "{{item}}"]},
                {"id": "test-{{item.stem}}", "run": ["t", "{{item}}"], "needs": ["build-{{item.stem}}@compiled"]},
                {"id": "all", "run": ["a"], "needs": ["build-*@compiled", "build-*", "test-*"]}])),
            &["api.py", "db.py"],
        );
        let count = plan.tasks.iter().filter(|t| t.id.as_str().starts_with("build-")).count();
        for (i, task) in plan.tasks[count..2 * count].iter().enumerate() {
            assert_eq!(names(&task.needs), [format!("{}@compiled", plan.tasks[i].id)]);
        }
        let all = names(&plan.tasks[2 * count].needs);
        assert_eq!((all.len(), all.iter().filter(|n| n.ends_with("@compiled")).count()), (3 * count, count), "{all:?}");
    }

    #[test]
    fn a_vote_is_held_once_or_per_item_and_its_quorum_waits_for_the_items() {
        let rule = |votes: &Value, needs: &str| {
            let mut rule = each(&json!([
                {"id": "review-{{item.stem}}", "run": ["r", "{{item}}"]},
                {"id": "check-{{item.stem}}", "run": ["c", "{{item}}"]},
                {"id": "ship-{{item.stem}}", "run": ["s", "{{item}}"], "needs": [needs]}]));
            rule["votes"] = votes.clone();
            rule
        };
        let files = ["api.py", "db.py", "ui.py"];
        let once = plan(
            &rule(&json!([{"topic": "ship", "voters": ["review-{{item.stem}}"], "quorum": 3}]), "ship?proceed"),
            &files,
        );
        assert_eq!(names(&once.votes[0].voters), ["review-api", "review-db", "review-ui"]);
        assert!(once.tasks[6..].iter().all(|task| names(&task.needs) == ["ship?proceed"]));
        let votes = json!([{"topic": "ship-{{item.name}}", "voters": ["review-{{item.stem}}", "check-{{item.stem}}"]}]);
        let per_item = plan(&rule(&votes, "ship-{{item.name}}?proceed"), &files);
        let topics: Vec<String> =
            per_item.votes.iter().map(|v| format!("{}: {}", v.topic, names(&v.voters).join(" "))).collect();
        assert_eq!(topics[1], "ship-db.py: review-db check-db");
        assert_eq!((topics.len(), names(&per_item.tasks[8].needs)), (3, vec!["ship-ui.py?proceed".to_owned()]));
        let few = rule_config(&rule(&json!([{"topic": "ship", "voters": ["review-*"], "quorum": 3}]), "ship?proceed"));
        let found = try_expand(&few, &files[..2], "x", &[]).unwrap_err();
        assert_eq!(found[0].path, "$.rules[0].votes[0].quorum");
    }

    #[test]
    fn three_files_become_three_tasks_and_a_merge() {
        let plan = plan(
            &json!({"name": "analyze", "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
                "for_each": "files",
                "tasks": [{"id": "analyze-{{item.stem}}", "run": ["./lint.sh", "{{item}}"], "claims": ["{{item}}"]}],
                "merge": [{"tool": "Write", "match": {"file_path": "*report.md"}, "needs": ["analyze-*"],
                    "set": {"content": "{{input.content}}\n{{results}}"}}]}),
            &["api.py", "src/db.py", "ui.py"],
        );
        assert_eq!(ids(&plan), ["analyze-api", "analyze-db", "analyze-ui"]);
        assert_eq!(argv(&plan.tasks[1]), ["./lint.sh", "src/db.py"]);
        assert_eq!(plan.tasks[1].claims, ["src/db.py"]);
        assert_eq!(plan.tasks[1].item.as_deref(), Some("src/db.py"));
        assert_eq!(names(&plan.merge[0].needs), ids(&plan));
        assert_eq!(plan.merge[0].set["content"], "{{input.content}}\n{{results}}");
        assert_eq!(plan.rule.as_deref(), Some("analyze"));
        let bytes = crate::model::check::to_bytes(&plan).unwrap();
        assert_eq!(serde_json::from_slice::<Plan>(&bytes).unwrap(), plan);
    }

    fn each(tasks: &Value) -> Value {
        json!({"name": "r", "when": {"prompt": "go"}, "for_each": "files", "tasks": tasks})
    }

    #[test]
    fn needs_follow_items_and_globs() {
        let plan = plan(
            &each(&json!([
                {"id": "lint", "run": ["x", "{{item}}"]},
                {"id": "check-{{item.stem}}", "shell": "c \"$CPW_ITEM\"", "needs": ["analyze-{{item.stem}}", "lint"]},
                {"id": "analyze-{{item.stem}}", "run": ["a", "{{item}}"]},
                {"id": "sum", "shell": "true", "needs": ["check-*", "lint"]}])),
            &["src/api.py", "lib/api.py", "日本.py"],
        );
        assert_eq!(
            ids(&plan),
            [
                "lint",
                "lint-2",
                "lint-3",
                "check-api",
                "check-api-2",
                "check-3",
                "analyze-api",
                "analyze-api-2",
                "analyze-3",
                "sum"
            ]
        );
        assert_eq!(names(&plan.tasks[4].needs), ["analyze-api-2", "lint-2"]);
        assert_eq!(names(&plan.tasks[5].needs), ["analyze-3", "lint-3"]);
        assert_eq!(names(&plan.tasks[9].needs), ["check-api", "check-api-2", "check-3", "lint", "lint-2", "lint-3"]);
        assert_eq!(plan.tasks[9].item, None);
        assert_eq!(plan.tasks[4].item.as_deref(), Some("lib/api.py"));
    }

    #[test]
    fn a_task_made_once_keeps_its_id_whatever_the_items_are_called() {
        let plan = plan(
            &each(
                &json!([{"id": "{{item.stem}}", "run": ["x", "{{item}}"]}, {"id": "sum", "run": ["s"], "needs": ["*"]}]),
            ),
            &["sum.py", "SUM.rs"],
        );
        assert_eq!(ids(&plan), ["sum-2", "SUM-3", "sum"]);
        assert_eq!(names(&plan.tasks[2].needs), ["sum-2", "SUM-3"]);
    }

    #[test]
    fn values_stay_what_they_are() {
        let odd = ["{{prompt}}", "-rf", "a b;$(x)'\"", "*[a].py", "dir/.env", "/abs/x.tar.gz"];
        let plan = plan(
            &each(
                &json!([{"id": "t-{{index}}", "run": ["x", "{{item}}", "--f={{item}}", "{{item.dir}}|{{item.stem}}|{{item.ext}}"],
                "claims": ["{{item}}", "out/*.{{index}}"], "env": {"N": "{{item.name}}"}, "title": "{{item}} {{prompt}}"}]),
            ),
            &odd,
        );
        let want = ["{{prompt}}", "./-rf", "a b;$(x)'\"", "*[a].py", "dir/.env", "/abs/x.tar.gz"];
        for (i, (task, want)) in plan.tasks.iter().zip(want).enumerate() {
            assert_eq!(argv(task)[1], want);
            assert_eq!(argv(task)[2], format!("--f={want}"));
            assert_eq!(argv(task).len(), 4);
            // A claim names the file itself, even if its name looks like a glob.
            assert_eq!(glob::literal(&task.claims[0]).as_deref(), Some(odd[i]));
            assert_eq!(task.claims[1], format!("out/*.{}", i + 1));
            assert_eq!(task.title.as_deref(), Some(format!("{want} Analyze {{{{item}}}}").as_str()));
        }
        assert_eq!(argv(&plan.tasks[4])[3], "dir|.env|");
        assert_eq!(argv(&plan.tasks[5])[3], "/abs|x.tar|gz");
        assert_eq!(argv(&plan.tasks[0])[3], ".|{{prompt}}|");
    }

    #[test]
    fn a_prompt_cannot_become_an_option() {
        let config = rule_config(&json!({"name": "r", "when": {"prompt": "x"},
            "tasks": [{"id": "a", "run": ["x", "{{prompt}}", "{{prompt_file}}"]}]}));
        let plan = try_expand(&config, &[], "--delete\0 all", &[]).unwrap();
        assert_eq!(argv(&plan.tasks[0])[1..], [" --delete all", "/runs/r/prompt.txt"]);
        let plan = try_expand(&config, &[], "@/etc/passwd", &[]).unwrap();
        assert_eq!(argv(&plan.tasks[0])[1], " @/etc/passwd");
    }

    #[test]
    fn s10_a_value_behind_an_empty_one_begins_the_argument() {
        let config = rule_config(&json!({"name": "r", "when": {"prompt": "x"}, "for_each": {"list": ["plain"]},
            "tasks": [{"id": "a", "run": ["x", "{{item.ext}}{{prompt}}"]}]}));
        let plan = try_expand(&config, &[], "--delete", &[]).unwrap();
        assert_eq!(argv(&plan.tasks[0])[1], " --delete");
    }

    #[test]
    fn s10_text_and_a_value_that_form_a_placeholder_are_not_read_as_one() {
        for (set, item, want) in [
            ("{{{{item}} {{results}}", "input.secret}}", "{{input.secret}} R"),
            ("{{{item}} {{results}}", "{results}}", "{{results}} R"),
            ("{{.State}} {{item}}{{results}}", "{{results}}", "{{.State}} {{results}}R"),
        ] {
            let config = rule_config(&json!({"name": "r", "when": {"prompt": "x"}, "for_each": {"list": [item]},
                "tasks": [{"id": "a", "run": ["x"]}],
                "merge": [{"tool": "Write", "needs": ["a"], "set": {"content": set}}]}));
            let plan = try_expand(&config, &[], "x", &[]).unwrap();
            let filled = template::fill(&plan.merge[0].set["content"], |name| (name == "results").then(|| "R".into()));
            assert_eq!(filled, want, "{set}");
        }
    }

    #[test]
    fn the_rules_own_words_may_be_options() {
        let plan = plan(
            &json!({"name": "r", "when": {"prompt": "x"}, "for_each": {"list": ["--fast", "--slow", "--fast"]},
                "tasks": [{"id": "bench{{item}}", "run": ["x", "{{item}}"]}]}),
            &[],
        );
        assert_eq!(ids(&plan), ["benchfast", "benchslow"]);
        assert_eq!(argv(&plan.tasks[0])[1], "--fast");
    }

    #[test]
    fn groups_are_split_as_people_write_lists() {
        for (text, want) in [
            ("api, db and ui.", &["api", "db", "ui"][..]),
            ("api, db, and ui", &["api", "db", "ui"]),
            ("api und db", &["api", "db"]),
            ("api et db y ui & x", &["api", "db", "ui", "x"]),
            ("x, y and z", &["x", "y", "z"]),
            ("R&D, candy band", &["R&D", "candy band"]),
            ("\n- a.py\n* b.py\n- --rm", &["a.py", "b.py", "rm"]),
            ("\"a b\", `c`, “d”?", &["a b", "c", "d"]),
            (" , and ,", &[]),
        ] {
            assert_eq!(split_group(text), want, "{text:?}");
        }
        let config = rule_config(&json!({"name": "r", "when": {"prompt": "check (.+)"}, "for_each": {"group": 1},
            "tasks": [{"id": "c-{{item}}", "run": ["x", "{{item}}"]}]}));
        let plan = try_expand(&config, &[], "check api and db", &["api and db and api"]).unwrap();
        assert_eq!(ids(&plan), ["c-api", "c-db"]);
        assert_eq!(try_expand(&config, &[], "check ...", &["..."]).unwrap_err()[0].path, "$.rules[0].for_each");
    }

    #[test]
    fn merges_can_be_made_per_item_without_parsing_names_again() {
        let plan = plan(
            &json!({"name": "r", "when": {"prompt": "x"}, "for_each": "files",
                "tasks": [{"id": "t-{{item.stem}}", "run": ["x", "{{item}}"]}],
                "merge": [{"tool": "Edit", "match": {"file_path": "*{{item}}"}, "needs": ["t-{{item.stem}}"],
                    "set": {"new_string": "{{item}} {{{}}{x}} {{.Go}} {{results}}"}}]}),
            &["{{results}}", "b*.py"],
        );
        assert_eq!(plan.merge.len(), 2);
        assert_eq!(names(&plan.merge[1].needs), ["t-b"]);
        let filled = template::fill(&plan.merge[0].set["new_string"], |n| (n == "results").then(|| "R".to_owned()));
        assert_eq!(filled, "{{results}} {{x}} {{.Go}} R");
        let pattern = glob::Glob::text(&plan.merge[1].matches["file_path"]).unwrap();
        assert!(pattern.matches("/p/b*.py") && !pattern.matches("/p/bx.py"));
    }

    #[test]
    fn templates_do_not_lead_out_of_the_project() {
        let config = rule_config(&json!({"name": "r", "when": {"prompt": "go (.+)"}, "for_each": {"group": 1},
            "tasks": [{"id": "t", "run": ["x"], "cwd": "pkg/{{item}}"}]}));
        assert_eq!(try_expand(&config, &[], "", &["../../etc"]).unwrap_err()[0].path, "$.rules[0].tasks[0].cwd");
        assert!(try_expand(&config, &[], "", &["api"]).is_ok());
    }

    #[test]
    fn sizes_are_bounded() {
        let config = rule_config(&each(&json!([{"id": "t-{{index}}", "run": ["x", "{{item}}", "{{prompt}}"]}])));
        let files: Vec<String> = (0..10_001).map(|i| format!("f{i}")).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(try_expand(&config, &files[..10_000], "p", &[]).unwrap().tasks.len(), 10_000);
        assert_eq!(try_expand(&config, &files, "p", &[]).unwrap_err()[0].path, "$.rules[0].tasks");
        let long = "p".repeat(100_000);
        assert_eq!(try_expand(&config, &files[..200], &long, &[]).unwrap_err()[0].path, "$.rules[0].tasks[0]");
        let longer = "p".repeat(MAX_STRING + 1);
        assert_eq!(try_expand(&config, &files[..1], &longer, &[]).unwrap_err()[0].path, "$.rules[0].tasks[0].run[2]");
    }

    #[test]
    fn claims_are_globs_after_filling_too() {
        let config = rule_config(&each(&json!([{"id": "t", "run": ["x"], "claims": ["./out", "./{{item}}"]}])));
        assert_eq!(try_expand(&config, &["./a.py"], "p", &[]).unwrap().tasks[0].claims, ["out", "a.py"]);
        let long = "*".repeat(5000);
        assert_eq!(try_expand(&config, &[&long], "p", &[]).unwrap_err()[0].path, "$.rules[0].tasks[0].claims[1]");
    }

    #[test]
    fn ten_thousand_equal_names_stay_unique_and_short() {
        let mut names = Names::default();
        let wish = "x".repeat(80);
        let ids: HashSet<String> =
            (0..10_000).map(|i| names.unique(&wish, i).unwrap().as_str().to_ascii_lowercase()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    proptest! {
        #[test]
        fn any_file_names_make_a_valid_plan(files in prop::collection::vec("\\PC{1,12}|[a.{}*/-]{1,8}|[\u{0}-\u{20}x]{1,4}", 1..8), prompt in ".{0,40}") {
            let config = rule_config(&each(&json!([
                {"id": "{{item}}", "run": ["x", "{{item}}", "{{item.name}}{{prompt}}"], "claims": ["{{item}}"]},
                {"id": "b-{{item.ext}}-{{item.dir}}", "shell": "echo \"$CPW_ITEM\"", "needs": ["{{item}}"]},
                {"id": "end", "run": ["y"], "needs": ["*"]}])));
            let list: Vec<&str> = files.iter().map(String::as_str).collect();
            let distinct = items(&Match { rule: &config.rules[0], prompt: "", prompt_file: "", files: files.clone(),
                globbed: vec![], groups: vec![] });
            prop_assume!(!distinct.is_empty());
            let plan = try_expand(&config, &list, &prompt, &[]).unwrap();
            prop_assert_eq!(plan.tasks.len(), 2 * distinct.len() + 1);
            let mut seen = HashSet::new();
            for (i, task) in plan.tasks.iter().enumerate() {
                prop_assert!(check_id(task.id.as_str()).is_ok());
                prop_assert!(seen.insert(task.id.as_str().to_ascii_lowercase()));
                if let Action::Run(argv) = &task.action {
                    prop_assert_eq!(argv.len(), if i < distinct.len() { 3 } else { 1 });
                    prop_assert!(argv.iter().all(|a| !a.contains('\0') && !a.starts_with(SPECIAL)));
                    if i < distinct.len() {
                        prop_assert_eq!(&argv[1], &distinct[i]);
                    }
                }
                if (distinct.len()..2 * distinct.len()).contains(&i) {
                    prop_assert_eq!(&task.needs, &vec![plan.tasks[i - distinct.len()].id.clone().into()]);
                    prop_assert_eq!(&task.action, &Action::Shell("echo \"$CPW_ITEM\"".into()));
                }
                for claim in &task.claims {
                    prop_assert!(glob::literal(claim).is_some());
                }
            }
            let bytes = crate::model::check::to_bytes(&plan).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Plan>(&bytes).unwrap(), plan);
        }

        #[test]
        fn splitting_never_panics(text in "\\PC{0,80}") {
            prop_assert!(split_group(&text).iter().all(|i| !i.is_empty() && !i.starts_with(SPECIAL)));
        }
    }
}
