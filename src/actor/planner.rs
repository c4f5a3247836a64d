//! From a prompt to plans: which rules of the project's config match it, with what files, and why the others do not; and from
//! tool calls to the plan of the rule that they meet. It reads the project's config and looks which files exist; it starts
//! nothing.
//!
//! Conditions are asked cheapest first: a rule's regex is compiled only when everything else holds.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::base::hex;
use crate::base::ids::SessionId;
use crate::logic::conductor;
use crate::model::check::{Defaults, Machine};
use crate::model::config::{self, Config, ForEach, Rule};
use crate::model::expand::{self, Match};
use crate::model::glob::{self, Glob};
use crate::model::json::Problem;
use crate::model::plan::Plan;
use crate::model::resource;
use crate::model::words::{self, Origin, Words};
use crate::store::file;
use crate::store::history;
use crate::store::home::{self, State};
use crate::store::leases;
use crate::store::project::{CONFIG, MAX_CONFIG};
use crate::store::run;
use crate::store::trust::{self, Trust};
use crate::sys::fsinfo;
use crate::sys::host;

/// How many files a glob of a rule may look at.
const MAX_WALKED: usize = 50_000;

/// How many files a glob of a rule may find.
const MAX_FOUND: usize = 10_000;

/// Folders that no glob looks into unless it names them.
const SKIPPED: [&str; 4] = [".git", "node_modules", "target", ".claude"];

/// A project's config, as its bytes are approved or not.
#[derive(Debug)]
pub enum Rules {
    /// There is none.
    None,
    /// These bytes are not approved.
    Unapproved {
        /// Their hash, in hex.
        sha256: String,
        /// What was said of the config.
        trust: Trust,
    },
    /// They are approved, but are not a config.
    Broken(Vec<Problem>),
    /// They may start work.
    Ready(Box<Config>),
}

/// What this machine has.
pub fn machine() -> Machine {
    Machine { cores: host::cores(), mem_mib: host::available_memory_mib().unwrap_or(4096) }
}

/// Reads the config of `project` once; what is checked against the approval is what is parsed. `state` is `None` where
/// there is no state directory, so that nothing was ever approved.
pub fn rules(project: &Path, state: Option<&State>) -> anyhow::Result<Rules> {
    let Some(bytes) = file::read(&project.join(CONFIG), MAX_CONFIG)? else {
        return Ok(Rules::None);
    };
    let sha256 = hex::sha256(&bytes);
    let trust = match state {
        Some(state) => Trust::of(state, &trust::config_path(project)?, &sha256)?,
        None => Trust::Unknown,
    };
    if trust != Trust::Approved {
        return Ok(Rules::Unapproved { sha256, trust });
    }
    let config = match config::parse(&bytes) {
        Ok(config) => config,
        Err(problems) => return Ok(Rules::Broken(problems)),
    };
    Ok(match user_defaults(Some(project))? {
        Ok(user) => Rules::Ready(Box::new(config.with_user_defaults(&user))),
        Err(problems) => Rules::Broken(problems),
    })
}

/// The user's own defaults, empty where there are none. A file in the project is not the user's own, whatever says so.
pub fn user_defaults(project: Option<&Path>) -> anyhow::Result<Result<config::UserConfig, Vec<Problem>>> {
    let read = |path: PathBuf| {
        file::read_trusted(&path, MAX_CONFIG)
            .with_context(|| format!("your own defaults in {} do not count", path.display()))
    };
    let own = home::config_home().filter(|path| project.is_none_or(|project| !trust::lies_in(path, project)));
    let bytes = own.map(read).transpose()?.flatten();
    Ok(match bytes {
        Some(bytes) => config::user_config(&bytes),
        None => Ok(config::UserConfig::default()),
    })
}

/// Where a project's new runs belong: as its approved config says, else the user's own, else the default place.
pub fn runs_folder(project: &Path, state: Option<&State>) -> anyhow::Result<PathBuf> {
    let runs_dir = match rules(project, state)? {
        Rules::Ready(config) => config.runs_dir,
        // What nobody approved has no say; what is broken in the user's own says nothing either.
        Rules::None | Rules::Unapproved { .. } | Rules::Broken(_) => {
            user_defaults(Some(project))?.unwrap_or_default().runs_dir
        }
    };
    Ok(run::runs_path_by(project, runs_dir.as_deref()))
}

