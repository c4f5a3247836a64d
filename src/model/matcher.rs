//! Which tool calls are meant: `Read(data1.csv)`, `Bash(psql*)`, `Edit`, `*`. Written like a permission rule of the client:
//! the tool's exact name, or `*` for every tool, and in parentheses a glob over what the call is about.
//!
//! What a call is about: for a tool that works on a file, the file, relative to the project or absolute; for Bash, the
//! command; for another tool, the first of its input's texts. The caller says which it is. In the glob, `*` also crosses `/`,
//! as in a merge's `match`.

use std::fmt;

use crate::model::glob::Glob;

/// The longest matcher, in bytes. It is asked about every call of its tool.
pub const MAX_MATCHER: usize = 512;

/// What of a call's text is looked at, in bytes: a longer command is a document that is handed to a program.
const MAX_TARGET: usize = 16 * 1024;

/// What can be written, for whoever wrote something else.
pub const FORMS: &str = "write a tool's name, such as \"Edit\", or \"*\" for every tool, and behind it, if only some calls \
                         are meant, a glob in parentheses: \"Read(data1.csv)\", \"Edit(src/*.rs)\", \"Bash(psql*)\", \
                         \"mcp__db__query(*)\"";

/// Which tool calls are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    written: String,
    tool: String,
    /// `None`: whatever the call is about.
    glob: Option<Glob>,
}

impl Matcher {
    /// Reads one. The error says what is wrong and what can be written.
    pub fn parse(text: &str) -> Result<Matcher, String> {
        let wrong = |what: &str| Err(format!("{what}; {FORMS}"));
        let written = text.trim();
        if written.is_empty() {
            return wrong("it is empty");
        }
        if written.len() > MAX_MATCHER {
            return wrong(&format!("it is longer than {MAX_MATCHER} bytes"));
        }
        let (tool, inside) = match written.split_once('(') {
            None if written.contains(')') => return wrong("it has a ')' without '('"),
            None => (written, None),
            Some((tool, rest)) => match rest.strip_suffix(')') {
                Some(inside) => (tool.trim_end(), Some(inside)),
                None => return wrong("it has a '(' without ')' at its end"),
            },
        };
        if tool != "*" && !is_tool_name(tool) {
            return wrong(&format!(
                "{tool:?} is no tool's name: they begin with a capital letter or with mcp__, and have only letters, \
                 digits, '_', '-', '.' and ':'"
            ));
        }
        let glob = match inside {
            None => None,
            Some("") => return wrong("nothing stands in its parentheses"),
            Some(inside) => {
                // A file is named without it. In a command it says which program is meant.
                let plain = inside.strip_prefix("./").filter(|_| tool != "Bash").unwrap_or(inside);
                match Glob::text(plain) {
                    Ok(glob) => Some(glob),
                    Err(e) => return wrong(&format!("its glob {e}")),
                }
            }
        };
        Ok(Matcher { written: written.to_owned(), tool: tool.to_owned(), glob })
    }

    /// The tool's name, or `*`.
    pub fn tool(&self) -> &str {
        &self.tool
    }

    /// Whether calls of `tool` may be meant.
    pub fn means_tool(&self, tool: &str) -> bool {
        self.tool == "*" || self.tool == tool
    }

    /// Whether a call of `tool` is meant. `paths` are the forms of the file it works on, absolute and normalised; where there
    /// is none, `target` is the text it is about. `project` is the project's root.
    pub fn matches(&self, tool: &str, target: &str, paths: &[String], project: &str) -> bool {
        if !self.means_tool(tool) {
            return false;
        }
        let Some(glob) = &self.glob else { return true };
        if paths.is_empty() {
            return glob.matches(&target[..target.floor_char_boundary(MAX_TARGET)]);
        }
        paths.iter().any(|path| {
            let below = path.strip_prefix(project.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
            below.is_some_and(|below| glob.matches(below)) || glob.matches(path)
        })
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Whether a tool can have this name: the client's own begin with a capital letter, those of servers with `mcp__`.
pub fn is_tool_name(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_uppercase()) || name.starts_with("mcp__");
    begins && name.len() <= 128 && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(matcher: &str, tool: &str, target: &str, paths: &[&str]) -> bool {
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        Matcher::parse(matcher).unwrap().matches(tool, target, &paths, "/p")
    }

    #[test]
    fn files_are_meant_by_their_path_below_the_project_or_the_whole_one() {
        for (matcher, path, want) in [
            ("Read(data1.csv)", "/p/data1.csv", true),
            ("Read(./data1.csv)", "/p/data1.csv", true),
            ("Read(data1.csv)", "/p/sub/data1.csv", false),
            ("Read(data1.csv)", "/px/data1.csv", false),
            ("Read(*data1.csv)", "/p/sub/data1.csv", true),
            ("Read(/p/data1.csv)", "/p/data1.csv", true),
            ("Read(/q/*)", "/q/r/s", true),
            ("Read(q/*)", "/q/r/s", false),
            ("Read", "/anything", true),
            ("*(src/*.rs)", "/p/src/a/b.rs", true),
            ("Edit(data1.csv)", "/p/data1.csv", false),
        ] {
            assert_eq!(hits(matcher, "Read", "as named", &[path]), want, "{matcher} {path}");
        }
        // A file may have two names, through a link.
        assert!(hits("Edit(b)", "Edit", "a", &["/p/a", "/p/b"]));
        assert!(!hits("Edit(as named)", "Edit", "as named", &["/p/a"]));
    }

    #[test]
    fn other_calls_are_meant_by_their_text() {
        for (matcher, tool, target, want) in [
            ("Bash(psql*)", "Bash", "psql -c 'drop table x'", true),
            ("Bash(psql*)", "Bash", "echo psql", false),
            ("Bash(*psql*)", "Bash", "cd a/b\npsql", true),
            ("Bash(f(x))", "Bash", "f(x)", true),
            ("Bash(./deploy.sh*)", "Bash", "./deploy.sh production", true),
            ("Bash(deploy.sh*)", "Bash", "./deploy.sh production", false),
            ("mcp__db__query(*)", "mcp__db__query", "", true),
            ("mcp__db__query", "mcp__db__other", "", false),
            ("*", "WebFetch", "https://x", true),
            ("Bash", "Bash", "ls", true),
        ] {
            assert_eq!(hits(matcher, tool, target, &[]), want, "{matcher} {tool} {target}");
        }
    }

    #[test]
    fn a_document_in_a_command_is_looked_at_as_far_as_a_command_goes() {
        let long = format!("psql <<EOF\n{}", "ä".repeat(MAX_TARGET));
        assert!(hits("Bash(psql*)", "Bash", &long, &[]));
    }

    #[test]
    fn what_is_no_matcher_is_refused_with_what_can_be_written() {
        for bad in [
            "",
            " ",
            "bash",
            "bash(psql*)",
            "Bash(",
            "Bash)",
            "Bash()",
            "Bash(x",
            "(x)",
            "Edit|Write",
            "Read x",
            "**",
            "Bash([a)",
            "Bash({a)",
            "Bash(x) ls",
            "mcp_db",
            "Ba\u{0}sh",
        ] {
            let error = Matcher::parse(bad).unwrap_err();
            assert!(error.ends_with(FORMS) && error.len() > FORMS.len() + 5, "{bad:?}: {error}");
        }
        assert!(Matcher::parse(&format!("Bash({})", "x".repeat(MAX_MATCHER))).is_err());
        let read = Matcher::parse(" Bash (psql*) ").unwrap();
        assert_eq!((read.tool(), read.to_string().as_str()), ("Bash", "Bash (psql*)"));
    }
}
