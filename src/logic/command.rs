//! Which files a shell command plainly names: its words as they stand, without what only a shell could tell (variables,
//! globs, substitutions). Not a parser of the language: it never runs into an error, and where it is unsure it says less.
//! cpw's own commands name nothing, because asking for a result is no use of the file.

/// How much of a command is read, in bytes.
const MAX_COMMAND: usize = 64 * 1024;

/// How many words of it are looked at.
const MAX_WORDS: usize = 256;

/// Words before a program's name that are none.
const BEFORE: [&str; 14] =
    ["{", "!", "if", "then", "elif", "else", "while", "until", "do", "time", "exec", "command", "env", "nohup"];

/// The words of `command` that may be files, as absolute paths with all that is in them (`..` included), each once. `cwd` is
/// where the command begins; `cd` in it moves what follows.
pub fn files(command: &str, cwd: &str) -> Vec<String> {
    let command = &command[..command.floor_char_boundary(MAX_COMMAND)];
    let mut reader = Reader::new(cwd);
    reader.read(command);
    reader.found
}

/// What a word is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The program or one of its arguments.
    Argument,
    /// Behind `<` or `>`.
    Redirected,
    /// Behind `<<`: the line that ends a text. With `-`, its tabs do not count.
    Delimiter { tabs: bool },
    /// Behind `<<<`: a text.
    Text,
}

/// A word as far as it was read.
#[derive(Debug, Default)]
struct Word {
    text: String,
    /// Something of it was there, be it only quotes.
    begun: bool,
    /// It holds something that only a shell can tell.
    odd: bool,
}

struct Reader {
    found: Vec<String>,
    /// Words that may still be looked at.
    left: usize,
    /// Where the command is, also outside of the parentheses that it is in; `None` where only a shell can tell.
    folders: Vec<Option<String>>,
    word: Word,
    place: Place,
    /// The program of the simple command that is read.
    program: Option<String>,
    /// Where its `cd` goes: nothing yet, or the word and whether it is plain.
    target: Option<(String, bool)>,
    /// Texts that begin at the end of the line, each with the line that ends it.
    texts: Vec<(String, bool)>,
}

impl Reader {
    fn new(cwd: &str) -> Reader {
        Reader {
            found: Vec::new(),
            left: MAX_WORDS,
            folders: vec![Some(cwd.to_owned())],
            word: Word::default(),
            place: Place::Argument,
            program: None,
            target: None,
            texts: Vec::new(),
        }
    }

    fn read(&mut self, command: &str) {
        let mut rest = command;
        while let Some(c) = rest.chars().next() {
            if self.left == 0 {
                return;
            }
            let after = &rest[c.len_utf8()..];
            rest = match c {
                '\'' => {
                    let end = after.find('\'').unwrap_or(after.len());
                    self.push(&after[..end]);
                    after.get(end + 1..).unwrap_or_default()
                }
                '"' => self.quoted(after),
                '\\' => match after.chars().next() {
                    Some('\n') | None => after.get(1..).unwrap_or_default(),
                    Some(literal) => {
                        self.push(&after[..literal.len_utf8()]);
                        &after[literal.len_utf8()..]
                    }
                },
                '#' if !self.word.begun => after.find('\n').map_or("", |end| &after[end..]),
                '\n' => {
                    self.end_command(true);
                    self.skip_texts(after)
                }
                ' ' | '\t' | '\r' => {
                    self.end_word();
                    after
                }
                '<' | '>' => self.redirection(c, after),
                ';' => {
                    self.end_command(true);
                    after
                }
                '&' | '|' => {
                    let doubled = after.strip_prefix(c);
                    // A command in a pipe or in the background moves nobody else.
                    self.end_command(doubled.is_some());
                    doubled.unwrap_or(after)
                }
                '(' => {
                    self.end_command(false);
                    self.folders.extend(self.folders.last().cloned());
                    after
                }
                ')' => {
                    self.end_command(false);
                    if self.folders.len() > 1 {
                        self.folders.pop();
                    }
                    after
                }
                c => {
                    self.word.odd |= matches!(c, '$' | '`' | '*' | '?' | '[') || (c == '~' && !self.word.begun);
                    self.push(&rest[..c.len_utf8()]);
                    after
                }
            };
        }
        self.end_command(true);
    }

    fn push(&mut self, text: &str) {
        self.word.begun = true;
        self.word.text.push_str(text);
    }