/// Why a rule does not match a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// The prompt names too few files that exist.
    Files {
        /// How many it names.
        found: usize,
        /// How many it must name.
        min: usize,
    },
    /// No file matches the rule's glob.
    Glob,
    /// The regex does not match the user's own words.
    Words,
    /// It does, but nothing is asked for: a question, a report, a negation, or talk about the word.
    NotAsked,
    /// `not` matches.
    Excluded,
    /// It starts after calls of these tools, whatever a prompt says.
    AfterCalls(Vec<String>),
    /// The plan cannot be made.
    Problems(Vec<Problem>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Files { found, min } => {
                write!(f, "the prompt names {found} existing files, at least {min} are needed")
            }
            Why::Glob => f.write_str("no file matches its glob"),
            Why::Words => f.write_str("its words do not occur outside of quotes, code and pasted text"),
            Why::NotAsked => f.write_str("its words occur, but the sentence does not ask for it"),
            Why::Excluded => f.write_str("`not` matches"),
            Why::AfterCalls(tools) => write!(f, "it starts after calls of {}, not from a prompt", tools.join(", ")),
            Why::Problems(problems) => f.write_str(&crate::model::json::list(problems)),
        }
    }
}

/// A rule and what became of it.
#[derive(Debug)]
pub struct Considered {
    /// The rule's name.
    pub rule: String,
    /// The plan, or why there is none.
    pub outcome: Result<Plan, Why>,
    /// How many files its `for_each` leaves out, because their names are not UTF-8.
    pub left_out: usize,
}

/// What is said about files that a rule leaves out.
pub fn left_out(count: usize) -> String {
    let files = if count == 1 { "1 file is left out, whose name is" } else { "files are left out, whose names are" };
    let count = if count == 1 { String::new() } else { format!("{count} ") };
    format!("{count}{files} not UTF-8")
}

/// Why no rule was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// Nobody typed it.
    Machine,
    /// It begins with `!cpw off`.
    Off,
}

/// A prompt in its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The project's root, canonical.
    pub project: &'a Path,
    /// The session's current directory: files may be named relative to it.
    pub cwd: &'a Path,
    /// The prompt.
    pub prompt: &'a str,
    /// The session that asks.
    pub session: Option<&'a SessionId>,
}

/// What of a prompt is examined, in bytes at each end. Who pastes more has pasted a file or a log; what is asked for stands
/// before or behind it.
const EXAMINED: usize = 64 * 1024;

/// How many names in a prompt are looked for on the disk.
const MAX_MENTIONS: usize = 1000;

fn examined(prompt: &str) -> Cow<'_, str> {
    if prompt.len() <= 2 * EXAMINED {
        return Cow::Borrowed(prompt);
    }
    let head = prompt.floor_char_boundary(EXAMINED);
    let tail = prompt.ceil_char_boundary(prompt.len() - EXAMINED);
    Cow::Owned(format!("{}\n\n{}", &prompt[..head], &prompt[tail..]))
}

/// Asks every rule of `config` about a prompt.
pub fn consider(config: &Config, asked: Asked<'_>) -> Result<Vec<Considered>, Ignored> {
    if words::origin(asked.prompt) == Origin::Machine {
        return Err(Ignored::Machine);
    }
    if words::says_off(asked.prompt) {
        return Err(Ignored::Off);
    }
    let words = Words::read(&examined(asked.prompt));
    let mut files = None;
    let consider = |rule: &Rule| {
        let mut left_out = 0;
        let outcome = ask(rule, config, asked, &words, &mut files, &mut left_out);
        Considered { rule: rule.name.clone(), outcome, left_out }
    };
    Ok(config.rules.iter().map(consider).collect())
}

