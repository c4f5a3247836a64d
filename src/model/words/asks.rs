//! Whether the sentence around a match asks for the thing. A request needs a positive sign (an imperative at the head of a
//! clause, or a frame such as "can you" before it), and none of the signs against it.

#![expect(clippy::items_after_statements, reason = "a list of words stands beside its only use")]

use std::ops::Range;

use super::lexicon::{
    ADJECTIVES, AFTER, AUXILIARIES, CONDITIONS, CONTRASTS, COORDINATORS, DETERMINERS, DONT, FILLERS, FINITE, FRAMES,
    LATER, LIGHT, MEANS, NEGATIONS, POLITE, QUESTIONS, RECORDS, REPORTS, SUBJECTS, SUBORDINATORS, WISHES, has,
};

/// How far a sentence is followed to either side of the match, in bytes.
const REACH: usize = 1200;

/// See [`super::Words::asks`].
pub(super) fn asks(own: &str, m: Range<usize>) -> bool {
    if m.start >= m.end || own.get(m.clone()).is_none_or(|t| t.trim().is_empty()) {
        return false;
    }
    // A pattern may take the space around its words with it.
    let text = &own[m.clone()];
    let start = m.start + (text.len() - text.trim_start().len());
    let end = m.end - (text.len() - text.trim_end().len());
    if in_a_name(own, start, end) {
        return false;
    }
    let sentence = Sentence::around(own, start, end);
    if sentence.is_cjk() { sentence.asks_cjk() } else { sentence.asks() }
}

/// Whether the match is part of a longer name: `analyze()`, `--analyze`, `analyze.py`, `src/analyze`.
fn in_a_name(own: &str, start: usize, end: usize) -> bool {
    let before = own[..start].chars().next_back();
    let mut behind = own[end..].chars();
    let after = behind.next();
    let next = behind.next();
    let joined = |c: char| matches!(c, '-' | '_' | '/' | '\\' | '$' | '#' | '=' | '@' | '~');
    before.is_some_and(|c| {
        joined(c) || c == '.' && !own[..start].ends_with("..") || c == ':' && own[..start].ends_with("::")
    }) || after.is_some_and(|c| {
        c == '(' || joined(c) || matches!(c, '.' | ':') && next.is_some_and(|n| n.is_alphanumeric() || n == ':')
    })
}

/// A sentence and the match in it.
struct Sentence<'a> {
    /// From the sentence's beginning to the match.
    before: &'a str,
    found: &'a str,
    /// From the match to the sentence's end, without its mark.
    after: &'a str,
    /// The mark that ends it.
    mark: Option<char>,
    /// The line that introduces the list in which the sentence stands.
    intro: &'a str,
    /// The item is ticked off.
    ticked: bool,
}

impl<'a> Sentence<'a> {
    fn around(own: &'a str, start: usize, end: usize) -> Self {
        let (from, item) = beginning(own, start);
        let (to, mark) = ending(own, end);
        let mut before = &own[from..start];
        let mut ticked = false;
        if item {
            before = without_marker(before, &mut ticked);
        }
        let intro = if item { intro(own, from) } else { "" };
        Self { before, found: &own[start..end], after: &own[end..to], mark, intro, ticked }
    }
}

fn floor(s: &str, at: usize) -> usize {
    let mut at = at.min(s.len());
    while !s.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn is_end(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '¡' | '¿')
}

/// Where the sentence that contains `at` begins, and whether it begins with the marker of a list item or heading.
fn beginning(own: &str, at: usize) -> (usize, bool) {
    let least = floor(own, at.saturating_sub(REACH));
    let mut right = at;
    let mut next: Option<char> = own[at..].chars().next();
    for (n, c) in own[least..at].char_indices().rev() {
        let here = least + n;
        let stop = match c {
            '\n' => {
                let line = own[here + 1..].split('\n').next().unwrap_or_default();
                let above = own[..here].rsplit('\n').next().unwrap_or_default();
                if starts_item(line) {
                    return (here + 1, true);
                }
                breaks(above, line)
            }
            '。' | '！' | '？' | '¿' | '¡' => true,
            c if is_end(c) => {
                next.is_none_or(char::is_whitespace)
                    && !abbreviates(&own[least..here])
                    && !numbers_an_item(&own[least..here])
            }
            _ => false,
        };
        if stop {
            return (right, false);
        }
        next = Some(c);
        right = here;
    }
    let item = least == 0 && starts_item(own.split('\n').next().unwrap_or_default());
    (right, item)
}

