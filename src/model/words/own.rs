//! The blanking: everything in a prompt that is not the user's own sentence becomes spaces, byte for byte, so that
//! offsets into the result are offsets into the prompt. Several passes, each linear: lines (code, quotes of mail, logs,
//! diffs, JSON), tags, quotation marks and inline code, addresses.

#![expect(clippy::items_after_statements, reason = "a list of marks stands beside its only use")]

use std::collections::HashMap;

/// A prompt after blanking.
pub(super) struct Blanked {
    /// As long as the prompt, with the same line feeds.
    pub(super) own: String,
    /// What stood alone in quotation marks or inline code on one line, with its offset.
    pub(super) quoted: Vec<(usize, String)>,
}

/// Blanks `prompt`.
pub(super) fn blank(prompt: &str) -> Blanked {
    let mut page = Page { bytes: prompt.as_bytes().to_vec() };
    lines(prompt, &mut page);
    let text = page.text();
    tags(&text, &mut page);
    let text = page.text();
    let quoted = quotes(&text, &mut page);
    let text = page.text();
    addresses(&text, &mut page);
    Blanked { own: page.text(), quoted }
}

/// The text being blanked.
struct Page {
    bytes: Vec<u8>,
}

impl Page {
    /// Blanks a range that begins and ends between characters. Line feeds stay.
    fn wipe(&mut self, from: usize, to: usize) {
        for b in &mut self.bytes[from..to] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

// ---- lines

/// What the lines before mean for the next one.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about the lines above")]
struct Above {
    /// The last line was machine output, or unclear lines since then might be.
    machine: bool,
    /// A shell prompt was seen: output follows until an empty line.
    shell: bool,
    /// Inside the hunks of a diff.
    diff: bool,
    /// The last line was empty, or there was none.
    empty: bool,
    /// The last line with text was an indented block's.
    code: bool,
    /// The last line with text was a list item or its continuation.
    list: bool,
    /// The last line with text ended with a colon.
    colon: bool,
    /// Where unclear lines since the last machine line begin, and how many they are.
    unclear: Option<(usize, usize)>,
}

/// How many unclear lines between two machine lines are taken as part of the log.
const SANDWICH: usize = 3;

fn lines(prompt: &str, page: &mut Page) {
    let margin = common_indent(prompt);
    let mut above = Above { empty: true, ..Above::default() };
    let mut at = 0;
    let mut unbalanced = false;
    while at < prompt.len() {
        let end = line_end(prompt, at);
        let line = &prompt[at..end];
        let text = line.trim();
        if text.is_empty() {
            above.diff &= diff_goes_on(prompt, end);
            above = Above { empty: true, code: above.code, list: above.list, diff: above.diff, ..Above::default() };
            at = end + 1;
            continue;
        }
        if let Some(open) = fence_in(line) {
            let close = fence_end(prompt, at, end, &line[open..]);
            page.wipe(at + open, close);
            above = Above::default();
            at = close + 1;
            continue;
        }
        if json_opens(text) {
            let close = json_end(prompt, at, &mut unbalanced);
            page.wipe(at, close);
            above = Above { machine: true, ..Above::default() };
            // The user's words may go on behind the bracket, on the same line.
            at = close + usize::from(prompt[close..].starts_with('\n'));
            continue;
        }
        let indent = indent(line).saturating_sub(margin);
        let item = is_item(text);
        if line_is_foreign(line, text, indent, item, &mut above) {
            page.wipe(above.unclear.take().map_or(at, |(from, _)| from), end);
            above.machine = true;
        } else if indent >= 4 && (above.empty || above.code || above.colon) && !(above.list && (item || !above.empty)) {
            page.wipe(at, end);
            above.code = true;
            above.empty = false;
            at = end + 1;
            continue;
        } else if above.machine {
            above.unclear = match above.unclear {
                None => Some((at, 1)),
                Some((from, n)) if n < SANDWICH => Some((from, n + 1)),
                Some(_) => {
                    above.machine = false;
                    None
                }
            };
        }
        above.empty = false;
        above.code = false;
        above.list = item || (above.list && indent > 0);
        above.colon = text.ends_with([':', '：']);
        at = end + 1;
    }
}

fn line_end(s: &str, from: usize) -> usize {
    s.as_bytes()[from..].iter().position(|b| *b == b'\n').map_or(s.len(), |n| from + n)
}

fn indent(line: &str) -> usize {
    let mut width = 0;
    for b in line.bytes() {
        match b {
            b' ' => width += 1,
            b'\t' => width += 4,
            _ => break,
        }
    }
    width
}

/// The indentation that all lines share: a whole prompt pasted with a margin is not a code block.
fn common_indent(prompt: &str) -> usize {
    let mut least = usize::MAX;
    for line in prompt.split('\n') {
        if !line.trim().is_empty() {
            least = least.min(indent(line));
            if least == 0 {
                break;
            }
        }
    }
    if least == usize::MAX { 0 } else { least }
}

/// Whether a trimmed line begins with a list marker.
fn is_item(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix(['-', '*', '+', '•']) {
        return rest.starts_with(' ');
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=3).contains(&digits) && text[digits..].starts_with(['.', ')']) && text[digits + 1..].starts_with(' ')
}

/// Whether a line is machine output or a quotation of mail, given the lines above; updates the state of blocks.
fn line_is_foreign(line: &str, text: &str, indent: usize, item: bool, above: &mut Above) -> bool {
    if text.starts_with('>') && indent < 4 {
        above.shell |= text.starts_with(">>> ");
        return true;
    }
    if above.shell {
        return true;
    }
    if is_shell(text) {
        above.shell = true;
        return true;
    }
    if text.starts_with("diff --git ")
        || text.starts_with("@@ -")
        || text.starts_with("--- a/")
        || text.starts_with("+++ b/")
    {
        above.diff = true;
        return true;
    }
    if above.diff && (line.starts_with(['+', '-', ' ', '\\', '\t']) || text.starts_with("index ") || file_mode(text)) {
        return true;
    }
    above.diff = false;
    if is_output(text) || is_frame(text) {
        return true;
    }
    above.machine && above.unclear.is_none() && indent > 0 && !item
}

fn file_mode(text: &str) -> bool {
    ["new file mode", "deleted file mode", "old mode", "new mode", "similarity index", "rename from", "rename to"]
        .iter()
        .any(|p| text.starts_with(p))
}

/// After an empty line: whether the hunk of a diff continues on the next line.
fn diff_goes_on(prompt: &str, end: usize) -> bool {
    let Some(next) = prompt.get(end + 1..) else { return false };
    next.starts_with(['+', ' ', '\\']) || next.starts_with("@@ -") || (next.starts_with('-') && !next.starts_with("- "))
}

/// A line typed at a shell, with its prompt.
fn is_shell(text: &str) -> bool {
    if ["$ ", "% ", "❯", "➜", "λ ", "PS C:", "C:\\", "In ["].iter().any(|p| text.starts_with(p)) {
        return true;
    }
    // `user@host:~/dir$ cmd` and `[user@host dir]# cmd`
    let head = text.split(' ').next().unwrap_or_default();
    let at = head.find('@');
    at.is_some_and(|n| n > 0)
        && (head.ends_with(['$', '%', '#']) && head.contains(':')
            || head.starts_with('[') && text.contains(['$', '#']) && text.contains(']'))
}

/// A line of a log, a compiler, a test runner or a table drawn with lines.
fn is_output(text: &str) -> bool {
    if starts_with_time(text) || starts_with_level(text) || starts_with_position(text) {
        return true;
    }
    if text.starts_with(['|', '│', '┌', '└', '├', '╭', '╰', '✓', '✔', '✗', '✘', '✖', '●', '⎿', '⏺', '^', '~'])
    {
        return true;
    }
    const HEADS: &[&str] = &[
        "--> ",
        "::: ",
        "= note:",
        "= help:",
        "test result:",
        "--- FAIL",
        "--- PASS",
        "--- SKIP",
        "=== RUN",
        "=== CONT",
        "=== PAUSE",
        "FAIL ",
        "FAIL\t",
        "PASS ",
        "PASS\t",
        "ok  \t",
        "ok \t",
        "FAILED ",
        "PASSED ",
        "ERROR ",
        "npm ERR!",
        "npm error",
        "npm WARN",
        "npm warn",
        "Tests: ",
        "Test Suites: ",
        "Snapshots: ",
        "E   ",
        "collected ",
        "Compiling ",
        "Finished ",
        "Downloaded ",
        "Doc-tests ",
        "make: ",
        "make[",
        "bash: ",
        "zsh: ",
        "sh: ",
        "fish: ",
        "ld: ",
        "could not compile ",
        "Segmentation fault",
        "thread '",
        "panic: ",
        "goroutine ",
        "Process finished",
        "Command failed",
        "exit status ",
        "Exit code",
        "exit code",
    ];
    if HEADS.iter().any(|h| text.starts_with(h)) {
        return true;
    }
    let bytes = text.as_bytes();
    if bytes.starts_with(b"running ")
        && (text.ends_with(" tests") || text.ends_with(" test"))
        && bytes[8].is_ascii_digit()
    {
        return true;
    }
    if text.starts_with("test ") && text.contains(" ... ") {
        return true;
    }
    if text.contains("::") && [" PASSED", " FAILED", " ERROR", " SKIPPED"].iter().any(|s| text.contains(s)) {
        return true;
    }
    // `12 |   code` of a compiler, `  12: 0x7f…` of a trace
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits > 0 && (text[digits..].trim_start().starts_with(['|', '│']) || text[digits..].starts_with(": ")) {
        return true;
    }
    bytes.len() >= 8 && (bytes.starts_with(b"====") && bytes.ends_with(b"====") && text.contains(' '))
}

/// `2026-01-02T03:04`, `[2026-01-02 03:04`, `03:04:05`, `[03:04:05`, `Jan  2 03:04:05`.
fn starts_with_time(text: &str) -> bool {
    let b = text.trim_start_matches(['[', '(']).as_bytes();
    if shape(b, b"dddd-dd-dd") || shape(b, b"dddd/dd/dd") {
        return b.get(10).is_some_and(|c| matches!(c, b'T' | b' ' | b'_')) && shape(&b[11..], b"dd:dd");
    }
    if shape(b, b"dd:dd:dd") {
        return true;
    }
    const MONTHS: &[&[u8]] =
        &[b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    MONTHS.iter().any(|m| b.starts_with(m)) && (shape(&b[3..], b" dd dd:dd") || shape(&b[3..], b"  d dd:dd"))
}

/// Whether `b` begins like `pattern`, where `d` stands for a digit.
fn shape(b: &[u8], pattern: &[u8]) -> bool {
    b.len() >= pattern.len() && pattern.iter().zip(b).all(|(p, c)| if *p == b'd' { c.is_ascii_digit() } else { p == c })
}

fn starts_with_level(text: &str) -> bool {
    const UPPER: &[&str] = &["ERROR", "WARN", "WARNING", "INFO", "DEBUG", "TRACE", "FATAL", "SEVERE", "CRITICAL"];
    const COLON: &[&str] = &["error", "warning", "fatal", "Error", "Fatal", "Warning", "panic", "err"];
    let bare = text.trim_start_matches('[');
    let word = &bare[..bare.bytes().take_while(u8::is_ascii_alphabetic).count()];
    let rest = &bare[word.len()..];
    if bare.len() < text.len() {
        return rest.starts_with([']', ' ']) && UPPER.iter().any(|l| l.eq_ignore_ascii_case(word));
    }
    UPPER.contains(&word) && rest.starts_with([':', ' ', '\t', '[', '|'])
        || COLON.contains(&word) && (rest.starts_with(": ") || rest == ":" || rest.starts_with("[E"))
}

/// `src/main.rs:12:5: …`, `api.py:12: …`, `main.go:12 +0x1d`: a place in a file and then text.
fn starts_with_position(text: &str) -> bool {
    let token = text.split_whitespace().next().unwrap_or_default();
    let Some(colon) = token.find(':') else { return false };
    if !token[..colon].contains(['.', '/']) {
        return false;
    }
    let mut rest = &token[colon..];
    let mut numbers = 0;
    while let Some(tail) = rest.strip_prefix(':') {
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return numbers > 0;
        }
        numbers += 1;
        rest = &tail[digits..];
    }
    text[token.len()..].starts_with(" +0x")
}

/// A line of a stack trace.
fn is_frame(text: &str) -> bool {
    if text.starts_with("Traceback (") || text.starts_with("Caused by:") || text.starts_with("Exception in thread") {
        return true;
    }
    if text.starts_with("stack backtrace:") || text.starts_with("Stack trace") || text.starts_with("Uncaught ") {
        return true;
    }
    if text.starts_with("File \"") && text.contains("line ") {
        return true;
    }
    if let Some(rest) = text.strip_prefix("at ") {
        let place = rest.trim_end_matches(')');
        return place.ends_with(|c: char| c.is_ascii_digit()) && place.contains(':')
            || rest.ends_with(')') && rest.contains('(') && !rest.contains(", ");
    }
    if text.starts_with('#') && shape(&text.as_bytes()[1..], b"d") && text.contains(" 0x") {
        return true;
    }
    // `ValueError: bad port`, `java.lang.NullPointerException`, `requests.exceptions.Timeout: …`
    let head = text.split([':', ' ']).next().unwrap_or_default();
    head.len() > 5
        && (head.ends_with("Error") || head.ends_with("Exception") || head.ends_with("Warning"))
        && head.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'$'))
        && (text.len() == head.len() || text[head.len()..].starts_with(':'))
}

