//! Secrets in text of others: what has the shape of a token, a key or a password is replaced before cpw records or shows it.
//! What says which kind it was stays: `ghp_[redacted]`, `password=[redacted]`, `postgres://app:[redacted]@db`.
//!
//! A scanner by hand: it looks at every character a bounded number of times, and at words that no rule begins with once. A
//! rule asks for enough that hashes, ids, paths and words stay what they are; a secret without any shape stays, too.
//!
//! What cannot be told from ordinary text stays: a password of several words, unless it stands in quotes behind `=`; one that
//! reads like an expression of a program (`password=config.password`, `password=f(x)`); digits alone, fewer than six,
//! behind a name like `db_pass`, as counts have them; a `…_KEY` whose value does not look random, or whose name is in lower
//! case; `PASS:` and `pwd:`, which tests and shells say; words joined by dashes behind `secret: `; `user:password` behind a
//! `-u` that is not curl's; `key-` and 32 hexadecimal digits behind a word such as `etag`.

use std::borrow::Cow;

/// What stands for a secret.
pub const MARK: &str = "[redacted]";

/// What a token is made of behind its prefix.
#[derive(Clone, Copy)]
enum Of {
    /// Letters and digits.
    Alnum,
    /// Those with `_` and `-`.
    Url,
    /// Those with `+`, `/`, `=` and `.`, too.
    Any,
    /// Those with `%`, as addresses and cookies have them.
    Encoded,
    /// Upper case letters and digits.
    Upper,
    /// Hexadecimal digits in lower case.
    Hex,
}

impl Of {
    fn has(self, b: u8) -> bool {
        match self {
            Of::Alnum => b.is_ascii_alphanumeric(),
            Of::Url => b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'),
            Of::Any => b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'/' | b'=' | b'.'),
            Of::Encoded => b == b'%' || Of::Any.has(b),
            Of::Upper => b.is_ascii_uppercase() || b.is_ascii_digit(),
            Of::Hex => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        }
    }
}

/// Prefixes by which providers make their tokens known, and how many characters follow at least.
const PREFIXES: &[(&str, Of, usize)] = &[
    // Models and their tools.
    ("sk-ant-", Of::Url, 16),
    ("sk-proj-", Of::Url, 20),
    ("sk-svcacct-", Of::Url, 20),
    ("sk-admin-", Of::Url, 20),
    ("sk-or-v1-", Of::Alnum, 20),
    ("sk-", Of::Alnum, 32),
    ("hf_", Of::Alnum, 30),
    ("api_org_", Of::Alnum, 30),
    ("gsk_", Of::Alnum, 40),
    ("r8_", Of::Alnum, 36),
    ("xai-", Of::Alnum, 40),
    ("pplx-", Of::Alnum, 40),
    ("nvapi-", Of::Url, 40),
    ("pcsk_", Of::Url, 40),
    // Code and packages.
    ("ghp_", Of::Alnum, 20),
    ("gho_", Of::Alnum, 20),
    ("ghu_", Of::Alnum, 20),
    ("ghs_", Of::Alnum, 20),
    ("ghr_", Of::Alnum, 20),
    ("github_pat_", Of::Url, 22),
    ("glpat-", Of::Url, 20),
    ("gldt-", Of::Url, 20),
    ("glrt-", Of::Url, 20),
    ("glptt-", Of::Url, 20),
    ("glcbt-", Of::Url, 20),
    ("glsoat-", Of::Url, 20),
    ("ATATT3", Of::Any, 50),
    ("ATCTT3", Of::Any, 50),
    ("npm_", Of::Alnum, 30),
    ("pypi-Ag", Of::Url, 40),
    ("rubygems_", Of::Hex, 40),
    ("dckr_pat_", Of::Url, 20),
    ("dckr_oat_", Of::Url, 20),
    // Clouds and services.
    ("AKIA", Of::Upper, 16),
    ("ASIA", Of::Upper, 16),
    ("AIza", Of::Url, 35),
    ("ya29.", Of::Url, 20),
    ("GOCSPX-", Of::Url, 20),
    ("dop_v1_", Of::Hex, 40),
    ("doo_v1_", Of::Hex, 40),
    ("dor_v1_", Of::Hex, 40),
    ("dapi", Of::Hex, 32),
    ("HRKU-", Of::Url, 36),
    ("nfp_", Of::Alnum, 36),
    ("sbp_", Of::Hex, 40),
    ("sb_secret_", Of::Url, 20),
    ("pul-", Of::Hex, 40),
    ("hvs.", Of::Url, 24),
    ("hvb.", Of::Url, 24),
    ("tskey-auth-", Of::Url, 16),
    ("tskey-api-", Of::Url, 16),
    ("NRAK-", Of::Upper, 27),
    ("dp.pt.", Of::Alnum, 40),
    ("dp.ct.", Of::Alnum, 40),
    ("dp.sa.", Of::Alnum, 40),
    ("dp.st.", Of::Any, 40),
    ("gAAAA", Of::Url, 60),
    ("glsa_", Of::Url, 32),
    ("sntrys_", Of::Any, 40),
    ("sntryu_", Of::Hex, 64),
    // Money, mail and messages.
    ("sk_live_", Of::Alnum, 16),
    ("sk_test_", Of::Alnum, 16),
    ("rk_live_", Of::Alnum, 16),
    ("rk_test_", Of::Alnum, 16),
    ("whsec_", Of::Any, 20),
    ("shpat_", Of::Hex, 32),
    ("shpss_", Of::Hex, 32),
    ("shpca_", Of::Hex, 32),
    ("sq0atp-", Of::Url, 20),
    ("sq0csp-", Of::Url, 20),
    ("key-", Of::Hex, 32),
    ("xoxb-", Of::Url, 20),
    ("xoxa-", Of::Url, 20),
    ("xoxp-", Of::Url, 20),
    ("xoxr-", Of::Url, 20),
    ("xoxs-", Of::Url, 20),
    ("xoxe-", Of::Url, 20),
    ("xoxc-", Of::Url, 20),
    ("xoxd-", Of::Encoded, 20),
    ("xapp-", Of::Url, 20),
    ("hooks.slack.com/services/", Of::Any, 20),
    ("discord.com/api/webhooks/", Of::Any, 40),
    ("discordapp.com/api/webhooks/", Of::Any, 40),
    ("lin_api_", Of::Alnum, 30),
    ("ntn_", Of::Alnum, 40),
    ("secret_", Of::Alnum, 40),
    ("figd_", Of::Url, 30),
    ("PMAK-", Of::Url, 40),
    ("AGE-SECRET-KEY-1", Of::Upper, 40),
];

/// Which characters a prefix begins with.
const BEGINNINGS: [bool; 128] = {
    let mut all = [false; 128];
    let mut i = 0;
    while i < PREFIXES.len() {
        all[PREFIXES[i].0.as_bytes()[0] as usize] = true;
        i += 1;
    }
    all
};

/// Ends of names whose value is a password: any value is one.
const PASSWORDS: &[&str] = &["password", "passwd", "passphrase", "_pwd"];

/// What stands before `_pass` where it is no password, but a way through something, or a test that passed.
const NO_PASSWORDS: &[&str] = &[
    "all", "by", "com", "count", "did", "double", "each", "fast", "first", "last", "max", "min", "multi", "must", "n",
    "next", "no", "num", "number", "one", "per", "pre", "render", "second", "should", "single", "slow", "test",
    "tests", "third", "three", "to", "total", "two",
];

/// Words before a colon after which `key-` and digits of a hash are no key.
const HASHES: &[&str] = &["etag", "cache", "md5", "digest", "checksum"];

/// Names before `_key` whose value everybody may know.
const NO_KEYS: &[&str] =
    &["public_key", "cache_key", "pub_key", "primary_key", "sort_key", "foreign_key", "partition_key"];

/// What expressions of a program begin with that lead to a secret.
const ROOTS: &[&str] = &[
    "app", "args", "cfg", "conf", "config", "context", "ctx", "data", "env", "local", "module", "options", "opts",
    "os", "params", "process", "props", "req", "request", "secrets", "self", "settings", "state", "this", "user",
    "var",
];

