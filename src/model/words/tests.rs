use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// The own words of a prompt with runs of white space folded, as a person would see them.
fn own(prompt: &str) -> String {
    let words = Words::read(prompt);
    assert_eq!(words.own().len(), prompt.len(), "offsets moved in {prompt:?}");
    words.own().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mentions(prompt: &str) -> Vec<String> {
    Words::read(prompt).mentions().to_vec()
}

/// Whether the first "analyze" in the own words is asked for.
fn asks(prompt: &str) -> bool {
    let words = Words::read(prompt);
    words.own().to_lowercase().find("analyze").is_some_and(|at| words.asks(at..at + "analyze".len()))
}

#[test]
fn quotations_vanish_and_apostrophes_do_not() {
    for quoted in [
        "\"x y\"",
        "“x y”",
        "„x y“",
        "„x y”",
        "«x y»",
        "‹x y›",
        "「x y」",
        "『x y』",
        "'x y'",
        "‘x y’",
        "`x y`",
        "``x ` y``",
    ] {
        assert_eq!(own(&format!("say {quoted} now")), "say now", "{quoted}");
    }
    for kept in [
        "don't and can't and won't",
        "the users' file and James' file",
        "it’s mine, isn’t it",
        "a 27\" screen",
        "rock 'n roll",
    ] {
        assert_eq!(own(kept), kept);
    }
    assert_eq!(own("“two\nlines” stay"), "stay");
    assert_eq!(own("a \"quote never closed\nnext line"), "a next line");
    assert_eq!(own("a `tick never closed\nnext line"), "a next line");
    assert_eq!(own("a \"b\n\nc\" d"), "a c\" d", "a straight quotation ends with its paragraph");
}

#[test]
fn fenced_and_indented_code_vanishes() {
    assert_eq!(own("a\n```rust\nx\n```\nb"), "a b");
    assert_eq!(own("a\n~~~\n```\nx\n~~~\nb"), "a b");
    assert_eq!(own("a\n````\n```\nx\n```\n````\nb"), "a b");
    assert_eq!(own("a\n```\nnever closed\n\nx"), "a");
    assert_eq!(own("look: ```\nx\ny```\nb"), "look: b");
    assert_eq!(own("a\n\n    x\n    y\n\nb"), "a b");
    assert_eq!(own("like this:\n\tx = 1\nb"), "like this: b");
    assert_eq!(own("- a\n    - b\n\n    c"), "- a - b", "lists nest by indentation");
    assert_eq!(own("    a\n    b"), "a b", "a margin shared by all lines is no code");
}

#[test]
fn quoted_mail_vanishes() {
    assert_eq!(own("> a\n> b\nc"), "c");
    assert_eq!(own("a > b"), "a > b");
}

#[test]
fn logs_and_traces_vanish() {
    for log in [
        "2026-01-02T03:04:05Z started",
        "[2026-01-02 03:04:05] started",
        "03:04:05.123 started",
        "Jan  2 03:04:05 host sshd[1]: started",
        "ERROR could not start",
        "[warn] could not start",
        "error: could not start",
        "error[E0308]: mismatched types",
        "src/main.rs:12:5: expected one of",
        "main.c:12: undefined reference",
        "    at run (web/app.ts:12:5)",
        "\tat com.example.App.main(App.java:5)",
        "  File \"db.py\", line 10, in <module>",
        "ValueError: bad port",
        "java.lang.IllegalStateException: no",
        "Caused by: no",
        "thread 'main' panicked at src/main.rs:1:1:",
        "goroutine 1 [running]:",
        "test api::works ... ok",
        "tests/test_api.py::test_one PASSED",
        "test result: ok. 1 passed",
        "--- FAIL: TestOne (0.00s)",
        "===== 3 failed in 0.1s =====",
        "12 |     let x = 1;",
        "npm ERR! code 1",
    ] {
        assert_eq!(own(&format!("see\n\n{log}\n\nwhy")), "see why", "{log}");
    }
    assert_eq!(own("10:00:00 a\nunclear\n10:00:01 b\n\nmine"), "mine", "a line between log lines is the log's");
    for kept in
        ["at the moment it is slow (I think), see below", "1. first", "The test ... passes", "Note: this is mine"]
    {
        assert_eq!(own(kept), kept);
    }
}

#[test]
fn shells_and_their_output_vanish() {
    for prompt in [
        "$ make all",
        "❯ make all",
        "➜  code make all",
        "me@box:~/code$ make all",
        "[me@box code]$ make all",
        ">>> make()",
    ] {
        assert_eq!(own(&format!("see\n{prompt}\noutput line\nmore\n\nmine")), "see mine", "{prompt}");
    }
}

#[test]
fn diffs_vanish() {
    let diff = "diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n@@ -1,4 +1,4 @@\n a\n-b\n+c\n\n d\n";
    assert_eq!(own(&format!("see\n{diff}\nmine\n- item")), "see mine - item");
}

#[test]
fn json_and_tags_vanish() {
    assert_eq!(own("got\n{\n  \"a\": [1, 2],\n\n  \"b\": \"}\"\n}\nmine"), "got mine");
    assert_eq!(own("[{\"a\": 1}, {\"b\": 2}]\nmine"), "mine");
    assert_eq!(own("{\"a\": 1\n\nmine, although the bracket never closes"), "mine, although the bracket never closes");
    assert_eq!(own("<system-reminder>\na\n</system-reminder>\nmine"), "mine");
    assert_eq!(own("<div><div>a</div>b</div> mine<br/> <!-- c --> too"), "mine too");
    assert_eq!(own("<task>mine</task>"), "mine", "people wrap their own instructions in tags");
    assert_eq!(own("a < b and c > d"), "a < b and c > d");
}

#[test]
fn addresses_vanish() {
    assert_eq!(own("see https://example.com/a.py?q=1, and me@example.com."), "see , and .");
    assert_eq!(own("(www.example.com/x)"), "(www.example.com/x)");
    assert_eq!(own("www.example.com/x is mine"), "is mine");
    assert_eq!(own("@src/a.rs is a file"), "@src/a.rs is a file");
}

#[test]
fn mentions_are_tokens_that_could_name_files() {
    assert_eq!(
        mentions("api.py, src/ui.rs; ./a/b and docs/. Makefile api.py"),
        ["api.py", "src/ui.rs", "./a/b", "docs/"]
    );
    assert_eq!(
        mentions("@a.py (b.py) [c.py](c.py) **d.py** b.py's e.py:12 f.py:1:2 g.py#L3-L9 h.py:4-5?"),
        ["a.py", "b.py", "c.py", "d.py", "e.py", "f.py", "g.py", "h.py"]
    );
    assert_eq!(
        mentions("`z.py` a.py \"docs/release notes.md\" `cargo test --lib` `q.py:3`"),
        ["z.py", "a.py", "docs/release notes.md", "q.py"]
    );
    let cjk = mentions("请分析api.py、db.pyと設計/文書.md");
    assert!(["api.py", "db.py"].iter().all(|f| cjk.iter().any(|m| m == f)), "{cjk:?}");
    assert!(mentions("見て 設計/文書.md").contains(&"設計/文書.md".to_owned()));
    assert_eq!(
        mentions("src/[id]/page.tsx __init__.py .gitignore 3.14 v /etc/hosts"),
        ["src/[id]/page.tsx", "__init__.py", ".gitignore", "/etc/hosts"]
    );
}

#[test]
fn mentions_stay_out_of_what_is_not_own() {
    assert_eq!(
        mentions("```\na.py\n```\n> b.py\n\nERROR c.py\n\n  File \"d.py\", line 1\n\nhttps://x.org/e.py f.py"),
        ["f.py"]
    );
}

#[test]
fn machines_are_recognised() {
    for prompt in [
        "<task-notification>\nx",
        "  <cross-session-message from-name=\"w\">",
        "[SYSTEM NOTIFICATION - NOT USER INPUT]",
        "Another Claude session sent a message:\nx",
        "<system-reminder>\n[SYSTEM NOTIFICATION - NOT USER INPUT]\n</system-reminder>\nx",
    ] {
        assert_eq!(origin(prompt), Origin::Machine, "{prompt}");
    }
    assert_eq!(origin(&format!("{MARK}w1\">x</cross-session-message>")), Origin::Machine);
    assert_eq!(origin("<system-reminder>\nplan mode\n</system-reminder>\nhello"), Origin::Typed);
    assert_eq!(origin("what is a <task-notification>?"), Origin::Typed);
}

#[test]
fn off_is_said_at_the_beginning() {
    assert!(says_off("!cpw off") && says_off("  !cpw off\nanalyze") && says_off("!cpw off, analyze"));
    assert!(!says_off("!cpw offline") && !says_off("say !cpw off") && !says_off("!cpw on"));
}

#[test]
fn a_request_is_told_from_talk() {
    for prompt in [
        "Analyze a.py",
        "can you analyze a.py?",
        "fix b.py and analyze a.py",
        "Don't wait. Analyze a.py.",
        "1. Analyze a.py",
    ] {
        assert!(asks(prompt), "{prompt}");
    }
    for prompt in [
        "don't analyze a.py",
        "please do\nnot analyze a.py",
        "why did analyze fail?",
        "analyze fails on a.py",
        "the analyze command",
        "call analyze(a)",
        "run --analyze",
        "analyze.py is slow",
        "analyze a.py tomorrow",
        "analyze a.py when I say so",
        "- [x] analyze a.py",
        "I analyze a.py every day",
    ] {
        assert!(!asks(prompt), "{prompt}");
    }
}

#[test]
fn ranges_that_do_not_fit_ask_for_nothing() {
    let words = Words::read("é analyze");
    assert!(!words.asks(1..4) && !words.asks(0..99) && !words.asks(2..2) && !words.asks(2..3));
}

/// A prompt of 8 MiB, of every shape that could make a scanner start over, is read in bounded time.
#[test]
fn the_largest_prompts_are_read_in_linear_time() {
    const SIZE: usize = 8 << 20;
    let units = [
        "analyze api.py and db.py. ",
        "\"",
        "'a ",
        "`a",
        "``` `",
        "“",
        "„x ",
        "「",
        "<a>",
        "</a><a>",
        "<a ",
        "<!--",
        "{\n\n",
        "[\"a\n",
        "```\n",
        "~~~a\n",
        "> ",
        "((((",
        "a.b,",
        "@@ -\n",
        "- a\n",
        "é'",
        "\n",
        " ",
        "http://",
        "a@b.c ",
        "x",
        "$ a\n\n",
        "``a`b```c````\n",
    ];
    for unit in units {
        let prompt = unit.repeat(SIZE / 64 / unit.len());
        let begun = Instant::now();
        let words = Words::read(&prompt);
        let asked = words.asks_any(words.own().match_indices("analyze").map(|(at, m)| at..at + m.len()));
        // 128 KiB of the 8 MiB, since a debug build is slow; starting over at each unit would still need minutes.
        assert!(begun.elapsed() < Duration::from_secs(5), "{unit:?} took {:?} (asked: {asked})", begun.elapsed());
    }
}

fn piece() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "\n",
        "\n\n",
        "```",
        "~~~",
        "`",
        "\"",
        "'",
        "“",
        "”",
        "„",
        "«",
        "»",
        "「",
        "」",
        "    ",
        "> ",
        "$ ",
        "- ",
        "1. ",
        "<a>",
        "</a>",
        "<",
        "<!--",
        "-->",
        "{",
        "}",
        "[",
        "](",
        "{\"a\": ",
        "@@ -1,2 +1,2 @@\n",
        "10:00:00 ",
        "ERROR ",
        "analyze ",
        "don't ",
        "can you ",
        "api.py",
        "a/b.rs:12",
        "https://",
        "a@b.c",
        ", ",
        ": ",
        "。",
        "分析",
        "して",
        "é",
        "?",
        "¿",
        "#L1",
        "…",
        "\r\n",
        "\u{FEFF}",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => any::<String>()]
}

#[test]
fn words_directly_behind_a_bracket_are_the_users() {
    for prompt in ["{}\u{16F00}", "{}analyze a.py", "[]é\nx", "{\"a\": 1}日本"] {
        assert_eq!(Words::read(prompt).own().len(), prompt.len());
    }
    assert_eq!(Words::read("{}analyze a.py").own(), "  analyze a.py");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_text_is_read_without_moving_a_byte(pieces in prop::collection::vec(piece(), 0..40)) {
        let prompt = pieces.concat();
        let words = Words::read(&prompt);
        prop_assert_eq!(words.own().len(), prompt.len());
        for (own, given) in words.own().bytes().zip(prompt.bytes()) {
            prop_assert!(own == given || own == b' ' && given != b'\n');
        }
        for (at, m) in words.own().match_indices(|c: char| c.is_alphabetic()).take(4) {
            words.asks(at..at + m.len());
        }
        for (at, m) in words.own().match_indices("analyze") {
            words.asks(at..at + m.len());
        }
        for mention in words.mentions() {
            prop_assert!(mention.contains(['.', '/']));
        }
        origin(&prompt);
        says_off(&prompt);
    }
}