// ---- fences

/// Where a fence opens in `line`: at its beginning, or at three backticks in it that do not close on the same line.
fn fence_in(line: &str) -> Option<usize> {
    let text = line.trim_start();
    let from = line.len() - text.len();
    if text.starts_with("~~~") {
        return Some(from);
    }
    let mut at = line.find("```")?;
    loop {
        let run = line[at..].bytes().take_while(|b| *b == b'`').count();
        match line[at + run..].find("```") {
            None => return Some(at),
            Some(n) => {
                let closed = at + run + n;
                let run = line[closed..].bytes().take_while(|b| *b == b'`').count();
                at = closed + run + line[closed + run..].find("```")?;
            }
        }
    }
}

/// The end of the line that closes the fence opened on the line `at..end`; the end of the prompt if none does.
fn fence_end(prompt: &str, at: usize, end: usize, open: &str) -> usize {
    let mark = open.as_bytes().first().copied().unwrap_or(b'`');
    let width = open.bytes().take_while(|b| *b == mark).count();
    debug_assert!(at <= end && width >= 3);
    let mut from = end + 1;
    while from < prompt.len() {
        let to = line_end(prompt, from);
        let text = prompt[from..to].trim();
        let tail = text.bytes().rev().take_while(|b| *b == mark).count();
        if tail >= width && (tail == text.len() || mark == b'`' && text.matches("```").count() == 1) {
            return to;
        }
        from = to + 1;
    }
    prompt.len()
}

