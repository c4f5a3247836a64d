//! `cpw help`: pages about what the words mean, beside the help of each command; and the overview of all commands, by what
//! they are for.

use std::borrow::Cow;
use std::fmt::Write;

use clap::builder::PossibleValuesParser;

use crate::base::exit::Exit;
use crate::ui::print;

/// The commands by what they are for, in the order in which people come to need them. One that stands nowhere here is shown
/// at the end, under `Other`.
const GROUPS: [(&str, &[&str]); 7] = [
    ("Begin with", &["demo", "init", "allow", "plan", "status", "doctor"]),
    ("Set up", &["deny", "off", "on", "statusline"]),
    ("Run", &["run", "retry", "resume", "worker"]),
    ("Look", &["top", "logs", "events", "result", "replay", "trace"]),
    ("Act", &["cancel", "adopt", "clean"]),
    ("Inside a task, and in scripts", &["progress", "summary", "checkpoint", "signal", "vote", "lease", "wait"]),
    ("Help", &["help", "schema", "completions", "man"]),
];

/// Columns that the overview may take.
const WIDTH: usize = 80;

/// The pages that are no command's help.
const PAGES: [&str; 3] = ["concepts", "files", "exit-codes"];

/// Show the help of a command, or a page: concepts, files, exit-codes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw help concepts       the words: run, task, worker, claim, lease …\n  \
    cpw help files          what cpw reads and writes, and its variables\n  \
    cpw help exit-codes     what a script can rely on\n  \
    cpw help run            as cpw run --help\n  \
    cpw help lease acquire  as cpw lease acquire --help")]
pub struct Args {
    /// A page (concepts, files, exit-codes) or a command
    #[arg(index = 1, hide_possible_values = true)]
    topic: Option<String>,
    /// A command of that command
    #[arg(index = 2, value_name = "COMMAND")]
    command: Option<String>,
}

impl Args {
    /// What somebody would have typed who knows that every command explains itself; none where a page is asked for.
    pub fn as_command_line(&self) -> Option<Vec<&str>> {
        let topic = self.topic.as_deref();
        if topic.is_some_and(|topic| PAGES.contains(&topic)) {
            return None;
        }
        Some(["cpw"].into_iter().chain(topic).chain(self.command.as_deref()).chain(["--help"]).collect())
    }
}

/// Runs the command for a page.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if let Some(text) = args.topic.as_deref().and_then(page) {
        print::out(text.trim_end());
    }
    Ok(Exit::Ok)
}

fn page(name: &str) -> Option<Cow<'static, str>> {
    match name {
        "concepts" => Some(include_str!("help/concepts.txt").into()),
        "files" => Some(include_str!("help/files.txt").into()),
        "exit-codes" => Some(exit_codes().into()),
        _ => None,
    }
}

/// The table of exit codes, a line each.
pub fn exit_table() -> String {
    Exit::TABLE.iter().fold(String::new(), |mut out, (exit, meaning)| {
        let _ = writeln!(out, "  {:>3}  {meaning}", *exit as u8);
        out
    })
}

fn exit_codes() -> String {
    format!(
        "What commands end with:\n\n{}\n\
         What they mean for a command stands at the end of its help. `cpw lease NAME --\n\
         CMD` becomes CMD, and ends with the exit code of that.\n\n\
         2 is the code of no command: Claude Code reads it as \"block\". Of the hooks only\n\
         `cpw watch` ends with it, when it wakes an idle session; all others answer and\n\
         end with 0, also where something went wrong inside.\n",
        exit_table()
    )
}

/// Adds to the definition of the command line what depends on all of its commands: the overview, and what `help` takes.
pub fn complete(definition: clap::Command) -> clap::Command {
    let commands = GROUPS.iter().flat_map(|(_, names)| *names).copied();
    let there: Vec<&str> = commands.filter(|name| definition.find_subcommand(name).is_some()).collect();
    let topics = PossibleValuesParser::new(PAGES.into_iter().chain(there));
    let overview = template(&definition);
    definition
        .mut_subcommand("help", |help| help.mut_arg("topic", |topic| topic.value_parser(topics)))
        .help_template(overview)
}

/// The help of the whole, with the commands in groups: clap knows headings for options only.
fn template(definition: &clap::Command) -> String {
    let header = *definition.get_styles().get_header();
    let mut rest: Vec<&str> = definition.get_subcommands().map(clap::Command::get_name).collect();
    let mut out = "{about}\n\n{usage-heading} {usage}\n".to_owned();
    for (title, names) in GROUPS {
        rest.retain(|name| !names.contains(name));
        group(&mut out, definition, &format!("{header}{title}:{header:#}"), names);
    }
    group(&mut out, definition, &format!("{header}Other:{header:#}"), &rest);
    let _ = write!(out, "\n{header}Options:{header:#}\n{{options}}{{after-help}}");
    out
}

fn group(out: &mut String, definition: &clap::Command, title: &str, names: &[&str]) {
    let of = |name: &&str| definition.find_subcommand(name);
    let commands: Vec<&clap::Command> = names.iter().filter_map(of).filter(|c| !c.is_hide_set()).collect();
    if commands.is_empty() {
        return;
    }
    let literal = *definition.get_styles().get_literal();
    let _ = write!(out, "\n{title}\n");
    for command in commands {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let mut lines = wrapped(&about, WIDTH - NAMES).into_iter();
        let _ = writeln!(
            out,
            "  {literal}{name}{literal:#}{:1$}{2}",
            "",
            NAMES - 2 - name.len(),
            lines.next().unwrap_or_default()
        );
        for line in lines {
            let _ = writeln!(out, "{:NAMES$}{line}", "");
        }
    }
}

/// Columns of the names, with the space before and behind.
const NAMES: usize = 14;

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_fit_a_terminal() {
        for name in PAGES {
            let page = page(name).unwrap();
            assert!(page.lines().count() <= 60, "{name} has {} lines", page.lines().count());
            let long = page.lines().find(|line| line.chars().count() > WIDTH);
            assert_eq!(long, None, "{name}");
        }
    }

    #[test]
    fn every_code_is_told_and_two_is_none_of_them() {
        let table = exit_table();
        for (exit, _) in Exit::TABLE {
            assert!(table.contains(&format!(" {} ", exit as u8)), "{table}");
        }
        assert!(!Exit::TABLE.iter().any(|(exit, _)| *exit as u8 == 2));
    }

    #[test]
    fn words_are_kept_whole() {
        assert_eq!(wrapped("to be or not", 5), ["to be", "or", "not"]);
        assert_eq!(wrapped("incomprehensible it is", 6), ["incomprehensible", "it is"]);
        assert_eq!(wrapped("", 6), [""]);
    }

    #[test]
    fn a_topic_is_a_page_or_becomes_a_command_line() {
        let args = |topic: Option<&str>, command: Option<&str>| Args {
            topic: topic.map(str::to_owned),
            command: command.map(str::to_owned),
        };
        assert_eq!(args(None, None).as_command_line(), Some(vec!["cpw", "--help"]));
        assert_eq!(args(Some("lease"), Some("renew")).as_command_line(), Some(vec!["cpw", "lease", "renew", "--help"]));
        assert_eq!(args(Some("concepts"), None).as_command_line(), None);
    }
}
