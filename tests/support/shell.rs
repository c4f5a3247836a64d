//! Reads lines of shell as far as it takes to find the calls of cpw in them: in help texts, pages and scripts.

use cpw::hook::Hook;

/// Where a line that is read ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// At its end, or a comment.
    End,
    /// Also where two spaces stand between words: what is behind them explains.
    Gap,
}

/// The commands of a line, each as its words: without redirections, comments and variables set in front.
pub(crate) fn commands(line: &str, until: Until) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut chars = line.trim().chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' => word.get_or_insert_default().extend(chars.by_ref().take_while(|c| *c != '\'')),
            '"' => {
                let text = word.get_or_insert_default();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    text.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '#' if word.is_none() => break,
            '$' if chars.next_if_eq(&'(').is_some() => {
                word = None;
                all.push(Vec::new());
            }
            ' ' => {
                all.last_mut().expect("one at least").extend(word.take());
                if until == Until::Gap && chars.peek() == Some(&' ') {
                    break;
                }
            }
            '&' if word.as_deref().is_some_and(|w| w.ends_with('>')) => word.get_or_insert_default().push(c),
            '|' | '&' | ';' | '(' | ')' => {
                all.last_mut().expect("one at least").extend(word.take());
                all.push(Vec::new());
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    all.last_mut().expect("one at least").extend(word);
    all.into_iter().map(plain).filter(|words| !words.is_empty()).collect()
}

/// The words of a command without what only the shell sees.
fn plain(words: Vec<String>) -> Vec<String> {
    let is_set = |w: &String| {
        w.split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let mut out = Vec::new();
    let mut words = words.into_iter().skip_while(is_set).peekable();
    while let Some(word) = words.next() {
        match word.trim_start_matches(|c: char| c.is_ascii_digit()) {
            ">" | ">>" | "<" => drop(words.next()),
            rest if rest.starts_with(['>', '<']) => {}
            _ => out.push(word),
        }
    }
    out
}

/// The calls of cpw in a line, also with the `!` in front by which people call it inside Claude Code.
pub(crate) fn calls(line: &str, until: Until) -> Vec<Vec<String>> {
    let ours = |words: &Vec<String>| words.first().is_some_and(|w| matches!(w.as_str(), "cpw" | "!cpw"));
    let mut found: Vec<Vec<String>> = commands(line, until).into_iter().filter(ours).collect();
    for words in &mut found {
        "cpw".clone_into(&mut words[0]);
    }
    found
}

/// Whether cpw understands these words; what is wrong with them otherwise.
pub(crate) fn understood(words: &[String]) -> Result<(), clap::Error> {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    if words.get(1).is_some_and(|name| Hook::by_name(name.as_ref()).is_some()) {
        return Ok(());
    }
    match cpw::cli::definition().try_get_matches_from(words) {
        Err(e) if !matches!(e.kind(), DisplayHelp | DisplayVersion) => Err(e),
        _ => Ok(()),
    }
}

#[test]
fn lines_of_shell_are_read() {
    let read = |line| commands(line, Until::End);
    assert_eq!(read("a 'b c' \"d \\\" e\" # f"), [vec!["a", "b c", "d \" e"]]);
    assert_eq!(read("X=1 a >b 2>&1 < c d | e && f"), [vec!["a", "d"], vec!["e"], vec!["f"]]);
    assert_eq!(read("T=$(cpw lease acquire db)"), [vec!["cpw", "lease", "acquire", "db"]]);
    assert_eq!(commands("cpw run p.json   as it is", Until::Gap), [vec!["cpw", "run", "p.json"]]);
    assert!(understood(&["cpw".into(), "run".into(), "--nonsense".into()]).is_err());
    assert!(understood(&["cpw".into(), "stop".into()]).is_ok());
}