// ---- JSON

fn json_opens(text: &str) -> bool {
    if !text.starts_with(['{', '[']) {
        return false;
    }
    let rest = text[1..].trim_start_matches([' ', '\t', '{', '[']);
    (text.starts_with('{') && (rest.is_empty() || rest.starts_with(['"', '}'])))
        || (text.starts_with('[') && (rest.is_empty() || rest.starts_with('"') || text.starts_with("[{")))
}

/// Where the value that begins on the line at `from` ends: at the end of the line on which its brackets balance; else
/// before the next empty line. `unbalanced` remembers that looking through the whole rest was in vain, so that it
/// happens once.
fn json_end(prompt: &str, from: usize, unbalanced: &mut bool) -> usize {
    let mut depth = 0i64;
    let mut string = false;
    let mut escaped = false;
    let mut paragraph = None;
    let mut line_start = from;
    for (n, b) in prompt.as_bytes()[from..].iter().enumerate() {
        let at = from + n;
        match b {
            b'\n' => {
                string = false;
                if paragraph.is_none() && at > from && prompt[line_start..at].trim().is_empty() {
                    paragraph = Some(line_start.saturating_sub(1));
                    if *unbalanced {
                        break;
                    }
                }
                line_start = at + 1;
            }
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            b'{' | b'[' if !string => depth += 1,
            b'}' | b']' if !string => {
                depth -= 1;
                if depth <= 0 {
                    return close_of_line(prompt, at + 1);
                }
            }
            _ => {}
        }
    }
    *unbalanced = true;
    paragraph.unwrap_or(prompt.len()).max(line_end(prompt, from))
}