    /// What stands between double quotes. Returns what follows them.
    fn quoted<'a>(&mut self, text: &'a str) -> &'a str {
        self.word.begun = true;
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return &text[at + 1..],
                '\\' => match chars.next() {
                    Some((_, escaped @ ('$' | '`' | '"' | '\\'))) => self.word.text.push(escaped),
                    Some((_, '\n')) | None => {}
                    Some((_, other)) => self.word.text.extend(['\\', other]),
                },
                c => {
                    self.word.odd |= matches!(c, '$' | '`');
                    self.word.text.push(c);
                }
            }
        }
        ""
    }

    /// Behind a `<` or `>`: for what the next word is. A number before it belongs to it.
    fn redirection<'a>(&mut self, first: char, after: &'a str) -> &'a str {
        if self.word.text.bytes().all(|b| b.is_ascii_digit()) {
            self.word = Word::default();
        }
        self.end_word();
        let (place, rest) = match (first, after) {
            ('<', text) if text.starts_with("<<") => (Place::Text, &after[2..]),
            ('<', text) if text.starts_with("<-") => (Place::Delimiter { tabs: true }, &after[2..]),
            ('<', text) if text.starts_with('<') => (Place::Delimiter { tabs: false }, &after[1..]),
            // `>>`, `<>`, `>|`, `>&`.
            (_, text) => (Place::Redirected, text.strip_prefix(['>', '|', '&']).unwrap_or(text)),
        };
        self.place = place;
        rest
    }

    fn end_word(&mut self) {
        if !self.word.begun {
            return;
        }
        let Word { text, odd, .. } = std::mem::take(&mut self.word);
        self.left -= 1;
        match std::mem::replace(&mut self.place, Place::Argument) {
            Place::Text => {}
            Place::Delimiter { tabs } => self.texts.push((text, tabs)),
            Place::Redirected => self.count(&text, odd),
            Place::Argument => self.argument(text, odd),
        }
    }

    fn argument(&mut self, text: String, odd: bool) {
        match self.program.as_deref() {
            None if BEFORE.contains(&text.as_str()) => {}
            None if is_assignment(&text) => self.count(&text, odd),
            None => {
                self.count(&text, odd);
                self.program = Some(text);
            }
            Some("cd") => {
                let option = text.starts_with('-') && text != "-";
                if self.target.is_none() && !option {
                    let plain = !odd && text != "-";
                    self.target = Some((text, plain));
                }
            }
            Some(program) if program.rsplit('/').next() == Some("cpw") => {}
            Some(_) => self.count(&text, odd),
        }
    }

    /// Takes a word for a file's name, or what it gives as a value.
    fn count(&mut self, word: &str, odd: bool) {
        let name = match word.split_once('=') {
            Some((_, value)) if word.starts_with('-') || is_assignment(word) => value,
            _ if word.starts_with('-') => return,
            _ => word,
        };
        if odd || name.is_empty() {
            return;
        }
        let Some(path) = self.resolve(name) else { return };
        if !self.found.contains(&path) {
            self.found.push(path);
        }
    }

    fn resolve(&self, name: &str) -> Option<String> {
        if name.starts_with('/') {
            return Some(name.to_owned());
        }
        let folder = self.folders.last()?.as_deref()?;
        Some(format!("{}/{name}", folder.trim_end_matches('/')))
    }

    /// The end of a simple command; what it was may move those that follow.
    fn end_command(&mut self, moves: bool) {
        self.end_word();
        self.place = Place::Argument;
        let target = self.target.take();
        if self.program.take().as_deref() == Some("cd") && moves {
            let folder = target.filter(|(_, plain)| *plain).and_then(|(text, _)| self.resolve(&text));
            if let Some(last) = self.folders.last_mut() {
                *last = folder;
            }
        }
    }

    /// Behind the end of a line: the texts that were announced in it are no words.
    fn skip_texts<'a>(&mut self, mut rest: &'a str) -> &'a str {
        for (end, tabs) in std::mem::take(&mut self.texts) {
            while !rest.is_empty() {
                let (line, below) = rest.split_once('\n').unwrap_or((rest, ""));
                rest = below;
                if (if tabs { line.trim_start_matches('\t') } else { line }) == end {
                    break;
                }
            }
        }
        rest
    }
}

