//! Which of a program's arguments are code: what stands behind `sh -c` or `python3 -e`, the program of `awk`, what `ssh` hands
//! to a shell elsewhere, the command behind `env` or `timeout`. A template in such a place would make commands of the words
//! of a prompt or of the name of a file, so that rules which have one are refused.
//!
//! A program is known by its name wherever it stands, so that nothing before it has to be understood. What is not listed
//! here takes its arguments as data, as far as cpw knows.

use crate::base::env;
use crate::model::template;

/// What a template in an argument would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// Its text would be run.
    Code,
    /// It would choose the program.
    Program,
    /// It would be the value of a variable that decides what runs, or its name.
    Variable,
}

/// A program that takes code as an argument.
struct Interpreter {
    /// Its names, without a version.
    names: &'static [&'static str],
    /// Letters of options that code follows.
    code: &'static str,
    /// The same, written out.
    code_words: &'static [&'static str],
    /// Letters of options that some other value follows.
    value: &'static str,
    /// The same, written out.
    value_words: &'static [&'static str],
    /// Letters that take the rest of their word, if there is one.
    rest: &'static str,
    /// How it goes on.
    kind: Kind,
}

/// What most have: nothing.
const PLAIN: Interpreter =
    Interpreter { names: &[], code: "", code_words: &[], value: "", value_words: &[], rest: "", kind: Kind::Direct };

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kind {
    /// A letter may stand anywhere in its group, options go on behind it, the first word that is none is the code, and what
    /// follows are its arguments.
    Shell,
    /// The code is the next word; further options may follow.
    Direct,
    /// The code is the next word, and what follows are its arguments.
    Last,
    /// The first word that is no option is code, unless an option has given it; then only words behind such options are.
    Operand,
    /// All words that are no options are code, but for so many at the beginning.
    Rest(usize),
    /// Options may stand behind other words.
    Mixed,
}

const INTERPRETERS: &[Interpreter] = &[
    Interpreter {
        names: &[
            "sh", "bash", "rbash", "dash", "ash", "zsh", "ksh", "mksh", "yash", "csh", "tcsh", "fish", "nu", "xonsh",
        ],
        code: "c",
        code_words: &["--command", "--commands", "--init-command"],
        value: "oO",
        value_words: &["--rcfile", "--init-file"],
        kind: Kind::Shell,
        ..PLAIN
    },
    Interpreter {
        names: &["python", "pypy", "ipython"],
        code: "c",
        value: "WXQ",
        value_words: &["--check-hash-based-pycs"],
        kind: Kind::Last,
        ..PLAIN
    },
    Interpreter { names: &["perl"], code: "eE", value: "I", rest: "MmixCDF", ..PLAIN },
    Interpreter { names: &["ruby"], code: "e", value: "IrCE", rest: "ixFW", ..PLAIN },
    Interpreter { names: &["lua", "luajit"], code: "e", value: "l", ..PLAIN },
    Interpreter {
        names: &["julia", "elixir", "osascript", "Rscript", "groovy", "scala"],
        code: "eE",
        code_words: &["--eval", "--print"],
        ..PLAIN
    },
    Interpreter {
        names: &["node", "nodejs", "bun"],
        code: "ep",
        code_words: &["--eval", "--print"],
        value: "rC",
        value_words: &["--require", "--import", "--loader", "--experimental-loader", "--conditions", "--env-file"],
        ..PLAIN
    },
    Interpreter {
        names: &["php"],
        code: "rBRE",
        code_words: &["--run", "--process-begin", "--process-code", "--process-end"],
        value: "cdzStf",
        value_words: &["--php-ini", "--define", "--zend-extension", "--server", "--docroot", "--file"],
        ..PLAIN
    },
    Interpreter {
        names: &["pwsh", "powershell"],
        code_words: &["-c", "-command", "-Command", "--command"],
        kind: Kind::Last,
        ..PLAIN
    },
    Interpreter {
        names: &["awk", "gawk", "mawk", "nawk"],
        code: "e",
        code_words: &["--source"],
        value: "Fvfil",
        value_words: &["--field-separator", "--assign", "--file", "--include", "--load"],
        kind: Kind::Operand,
        ..PLAIN
    },
    Interpreter {
        names: &["sed", "gsed"],
        code: "e",
        code_words: &["--expression"],
        value: "fl",
        value_words: &["--file", "--line-length"],
        rest: "i",
        kind: Kind::Operand,
    },
    Interpreter { names: &["ssh"], value: "BbcDEeFIiJLlmOopQRSWw", kind: Kind::Rest(1), ..PLAIN },
    Interpreter { names: &["watch"], value: "nqs", value_words: &["--interval"], kind: Kind::Rest(0), ..PLAIN },
    Interpreter {
        names: &["su", "runuser", "script", "flock", "psql"],
        code: "c",
        code_words: &["--command"],
        kind: Kind::Mixed,
        ..PLAIN
    },
    Interpreter { names: &["mysql", "mariadb"], code: "e", code_words: &["--execute"], kind: Kind::Mixed, ..PLAIN },
    Interpreter {
        names: &["env"],
        code: "S",
        code_words: &["--split-string"],
        value: "uC",
        value_words: &["--unset", "--chdir"],
        ..PLAIN
    },
];