/// The own words may go on after a closing bracket; a comma or another bracket may not.
fn close_of_line(prompt: &str, at: usize) -> usize {
    let end = line_end(prompt, at);
    let rest = prompt[at..end].trim_start();
    if rest.chars().next().is_none_or(|c| !c.is_alphabetic()) { end } else { at }
}

// ---- tags

/// Tags that people put around their own instructions: only the tags themselves are blanked.
const OPEN_TAGS: &[&str] = &[
    "task",
    "tasks",
    "instruction",
    "instructions",
    "request",
    "goal",
    "goals",
    "objective",
    "requirements",
    "steps",
    "todo",
];

fn tags(text: &str, page: &mut Page) {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'<') {
        return;
    }
    let mut last_close: HashMap<&str, usize> = HashMap::new();
    let mut at = 0;
    while let Some(n) = text[at..].find("</") {
        let name = tag_name(&text[at + n + 2..]);
        last_close.insert(name, at + n);
        at += n + 2;
    }
    let last_comment = text.rfind("-->");
    let mut at = 0;
    while let Some(n) = text[at..].find('<') {
        let open = at + n;
        let rest = &text[open + 1..];
        if rest.starts_with("!--") {
            let end = if last_comment.is_some_and(|c| c > open) {
                text[open..].find("-->").map(|n| open + n + 3)
            } else {
                None
            };
            at = end.unwrap_or(open + 1);
            page.wipe(open, at);
            continue;
        }
        let name = tag_name(rest.trim_start_matches('/'));
        let Some(end) = tag_end(text, open).filter(|_| !name.is_empty()) else {
            at = open + 1;
            continue;
        };
        let own = OPEN_TAGS.iter().any(|t| t.eq_ignore_ascii_case(name));
        let paired =
            !rest.starts_with('/') && !text[..end].ends_with("/>") && last_close.get(name).is_some_and(|c| *c >= end);
        at = if paired && !own { element_end(text, end, name) } else { end };
        page.wipe(open, at);
    }
}