fn ask(
    rule: &Rule,
    config: &Config,
    asked: Asked<'_>,
    words: &Words,
    files: &mut Option<Vec<String>>,
    left_out: &mut usize,
) -> Result<Plan, Why> {
    if let Some(on) = &rule.when.tool {
        return Err(Why::AfterCalls(on.tools.clone()));
    }
    let wants_files = rule.when.files.is_some() || rule.for_each == Some(ForEach::Files);
    let mut named = Vec::new();
    if wants_files {
        let min = rule.min_files();
        if words.mentions().len() < min {
            return Err(Why::Files { found: 0, min });
        }
        named.clone_from(files.get_or_insert_with(|| existing(asked, words.mentions())));
        if let Some(pattern) = rule.when.files.as_ref().and_then(|f| f.glob.as_deref())
            && let Ok(glob) = Glob::path(pattern)
        {
            named.retain(|f| glob.matches(f));
        }
        if named.len() < min {
            return Err(Why::Files { found: named.len(), min });
        }
    }
    let mut groups = Vec::new();
    if rule.when.prompt.is_some() {
        let hits = rule.prompt_matches(words.own());
        if hits.is_empty() {
            return Err(Why::Words);
        }
        let Some(hit) = hits.iter().find(|hit| words.asks(hit.at.clone())) else {
            return Err(Why::NotAsked);
        };
        groups = hit.group_texts(words.own()).into_iter().map(ToOwned::to_owned).collect();
    }
    if rule.is_excluded(words.own()) {
        return Err(Why::Excluded);
    }
    make(rule, config, asked, named, groups, left_out)
}

/// The plan of a rule whose other conditions hold, from these files and texts of groups.
fn make(
    rule: &Rule,
    config: &Config,
    asked: Asked<'_>,
    files: Vec<String>,
    groups: Vec<String>,
    left_out: &mut usize,
) -> Result<Plan, Why> {
    if let Some(pattern) = &rule.when.glob
        && find(asked.project, pattern, 1, &mut 0).is_empty()
    {
        return Err(Why::Glob);
    }
    let globbed = match &rule.for_each {
        Some(ForEach::Glob(pattern)) => find(asked.project, pattern, MAX_FOUND, left_out),
        _ => Vec::new(),
    };
    let run = run::new_id();
    let folder = run::runs_path_by(asked.project, config.runs_dir.as_deref()).join(run.as_str());
    let prompt_file = folder.join(run::PROMPT).to_string_lossy().into_owned();
    let found = Match { rule, prompt: asked.prompt, prompt_file: &prompt_file, files, globbed, groups };
    let defaults = Defaults { settings: &config.settings, machine: machine() };
    let mut plan = expand::expand(&found, run, asked.session.cloned(), &defaults).map_err(Why::Problems)?;
    plan.resources.clone_from(&config.resources);
    settle_claims(asked.project, &mut plan);
    settle_resources(asked.project, &mut plan).map_err(|problem| Why::Problems(vec![problem]))?;
    if let Ok(Some(state)) = State::existing() {
        history::expect(&state, asked.project, &mut plan);
    }
    plan.orphan_grace = config.orphan_grace.filter(|_| asked.session.is_some());
    Ok(plan)
}

/// The plan of a rule on tool calls, after calls of this session that named `files`: of these, those that still exist.
pub fn after_calls(
    config: &Config,
    rule: &Rule,
    project: &Path,
    session: &SessionId,
    files: &[String],
) -> Result<Plan, Why> {
    let asked = Asked { project, cwd: project, prompt: "", session: Some(session) };
    make(rule, config, asked, existing(asked, files), Vec::new(), &mut 0)
}

/// Adds, beside each claim as it is written, the other paths by which calls may name the same files: those that its links
/// lead to, and what is below a folder. Now, so that a tool call need not look at the disk for every claim.
pub fn settle_claims(project: &Path, plan: &mut Plan) {
    let root = project.to_string_lossy();
    let real = |path: &str| fsinfo::real_path(Path::new(path)).map(|real| real.to_string_lossy().into_owned());
    for task in &mut plan.tasks {
        let mut claims = Vec::with_capacity(task.claims.len());
        for claim in &task.claims {
            for form in conductor::forms_of_claim(claim, &root, real, |path| Path::new(path).is_dir()) {
                if !claims.contains(&form) {
                    claims.push(form);
                }
            }
        }
        task.claims = claims;
    }
}