/// A program that starts another one, which its arguments name.
struct Wrapper {
    name: &'static str,
    /// Letters of options that a value follows.
    value: &'static str,
    /// Words of its own before the program.
    operands: usize,
    /// Whether it takes `NAME=VALUE` before the program.
    variables: bool,
}

const fn wrapper(name: &'static str, value: &'static str, operands: usize) -> Wrapper {
    Wrapper { name, value, operands, variables: false }
}

const WRAPPERS: &[Wrapper] = &[
    Wrapper { variables: true, ..wrapper("env", "uCS", 0) },
    Wrapper { variables: true, ..wrapper("sudo", "CDghpRrTtUu", 0) },
    Wrapper { variables: true, ..wrapper("doas", "Cu", 0) },
    wrapper("timeout", "ks", 1),
    wrapper("nice", "n", 0),
    wrapper("nohup", "", 0),
    wrapper("setsid", "", 0),
    wrapper("stdbuf", "ioe", 0),
    wrapper("time", "fo", 0),
    wrapper("ionice", "cn", 0),
    wrapper("chrt", "TPD", 1),
    wrapper("taskset", "", 1),
    wrapper("flock", "wE", 1),
    wrapper("chroot", "", 1),
    wrapper("xargs", "adEILnPs", 0),
    wrapper("strace", "abEeIoOpPsSuUX", 0),
    wrapper("busybox", "", 0),
];

/// What is wrong with a template in `word`, the argument after `before`, which begins with the program. Nothing where it has
/// none, and where its value is data.
pub fn hole(before: &[String], word: &str) -> Option<Hole> {
    template::names(word).next()?;
    let chain = Chain::of(before);
    for (at, name) in before.iter().enumerate() {
        let name = base_name(name).trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        // Without an option that says so, a word is code only for what is started.
        let can_be = |i: &&Interpreter| {
            i.names.contains(&name)
                && (chain.programs.contains(&at) || matches!(i.kind, Kind::Shell | Kind::Last | Kind::Direct))
        };
        if INTERPRETERS.iter().find(can_be).is_some_and(|i| i.runs(&before[at + 1..], word)) {
            return Some(Hole::Code);
        }
    }
    chain.chooses(word)
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or_default()
}

/// The text that a word begins with before its first template.
fn literal_head(word: &str) -> &str {
    &word[..word.find("{{").unwrap_or(word.len())]
}

/// What a word of options says.
#[derive(Default)]
struct Said {
    /// Code stands in it.
    code: bool,
    /// The program of `awk` or `sed` is in it, or in the file that it names.
    program: bool,
    /// What the next word is.
    next: Next,
}

/// What stands behind an option.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    #[default]
    Anything,
    Code,
    Value,
    /// A value, and then code.
    Both,
}

impl Next {
    fn of(code: bool, value: bool) -> Next {
        match (code, value) {
            (true, true) => Next::Both,
            (true, false) => Next::Code,
            (false, true) => Next::Value,
            (false, false) => Next::Anything,
        }
    }

    fn is_code(self) -> bool {
        matches!(self, Next::Code | Next::Both)
    }

    fn is_value(self) -> bool {
        matches!(self, Next::Value | Next::Both)
    }
}

