//! Which command `--wrap` may name. A person can run any without us. Below a client the same words may come from the model,
//! whose permission to call cpw must not be one to call everything: there the command has to stand, as the status line of
//! cpw, in settings that the client reads, which runs them anyway. What the client reads follows from the client's own
//! process: its environment, folder and arguments, none of which the model's command can set.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::base::env;
use crate::cmd::above;
use crate::cmd::init::MAX_SETTINGS;
use crate::model::settings;
use crate::store::file;
use crate::store::project;
use crate::sys::process;

/// Whether the status line may run `command`.
pub(super) fn may_run(command: &str) -> bool {
    if above::below_client().is_none() {
        return true;
    }
    let reader = Reader::above();
    reader.settings().iter().any(|text| settings::wraps(text, command, &|name| reader.variable(name)))
}

/// Who reads settings.
struct Reader {
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    argv: Vec<OsString>,
}

impl Reader {
    /// The nearest client above; this process, where none can be seen.
    fn above() -> Reader {
        match above::nearest_client() {
            Some(client) => Reader {
                environment: process::environ_of(client.pid),
                folder: std::fs::read_link(format!("/proc/{}/cwd", client.pid)).ok(),
                argv: client.argv,
            },
            None => Reader {
                environment: std::env::vars_os().collect(),
                folder: std::env::current_dir().ok(),
                argv: Vec::new(),
            },
        }
    }

    fn value(&self, name: &str) -> Option<&OsStr> {
        let found = self.environment.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_os_str())
    }

    /// What a shell that it starts puts in for a variable.
    fn variable(&self, name: &str) -> Option<String> {
        let folder = self.folder.as_ref().filter(|_| name == env::CLAUDE_PROJECT_DIR);
        let value = self.value(name).or_else(|| folder.map(|folder| folder.as_os_str()));
        value.and_then(OsStr::to_str).map(str::to_owned)
    }

    /// The text of every settings file that it reads.
    fn settings(&self) -> Vec<Vec<u8>> {
        let home = self.value("HOME").map(Path::new);
        let own = self.value("CLAUDE_CONFIG_DIR").map(PathBuf::from).or_else(|| Some(home?.join(".claude")));
        let is_read = |source: &str| self.option("--setting-sources").is_none_or(|all| lists(all, source));
        let own = own.filter(|_| is_read("user"));
        let mut files: Vec<PathBuf> = own.map(|dir| dir.join("settings.json")).into_iter().collect();
        let root = self.folder.as_ref().and_then(|folder| project::find(folder, home).ok());
        for root in self.folder.iter().chain(&root) {
            for (source, name) in [("project", "settings.json"), ("local", "settings.local.json")] {
                files.extend(is_read(source).then(|| root.join(".claude").join(name)));
            }
        }
        files.push(settings::MANAGED.into());
        let mut all = Vec::new();
        if let Some(named) = self.option("--settings") {
            match named.to_str().filter(|text| text.trim_start().starts_with('{')) {
                Some(text) => all.push(text.as_bytes().to_vec()),
                None => files.push(self.folder.clone().unwrap_or_default().join(named)),
            }
        }
        all.extend(files.iter().filter_map(|path| file::read(path, MAX_SETTINGS).ok().flatten()));
        all
    }

    /// The value of an option on its command line.
    fn option(&self, name: &str) -> Option<&OsStr> {
        self.argv.iter().enumerate().find_map(|(at, arg)| match arg.to_str()?.strip_prefix(name)? {
            "" => self.argv.get(at + 1).map(OsString::as_os_str),
            with => with.strip_prefix('=').map(OsStr::new),
        })
    }
}

fn lists(all: &OsStr, source: &str) -> bool {
    all.to_str().is_some_and(|all| all.split(',').any(|one| one.trim() == source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_looked_for_where_the_client_does() {
        let tmp = tempfile::tempdir().unwrap();
        let at = tmp.path().canonicalize().unwrap();
        let all = [
            "home/.claude/settings.json",
            "own/settings.json",
            "p/.claude/settings.json",
            "p/.claude/settings.local.json",
            "p/more.json",
            "p/sub/x",
            "other/.claude/settings.json",
        ];
        for name in all {
            std::fs::create_dir_all(at.join(name).parent().unwrap()).unwrap();
            std::fs::write(at.join(name), name).unwrap();
        }
        let read = |variables: &[(&str, &str)], folder: &str, args: &[&str]| {
            let reader = Reader {
                environment: variables.iter().map(|(name, dir)| ((*name).into(), at.join(dir).into())).collect(),
                folder: Some(at.join(folder)),
                argv: args.iter().map(OsString::from).collect(),
            };
            let texts = reader.settings().into_iter().map(|bytes| String::from_utf8(bytes).unwrap());
            let mut texts: Vec<String> = texts.filter(|text| all.contains(&text.as_str()) || text == "{}").collect();
            texts.dedup();
            texts.sort_unstable();
            texts.dedup();
            texts
        };
        let (own, local) = ("p/.claude/settings.json", "p/.claude/settings.local.json");
        assert_eq!(read(&[("HOME", "home")], "p", &["claude"]), ["home/.claude/settings.json", own, local]);
        let moved =
            read(&[("HOME", "home"), ("CLAUDE_CONFIG_DIR", "own")], "p/sub", &["claude", "--settings", "../more.json"]);
        assert_eq!(moved, ["own/settings.json", own, local, "p/more.json"]);
        assert_eq!(read(&[], "p", &["claude", "--settings={}"]), [own, local, "{}"]);
        assert_eq!(read(&[], "p", &["claude", "--settings"]), [own, local]);
        // Sources that it was told not to read.
        let args = ["claude", "-p", "--setting-sources", "user", "--settings", "{}"];
        assert_eq!(read(&[("HOME", "home")], "p", &args), ["home/.claude/settings.json", "{}"]);
        assert_eq!(read(&[("HOME", "home")], "p", &["claude", "--setting-sources=local, x"]), [local]);
    }
}