/// Gives all resources of a plan their normal form, by which everybody means the same: links in them are resolved now.
pub fn settle_resources(project: &Path, plan: &mut Plan) -> Result<(), Problem> {
    let normal = |written: &str, at: String| {
        leases::resolve(written, project, project).map_err(|what| Problem { path: at, what, hint: None })
    };
    for (i, task) in plan.tasks.iter_mut().enumerate() {
        let all = task.resources.iter().enumerate();
        let all = all.map(|(k, written)| normal(written, format!("$.tasks[{i}].resources[{k}]")));
        let all = resource::together(all.collect::<Result<_, _>>()?);
        task.resources = all.iter().map(|r| r.as_str().to_owned()).collect();
    }
    let used = std::mem::take(&mut plan.resources);
    for (written, used) in used {
        let resource = normal(&written, format!("$.resources.{written}"))?;
        plan.resources.entry(resource.as_str().to_owned()).or_default().tools.extend(used.tools);
    }
    Ok(())
}

/// Which of the names in a prompt are files: below the project as relative paths, others as absolute ones.
fn existing(asked: Asked<'_>, mentions: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for mention in mentions.iter().take(MAX_MENTIONS) {
        let named = Path::new(mention);
        let candidates = [asked.cwd.join(named), asked.project.join(named)];
        let Some(path) = candidates.iter().find(|p| p.is_file()) else { continue };
        // As text, another path could be meant.
        let Some(text) = path.to_str() else { continue };
        let normal = conductor::normalise(text);
        let shown =
            Path::new(&normal).strip_prefix(asked.project).map_or(normal.clone(), |p| p.to_string_lossy().into());
        if seen.insert(shown.clone()) {
            out.push(shown);
        }
    }
    out
}

/// Files of the project that match a glob, sorted, at most `most`. Links are not followed. A name that is not UTF-8 is left
/// out and counted where it would match: as text it could be the name of another file.
fn find(project: &Path, pattern: &str, most: usize, left_out: &mut usize) -> Vec<String> {
    let Ok(glob) = Glob::path(pattern) else { return Vec::new() };
    let base = glob::base(pattern);
    let mut folders: Vec<PathBuf> = vec![project.join(base)];
    let mut out = Vec::new();
    let mut walked = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().take(MAX_WALKED + 1 - walked).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let mut below = Vec::new();
        for entry in entries {
            walked += 1;
            if walked > MAX_WALKED || out.len() >= most {
                out.sort();
                return out;
            }
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() {
                let name = entry.file_name();
                if !SKIPPED.iter().any(|s| name == *s && !pattern.contains(s)) {
                    below.push(path);
                }
            } else if kind.is_file()
                && let Ok(relative) = path.strip_prefix(project)
            {
                match relative.to_str() {
                    Some(name) if glob.matches(name) => out.push(name.to_owned()),
                    None if glob.matches(&relative.to_string_lossy()) => *left_out += 1,
                    _ => {}
                }
            }
        }
        folders.extend(below.into_iter().rev());
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};
    use crate::model::plan::Used;

    #[test]
    fn resources_of_a_plan_get_the_form_by_which_everybody_means_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let project = temp.path().join("p");
        std::fs::create_dir_all(project.join("data/deep")).unwrap();
        std::os::unix::fs::symlink("data/deep", project.join("link")).unwrap();
        let mut one = task("a");
        one.resources =
            ["port:1", "./link/new/x.csv", "file:data/../data/deep", "db", "/nowhere/y"].map(str::to_owned).to_vec();
        let mut plan = plan(vec![one]);
        let used = |tool: &str| Used { tools: vec![tool.to_owned()] };
        plan.resources = [("db".to_owned(), used("Bash(psql*)")), ("./link".to_owned(), used("Edit"))].into();
        settle_resources(&project, &mut plan).unwrap();
        let again = plan.clone();
        assert_eq!(plan.tasks[0].resources, ["db", "file:/nowhere/y", "file:data/deep", "port:1"]);
        assert_eq!(plan.resources.keys().collect::<Vec<_>>(), ["db", "file:data/deep"]);
        settle_resources(&project, &mut plan).unwrap();
        assert_eq!(plan, again);
        plan.tasks[0].resources = vec!["db".into(), "../".into()];
        assert_eq!(settle_resources(&project, &mut plan).unwrap_err().path, "$.tasks[0].resources[1]");
    }
}
