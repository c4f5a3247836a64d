//! The detection against a labelled corpus: which prompts start work, and with which files. Every third of its first
//! 224 lines was held out while the heuristics were written, and the lines behind them were written after that; each part
//! is asserted alone.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::LazyLock;

use cpw::model::words::{Origin, Words, origin, says_off};
use regex::Regex;
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    prompt: String,
    expect: Option<Expect>,
    why: String,
}

#[derive(Deserialize, PartialEq, Eq, Debug, Clone)]
struct Expect {
    rule: String,
    files: Vec<String>,
}

/// A rule as a user would write it: a name, a pattern, how many existing files.
struct Rule {
    name: &'static str,
    pattern: Regex,
    min: usize,
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rule = |name, pattern, min| Rule { name, pattern: Regex::new(pattern).unwrap(), min };
    vec![
        rule(
            "analyze",
            r"(?i)\b(analy[sz]e[sd]?|analy[sz]ing|analysier\w*|analysez|analysée?s?|analyser|analyseer\w*|analyseren|analiz\w*|analizz\w*|analic\w*|analis\w*|(prze)?analizuj\w*|przeanalizow\w*|(про)?анализ\w*)\b|分析",
            2,
        ),
        rule("test", r"(?i)\b(run|running|ran) (all |the )*tests\b", 0),
        rule(
            "review",
            r"(?i)\b(reviews?|reviewed|prüfe?n?|überprüf\w*|vérifie[rz]?|revisa\w*|revise\w*|проверь\w*)\b|レビュー",
            2,
        ),
    ]
});

const EXISTING: &[&str] = &[
    "api.py",
    "db.py",
    "ui.py",
    "main.c",
    "util.c",
    "server.go",
    "client.go",
    "config.yaml",
    "README.md",
    "src/main.rs",
    "src/lib.rs",
    "src/parser.rs",
    "src/lexer.rs",
    "web/app.ts",
    "web/store.ts",
    "web/index.html",
    "docs/guide.md",
    "docs/release notes.md",
    "./src/main.rs",
    "./src/lib.rs",
    "hooks.jsonl",
];

/// How many lines were there before the heuristics; later ones are measured apart.
const FIRST: usize = 224;

fn corpus() -> Vec<Line> {
    let text = include_str!("corpus/prompts.jsonl");
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn existing(words: &Words) -> Vec<String> {
    words.mentions().iter().filter(|m| EXISTING.contains(&m.as_str())).cloned().collect()
}

/// What cpw would start for a prompt.
fn detect(prompt: &str) -> Option<Expect> {
    if origin(prompt) == Origin::Machine || says_off(prompt) {
        return None;
    }
    let words = Words::read(prompt);
    let files = existing(&words);
    RULES.iter().find_map(|rule| {
        let asked = words.asks_any(rule.pattern.find_iter(words.own()).map(|m| m.range()));
        (asked && files.len() >= rule.min).then(|| Expect { rule: rule.name.to_owned(), files: files.clone() })
    })
}

#[derive(Default)]
struct Score {
    hits: usize,
    missed: usize,
    wrong: usize,
    quiet: usize,
}

#[expect(clippy::cast_precision_loss, reason = "the counts are small")]
impl Score {
    fn precision(&self) -> f64 {
        self.hits as f64 / (self.hits + self.wrong).max(1) as f64
    }

    fn recall(&self) -> f64 {
        self.hits as f64 / (self.hits + self.missed).max(1) as f64
    }
}

#[test]
fn prompts_start_what_they_ask_for_and_nothing_else() {
    let mut parts = [Score::default(), Score::default(), Score::default()];
    let mut report = String::new();
    for (n, line) in corpus().into_iter().enumerate() {
        let held_out = n >= FIRST || n % 3 == 2;
        let score = &mut parts[if n >= FIRST { 2 } else { usize::from(held_out) }];
        let found = detect(&line.prompt);
        match (&line.expect, &found) {
            (None, None) => score.quiet += 1,
            (Some(e), Some(f)) if e == f => score.hits += 1,
            (Some(_), None) => score.missed += 1,
            _ => score.wrong += 1,
        }
        if line.expect != found {
            writeln!(
                report,
                "line {}{}: {:?}\n  expected {:?}\n  found    {:?}\n  ({})",
                n + 1,
                if held_out { " (held out)" } else { "" },
                line.prompt,
                line.expect,
                found,
                line.why
            )
            .unwrap();
        }
    }
    for (name, score) in ["tuned", "held out", "second"].iter().zip(&parts) {
        let line = format!(
            "{name}: precision {:.3}, recall {:.3} ({} started, {} wrong, {} missed, {} quiet)\n",
            score.precision(),
            score.recall(),
            score.hits,
            score.wrong,
            score.missed,
            score.quiet
        );
        println!("{line}");
        report += &line;
    }
    for score in &parts {
        assert!(score.precision() >= 0.99 && score.recall() >= 0.9, "{report}");
    }
}

/// The corpus is worth something only while its negatives cannot be told by their files or verbs alone.
#[test]
fn the_corpus_is_large_balanced_and_hard() {
    let lines = corpus();
    let positive = lines.iter().filter(|l| l.expect.is_some()).count();
    assert!(lines.len() >= 180 && positive * 100 >= lines.len() * 40 && positive * 100 <= lines.len() * 50);
    let distinct: HashSet<&str> = lines.iter().map(|l| l.prompt.as_str()).collect();
    assert_eq!(distinct.len(), lines.len(), "a prompt stands twice in the corpus");
    let hard = lines
        .iter()
        .filter(|l| l.expect.is_none())
        .filter(|l| {
            let files = EXISTING.iter().filter(|f| l.prompt.contains(**f)).count();
            RULES.iter().any(|r| files >= r.min && r.pattern.is_match(&l.prompt))
        })
        .count();
    assert!(hard * 2 >= lines.len() - positive, "{hard} of {} negatives are hard", lines.len() - positive);
}