/// Whether a line feed between these two lines ends a sentence. A wrapped line does not.
fn breaks(above: &str, line: &str) -> bool {
    let above = above.trim();
    let line = line.trim_start();
    if above.is_empty() || line.trim().is_empty() || starts_item(line) {
        return true;
    }
    if above.ends_with([':', ';', '.', '!', '?', '。', '：', '=', '—']) || line.starts_with(['=', '#', '—']) {
        return true;
    }
    let words = tokens(above);
    let hanging = words.last().is_some_and(|w| {
        has(DETERMINERS, w) || has(NEGATIONS, w) || has(COORDINATORS, w) || has(SUBORDINATORS, w) || has(SUBJECTS, w)
    });
    if hanging || above.ends_with(',') {
        return false;
    }
    // A new line is a new thought in short, chat-like lines; unless what is above could reach into it.
    let upper =
        line.chars().next().is_some_and(char::is_uppercase) && !line.starts_with("I ") && !line.starts_with("I'");
    let open = words.iter().any(|w| has(NEGATIONS, w) || has(CONDITIONS, w) || has(QUESTIONS, w));
    upper || (above.chars().count() < 50 && !open)
}

fn starts_item(line: &str) -> bool {
    let text = line.trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if (1..=3).contains(&digits) {
        return text[digits..].starts_with(['.', ')', ':'])
            && !text[digits + 1..].starts_with(|c: char| !c.is_whitespace());
    }
    text.strip_prefix(['-', '*', '+', '•', '#', '–', '·']).is_some_and(|t| t.starts_with([' ', '#']))
        || text.as_bytes().get(1) == Some(&b')') && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn without_marker<'a>(line: &'a str, ticked: &mut bool) -> &'a str {
    let text = line.trim_start();
    let text = match text.find([' ', ')', '.', ':']) {
        Some(n)
            if text[..n]
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, '-' | '*' | '+' | '•' | '#' | '–' | '·') || n == 1) =>
        {
            text[n + 1..].trim_start()
        }
        _ => text,
    };
    for (tick, done) in [("[ ]", false), ("[x]", true), ("[X]", true)] {
        if let Some(rest) = text.strip_prefix(tick) {
            *ticked = done;
            return rest;
        }
    }
    text
}

/// The line above the list to which the item at `from` belongs.
fn intro(own: &str, from: usize) -> &str {
    let least = floor(own, from.saturating_sub(REACH));
    let mut lines = own[least..from].rsplit('\n');
    lines.next();
    lines.find(|l| !l.trim().is_empty() && !starts_item(l) && !l.starts_with("  ")).unwrap_or_default()
}

/// Whether nothing but a number stands on the line that ends here.
fn numbers_an_item(before: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or_default().trim_start();
    (1..=3).contains(&line.len()) && line.bytes().all(|b| b.is_ascii_digit())
}

/// A dot that ends an abbreviation ends no sentence.
fn abbreviates(before: &str) -> bool {
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default().to_lowercase();
    matches!(
        word.as_str(),
        "e.g" | "i.e" | "z.b" | "d.h" | "etc" | "vs" | "bzw" | "p.ej" | "incl" | "approx" | "ca" | "resp"
    )
}

fn ending(own: &str, at: usize) -> (usize, Option<char>) {
    let most = floor(own, at + REACH);
    let mut chars = own[at..most].char_indices().peekable();
    while let Some((n, c)) = chars.next() {
        let here = at + n;
        match c {
            '\n' => {
                let above = own[..here].rsplit('\n').next().unwrap_or_default();
                let line = own[here + 1..].split('\n').next().unwrap_or_default();
                if breaks(above, line) {
                    return (here, None);
                }
            }
            '。' | '！' | '？' => return (here, Some(c)),
            c if is_end(c)
                && chars.peek().is_none_or(|(_, n)| n.is_whitespace() || is_end(*n))
                && !abbreviates(&own[at..here]) =>
            {
                return (here, Some(c));
            }
            _ => {}
        }
    }
    (most, None)
}