impl Interpreter {
    fn read(&self, word: &str) -> Said {
        let (long, value) = word.split_once('=').map_or((word, None), |(long, value)| (long, Some(value)));
        if self.code_words.contains(&long) {
            return Said { code: value.is_some(), program: true, next: Next::of(value.is_none(), false) };
        }
        if word.starts_with("--") {
            let is_value = value.is_none() && self.value_words.contains(&long);
            return Said { code: false, program: long == "--file", next: Next::of(false, is_value) };
        }
        if self.kind == Kind::Shell {
            // `+c` is no option that takes code.
            let is_code = word.starts_with('-') && word.contains('c');
            return Said { next: Next::of(is_code, word.contains(['o', 'O'])), ..Said::default() };
        }
        let letters = &word[1..];
        for (at, letter) in letters.char_indices() {
            let after = &letters[at + letter.len_utf8()..];
            if self.code.contains(letter) {
                // `node -pe`.
                let is_next = after.chars().all(|c| self.code.contains(c));
                return Said { code: !is_next, program: true, next: Next::of(is_next, false) };
            }
            if self.value.contains(letter) {
                return Said { code: false, program: letter == 'f', next: Next::of(false, after.is_empty()) };
            }
            if self.rest.contains(letter) {
                break;
            }
        }
        Said::default()
    }

    /// Whether `word`, behind `words`, which are behind the name, is code.
    fn runs(&self, words: &[String], word: &str) -> bool {
        let is_shell = self.kind == Kind::Shell;
        let (mut code, mut value, mut over) = (false, false, false);
        let mut operand = self.kind == Kind::Operand;
        let mut seen = 0_usize;
        for word in words {
            if std::mem::take(&mut value) {
                continue;
            }
            let dashed = word.len() > 1 && (word.starts_with('-') || is_shell && word.starts_with('+'));
            let is_option = dashed && !over;
            if code && !(is_option && is_shell) {
                if matches!(self.kind, Kind::Shell | Kind::Last) {
                    return false;
                }
                code = false;
            } else if is_option && word == "--" {
                over = true;
            } else if is_option {
                let said = self.read(word);
                if said.code && self.kind == Kind::Last {
                    return false;
                }
                code |= said.next.is_code();
                value = said.next.is_value();
                operand &= !said.program;
            } else {
                seen += 1;
                if !matches!(self.kind, Kind::Mixed | Kind::Rest(_)) {
                    return false;
                }
            }
        }
        let in_rest = matches!(self.kind, Kind::Rest(first) if seen >= first);
        let head = literal_head(word);
        if value {
            false
        } else if head.len() > 1 && head.starts_with('-') && !over {
            // In the middle of an option: `-e{{item}}`, `--eval={{item}}`.
            let said = self.read(head);
            said.code || said.next.is_code() || code || in_rest && seen > 0
        } else {
            code || operand || in_rest
        }
    }
}

/// Programs that start each other, as in `nice timeout 5 make`.
struct Chain {
    /// Where their names stand.
    programs: Vec<usize>,
    /// The last of them, where the name of the next one comes now, and whether its options are over.
    open: Option<(&'static Wrapper, bool)>,
}

impl Chain {
    fn of(words: &[String]) -> Chain {
        let find = |word: &str| WRAPPERS.iter().find(|w| w.name == base_name(word));
        let mut programs = Vec::new();
        let mut current: Option<&Wrapper> = None;
        let (mut left, mut value, mut over) = (0, false, false);
        for (at, word) in words.iter().enumerate() {
            let is_named = at == 0 || matches!(words[at - 1].as_str(), "-exec" | "-execdir" | "-ok" | "-okdir");
            match current {
                _ if is_named => {}
                None => continue,
                Some(_) if std::mem::take(&mut value) => continue,
                Some(wrapper) if !over && word.len() > 1 && word.starts_with('-') => {
                    over = word == "--";
                    value = !word.starts_with("--") && word.ends_with(|c| wrapper.value.contains(c));
                    continue;
                }
                Some(wrapper) if wrapper.variables && word.contains('=') => continue,
                Some(_) if left > 0 => {
                    left -= 1;
                    continue;
                }
                Some(_) => {}
            }
            programs.push(at);
            current = find(word);
            left = current.map_or(0, |w| w.operands);
            over = false;
        }
        let open = current.filter(|_| !value && left == 0).map(|wrapper| (wrapper, over));
        Chain { programs, open }
    }