fn tag_name(s: &str) -> &str {
    let n = s.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':')).count();
    if s.starts_with(|c: char| c.is_ascii_alphabetic()) { &s[..n] } else { "" }
}

/// The longest tag that is looked at, in bytes.
const TAG: usize = 1024;

fn tag_end(text: &str, open: usize) -> Option<usize> {
    let bytes = &text.as_bytes()[open + 1..];
    let n = bytes.iter().take(TAG).position(|b| matches!(b, b'>' | b'<'))?;
    (bytes[n] == b'>').then_some(open + 1 + n + 1)
}

/// The end of the element `name` whose content begins at `from`. A closing tag is known to follow.
fn element_end(text: &str, from: usize, name: &str) -> usize {
    let mut depth = 1usize;
    let mut at = from;
    let mut last = text.len();
    while let Some(n) = text[at..].find('<') {
        let open = at + n;
        let rest = &text[open + 1..];
        let closes = rest.starts_with('/');
        if tag_name(rest.strip_prefix('/').unwrap_or(rest)) == name {
            let end = tag_end(text, open).unwrap_or(open + 1);
            if closes {
                depth -= 1;
                last = end;
                if depth == 0 {
                    return end;
                }
            } else if !text[..end].ends_with("/>") {
                depth += 1;
            }
        }
        at = open + 1;
    }
    last
}

// ---- quotation marks and inline code

/// Pairs whose opening mark is used for nothing else; „ may be closed by each of three marks.
const PAIRS: &[(char, &[char])] = &[
    ('„', &['“', '”', '"']),
    ('“', &['”']),
    ('«', &['»']),
    ('‹', &['›']),
    ('「', &['」']),
    ('『', &['』']),
    ('《', &['》']),
    ('‚', &['‘', '’']),
];

fn quotes(text: &str, page: &mut Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut closers = Closers { next: vec![0; PAIRS.len()], single: 0, ticks: [0; 8] };
    let mut before = None;
    let mut skip = 0;
    let mut paragraph = paragraph_end(text, 0);
    for (at, c) in text.char_indices() {
        if at < skip {
            continue;
        }
        if at >= paragraph {
            paragraph = paragraph_end(text, at);
        }
        let after = text[at + c.len_utf8()..].chars().next();
        let (inner, end) = match c {
            '`' => closers.inline_code(text, at, paragraph),
            '"' if opens(before, after) => double(text, at, paragraph),
            '\'' | '‘' if opens(before, after) => closers.single(text, at, c.len_utf8()),
            _ => match PAIRS.iter().position(|(open, _)| *open == c) {
                Some(kind) => closers.pair(text, at, kind),
                None => (at, at),
            },
        };
        before = Some(c);
        if end > at {
            let from = at + c.len_utf8();
            if inner > from && inner - from <= 4096 && !text[from..inner].contains('\n') {
                let whole = text[from..inner].trim_matches(['`', ' ']);
                found.push((at, whole.to_owned()));
            }
            page.wipe(at, end);
            skip = end;
        }
    }
    found
}

/// Whether a straight mark can open a quotation: not after a letter (an apostrophe) or digit (inches), not before a space.
/// Scripts without spaces between words may have a letter before it.
fn opens(before: Option<char>, after: Option<char>) -> bool {
    let free = before.is_none_or(|b| !b.is_alphanumeric() || b >= '\u{2E80}');
    free && after.is_some_and(|a| !a.is_whitespace())
}