/// The words of a text in lower case: letters, digits and apostrophes; a path stays one token.
fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for raw in text
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '(' | ')' | '"' | '—' | '–' | ':' | '!' | '?'))
    {
        if is_path(raw) {
            out.push(raw.trim_end_matches('.').to_lowercase());
            continue;
        }
        for word in raw.split(|c: char| !(c.is_alphanumeric() || matches!(c, '\'' | '’' | '&' | '+'))) {
            let word = word.trim_start_matches('\'');
            if !word.is_empty() {
                out.push(word.to_lowercase().replace('’', "'"));
            }
        }
    }
    out
}

fn is_path(word: &str) -> bool {
    let core = word.trim_matches(|c: char| !c.is_alphanumeric());
    core.contains(['.', '/']) || word.starts_with('@') || word.ends_with('/') && word.len() > 1
}

/// One stretch of a sentence between commas and the like.
struct Segment {
    words: Vec<String>,
    /// What ended it.
    end: char,
}

/// The segments of the text before a match; the last one reaches to the match. A comma in a list of files separates nothing.
fn segments(before: &str) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    let mut from = 0;
    let mut previous = ' ';
    for (at, c) in before.char_indices() {
        let next = before[at + c.len_utf8()..].chars().next();
        let cut = match c {
            ',' => !previous.is_whitespace(),
            ';' | '(' | ')' | '—' | '–' | '，' => true,
            ':' => next.is_none_or(char::is_whitespace),
            '-' => previous == ' ' && next == Some(' '),
            _ => false,
        };
        if cut {
            out.push(Segment { words: tokens(&before[from..at]), end: c });
            from = at + c.len_utf8();
        }
        previous = c;
    }
    out.push(Segment { words: tokens(&before[from..]), end: ' ' });
    let mut merged: Vec<Segment> = Vec::new();
    for segment in out {
        let complement = matches!(
            segment.words.first().map(String::as_str),
            Some("dass" | "daß" | "żebyś" | "żeby" | "чтобы" | "att" | "at")
        );
        match merged.last_mut() {
            Some(last) if last.end == ',' && (complement || lists_on(&last.words, &segment.words)) => {
                last.words.extend(segment.words);
                last.end = segment.end;
            }
            _ => merged.push(segment),
        }
    }
    merged
}

/// Whether a comma between these words only separates files.
fn lists_on(left: &[String], right: &[String]) -> bool {
    let file = |w: &String| is_path(w);
    left.last().is_some_and(file) && right.iter().find(|w| !has(COORDINATORS, w)).is_some_and(file)
}

fn any(words: &[String], list: &[&str]) -> bool {
    words.iter().any(|w| has(list, w))
}

/// The words after fillers at the beginning.
fn without_fillers(words: &[String]) -> &[String] {
    let n = words
        .iter()
        .take_while(|w| has(FILLERS, w) || w.chars().all(|c| c.is_numeric() || c == '&' || c == '+'))
        .count();
    &words[n..]
}

/// "thoroughly", but no verb that happens to end like it.
fn is_adverb(word: &str) -> bool {
    word.len() > 4
        && word.ends_with("ly")
        && !["apply", "reply", "supply", "multiply", "rely", "imply", "comply", "assembly"].contains(&word)
}

/// The words behind a frame at the beginning of `words`, the longest that fits.
fn behind_frame(words: &[String]) -> Option<&[String]> {
    let fits = |frame: &&&[&str]| words.len() >= frame.len() && frame.iter().zip(words).all(|(f, w)| f == w);
    let longest = FRAMES.iter().filter(fits).map(|f| f.len()).max();
    longest.or_else(|| wish(words)).map(|n| &words[n..])
}

/// "it would be great if you could": how many words.
fn wish(words: &[String]) -> Option<usize> {
    let n = words.iter().take(10).position(|w| w == "if")?;
    let you = words.get(n + 1)? == "you" && matches!(words.get(n + 2)?.as_str(), "could" | "can" | "would");
    (you && any(&words[..n], WISHES) && !any(&words[..n], NEGATIONS)).then_some(n + 3)
}

/// The words behind a frame that may follow fillers. Some fillers begin frames ("please", "bitte"), so every place in the
/// fillers is tried.
fn framed(words: &[String]) -> Option<&[String]> {
    let fillers = words.len() - without_fillers(words).len();
    (0..=fillers).filter_map(|n| behind_frame(&words[n..])).min_by_key(|rest| rest.len())
}

