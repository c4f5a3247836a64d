//! The part of a view that tells whether a tool call concerns its run at all. Most calls do not, and a hook that learns so
//! from a few hundred bytes reads no more. It never says no where the whole view would say yes.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::logic::conductor;
use crate::logic::view::View;
use crate::model::event::Head;
use crate::model::plan::OnClaimed;
use crate::model::resource::{self, Resource};
use crate::model::signal::Addressee;

/// What a call has to meet.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glance<'v> {
    /// Tools whose calls a merge may still change.
    #[serde(borrow)]
    tools: Vec<Text<'v>>,
    /// What is claimed, where a call on it is to be answered.
    #[serde(borrow)]
    claims: Vec<Text<'v>>,
    /// Calls that a signal waits for, or holds back.
    #[serde(borrow, default)]
    signals: Vec<Text<'v>>,
    /// Calls that somebody waits for.
    #[serde(borrow, default)]
    awaited: Vec<Text<'v>>,
    /// Calls that use a resource.
    #[serde(borrow, default)]
    used: Vec<Text<'v>>,
    /// Files that are resources, in their normal form.
    #[serde(borrow, default)]
    kept: Vec<Text<'v>>,
    /// Whether a call was rewritten and what ran was not compared yet.
    rewrites: bool,
}

/// A text that stays where it was read from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Text<'v>(#[serde(borrow)] Cow<'v, str>);

impl<'v> Glance<'v> {
    /// Of a view.
    pub fn of(view: &'v View) -> Glance<'v> {
        let on_claimed = view.conductor.on_claimed;
        let counts = |over: bool| on_claimed != OnClaimed::Off && (!over || on_claimed == OnClaimed::Redirect);
        let text = |s: &'v String| Text(Cow::Borrowed(s));
        let open = view.merges.iter().filter(|m| !m.used && !m.waived);
        let claimants = view.tasks.values().filter(|b| counts(b.phase.is_final()));
        Glance {
            tools: open.map(|m| text(&m.rule.tool)).collect(),
            claims: claimants.flat_map(|b| b.claims.iter().map(text)).collect(),
            signals: signals(view).map(|m| Text(Cow::Borrowed(m))).collect(),
            awaited: view.awaiting.iter().map(|a| text(&a.matcher)).collect(),
            used: view.resources.iter().flat_map(|g| g.tools.iter().map(text)).collect(),
            kept: view.resources.iter().filter_map(|g| g.resource.path()).map(|p| Text(Cow::Borrowed(p))).collect(),
            rewrites: !view.rewrites.is_empty(),
        }
    }

    /// Whether a call of `tool` may meet a signal. What else it is about is for the whole view to say.
    pub fn may_be_signalled(&self, tool: &str) -> bool {
        self.signals.iter().any(|m| is_of_tool(&m.0, tool))
    }

    /// Whether somebody may wait for a call of `tool`. What else it is about is for the whole view to say.
    pub fn may_be_awaited(&self, tool: &str) -> bool {
        self.awaited.iter().any(|m| is_of_tool(&m.0, tool))
    }

    /// Whether a call of `tool` on one of `files` may use a resource. The files are asked for only if that depends on them.
    pub fn may_use<'p>(&self, project: &str, tool: &str, files: impl FnOnce() -> &'p [Vec<String>]) -> bool {
        let of_file = |form: &String| Resource::file(Path::new(form), Path::new(project)).ok();
        let is_kept = |r: &Resource| self.kept.iter().any(|k| r.path().is_some_and(|path| resource::meet(path, &k.0)));
        self.used.iter().any(|m| is_of_tool(&m.0, tool))
            || !self.kept.is_empty() && files().iter().flatten().filter_map(of_file).any(|r| is_kept(&r))
    }

    /// Whether a call of `tool` may meet a merge.
    pub fn may_merge(&self, tool: &str) -> bool {
        self.tools.iter().any(|t| t.0 == tool)
    }

    /// Whether a call on one of `files`, each by the forms of its name, may meet a claim. They are asked for only if there
    /// is any.
    pub fn may_be_claimed<'p>(&self, project: &str, files: impl FnOnce() -> &'p [Vec<String>]) -> bool {
        if self.claims.is_empty() {
            return false;
        }
        // Whether two names are one file is not for a glance to find out.
        let same = |_: &str, _: &str| true;
        let mut paths = files().iter().flatten();
        paths.any(|path| self.claims.iter().any(|claim| conductor::claims(&claim.0, project, path, &same)))
    }

    /// Whether what ran has to be compared with what was meant to run.
    pub fn has_rewrites(&self) -> bool {
        self.rewrites
    }
}

/// The calls that signals before a tool's call mean.
fn signals(view: &View) -> impl Iterator<Item = &str> {
    let before = view.signals.iter().filter(|s| s.hook == Addressee::PreToolUse);
    before.map(|s| s.matcher.as_deref().unwrap_or("*"))
}

/// Whether a matcher may mean calls of `tool`, by its beginning: reading all of it costs more, and comes later.
fn is_of_tool(matcher: &str, tool: &str) -> bool {
    let name = matcher.trim_start();
    name.starts_with('*')
        || name.strip_prefix(tool).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
}

/// Whether a line, which has to have the number `seq`, leaves the glance as it is. `false` where that takes more than a
/// look at its beginning.
pub fn is_unchanged_by(line: &[u8], seq: u64) -> bool {
    const QUIET: [&[u8]; 4] = [b"progress", b"spawned", b"observed", b"log_repaired"];
    Head::of(line).is_some_and(|head| head.seq == seq && (QUIET.contains(&head.kind) || head.is_awaited_inside()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};

    #[test]
    fn it_says_yes_wherever_the_file_system_may_make_the_view_say_so() {
        let mut claimant = task("a");
        claimant.claims = vec!["src/app.rs".into(), "lib/**".into()];
        let view = View::new(&plan(vec![claimant]));
        let glance = Glance::of(&view);
        let may = |files: &[&[&str]]| {
            let files: Vec<Vec<String>> =
                files.iter().map(|forms| forms.iter().map(ToString::to_string).collect()).collect();
            glance.may_be_claimed("/p", || &files)
        };
        assert!(may(&[&["/p/src/app.rs"]]) && may(&[&["/p/SRC/App.rs"]]));
        assert!(may(&[&["/p/other"], &["/p/link", "/p/lib/x/y.rs"]]));
        assert!(!may(&[&["/p/other"], &["/p/src/apps.rs", "/q/src/app.rs"]]) && !may(&[]));
    }
}