/// Ends of names whose value is a token or a key, where it looks like one. In lower case, `-` as `_`.
const KEYS: &[&str] = &[
    "token",
    "secret",
    "api_key",
    "apikey",
    "access_key",
    "accesskey",
    "secret_key",
    "secretkey",
    "private_key",
    "auth_key",
    "account_key",
    "accountkey",
    "signing_key",
    "encryption_key",
    "master_key",
    "subscription_key",
    "authorization",
];

/// The end of a name whose value is a signature, which is long.
const SIGNATURE: &str = "signature";

/// As much of a value as tells whether it looks like a secret.
const MAX_HEAD: usize = 256;

/// The longest name that is looked at.
const MAX_NAME: usize = 64;

/// A secret in a text: the bytes that are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    from: usize,
    to: usize,
}

/// The text with [`MARK`] in the place of what has the shape of a secret. What is marked already stays as it is.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut scan = Scan { text: text.as_bytes(), value_end: 0, curl_end: 0 };
    let mut out = String::new();
    let (mut written, mut at) = (0, 0);
    while let Some(found) = scan.next(&mut at) {
        out.push_str(&text[written..found.from]);
        out.push_str(MARK);
        written = found.to;
        at = found.to;
    }
    if written == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[written..]);
    Cow::Owned(out)
}

struct Scan<'t> {
    text: &'t [u8],
    /// Where the last value without quotes has ended, so that one with many names in it is looked at once.
    value_end: usize,
    /// Where the command of the last `curl` ends.
    curl_end: usize,
}