/// A quotation between straight double marks, within one paragraph: its inner end and its end. A mark that nothing closes
/// holds until the end of its line.
fn double(text: &str, at: usize, paragraph: usize) -> (usize, usize) {
    match text[at + 1..paragraph].find('"') {
        Some(n) => (at + 1 + n, at + 2 + n),
        None => (at, line_end(text, at)),
    }
}

/// Where the paragraph around `at` ends.
fn paragraph_end(text: &str, at: usize) -> usize {
    let mut from = at;
    loop {
        let end = line_end(text, from);
        if end >= text.len() {
            return text.len();
        }
        if text[end + 1..line_end(text, end + 1)].trim().is_empty() {
            return end + 1;
        }
        from = end + 1;
    }
}

/// Where closing marks were last looked for, so that each stretch of text is searched once per kind.
struct Closers {
    /// Per pair: the next closing mark at or after where it was last asked for; the text's length when there is none.
    next: Vec<usize>,
    /// The same for the single marks that can close: after text and not before a letter.
    single: usize,
    /// Per number of backticks: no run of that many before this offset.
    ticks: [usize; 8],
}

impl Closers {
    fn pair(&mut self, text: &str, at: usize, kind: usize) -> (usize, usize) {
        let (open, close) = PAIRS[kind];
        let from = at + open.len_utf8();
        if self.next[kind] < from {
            self.next[kind] = text[from..].find(close).map_or(text.len(), |n| from + n);
        }
        let inner = self.next[kind];
        match text[inner..].chars().next() {
            Some(c) => (inner, inner + c.len_utf8()),
            None => (at, at),
        }
    }

    /// A quotation between single marks. An apostrophe is common, so it is short and on one line.
    fn single(&mut self, text: &str, at: usize, width: usize) -> (usize, usize) {
        let from = at + width;
        if self.single < from {
            self.single = text.len();
            let mut last = ' ';
            for (n, c) in text[from..].char_indices() {
                if matches!(c, '\'' | '’') && !last.is_whitespace() {
                    let after = text[from + n + c.len_utf8()..].chars().next();
                    if after.is_none_or(|a| !a.is_alphanumeric() || a >= '\u{2E80}') {
                        self.single = from + n;
                        break;
                    }
                }
                last = c;
            }
        }
        let inner = self.single;
        match text[inner..].chars().next() {
            Some(c) if inner - from <= 400 && !text[from..inner].contains('\n') => (inner, inner + c.len_utf8()),
            _ => (at, at),
        }
    }

    fn inline_code(&mut self, text: &str, at: usize, paragraph: usize) -> (usize, usize) {
        let bytes = text.as_bytes();
        let width = bytes[at..paragraph].iter().take_while(|b| **b == b'`').count();
        let unclosed = || (at, if width == 1 { line_end(text, at) } else { at + width });
        let Some(never) = self.ticks.get_mut(width) else { return unclosed() };
        if *never > at {
            return unclosed();
        }
        let mut from = at + width;
        while let Some(n) = bytes[from..paragraph].iter().position(|b| *b == b'`') {
            let run = bytes[from + n..paragraph].iter().take_while(|b| **b == b'`').count();
            if run == width {
                return (from + n, from + n + run);
            }
            from += n + run;
        }
        *never = paragraph;
        unclosed()
    }
}

// ---- addresses

/// URLs and mail addresses.
fn addresses(text: &str, page: &mut Page) {
    let mut from = 0;
    for token in text.split(|c: char| c.is_whitespace()) {
        let at = from;
        from += token.len();
        // The separator that split off this token.
        from += text[from..].chars().next().map_or(0, char::len_utf8);
        let scheme = token.find("://").or_else(|| token.find("mailto:"));
        if let Some(n) = scheme {
            let head = token[..n].len()
                - token[..n].bytes().rev().take_while(|b| b.is_ascii_alphanumeric() || *b == b'+').count();
            page.wipe(at + head, at + address_end(token));
        } else if token.starts_with("www.") {
            page.wipe(at, at + address_end(token));
        } else if let Some(n) = token.find('@')
            && token[..n].ends_with(|c: char| c.is_ascii_alphanumeric())
            && token[n + 1..].contains('.')
            && !token[..n].contains('/')
        {
            page.wipe(at, at + address_end(token));
        }
    }
}

/// A token without the punctuation of the sentence around it.
fn address_end(token: &str) -> usize {
    token.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', '…', '。', '，', '、']).len()
}