    /// What a template in the next word would choose.
    fn chooses(&self, word: &str) -> Option<Hole> {
        let (wrapper, over) = self.open?;
        let head = literal_head(word);
        if !over && head.starts_with('-') {
            return None;
        }
        match head.split_once('=') {
            Some((name, _)) if wrapper.variables => {
                (env::decides(name) || !env::may_set(name)).then_some(Hole::Variable)
            }
            _ => Some(Hole::Program),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(argv: &[&str]) -> Option<Hole> {
        let (last, before) = argv.split_last().unwrap();
        let before: Vec<String> = before.iter().map(|w| (*w).to_owned()).collect();
        hole(&before, last)
    }

    #[test]
    fn s10_code_is_found_wherever_an_interpreter_takes_it() {
        let table: &[&[&str]] = &[
            &["sh", "-c", "{{item}}"],
            &["/bin/sh", "-c", "echo {{item}}"],
            &["bash", "-ec", "{{item}}"],
            &["bash", "-cx", "{{item}}"],
            &["bash", "-c", "-x", "{{item}}"],
            &["bash", "-c", "--", "{{item}}"],
            &["bash", "-c", "-o", "pipefail", "{{item}}"],
            &["bash", "-o", "pipefail", "-c", "{{item}}"],
            &["bash", "-O", "extglob", "-c", "{{item}}"],
            &["bash", "-eo", "pipefail", "-c", "{{item}}"],
            &["bash", "-euo", "pipefail", "-c", "{{item}}"],
            &["bash", "+e", "-c", "{{item}}"],
            &["bash", "--norc", "--rcfile", "x", "-c", "{{item}}"],
            &["bash5.2", "-c", "{{item}}"],
            &["fish", "--command={{item}}"],
            &["fish", "--command", "{{item}}"],
            &["env", "sh", "-c", "{{item}}"],
            &["env", "-i", "A=1", "timeout", "-s", "KILL", "5", "sh", "-c", "{{item}}"],
            &["sudo", "-u", "bob", "bash", "-c", "{{item}}"],
            &["xargs", "-I", "{}", "sh", "-c", "{{item}} {}"],
            &["find", ".", "-exec", "sh", "-c", "{{item}}", ";"][..6],
            &["docker", "exec", "web", "sh", "-c", "{{item}}"],
            &["busybox", "sh", "-c", "{{item}}"],
            &["nice", "-n", "5", "dash", "-c", "{{item}}"],
            &["env", "-S", "sh -c {{item}}"],
            &["env", "-Ssh -c {{item}}"],
            &["env", "--split-string=sh {{item}}"],
            &["python3", "-c", "{{item}}"],
            &["python3.12", "-W", "ignore", "-X", "dev", "-Ic", "{{item}}"],
            &["python", "-cprint('{{item}}')"],
            &["perl", "-e", "{{item}}"],
            &["perl", "-E", "{{item}}"],
            &["perl", "-lane", "{{item}}"],
            &["perl", "-0777ne", "{{item}}"],
            &["perl", "-I", "lib", "-MData::Dumper", "-i.bak", "-pe", "{{item}}"],
            &["perl", "-e1;{{item}}"],
            &["perl", "-e", "1", "-e", "{{item}}"],
            &["ruby", "-r", "json", "-ne", "{{item}}"],
            &["node", "-e", "{{item}}"],
            &["node", "-p", "{{item}}"],
            &["node", "-pe", "{{item}}"],
            &["node", "--require", "x", "--eval={{item}}"],
            &["node", "--print", "{{item}}"],
            &["bun", "-e", "{{item}}"],
            &["php", "-d", "x=1", "-r", "{{item}}"],
            &["php", "--run", "{{item}}"],
            &["lua5.4", "-e", "{{item}}"],
            &["Rscript", "-e", "{{item}}"],
            &["osascript", "-e", "{{item}}"],
            &["pwsh", "-NoProfile", "-Command", "{{item}}"],
            &["awk", "/{{item}}/"],
            &["awk", "-F", ":", "-v", "x=1", "{ print \"{{item}}\" }"],
            &["gawk", "-e", "{{item}}"],
            &["sed", "s/a/{{item}}/"],
            &["sed", "-i", "-e", "s/a/{{item}}/"],
            &["sed", "-n", "/{{item}}/p"],
            &["sed", "-e", "p", "-e", "{{item}}"],
            &["sed", "--expression={{item}}"],
            &["ssh", "host", "make {{item}}"],
            &["ssh", "-p", "22", "host", "make", "{{item}}"],
            &["su", "bob", "-c", "{{item}}"],
            &["su", "-", "bob", "--command={{item}}"],
            &["flock", "/x", "-c", "{{item}}"],
            &["script", "-qc", "{{item}}"],
            &["watch", "-n", "1", "ls", "{{item}}"],
            &["psql", "-d", "db", "-c", "{{item}}"],
            &["mysql", "-e", "{{item}}"],
            &["sh", "-c", "{{prompt}}"],
            &["sh", "-c", "{{ item.stem }}"],
        ];
        for argv in table {
            assert_eq!(of(argv), Some(Hole::Code), "{argv:?}");
        }
    }

    #[test]
    fn s10_the_program_is_never_chosen_by_a_template() {
        let table: &[&[&str]] = &[
            &["env", "{{item}}"],
            &["env", "A=1", "-u", "B", "{{item}}"],
            &["env", "--", "{{item}}"],
            &["env", "./{{item}}.sh"],
            &["env", "{{item}}=1"],
            &["sudo", "-u", "bob", "{{item}}"],
            &["timeout", "5", "{{item}}"],
            &["timeout", "-k", "1", "5", "./{{item}}"],
            &["nice", "{{item}}"],
            &["nohup", "nice", "-n", "1", "{{item}}"],
            &["timeout", "5", "env", "A=1", "{{item}}"],
            &["xargs", "-n", "1", "{{item}}"],
            &["flock", "/x", "{{item}}"],
            &["busybox", "{{item}}"],
        ];
        for argv in table {
            assert_eq!(of(argv), Some(Hole::Program), "{argv:?}");
        }
        for name in ["LD_PRELOAD", "PATH", "BASH_ENV", "NODE_OPTIONS", "GIT_SSH_COMMAND", "CPW_TASK"] {
            assert_eq!(of(&["env", &format!("{name}={{{{item}}}}"), "make"][..2]), Some(Hole::Variable), "{name}");
        }
    }

    #[test]
    fn s10_data_stays_data() {
        let table: &[&[&str]] = &[
            &["make", "{{item}}"],
            &["./lint.sh", "-c", "{{item}}"],
            &["sh", "./lint.sh", "-c", "{{item}}"],
            &["sh", "-eu", "./lint.sh", "{{item}}"],
            &["sh", "{{item}}"],
            &["sh", "-c", "wc \"$1\"", "sh", "{{item}}"],
            &["bash", "-o", "pipefail", "-c", "wc \"$1\"", "wc", "-c", "{{item}}"],
            &["python3", "tool.py", "-c", "{{item}}"],
            &["python3", "-m", "pytest", "-c", "x", "{{item}}"],
            &["python3", "-c", "import sys", "-c", "{{item}}"],
            &["python3", "-cprint(1)", "{{item}}"],
            &["perl", "-ne", "print", "{{item}}"],
            &["node", "tool.js", "-e", "{{item}}"],
            &["awk", "-v", "x={{item}}", "{ print x }"][..3],
            &["awk", "-f", "x.awk", "{{item}}"],
            &["awk", "{ print }", "{{item}}"],
            &["sed", "-n", "p", "{{item}}"],
            &["sed", "-e", "p", "{{item}}"],
            &["sed", "-f", "x.sed", "{{item}}"],
            &["ssh", "{{item}}"],
            &["ssh", "-p", "{{index}}"],
            &["grep", "-c", "{{item}}"],
            &["grep", "-e", "{{item}}"],
            &["wc", "-c", "{{item}}"],
            &["env", "FILE={{item}}"],
            &["timeout", "{{index}}"],
            &["timeout", "5", "wc", "{{item}}"],
            &["timeout", "5", "./check.sh", "{{item}}"],
            &["env", "A=1", "wc", "-l", "{{item}}"],
            &["psql", "-f", "{{item}}"],
            &["sh", "-c", "no template"],
            &["docker", "inspect", "--format", "{{.State}}"],
            &["make", "--output={{item}}"],
        ];
        for argv in table {
            assert_eq!(of(argv), None, "{argv:?}");
        }
    }
}