impl Scan<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    /// The end of what `of` accepts from `at` on, looking no further than `most` bytes.
    fn run(&self, at: usize, most: usize, is: impl Fn(u8) -> bool) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        at + rest.iter().take(most).take_while(|b| is(**b)).count()
    }

    /// The next secret from `at` on. Behind the call `at` is where it was looked to.
    fn next(&mut self, at: &mut usize) -> Option<Found> {
        while *at < self.text.len() {
            let begin = *at;
            let b = self.text[begin];
            let before = begin.checked_sub(1).map(|i| self.text[i]);
            if b.is_ascii_alphanumeric() && !before.is_some_and(|b| b.is_ascii_alphanumeric()) {
                let found = self.word(begin, before);
                // Behind `\n` and `%20` as they are written out, a word begins, too.
                let inner = begin + self.escape(begin);
                let is_inner = inner > begin && self.byte(inner).is_some_and(|b| b.is_ascii_alphanumeric());
                let found = if is_inner { found.or_else(|| self.word(inner, None)) } else { found };
                if found.is_some() {
                    return found;
                }
                *at = self.run(begin, usize::MAX, |b| b.is_ascii_alphanumeric());
                continue;
            }
            let found = match b {
                b'-' if before != Some(b'-') => self.private_key(begin),
                b':' => self.address(begin),
                _ => None,
            };
            if found.is_some() {
                return found;
            }
            *at += 1;
        }
        None
    }

    /// How many characters at `at` belong to an escape that has begun before it: the `n` of `\n`, the `20` of `%20`.
    fn escape(&self, at: usize) -> usize {
        let hex = |from: usize, count: usize| self.run(from, count, |b| b.is_ascii_hexdigit()) == from + count;
        match (at.checked_sub(1).map(|i| self.text[i]), self.byte(at)) {
            (Some(b'\\'), Some(b'n' | b'r' | b't' | b'b' | b'f' | b'v' | b'0')) => 1,
            (Some(b'\\'), Some(b'u')) if hex(at + 1, 4) => 5,
            (Some(b'\\'), Some(b'x')) if hex(at + 1, 2) => 3,
            (Some(b'%'), _) if hex(at, 2) => 2,
            _ => 0,
        }
    }

    /// A secret that begins with the word at `at`, or that this word announces.
    fn word(&mut self, at: usize, before: Option<u8>) -> Option<Found> {
        let inside = before.is_some_and(|b| matches!(b, b'_' | b'-' | b'.'));
        let begins = BEGINNINGS.get(usize::from(self.text[at])) == Some(&true);
        let found = if begins { self.prefixed(at) } else { None };
        // What spans several words begins with the first of them.
        let found = found.or_else(|| if inside { None } else { self.token(at) });
        found.or_else(|| self.of_curl(at, before)).or_else(|| self.named(at))
    }

    fn prefixed(&self, at: usize) -> Option<Found> {
        let rest = &self.text[at..];
        PREFIXES.iter().filter(|(prefix, ..)| rest.starts_with(prefix.as_bytes())).find_map(|(prefix, of, least)| {
            let from = at + prefix.len();
            let secret = &self.text[from..self.run(from, *least, |b| of.has(b))];
            // Words with dashes are none, however long they are. Looked at first, so that the rest is looked at once.
            if secret.len() < *least || !(secret.iter().any(u8::is_ascii_digit) || is_mixed(secret)) {
                return None;
            }
            let to = self.run(from, usize::MAX, |b| of.has(b));
            let is_whole =
                !matches!(of, Of::Upper | Of::Hex) || !self.byte(to).is_some_and(|b| b.is_ascii_alphanumeric());
            // Of the access keys of AWS each has that length.
            let fits = !matches!(*prefix, "AKIA" | "ASIA") || to - from == *least;
            let fits = fits && !(*prefix == "key-" && self.is_hash(at));
            (is_whole && fits).then_some(Found { from, to: self.without_stop(from, to) })
        })
    }

    /// Whether what stands before `at` says that a hash follows.
    fn is_hash(&self, at: usize) -> bool {
        let is_between = |b: &u8| matches!(b, b' ' | b':' | b'=' | b'"' | b'\'' | b'\\');
        let before = &self.text[..at];
        let between = before.iter().rev().take(8).take_while(|b| is_between(b)).count();
        let before = &before[..at - between];
        between > 0
            && HASHES.iter().any(|word| {
                before.len() >= word.len() && before[before.len() - word.len()..].eq_ignore_ascii_case(word.as_bytes())
            })
    }

    /// A full stop at the end is the sentence's.
    fn without_stop(&self, from: usize, to: usize) -> usize {
        if to > from && self.text[to - 1] == b'.' { to - 1 } else { to }
    }

    /// A token that is known by its shape alone, or by the word before it.
    fn token(&self, at: usize) -> Option<Found> {
        match self.text[at] {
            b'e' if self.text[at..].starts_with(b"eyJ") => self.web_token(at),
            b'S' if self.text[at..].starts_with(b"SG.") => self.dotted(at, 3, &[16, 16]),
            b'M' | b'N' | b'O' => self.discord(at),
            b'0'..=b'9' => self.bot(at),
            b'b' if self.text[at..].starts_with(b"bot") => self.bot(at + 3),
            b'B' | b'b' => self.scheme(at),
            _ => None,
        }
    }

    /// Parts of at least these lengths, with a full stop between them.
    fn dotted(&self, at: usize, prefix: usize, lengths: &[usize]) -> Option<Found> {
        let from = at + prefix;
        let mut to = from;
        for (i, least) in lengths.iter().enumerate() {
            if i > 0 {
                to += usize::from(self.byte(to)? == b'.');
            }
            let end = self.run(to, 200, |b| Of::Url.has(b));
            if end - to < *least || (i > 0 && self.byte(to - 1) != Some(b'.')) {
                return None;
            }
            to = end;
        }
        is_random(&self.text[from..to]).then_some(Found { from, to })
    }

    /// A bot of Discord: its number in base64, six characters, and at least 27.
    fn discord(&self, at: usize) -> Option<Found> {
        let found = self.dotted(at, 0, &[23, 6, 27])?;
        let mut parts = self.text[at..found.to].split(|b| *b == b'.');
        let number = decoded(parts.next()?).all(|b| b.is_some_and(|b| b.is_ascii_digit()));
        (number && parts.next()?.len() == 6).then_some(found)
    }

    /// A JSON web token: its parts are JSON in base64. One that is encrypted has five, of which the second may be empty.
    fn web_token(&self, at: usize) -> Option<Found> {
        let head = self.run(at, 2048, |b| Of::Url.has(b));
        if head - at < 12 {
            return None;
        }
        let from = at + 3;
        if self.text[head..].starts_with(b".ey") {
            let to = self.run(head, usize::MAX, |b| Of::Url.has(b) || b == b'.');
            return Some(Found { from, to: self.without_stop(from, to) });
        }
        let mut to = head;
        for least in [0, 12, 1, 16] {
            let part = to + 1;
            let end = self.run(part, usize::MAX, |b| Of::Url.has(b));
            if self.byte(to) != Some(b'.') || end - part < least {
                return None;
            }
            to = end;
        }
        is_random(&self.text[from..to]).then_some(Found { from, to })
    }

    /// A bot of Telegram: its number, a colon, 35 characters.
    fn bot(&self, at: usize) -> Option<Found> {
        let colon = self.run(at, 11, |b| b.is_ascii_digit());
        let from = colon + 1;
        let to = self.run(from, 40, |b| Of::Url.has(b));
        let fits = (8..=10).contains(&(colon - at)) && self.byte(colon) == Some(b':') && to - from == 35;
        let secret = self.text.get(from..to)?;
        (fits && is_mixed(secret) && is_random(secret)).then_some(Found { from, to })
    }

    /// `Bearer TOKEN` and `Basic dXNlcjpwYXNz`.
    fn scheme(&self, at: usize) -> Option<Found> {
        let is = |word: &[u8]| self.text.get(at..at + word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word));
        let bearer = is(b"bearer");
        let word = at + if bearer { 6 } else { 5 };
        if !bearer && !is(b"basic") {
            return None;
        }
        let from = self.blank(word)?;
        let to = self.run(from, usize::MAX, |b| Of::Any.has(b) || b == b'~');
        let secret = &self.text[from..to];
        let is_secret = if bearer { secret.len() >= 16 && is_random(secret) } else { is_user_and_password(secret) };
        is_secret.then_some(Found { from, to: self.without_stop(from, to) })
    }

    /// Behind the blank at `at`, which may be written as `%20`.
    fn blank(&self, at: usize) -> Option<usize> {
        let is = |blank: &[u8]| self.text[at..].starts_with(blank).then_some(at + blank.len());
        is(b" ").or_else(|| is(b"%20"))
    }

    /// The password of `curl -u user:password`.
    fn of_curl(&mut self, at: usize, before: Option<u8>) -> Option<Found> {
        if at >= self.curl_end {
            if self.text[at..].starts_with(b"curl") && self.run(at, 5, |b| b.is_ascii_alphanumeric()) == at + 4 {
                self.curl_end = self.run(at, usize::MAX, |b| !matches!(b, b'\n' | b'|'));
            }
            return None;
        }
        let is_option = |option: &[u8]| self.text[at..].starts_with(option) && before == Some(b'-');
        let behind = if is_option(b"user ") || is_option(b"user=") {
            at + 5
        } else if is_option(b"u") || is_option(b"U") {
            at + 1
        } else {
            return None;
        };
        let dashes = self.text[..at].iter().rev().take(3).take_while(|b| **b == b'-').count();
        let is_begin =
            at.checked_sub(dashes + 1).is_none_or(|i| matches!(self.text[i], b' ' | b'\t' | b'\n' | b'"' | b'\''));
        if dashes != usize::from(behind > at + 1) + 1 || !is_begin {
            return None;
        }
        let value = self.value(self.run(behind, 4, |b| b == b' '))?;
        let colon = self.run(value.from, MAX_NAME, |b| b != b':' && !b.is_ascii_whitespace());
        let from = colon + 1;
        let is_pair = self.byte(colon) == Some(b':') && colon > value.from && from < value.to;
        let is_secret = is_pair && !is_placeholder(&self.text[from..value.to]);
        // The name may be a token, too.
        let from = if is_secret && is_token(&self.text[value.from..colon]) { value.from } else { from };
        is_secret.then_some(Found { from, to: value.to })
    }

    /// The value that follows a name which says that it is a secret.
    fn named(&mut self, at: usize) -> Option<Found> {
        // Of a name of many words, its last one.
        let end = self.run(at, MAX_NAME, |b| b.is_ascii_alphanumeric());
        let is_followed =
            |b: u8| matches!(b, b'=' | b':' | b'"' | b'\'' | b'\\' | b'>' | b'%') || b.is_ascii_whitespace();
        if !self.byte(end).is_some_and(is_followed) {
            return None;
        }
        let begin = at - self.text[..at].iter().rev().take(MAX_NAME).take_while(|b| Of::Url.has(**b)).count();
        let mut buffer = [0; 2 * MAX_NAME];
        let name = buffer.get_mut(..end - begin)?;
        name.copy_from_slice(&self.text[begin..end]);
        // Behind a mark the name has begun before it.
        let is_cut = self.text[..begin].ends_with(MARK.as_bytes());
        let is_upper = !is_cut && !name.iter().any(u8::is_ascii_lowercase);
        name.make_ascii_lowercase();
        let before = begin.checked_sub(1).map(|i| self.text[i]);
        let escaped = name.get(self.escape(begin)..).unwrap_or_default();
        if !is_cut
            && [&*name, escaped].iter().any(|n| matches!(n.strip_prefix(b"--").unwrap_or(n), b"cookie" | b"set-cookie"))
        {
            return self.cookie(name, end);
        }
        let kind = match (kind_of(name, is_upper).or_else(|| kind_of(escaped, is_upper)), before) {
            (Some(kind), _) => kind,
            (None, Some(b'?' | b'&')) if name == b"sig" => Kind::Signature,
            (None, Some(b':')) if name == b"_auth" => Kind::Key,
            _ => return None,
        };
        let found = match (self.byte(end), before) {
            (Some(b'>'), Some(b'<')) => self.element(end + 1, kind),
            (Some(b' ' | b'\t' | b'\n'), _) if name == b"password" => self.of_machine(begin, end),
            _ => None,
        };
        found.or_else(|| self.pair(begin, end, kind)).or_else(|| self.assigned(begin, end, name, kind))
    }

    /// What stands between `<password>` and `</password>`.
    fn element(&self, from: usize, kind: Kind) -> Option<Found> {
        let to = self.run(from, usize::MAX, |b| b != b'<' && b != b'\n');
        let value = &self.text[from..to];
        let is_secret = self.text[to..].starts_with(b"</") && !has_words(value) && is_worth(value, kind, true);
        is_secret.then_some(Found { from, to })
    }

    /// The password in `machine HOST login USER password PASSWORD`, as `.netrc` has it.
    fn of_machine(&mut self, begin: usize, end: usize) -> Option<Found> {
        let start = begin.saturating_sub(4 * MAX_NAME);
        let mut words = self.text[start..begin].rsplit(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.next()?;
        let is_machine = match words.next()? {
            b"machine" => true,
            b"login" => words.next()? == b"default" || words.next()? == b"machine",
            _ => false,
        };
        let from = self.run(end, 16, |b| b.is_ascii_whitespace());
        let value = if is_machine { self.value(from)? } else { return None };
        (!is_placeholder(&self.text[value.from..value.to])).then_some(value)
    }

    /// The value in `"name": "DB_PASSWORD", "value": "VALUE"`, and in `name: DB_PASSWORD`, `value: VALUE`.
    fn pair(&mut self, begin: usize, end: usize, kind: Kind) -> Option<Found> {
        let closed = self.quote_end(end);
        let is_quoted = closed > end;
        if !is_quoted && !self.text[..begin].ends_with(b"name: ") {
            return None;
        }
        let comma = closed + usize::from(is_quoted && self.byte(closed) == Some(b','));
        let next = self.quote_end(self.run(comma, MAX_NAME, |b| b.is_ascii_whitespace()));
        if !self.text.get(next..next + 5)?.eq_ignore_ascii_case(b"value") {
            return None;
        }
        let gap = self.run(self.quote_end(next + 5), 4, |b| b == b' ');
        if !matches!(self.byte(gap)?, b':' | b'=') {
            return None;
        }
        let value = self.value(self.run(gap + 1, 4, |b| b == b' '))?;
        let text = &self.text[value.from..value.to];
        (!has_words(text) && is_worth(text, kind, true)).then_some(value)
    }

    /// The cookies of `Cookie: NAME=VALUE; NAME=VALUE`; of one that is set, its value.
    fn cookie(&self, name: &[u8], end: usize) -> Option<Found> {
        let closed = self.quote_end(end);
        let from = match self.byte(closed)? {
            b':' => closed + 1,
            b' ' | b'=' if name.starts_with(b"--") => closed + 1,
            _ => return None,
        };
        let pair = |from: usize| {
            let name = self.run(from, MAX_NAME, |b| Of::Url.has(b) || b == b'.');
            (name > from && self.byte(name) == Some(b'=')).then_some(name + 1)
        };
        let is_over = |b: u8| b.is_ascii_whitespace() || matches!(b, b'"' | b'\'' | b';' | b',' | b'\\');
        let from = pair(self.quote_end(self.run(from, 4, |b| b == b' ')))?;
        let mut to = self.run(from, usize::MAX, |b| !is_over(b));
        while !name.ends_with(b"set-cookie") && self.text[to..].starts_with(b"; ") {
            let Some(value) = pair(to + 2) else { break };
            to = self.run(value, usize::MAX, |b| !is_over(b));
        }
        (to - from >= 8 && !is_placeholder(&self.text[from..to])).then_some(Found { from, to })
    }

    /// The value of `NAME=VALUE`, `"NAME": "VALUE"`, `NAME: VALUE`, `NAME := "VALUE"`, `'NAME' => 'VALUE'`, `--NAME VALUE`.
    fn assigned(&mut self, begin: usize, end: usize, name: &[u8], kind: Kind) -> Option<Found> {
        let is_flag = name.starts_with(b"--") && !self.text[..begin].ends_with(MARK.as_bytes());
        let closed = self.quote_end(end);
        let gap = self.run(closed, 4, |b| b == b' ');
        let is_symbol = self.text[..begin].ends_with(b":") && !self.text[..begin].ends_with(b"::");
        let is_password = matches!(kind, Kind::Password | Kind::Pass);
        // Whether only a value can stand there, only one in quotes, and one of several words.
        let (mut from, firm, quoted_only, words) = match self.text.get(gap..)? {
            [b'=', b'>', ..] if closed > end || is_symbol => (gap + 2, false, true, false),
            [b':', b'=', ..] => (gap + 2, false, true, is_password),
            [b'=', b'=' | b'>', ..] if is_password => (self.run(gap, 3, |b| b == b'='), false, true, true),
            [b'=', b'=' | b'>', ..] => return None,
            [b'=', ..] => (gap + 1, gap == closed, false, gap == closed || is_password),
            [b'%', b'3', b'D' | b'd', ..] if gap == end => (gap + 3, true, false, false),
            [b':', ..] => (gap + 1, closed > end, false, false),
            [_, ..] if is_flag && gap > closed => (gap, true, false, true),
            _ => return None,
        };
        if self.byte(gap) != Some(b'=') || !firm {
            from = self.run(from, 4, |b| b == b' ');
        }
        // Who authorises says first how.
        if name.ends_with(b"authorization") {
            from = self.behind_scheme(from);
        }
        let mut value = self.value(from)?;
        let is_quoted = value.from > from;
        let text = &self.text[value.from..value.to];
        if !is_quoted {
            let is_option = is_flag && gap > closed && is_setting(text);
            let is_secret = !quoted_only && !is_option && !self.is_expression(value) && is_worth(text, kind, firm);
            return is_secret.then_some(value);
        }
        if words || !has_words(text) {
            return is_worth(text, kind, true).then_some(value);
        }
        // The quote of a text that was cut: its first word.
        if self.byte(value.to).is_none_or(|b| b == b'\n') {
            value.to = self.run(value.from, usize::MAX, |b| !b.is_ascii_whitespace());
            let text = &self.text[value.from..value.to];
            return (!text.is_empty() && is_worth(text, kind, false)).then_some(value);
        }
        None
    }

    /// Whether a value without quotes is an expression of a program: `settings.API_KEY`, `tokens[i]`, `getenv("X")`.
    fn is_expression(&self, value: Found) -> bool {
        let text = &self.text[value.from..value.to.min(value.from + MAX_HEAD)];
        let path = text.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')).count();
        let (path, rest) = text.split_at(path);
        let digit = path.iter().any(u8::is_ascii_digit);
        let next = self.byte(value.to);
        let mut parts = path.split(|b| *b == b'.');
        let is_name = |part: &[u8]| part.first().is_some_and(|b| !b.is_ascii_digit()) && part.len() <= 32;
        if !parts.clone().all(is_name) {
            return false;
        }
        let count = parts.clone().count();
        match rest.first() {
            // An index, which is closed, or a text.
            Some(b'[') => !digit && (rest.contains(&b']') || (rest.len() == 1 && matches!(next, Some(b'"' | b'\'')))),
            Some(b'(') => (!digit || count > 1) && matches!(next, Some(b')' | b'"' | b'\'' | b',')),
            None if count > 1 => {
                let is_root = parts
                    .next()
                    .is_some_and(|first| ROOTS.iter().any(|root| first.eq_ignore_ascii_case(root.as_bytes())));
                let is_secret = parts.next_back().is_some_and(is_name_of_secret);
                is_root && !digit || is_secret
            }
            _ => false,
        }
    }

    /// Behind the quote that may stand at `at`, with the backslashes before it.
    fn quote_end(&self, at: usize) -> usize {
        let quote = self.run(at, 4, |b| b == b'\\');
        if matches!(self.byte(quote), Some(b'"' | b'\'')) { quote + 1 } else { at }
    }

    fn behind_scheme(&self, at: usize) -> usize {
        let at = self.quote_end(at);
        let word = self.run(at, 12, |b| b.is_ascii_alphabetic());
        if word > at { self.blank(word).unwrap_or(at) } else { at }
    }

    /// A value: what stands in quotes, to the end of the line where they are not closed; else a word.
    fn value(&mut self, at: usize) -> Option<Found> {
        let from = self.quote_end(at);
        if from == at {
            let is_over = |b: u8| {
                b.is_ascii_whitespace()
                    || matches!(b, b'"' | b'\'' | b',' | b';' | b'&' | b')' | b'}' | b'|' | b'<' | b'>')
            };
            if at >= self.value_end {
                self.value_end = self.run(at, usize::MAX, |b| !is_over(b));
            }
            let mut to = self.value_end;
            // The backslash of a quote that is escaped is the quote's.
            if matches!(self.byte(to), Some(b'"' | b'\'')) {
                to -= self.text[at..to].iter().rev().take_while(|b| **b == b'\\').count();
            }
            return (to > at).then_some(Found { from, to: self.without_stop(from, to) });
        }
        // A quote that only ends what stands before it.
        let is_over = |b: u8| b.is_ascii_whitespace() || matches!(b, b',' | b')' | b'}' | b']' | b';');
        if self.byte(from).is_none_or(is_over) {
            return None;
        }
        let (quote, escaped) = (self.text[from - 1], from - at > 1);
        let mut slashes = 0;
        let mut to = from;
        while let Some(b) = self.byte(to).filter(|b| *b != b'\n') {
            if b == quote && (slashes % 2 == 0 || escaped) {
                break;
            }
            slashes = if b == b'\\' { slashes + 1 } else { 0 };
            to += 1;
        }
        let to = if escaped { to - slashes.min(to - from) } else { to };
        (to > from).then_some(Found { from, to })
    }

    /// What stands between user and host of an address: `://user:password@host`, or a token alone.
    fn address(&self, at: usize) -> Option<Found> {
        if !self.text[at..].starts_with(b"://") {
            return None;
        }
        let from = at + 3;
        let is_over =
            |b: u8| b.is_ascii_whitespace() || matches!(b, b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>' | b'\\');
        let end = self.run(from, usize::MAX, |b| !is_over(b));
        let authority = &self.text[from..end];
        let to = from + authority.iter().rposition(|b| *b == b'@')?;
        let user = authority.iter().position(|b| *b == b':').map(|colon| from + colon + 1).filter(|colon| *colon < to);
        // The name may be a token, too.
        let user = user.filter(|user| !is_token(&self.text[from..*user]));
        let secret = Found { from: user.unwrap_or(from), to };
        let text = &self.text[secret.from..to];
        let is_secret = if user.is_some() { !is_placeholder(text) } else { is_token(text) && !is_placeholder(text) };
        is_secret.then_some(secret)
    }

    /// `-----BEGIN … PRIVATE KEY-----` with what follows, to its end or the text's.
    fn private_key(&self, at: usize) -> Option<Found> {
        let rest = self.text[at..].strip_prefix(b"-----BEGIN ")?;
        let name =
            rest.iter().take(60).take_while(|b| b.is_ascii_uppercase() || **b == b' ' || b.is_ascii_digit()).count();
        let (name, rest) = rest.split_at(name);
        if !name.windows(11).any(|w| w == b"PRIVATE KEY") || !rest.starts_with(b"-----") {
            return None;
        }
        let from = at + 11 + name.len() + 5;
        let body = &self.text[from..];
        // Of another key that begins before, it is the end.
        let next = body.windows(8).position(|w| w == b"-----END" || w == b"-----BEG").map(|next| from + next);
        let end = next.filter(|next| self.text[*next..].starts_with(b"-----END"));
        let to = end.unwrap_or_else(|| self.key_lines(from, next.unwrap_or(self.text.len())));
        // Marked already, or empty.
        let is_key = self.text[from..to].iter().filter(|b| b.is_ascii_alphanumeric()).take(16).count() == 16;
        is_key.then_some(Found { from, to })
    }

    /// The end of the lines of base64 from `from` on; `from` where there are none. No words are among them.
    fn key_lines(&self, from: usize, most: usize) -> usize {
        let (mut to, mut at) = (from, from);
        while at < most {
            // Between two lines: blanks, also as they are written out.
            let is_between = |b: u8| b.is_ascii_whitespace() || matches!(b, b'\\' | b'"' | b'\'');
            at = self.run(at, most - at, is_between);
            at += self.escape(at).min(1);
            let line = self.run(at, most - at, |b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
            let text = &self.text[at..line];
            let is_long = text.len() >= 24 && (is_mixed(text) || is_random(text));
            let is_last = to > from && is_mixed(text) && is_random(text);
            if text.is_empty() {
                if self.escape(at) == 0 {
                    break;
                }
                continue;
            }
            if !is_long && !is_last {
                break;
            }
            (to, at) = (line, line);
        }
        to
    }
}

/// What a name says its value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Password,
    /// A password, if it is not a count or a word: behind `DB_PASS`.
    Pass,
    /// A password, if it is that and cannot be anything else: behind `PASS` and `Pwd`.
    Bare,
    Key,
    /// A key, if it looks random: behind `STRIPE_KEY`.
    Random,
    Signature,
}

fn kind_of(name: &[u8], is_upper: bool) -> Option<Kind> {
    let ends = |end: &str| {
        let end = end.as_bytes();
        name.len() >= end.len()
            && name[name.len() - end.len()..].iter().zip(end).all(|(a, b)| a == b || (*a == b'-' && *b == b'_'))
    };
    if PASSWORDS.iter().any(|end| ends(end)) {
        return Some(Kind::Password);
    }
    if ends("_pass") {
        let mut words = name[..name.len() - 5].rsplit(|b| matches!(b, b'_' | b'-'));
        let is_none = words.next().is_some_and(|word| NO_PASSWORDS.iter().any(|none| none.as_bytes() == word));
        return (!is_none).then_some(Kind::Pass);
    }
    if matches!(name, b"pass" | b"pwd") {
        return Some(Kind::Bare);
    }
    if KEYS.iter().any(|end| ends(end)) {
        return Some(Kind::Key);
    }
    if is_upper && ends("_key") && !NO_KEYS.iter().any(|end| ends(end)) {
        return Some(Kind::Random);
    }
    ends(SIGNATURE).then_some(Kind::Signature)
}

/// Whether the last part of an expression is the name of a secret.
fn is_name_of_secret(part: &[u8]) -> bool {
    let mut buffer = [0; MAX_NAME];
    let Some(name) = buffer.get_mut(..part.len()) else { return false };
    name.copy_from_slice(part);
    name.make_ascii_lowercase();
    kind_of(name, true).is_some()
}

/// Whether a value is to be hidden. `firm`: it stands where only a value can, not in a sentence.
fn is_worth(value: &[u8], kind: Kind, firm: bool) -> bool {
    const WORDS: [&[u8]; 8] = [b"all", b"fail", b"failed", b"mode", b"no", b"ok", b"passed", b"yes"];
    if is_placeholder(value) {
        return false;
    }
    let head = &value[..value.len().min(MAX_HEAD)];
    let digit = head.iter().any(u8::is_ascii_digit);
    let other = head.iter().any(|b| !b.is_ascii_digit());
    // A path, a call, a name in a program.
    let is_code = matches!(value[0], b'/' | b':') || head.contains(&b'(') || is_path(head);
    let is_pass = (other || value.len() >= 6) && !WORDS.iter().any(|word| value.eq_ignore_ascii_case(word));
    match (kind, firm) {
        (Kind::Password, true) => true,
        (Kind::Pass, true) => is_pass,
        (Kind::Bare, true) => is_pass && !matches!(value[0], b'/' | b'.' | b'\\') && value.get(1) != Some(&b':'),
        (Kind::Password | Kind::Pass, false) => value.len() >= 6 && digit && other && !is_code,
        (Kind::Key, true) => (value.len() >= 6 && other || value.len() >= 12) && !is_file(head),
        (Kind::Key, false) => value.len() >= 12 && digit && other && !is_code && !is_joined(head),
        (Kind::Random, true) => value.len() >= 16 && !is_code && looks_random(head),
        (Kind::Signature, true) => value.len() >= 16,
        (Kind::Bare | Kind::Random | Kind::Signature, false) => false,
    }
}

/// Several words.
fn has_words(value: &[u8]) -> bool {
    value.iter().any(u8::is_ascii_whitespace)
}

/// Whether it is the first setting of an option: `id=npm`, but not a value in base64 with `=` at its end.
fn is_setting(value: &[u8]) -> bool {
    let name = value.iter().take(16).take_while(|b| b.is_ascii_lowercase()).count();
    name > 0 && value.get(name) == Some(&b'=') && value.get(name + 1).is_some_and(|b| *b != b'=')
}

/// Whether it is the path of a file with an ending, as base64 never is: `src/a1/token.rs:12`.
fn is_file(value: &[u8]) -> bool {
    let Some(slash) = value.iter().rposition(|b| *b == b'/') else { return false };
    let name = &value[slash + 1..];
    let Some(stop) = name.iter().rposition(|b| *b == b'.') else { return false };
    let ending = name[stop + 1..].iter().take_while(|b| b.is_ascii_alphanumeric()).count();
    let behind = &name[stop + 1 + ending..];
    (1..=5).contains(&ending) && behind.iter().all(|b| b.is_ascii_digit() || *b == b':')
}

/// Whether it is a path: of a file with an ending, or in lower case.
fn is_path(value: &[u8]) -> bool {
    let is_lower =
        |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'_' | b'-' | b'.' | b':');
    is_file(value) || (value.contains(&b'/') && value.iter().all(is_lower))
}