/// `NAME=value`.
fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The files that are named, below `/p` where the command begins.
    fn named(command: &str) -> Vec<String> {
        let short = |f: String| f.strip_prefix("/p/").map_or(f.clone(), ToOwned::to_owned);
        files(command, "/p").into_iter().map(short).collect()
    }

    fn names(command: &str, file: &str) -> bool {
        named(command).iter().any(|f| f == file)
    }

    #[test]
    fn plain_words_are_files_and_what_only_a_shell_can_tell_is_not() {
        for (command, expected) in [
            ("cat a.py", &["cat", "a.py"][..]),
            ("./a.py --fast", &["./a.py"]),
            ("cat 'my file.py' \"b c\" d\\ e", &["cat", "my file.py", "b c", "d e"]),
            ("cat 'a*.py' a\\?.py \"[x]\"", &["cat", "a*.py", "a?.py", "[x]"]),
            ("cat $F a*.py b?.py [c].py `x` \"$D/x\" ~/y", &["cat"]),
            ("sort <a.py >b.py 2>>c.py", &["sort", "a.py", "b.py", "c.py"]),
            ("cat a.py|wc -l;rm b.py&cat c.py||true", &["cat", "a.py", "wc", "rm", "b.py", "c.py", "true"]),
            ("make IN=a.py --out=b.py -Ic", &["make", "a.py", "b.py"]),
            ("F=a.py env G=b.py cat", &["a.py", "b.py", "cat"]),
            ("cat /q/a.py ../a.py x/../a.py", &["cat", "/q/a.py", "../a.py", "x/../a.py"]),
            ("echo x # a.py\ncat b.py", &["echo", "x", "cat", "b.py"]),
            ("cat >b.py <<'END'\na.py\n END\nEND\ncat c.py", &["cat", "b.py", "c.py"]),
            ("cat <<-E >b.py\n\ta.py\n\tE\ncat c.py", &["cat", "b.py", "c.py"]),
            ("cat <<<a.py", &["cat"]),
            ("(cat a.py)", &["cat", "a.py"]),
            ("cat a.py 2>&1 >/dev/null", &["cat", "a.py", "1", "/dev/null"]),
            ("git commit -m 'mend a.py'", &["git", "commit", "mend a.py"]),
            ("cat 'open a.py", &["cat", "open a.py"]),
            ("cat a.py \\\n b.py", &["cat", "a.py", "b.py"]),
            ("cat ünï.py\u{a0}x", &["cat", "ünï.py\u{a0}x"]),
            ("", &[]),
        ] {
            assert_eq!(named(command), expected, "{command}");
        }
    }

    #[test]
    fn cd_moves_what_follows_it() {
        for (command, file, expected) in [
            ("cd src && cat a.py", "src/a.py", true),
            ("cd src && cat a.py", "a.py", false),
            ("cd src; cat a.py", "src/a.py", true),
            ("cd src\ncat a.py", "src/a.py", true),
            ("cd src || exit 1; cat a.py", "src/a.py", true),
            ("cd -P -- src && cat a.py", "src/a.py", true),
            ("cd /q && cat a.py", "/q/a.py", true),
            ("cd 'a b' && cat a.py", "a b/a.py", true),
            ("cd $X && cat a.py", "a.py", false),
            ("cd $X && cat /p/a.py", "a.py", true),
            ("cd && cat a.py", "a.py", false),
            ("cd - && cat a.py", "a.py", false),
            ("cd $X && cd /p && cat a.py", "a.py", true),
            ("cd src | cat a.py", "a.py", true),
            ("cd src & cat a.py", "a.py", true),
            ("(cd src && make); cat a.py", "a.py", true),
            ("(cd src && cat a.py)", "src/a.py", true),
            ("cd src && cd sub && cat a.py", "src/sub/a.py", true),
        ] {
            assert_eq!(names(command, file), expected, "{command} {file}");
        }
    }

    #[test]
    fn own_commands_name_nothing_but_where_they_write() {
        for command in
            ["cpw result a.py", "cpw status a.py | head", "X=1 /opt/cpw result a.py", "cd . && cpw result a.py"]
        {
            assert!(!names(command, "a.py") && !names(command, "./a.py"), "{command}");
        }
        assert!(names("cpw result a.py > b.py", "b.py"));
        assert!(names("cpw result a.py && cat a.py", "a.py"));
        assert!(names("cat a.py; cpw result b.py", "a.py"));
    }

    #[test]
    fn long_commands_are_read_up_to_their_bounds() {
        let many = (0..300).map(|i| format!("f{i}")).collect::<Vec<_>>().join(" ");
        assert_eq!(named(&many).len(), MAX_WORDS);
        let long = format!("cat {}é a.py", "x".repeat(MAX_COMMAND - 5));
        assert!(!names(&long, "a.py") && named(&long).len() == 2);
        assert_eq!(named(&"(".repeat(MAX_COMMAND)).len(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_command_is_names_are_absolute_few_and_each_once(
            command in "([a-c/.]{0,4}|[ \n;&|<>()'\"\\\\$`*=#-]|<<|cd |cpw |\\PC){0,60}",
        ) {
            let found = files(&command, "/p");
            prop_assert!(found.len() <= MAX_WORDS);
            prop_assert!(found.iter().all(|f| f.starts_with('/')));
            let mut once = found.clone();
            once.sort();
            once.dedup();
            prop_assert_eq!(once.len(), found.len());
        }

        #[test]
        fn a_quoted_name_is_found_whatever_it_is(name in "[^/\0=\\-][^/\0=]{0,20}") {
            let quoted = format!("cat -- '{}'", name.replace('\'', "'\\''"));
            prop_assert!(files(&quoted, "/p").contains(&format!("/p/{name}")), "{quoted}");
        }
    }
}