impl Sentence<'_> {
    fn asks(&self) -> bool {
        if self.ticked || self.is_past() {
            return false;
        }
        let intro = self.intro.trim();
        if (intro.ends_with([':', '*']) || intro.starts_with(['#', '*']) || intro.len() < 40)
            && (any(&tokens(intro), REPORTS) || any(&tokens(intro), RECORDS))
        {
            return false;
        }
        let segments = segments(self.before);
        let Some((last, earlier)) = segments.split_last() else { return false };
        if earlier.iter().enumerate().any(|(n, s)| Self::forbids(s, &last.words, n + 1 == earlier.len())) {
            return false;
        }
        self.clause_asks(&last.words) && !self.is_undone_after()
    }

    /// "analyzed", "analicé": what was done is not asked for.
    fn is_past(&self) -> bool {
        let word = self.found.split_whitespace().next().unwrap_or_default().to_lowercase();
        let english = word.len() > 4
            && word.ends_with("ed")
            && !word.ends_with("eed")
            && !matches!(word.as_str(), "embed" | "shed");
        const ENDINGS: &[&str] = &[
            "é",
            "ée",
            "és",
            "ées",
            "ierte",
            "ierten",
            "łem",
            "łam",
            "ał",
            "ała",
            "ali",
            "ały",
            "ировал",
            "ировала",
            "ировали",
            "ил",
            "ила",
            "или",
            "izzato",
            "izzata",
            "isei",
            "izei",
            "isou",
        ];
        // "żebyś przeanalizował", "чтобы ты проанализировал": a wish has the form of the past.
        let wished = ["żeby", "чтобы", "by ", "бы "].iter().any(|w| self.before.to_lowercase().contains(w));
        let participle = ["iert", "prüft"].iter().any(|e| word.ends_with(e)) && self.before.contains(' ');
        english || participle || !wished && ENDINGS.iter().any(|e| word.chars().count() > 4 && word.ends_with(e))
    }

    /// Whether an earlier segment of the sentence forbids reading the match as a request.
    fn forbids(segment: &Segment, clause: &[String], adjacent: bool) -> bool {
        let words = without_fillers(&segment.words);
        let Some(head) = words.first() else { return false };
        if segment.end == ':' && any(words, REPORTS) {
            return true;
        }
        if framed(&segment.words).is_some() && !any(words, NEGATIONS) {
            return false;
        }
        if has(CONDITIONS, head) {
            return !any(words, POLITE);
        }
        let contrast = clause.iter().any(|w| has(CONTRASTS, w));
        if words.last().is_some_and(|w| has(NEGATIONS, w)) && adjacent && words.len() > 1 {
            return true;
        }
        if !contrast && adjacent && segment.end == ',' {
            let neg =
                has(DONT, head) || head == "do" && words.get(1).is_some_and(|w| w == "not") || head.starts_with("n'");
            if neg {
                return true;
            }
        }
        if has(QUESTIONS, head) && segment.end != '.' {
            return true;
        }
        adjacent && matches!(segment.end, ',' | ':') && words.len() <= 6 && any(words, REPORTS)
    }

    /// Whether the words between the beginning of the match's clause and the match ask for it.
    fn clause_asks(&self, words: &[String]) -> bool {
        let rest = without_fillers(words);
        let verb = self.is_verb();
        if let Some(between) = framed(words) {
            return self.between_asks(between);
        }
        if rest.is_empty() {
            return verb && self.is_object_next() && !self.is_bare_question();
        }
        if any(rest, NEGATIONS) {
            return false;
        }
        // "run a review of", "give me an analysis of"
        if let Some((head, tail)) = rest.split_first()
            && has(LIGHT, head)
            && tail.iter().all(|w| has(DETERMINERS, w) || has(ADJECTIVES, w) || has(LIGHT, w))
        {
            return true;
        }
        // "api.py und db.py analysieren", "@api.py analyze this"
        if rest.iter().any(|w| is_path(w)) && rest.iter().all(|w| is_path(w) || has(COORDINATORS, w) || has(FILLERS, w))
        {
            return verb && self.is_object_next() && self.mark != Some('?');
        }
        self.joins_an_imperative(rest)
    }

    /// "fix the typo and run", "use subagents to analyze": the match is joined to an imperative before it.
    fn joins_an_imperative(&self, rest: &[String]) -> bool {
        let Some((head, _)) = rest.split_first() else { return false };
        if !self.is_verb() || has(SUBJECTS, head) || has(QUESTIONS, head) || has(CONDITIONS, head) || is_path(head) {
            return false;
        }
        if any(rest, AUXILIARIES) || any(rest, SUBORDINATORS) || !self.is_object_next() {
            return false;
        }
        if rest.last().is_some_and(|w| w == "to") {
            return has(MEANS, head);
        }
        let tail = rest.iter().rev().take_while(|w| has(FILLERS, w) || has(COORDINATORS, w)).count();
        tail > 0
            && !(tail > 1 && rest.last().is_some_and(|w| w == "i"))
            && rest[rest.len() - tail..].iter().any(|w| has(COORDINATORS, w))
    }

    /// Whether what stands between a frame ("can you") and the match leaves it a request.
    fn between_asks(&self, between: &[String]) -> bool {
        if any(between, NEGATIONS) || any(between, SUBORDINATORS) || !self.is_object_next() {
            return false;
        }
        let words = without_fillers(between);
        let Some((head, tail)) = words.split_first() else { return true };
        let adverb = |w: &String| is_adverb(w) || has(FILLERS, w) || is_path(w);
        if words.iter().all(adverb) {
            return true;
        }
        let Some(last) = words.last() else { return true };
        if last == "to" {
            return has(MEANS, head);
        }
        if has(LIGHT, head) && tail.iter().all(|w| has(DETERMINERS, w) || has(ADJECTIVES, w)) {
            return true;
        }
        if has(DETERMINERS, last) {
            return false;
        }
        // Joined to another verb ("can you read a.md and analyze …"), or at the end behind its object (German, Dutch).
        has(COORDINATORS, last) || has(FILLERS, last) || words.iter().any(|w| is_path(w))
    }

    /// Whether the match can be a verb: "analyzes", "reviews" at the head of a clause are not asked of anybody.
    fn is_verb(&self) -> bool {
        let word = self.found.split_whitespace().next().unwrap_or_default().to_lowercase();
        let third =
            word.ends_with('s') && !word.ends_with("ss") && !word.ends_with("us") && word.is_ascii() && word.len() > 3;
        let gerund = word.ends_with("ing") && word.len() > 5;
        !third && !gerund
    }

    /// Whether what follows the match reads as its object and not as the verb of which it would be the subject.
    fn is_object_next(&self) -> bool {
        let words = tokens(self.after);
        let next = words.iter().find(|w| {
            !is_path(w) && !has(COORDINATORS, w) && !matches!(w.as_str(), "on" | "in" | "for" | "with" | "&")
        });
        !next.is_some_and(|w| has(FINITE, w))
    }

    /// "Analyze a.py and b.py?": unclear, unless a question of its own follows the request.
    fn is_bare_question(&self) -> bool {
        matches!(self.mark, Some('?' | '？')) && !any(&tokens(self.after), QUESTIONS)
    }

    /// Whether the rest of the sentence takes the request back: a negation behind the verb, a condition, a later time.
    fn is_undone_after(&self) -> bool {
        let clause = self.after.split([';', '—']).next().unwrap_or_default();
        let words = tokens(clause);
        if words.first().is_some_and(|w| has(AFTER, w) || matches!(w.as_str(), "not" | "yet" | "nothing" | "nie")) {
            return true;
        }
        let mut file = true;
        for (n, word) in words.iter().enumerate() {
            let again = word == "once" && words.get(n + 1).is_some_and(|w| w == "more" || w == "again");
            if file && has(CONDITIONS, word) && !again && word != "als" && !any(&words[n..], POLITE) {
                return true;
            }
            if has(LATER, word) {
                return true;
            }
            file = is_path(word);
        }
        let first = clause.split(", ").find(|part| !tokens(part).iter().all(|w| is_path(w))).unwrap_or_default();
        tokens(first).iter().any(|w| has(AFTER, w) && w != "pas")
    }

    // ---- scripts without spaces between words

    fn is_cjk(&self) -> bool {
        let cjk = |c: char| matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7AF}');
        self.found.chars().any(cjk) || self.before.chars().chain(self.after.chars()).filter(|c| cjk(*c)).count() >= 2
    }

    fn asks_cjk(&self) -> bool {
        if self.ticked {
            return false;
        }
        let kana = |c: char| matches!(c, '\u{3040}'..='\u{30FF}');
        let hangul = |c: char| matches!(c, '\u{AC00}'..='\u{D7AF}');
        let all = || self.before.chars().chain(self.found.chars()).chain(self.after.chars());
        if all().any(kana) {
            self.asks_japanese()
        } else if all().any(hangul) {
            self.asks_korean()
        } else {
            self.asks_chinese()
        }
    }

    fn asks_japanese(&self) -> bool {
        const WHY: &[&str] = &["なぜ", "どうして", "なんで", "もし", "場合", "いつ", "誰"];
        if WHY.iter().any(|w| self.before.contains(w)) {
            return false;
        }
        let tail = format!("{}{}", self.found, self.after);
        const NO: &[&str] = &[
            "ないで",
            "しない",
            "なくて",
            "ません",
            "している",
            "していた",
            "しても",
            "してから",
            "した",
            "すると",
            "するな",
        ];
        const YES: &[&str] = &["して", "しろ", "せよ", "お願い", "頼む", "しよう", "しましょう", "欲しい", "ほしい"];
        let asked = YES.iter().filter_map(|y| tail.find(y)).min();
        let denied = NO.iter().filter_map(|n| tail.find(n)).min();
        // "…を分析し、…してください": the form that joins it to the request behind it.
        if tail.find("し、").is_some_and(|n| n <= self.found.len() + 3) && tail.contains("ください") && denied.is_none()
        {
            return true;
        }
        match (asked, denied) {
            (Some(yes), Some(no)) => {
                yes < no
                    || ["してもら", "してくれません", "していただけません"].iter().any(|p| tail[yes..].starts_with(p))
            }
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    fn asks_korean(&self) -> bool {
        const NO: &[&str] = &["지 마", "지마", "지 말", "지말", "않", "왜", "했", "하면"];
        const YES: &[&str] =
            &["해줘", "해 줘", "해주", "해 주", "부탁", "하자", "해라", "하라", "하세요", "해봐", "해 봐"];
        let all = format!("{}{}{}", self.before, self.found, self.after);
        let tail = format!("{}{}", self.found, self.after);
        !NO.iter().any(|w| all.contains(w)) && YES.iter().any(|w| tail.contains(w))
    }

    fn asks_chinese(&self) -> bool {
        let clause = self.before.rsplit(['，', ',', '；', ';', '：', ':', '\n']).next().unwrap_or_default();
        const POLITE_NOT: &[&str] = &["能不能", "可不可以", "要不要", "是不是可以", "能否", "可否"];
        let polite = POLITE_NOT.iter().any(|p| self.before.contains(p));
        let mut text = clause.to_owned();
        for p in POLITE_NOT {
            text = text.replace(p, " ");
        }
        const NO: &[&str] = &["不", "别", "別", "勿", "禁止", "没", "沒", "未", "停止", "避免", "無需", "无需"];
        if NO.iter().any(|w| text.contains(w)) {
            return false;
        }
        const WHY: &[&str] = &[
            "为什么",
            "為什麼",
            "为何",
            "怎么",
            "怎麼",
            "如何",
            "什么",
            "什麼",
            "哪",
            "谁",
            "如果",
            "假如",
            "要是",
            "当",
        ];
        if WHY.iter().any(|w| self.before.contains(w)) {
            return false;
        }
        if self.after.starts_with(['的', '了', '过', '過', '时', '時', '器'])
            || self.after.trim_end().ends_with(['了', '过', '過'])
        {
            return false;
        }
        if self.mark == Some('？') || self.mark == Some('?') {
            return polite || ["请", "請", "帮", "幫", "可以", "能", "麻烦", "麻煩"].iter().any(|w| text.contains(w));
        }
        const HEADS: &[&str] = &[
            "请", "請", "先", "再", "然后", "然後", "帮我", "幫我", "麻烦", "麻煩", "现在", "現在", "首先", "最后",
            "最後", "接着", "并", "並", "和", "你", "您", "来", "來", "一下", "好的", "好", "需要", "我要", "我想",
            "我们", "我們", "让", "讓", "把", "对", "對", "给", "給", "我", "吧", "也", "去", "同时", "同時", "可以",
            "能", "要", "想",
        ];
        let mut rest: String = text.chars().filter(|c| !c.is_whitespace() && !c.is_ascii()).collect();
        rest.retain(|c| !matches!(c, '、' | '“' | '”' | '「' | '」'));
        while let Some(head) = HEADS.iter().filter(|h| rest.starts_with(**h)).max_by_key(|h| h.len()) {
            rest.drain(..head.len());
        }
        rest.is_empty()
    }
}