/// Words in lower case, joined by dashes: `my-k8s-secret-name`. Digits are in fewer of them than letters alone.
fn is_joined(value: &[u8]) -> bool {
    let (mut words, mut others) = (0, 0);
    for part in value.split(|b| matches!(b, b'-' | b'_' | b'.')) {
        if !part.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return false;
        }
        if !part.iter().any(u8::is_ascii_digit) {
            words += 1;
        } else if part.len() <= 4 {
            others += 1;
        } else {
            return false;
        }
    }
    words > others && words + others > 1
}

/// Whether it looks like a key that was drawn: letters of both cases with digits, or many hexadecimal digits.
fn looks_random(value: &[u8]) -> bool {
    let is_hex = value.len() >= 32 && value.iter().all(|b| Of::Hex.has(*b));
    value.iter().all(|b| Of::Any.has(*b)) && is_random(value) && (is_mixed(value) || is_hex)
}

/// Whether it stands for a value, or says that there is none: `$TOKEN`, `<token>`, `{{token}}`, `***`, `null`.
fn is_placeholder(value: &[u8]) -> bool {
    const WORDS: [&[u8]; 12] = [
        b"",
        b"true",
        b"false",
        b"null",
        b"none",
        b"nil",
        b"undefined",
        b"empty",
        b"required",
        b"missing",
        b"invalid",
        b"redacted",
    ];
    let is_encoded = value.len() > 2 && value[1..3].iter().all(u8::is_ascii_hexdigit) && !value.ends_with(b"%");
    value[..value.len().min(MAX_HEAD)].windows(MARK.len()).any(|part| part == MARK.as_bytes())
        || value.iter().all(|b| matches!(b, b'*' | b'x' | b'X' | b'.' | b'-' | b'_'))
        || matches!(value[0], b'$' | b'<' | b'{')
        || (value[0] == b'%' && !is_encoded)
        || value.starts_with(b"./")
        // The beginning of a key, which has a rule of its own.
        || value.starts_with(b"-----")
        || value.starts_with(b"~/")
        || WORDS.iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Letters and digits, as random characters have them.
fn is_random(text: &[u8]) -> bool {
    text.iter().any(u8::is_ascii_digit) && text.iter().any(u8::is_ascii_alphabetic)
}

/// Whether it is as long as a token, and random.
fn is_token(text: &[u8]) -> bool {
    text.len() >= 16 && is_random(text)
}

/// Small and capital letters, as random characters have them.
fn is_mixed(text: &[u8]) -> bool {
    text.iter().any(u8::is_ascii_lowercase) && text.iter().any(u8::is_ascii_uppercase)
}

/// What stands in base64, without its padding; `None` for a byte of what is not base64.
fn decoded(text: &[u8]) -> impl Iterator<Item = Option<u8>> + Clone {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    text.windows(2).enumerate().filter(|(i, _)| i % 4 != 3).map(move |(i, w)| {
        let (a, b) = (digit(w[0])?, digit(w[1])?);
        Some(match i % 4 {
            0 => a << 2 | b >> 4,
            1 => a << 4 | b >> 2,
            _ => a << 6 | b,
        })
    })
}

/// Whether it is a name and a password in base64, with a colon between them.
fn is_user_and_password(text: &[u8]) -> bool {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let bytes = decoded(text);
    bytes.clone().take(5).count() == 5
        && bytes.clone().any(|b| b == Some(b':'))
        && bytes.clone().all(|b| b.is_some_and(|b| (b' '..=b'~').contains(&b) || b >= 0x80))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text with a secret, and what is left of it. `~` stands for what no file of this project is to hold as a whole: a
    /// token that scanners would take for a real one.
    pub(super) const SECRETS: &[(&str, &str)] = &[
        ("sk-~ant-api03-AbCdEf0123456789AbCdEf0123456789-x_y", "sk-ant-[redacted]"),
        ("key sk-~proj-AbCdEf0123456789AbCdEf0123456789, then", "key sk-proj-[redacted], then"),
        ("sk-~AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789", "sk-[redacted]"),
        ("sk-~or-v1-0123456789abcdef0123456789abcdef", "sk-or-v1-[redacted]"),
        ("hf_~AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh", "hf_[redacted]"),
        ("gsk_~AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789AbCd", "gsk_[redacted]"),
        ("r8_~AbCdEf0123456789AbCdEf0123456789AbCdE", "r8_[redacted]"),
        ("ghp_~AbCdEf0123456789AbCdEf0123456789AbCd", "ghp_[redacted]"),
        ("gho_~AbCdEf0123456789AbCdEf0123456789AbCd.", "gho_[redacted]."),
        ("(ghs_~AbCdEf0123456789AbCdEf0123456789AbCd)", "(ghs_[redacted])"),
        ("ghu_~AbCdEf0123456789AbCdEf0123456789AbCd", "ghu_[redacted]"),
        ("ghr_~AbCdEf0123456789AbCdEf0123456789AbCd", "ghr_[redacted]"),
        ("github_pat_~11ABCDEFG0AbCdEf0123456789_AbCdEf0123456789AbCdEf0123456789", "github_pat_[redacted]"),
        ("glpat-~AbCdEf0123456789AbCd", "glpat-[redacted]"),
        ("glrt-~AbCdEf0123456789AbCd", "glrt-[redacted]"),
        ("ATATT3~xFfGF0AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789=ABCDEF01", "ATATT3[redacted]"),
        ("npm_~AbCdEf0123456789AbCdEf0123456789AbCd", "npm_[redacted]"),
        ("pypi-~AgEIcHlwaS5vcmcCJDAxMjM0NTY3LTAxMjMtNDU2Ny04OTAxLTAxMjM0NTY3", "pypi-Ag[redacted]"),
        ("rubygems_~0123456789abcdef0123456789abcdef0123456789abcdef", "rubygems_[redacted]"),
        ("dckr_pat_~AbCdEf0123456789_AbCdEf-012", "dckr_pat_[redacted]"),
        ("AKIA~IOSFODNN7EXAMPLE", "AKIA[redacted]"),
        ("ASIA~IOSFODNN7EXAMPLE", "ASIA[redacted]"),
        ("aws_secret_access_key = ~wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = [redacted]"),
        ("AIza~SyAbCdEf0123456789AbCdEf0123456789abc", "AIza[redacted]"),
        ("ya29.~a0AbCdEf0123456789-AbCdEf_0123456789", "ya29.[redacted]"),
        ("GOCSPX-~AbCdEf0123456789AbCdEf012345", "GOCSPX-[redacted]"),
        ("dop_v1_~0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "dop_v1_[redacted]"),
        ("dapi~0123456789abcdef0123456789abcdef", "dapi[redacted]"),
        ("hvs.~CAESIAbCdEf0123456789AbCdEf0123456789", "hvs.[redacted]"),
        ("tskey-auth-~kAbCdEf0CNTRL-AbCdEf0123456789", "tskey-auth-[redacted]"),
        ("NRAK-~ABCDEFGHIJKLMNOPQRSTUVWXYZ0", "NRAK-[redacted]"),
        ("glsa_~AbCdEf0123456789AbCdEf0123456789_01234567", "glsa_[redacted]"),
        ("sk_live_~AbCdEf0123456789AbCdEf01", "sk_live_[redacted]"),
        ("rk_live_~AbCdEf0123456789AbCdEf01", "rk_live_[redacted]"),
        ("whsec_~AbCdEf0123456789AbCdEf0123456789", "whsec_[redacted]"),
        ("shpat_~0123456789abcdef0123456789abcdef", "shpat_[redacted]"),
        ("key-~0123456789abcdef0123456789abcdef", "key-[redacted]"),
        ("SG.~AbCdEf0123456789AbCdEf.AbCdEf0123456789AbCdEf0123456789AbCdEf01234", "SG.[redacted]"),
        ("xoxb-~123456789012-1234567890123-AbCdEf0123456789AbCdEf01", "xoxb-[redacted]"),
        ("xoxp-~123456789012-1234567890123-AbCdEf0123456789AbCdEf01", "xoxp-[redacted]"),
        (
            "https://hooks.slack.com/services/~T00000000/B00000000/AbCdEf0123456789AbCdEf01",
            "https://hooks.slack.com/services/[redacted]",
        ),
        (
            "https://discord.com/api/webhooks/~012345678901234567/AbCdEf0123456789-AbCdEf0123456789_AbCdEf",
            "https://discord.com/api/webhooks/[redacted]",
        ),
        ("~MTAxMjM0NTY3ODkwMTIzNDU2.GaBcDe.AbCdEf0123456789AbCdEf0123456789abcd", "[redacted]"),
        ("bot~123456789:AAAbCdEf0123456789AbCdEf0123456789A", "bot123456789:[redacted]"),
        ("lin_api_~AbCdEf0123456789AbCdEf0123456789AbCdEf01", "lin_api_[redacted]"),
        ("ntn_~012345678901AbCdEf0123456789AbCdEf0123456789ABC", "ntn_[redacted]"),
        ("AGE-SECRET-KEY-1~QQPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LQQPZRY9X8GF2TVDW0S3JN54KHC", "AGE-SECRET-KEY-1[redacted]"),
        (
            "eyJ~hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
            "eyJ[redacted]",
        ),
        ("Authorization: Bearer ~AbCdEf0123456789.AbCdEf", "Authorization: Bearer [redacted]"),
        ("curl -H 'Authorization: token ~0123456789abcdef0123' x", "curl -H 'Authorization: token [redacted]' x"),
        ("bearer ~AbCdEf0123456789", "bearer [redacted]"),
        ("Basic ~dXNlcjpwYXNzd29yZA==", "Basic [redacted]"),
        (
            "-----BEGIN OPENSSH ~PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END OPENSSH PRIVATE KEY-----\nx",
            "-----BEGIN OPENSSH PRIVATE KEY-----[redacted]-----END OPENSSH PRIVATE KEY-----\nx",
        ),
        (
            "-----BEGIN ~PRIVATE KEY----- MIIEvQIBADANBgkqhkiG9w0BAQEFAASC cut",
            "-----BEGIN PRIVATE KEY-----[redacted] cut",
        ),
        ("postgres://app:~hunter2@db:5432/x", "postgres://app:[redacted]@db:5432/x"),
        (
            "fatal: 'https://x-access:~pw@host/y.git/' not found",
            "fatal: 'https://x-access:[redacted]@host/y.git/' not found",
        ),
        ("https://~0123456789abcdef0123@host/y", "https://[redacted]@host/y"),
        ("redis://:~p4ss@cache", "redis://:[redacted]@cache"),
        ("password=~hunter2 user=x", "password=[redacted] user=x"),
        ("PGPASSWORD=~correct-horse psql", "PGPASSWORD=[redacted] psql"),
        ("MYSQL_PWD=~qwe mysql", "MYSQL_PWD=[redacted] mysql"),
        ("DB_PASS='~two words' x", "DB_PASS='[redacted]' x"),
        ("{\"password\": \"~swordfish\", \"a\": 1}", "{\"password\": \"[redacted]\", \"a\": 1}"),
        ("{\\\"api_key\\\":\\\"~swordfish\\\"}", "{\\\"api_key\\\":\\\"[redacted]\\\"}"),
        ("login --password ~hunter2 --force", "login --password [redacted] --force"),
        ("x --api-key=~AbCdEf99 y", "x --api-key=[redacted] y"),
        ("client_secret: ~0a1b2c3d4e5f6071", "client_secret: [redacted]"),
        ("X-Api-Key: ~0a1b2c3d4e5f6071", "X-Api-Key: [redacted]"),
        ("GET /x?access_token=~abcdefgh&y=1", "GET /x?access_token=[redacted]&y=1"),
        ("X-Amz-Signature=~0123456789abcdef0123456789abcdef", "X-Amz-Signature=[redacted]"),
        ("AccountName=a;AccountKey=~AbCdEf0123456789+/==;Suffix=z", "AccountName=a;AccountKey=[redacted];Suffix=z"),
        ("token=\"~never closed", "token=\"[redacted]"),
        ("password: ~hunter2!", "password: [redacted]"),
        // Behind an escape that is written out.
        ("\"start\\nghp_~AbCdEf0123456789AbCdEf0123456789AbCd\"", "\"start\\nghp_[redacted]\""),
        ("a\\tghp_~AbCdEf0123456789AbCdEf0123456789AbCd", "a\\tghp_[redacted]"),
        ("q=%20AKIA~IOSFODNN7EXAMPLE", "q=%20AKIA[redacted]"),
        ("q%3Dghp_~AbCdEf0123456789AbCdEf0123456789AbCd", "q%3Dghp_[redacted]"),
        ("a\\u0026ghp_~AbCdEf0123456789AbCdEf0123456789AbCd", "a\\u0026ghp_[redacted]"),
        ("Bearer%20~AbCdEf0123456789", "Bearer%20[redacted]"),
        ("a\\npassword=~hunter2", "a\\npassword=[redacted]"),
        ("%26pass=~hunter2", "%26pass=[redacted]"),
        // By name.
        ("PASS=~hunter", "PASS=[redacted]"),
        ("Server=db;Uid=app;Pwd=~hunter2;", "Server=db;Uid=app;Pwd=[redacted];"),
        ("curl -u app:~hunter2 https://host", "curl -u app:[redacted] https://host"),
        ("curl --user 'app:~hun ter' https://host", "curl --user 'app:[redacted]' https://host"),
        ("machine host login app password ~hunter", "machine host login app password [redacted]"),
        ("machine host\n  login app\n  password ~hunter", "machine host\n  login app\n  password [redacted]"),
        ("'password' => '~swordfish'", "'password' => '[redacted]'"),
        (":password => '~swordfish'", ":password => '[redacted]'"),
        ("password := \"~swordfish\"", "password := \"[redacted]\""),
        ("<password>~swordfish</password>", "<password>[redacted]</password>"),
        ("{\"name\":\"DB_PASSWORD\",\"value\":\"~pw\"}", "{\"name\":\"DB_PASSWORD\",\"value\":\"[redacted]\"}"),
        ("- name: DB_PASSWORD\n  value: ~pw", "- name: DB_PASSWORD\n  value: [redacted]"),
        ("<add key=\"DbPassword\" value=\"~pw\"/>", "<add key=\"DbPassword\" value=\"[redacted]\"/>"),
        ("Cookie: session=~0a1b2c3d4e5f6071; csrf=~abc", "Cookie: session=[redacted]"),
        ("Set-Cookie: sid=~0a1b2c3d4e5f6071; Path=/", "Set-Cookie: sid=[redacted]; Path=/"),
        (
            "https://a.blob.core.windows.net/c?sv=2024-01-01&sig=~%2BbCdEf0123456789AbCdEf%3D",
            "https://a.blob.core.windows.net/c?sv=2024-01-01&sig=[redacted]",
        ),
        ("//registry.npmjs.org/:_auth=~dXNlcjpwYXNz", "//registry.npmjs.org/:_auth=[redacted]"),
        (
            "//registry.npmjs.org/:_authToken=~01234567-89ab-cdef-0123-456789abcdef",
            "//registry.npmjs.org/:_authToken=[redacted]",
        ),
        (
            "https://discordapp.com/api/webhooks/~012345678901234567/AbCdEf0123456789-AbCdEf0123456789_AbCdEf",
            "https://discordapp.com/api/webhooks/[redacted]",
        ),
        ("d=xoxd-~AbCdEf0123456789%2FAbCdEf%3D", "d=xoxd-[redacted]"),
        ("dp.pt.~AbCdEf0123456789AbCdEf0123456789AbCdEf01234", "dp.pt.[redacted]"),
        (
            "eyJ~hbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..AbCdEf0123456789.AbCdEf0123456789.AbCdEf0123456789AbCdEf",
            "eyJ[redacted]",
        ),
        (
            "eyJ~hbGciOiJSU0EtT0FFUCJ9.AbCdEf0123.AbCdEf0123456789.AbCdEf0123456789.AbCdEf0123456789AbCdEf",
            "eyJ[redacted]",
        ),
        (
            "gAAAA~ABkAbCdEf0123456789AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789",
            "gAAAA[redacted]",
        ),
        ("STRIPE_KEY=~AbCdEf0123456789AbCdEf", "STRIPE_KEY=[redacted]"),
        ("DATADOG_KEY=~0123456789abcdef0123456789abcdef", "DATADOG_KEY=[redacted]"),
        ("https://ghp_~AbCdEf0123456789AbCdEf:x-oauth-basic@host/y", "https://[redacted]@host/y"),
        (
            "PRIVATE_KEY=\"-----BEGIN ~PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\"",
            "PRIVATE_KEY=\"-----BEGIN PRIVATE KEY-----[redacted]-----END PRIVATE KEY-----\"",
        ),
        ("password=~hunter2[", "password=[redacted]"),
        ("api_key=~a1b2c3d4.e5f6a7b8", "api_key=[redacted]"),
        ("password = '~two words'", "password = '[redacted]'"),
    ];

    /// Text that has none.
    const HARMLESS: &[&str] = &[
        "",
        "5 findings in db.py",
        "all 128 tests passed in 3.2 s",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "d41d8cd98f00b204e9800998ecf8427e  file.txt",
        "550e8400-e29b-41d4-a716-446655440000",
        "20260101-000000-0123456789abcdef0123",
        "/home/user/project/src/very/long/path/to/a/module/file.rs:120:5",
        ".claude/runs/20260101-000000-0123456789abcdef0123/workers/W1/out/a.1/result.md",
        "C:\\Users\\x\\token.txt",
        "sk-learn and scikit-learn-intelex-extension-module",
        "task-0123456789abcdef0123456789abcdef01234567",
        "risk-assessment-of-a-very-long-kebab-name",
        "git commit 0a1b2c3 by x",
        "https://example.com/a/b?page=2#token",
        "https://user@example.com/x",
        "ssh://git@example.com:22/x.git",
        "git@example.com:owner/name.git",
        "http://localhost:8080/path@v1",
        "token 17 of attempt 2",
        "{\"token\":17,\"tokens\":123456,\"max_tokens\":4096}",
        "input_tokens=120000 output_tokens=4500",
        "unexpected token: `}`",
        "unexpected token: identifier",
        "error: expected token = ';'",
        "auth_token::Kind2::parse_it_all()",
        "password: required",
        "the password is not set",
        "--password-file /run/secrets/x",
        "TOKEN=$TOKEN PASSWORD=${PASSWORD}",
        "password=*** token=<token> secret={{secret}}",
        "secret \"db-password\" not found",
        "Bearer of bad news",
        "basic authentication is off",
        "Basic JavaScript knowledge",
        "-----BEGIN CERTIFICATE----- MIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBa -----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0123456789abcdefghijklmnopqrstuvwxyzABC x@y",
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "AKIA is the beginning of a key",
        "ASIANCOUNTRIES2026",
        "eyJ is how JSON begins in base64",
        "My.very.long.module.name.in.Java.is.not.a.token",
        "v1.2.3-rc.4+build.5",
        "2026-01-02T03:04:05.678901Z",
        "12345678:90",
        "key=value; keyboard=qwertz",
        "signature: verified",
        "monkey-0123456789abcdef",
        "a_key = b_key",
        "secretary=joe tokenizer=wordpiece",
        "PWD=/home/user/project OLDPWD=/tmp",
        "hf_hub_download and npm_config_registry",
        "github_pat_ is a prefix, ghp_ another",
        "num_pass=118",
        "PASS=12 FAIL=0",
        "PASS: test_parser1.sh",
        "--two-pass mode",
        "OrderProcessingServiceImplTest.refundOrder.shouldNotRefundAnOrderTwiceWithin24Hours",
        "unexpected token: src/parser1/token.rs:12",
        "the task says \"SyntaxError: Unexpected token:\"",
        "\"SyntaxError: Unexpected token:\" and 12 more words",
        "it asks 'Enter password:'",
        "it asks \"Enter password:\" and waits 30 s",
        "it asks \"Enter password: \", then stops",
        "password = input(\"Enter password: \")",
        "{\"errors\":{\"password\":\"is too short\"}}",
        "api_key=settings.OPENAI_API_KEY",
        "token=tokens[i]",
        "password=os.environ[\"X\"]",
        "password=os.environ['DB_PASSWORD']",
        "password=getenv(\"DB_PASSWORD\"), x",
        "docker run --secret id=npm",
        "docker exec -u node:node web1",
        "secret: my-k8s-secret-name",
        "20251121:abcdefghijklmnopqrstuvwxyzABCDEFGHI",
        "etag: key-0123456789abcdef0123456789abcdef",
        "found \"-----BEGIN RSA PRIVATE KEY-----\" in fixtures; 12 tests failed",
        "Kind::Password => \"password\", Kind::Token => \"authentication\"",
        "login form password field",
        "CACHE_KEY=linux-0123456789abcdef0123456789abcdef SORT_KEY=created",
        "Vec<Token> and <token>x</token>",
        "cookie: a=b",
        "C:\\new\\table\\report.txt",
        "\u{65e5}\u{672c}\u{8a9e} token\u{ff1a} \u{1f600}",
    ];

    fn whole(text: &str) -> String {
        text.replace('~', "")
    }

    #[test]
    fn s06_secrets_of_every_shape_are_redacted_and_their_kind_stays() {
        for (text, left) in SECRETS {
            let text = whole(text);
            assert_eq!(redact(&text), *left, "{text}");
            assert_eq!(redact(left), *left, "twice is once");
            for (before, after) in [("", " and more"), ("it says: ", ""), ("\u{e9}", "\n"), ("(", " )"), ("\"", " \"")]
            {
                let inside = format!("{before}{text}{after}");
                let once = redact(&inside);
                if !text.contains("never closed") && !text.contains(" cut") {
                    assert!(once.contains(&left[..left.find(MARK).unwrap_or(left.len())]), "{inside}: {once}");
                }
                assert_eq!(redact(&once), once, "{inside}");
            }
        }
        assert!(SECRETS.len() >= 60);
    }

    #[test]
    fn s06_what_is_no_secret_stays_as_it_is() {
        for text in HARMLESS {
            assert!(matches!(redact(text), Cow::Borrowed(_)), "{text}: {}", redact(text));
        }
        assert!(HARMLESS.len() >= 50);
    }

    #[test]
    fn s06_a_long_text_is_read_once() {
        // What would be read again from every word, for minutes, if a rule looked further than it is allowed to.
        let parts = [
            "a",
            "a-",
            "a_",
            "sk-",
            "xoxb-",
            "eyJ-",
            "eyJ.",
            "M.",
            "N",
            "Bearer ",
            "token:",
            "token=$",
            "password=\"$",
            "password='",
            "://",
            "://a:",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN ",
            "1:",
            "12345678:",
            "\\",
            "\\\"",
            "token\\\":\\\"$",
            "hooks.slack.com/services/",
            "\u{1f600}",
            "--token ",
            "authorization: a ",
            "SG.a.",
            "\\n",
            "%20",
            "curl -u ",
            "curl -u a:",
            "password ",
            "machine a login b password ",
            "<password>",
            "password:\"a b ",
            "\"password\",",
            "name: password value: ",
            "cookie: ",
            "cookie: a=",
            "cookie: a=b; ",
            "; a=b",
            "eyJaaaaaaaaa.",
            "-----BEGIN PRIVATE KEY-----\nAbCdEfGhIjKlMnOpQrStUvWxYz012345\n",
            "password=a.",
            "password=a[",
            "password=\\",
            "STRIPE_KEY=",
        ];
        for part in parts {
            let text = part.repeat((1 << 17) / part.len());
            let once = redact(&text);
            assert_eq!(redact(&once).len(), once.len(), "{part}");
        }
    }
}
