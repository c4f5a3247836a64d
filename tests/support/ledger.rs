//! A run's log, read and judged by code that shares nothing with the program: what a log must be after whatever happened.
//! It knows the documented format only, so that it cannot repeat the program's own mistakes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value};

/// The longest line, with its line feed.
const MAX_LINE: usize = 64 * 1024;

/// The keys of an event, in their order; those of an attempt may be absent.
const KEYS: [&str; 7] = ["t", "seq", "ts", "worker", "task", "attempt", "payload"];

/// What may stand behind the end of a run.
const BEHIND_THE_END: [&str; 5] = ["delivered", "decision", "adopted", "log_repaired", "worker_exited"];

/// How long a writer may hold the lock.
const LOCK: Duration = Duration::from_secs(10);

/// A log as it was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    /// The events of its whole lines.
    pub(crate) events: Vec<Map<String, Value>>,
    /// Bytes behind the last line feed.
    pub(crate) torn: usize,
}

impl Ledger {
    /// Reads a log under a shared lock, so that no writer is in the middle of a repair. None where there is no file.
    pub(crate) fn read(path: &Path) -> Result<Option<Ledger>, String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let mut file = locked(file).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        Ledger::parse(&bytes).map(Some)
    }

    /// Takes a log apart. Whatever is wrong with a whole line is an error.
    fn parse(bytes: &[u8]) -> Result<Ledger, String> {
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let mut ledger = Ledger { events: Vec::new(), torn: bytes.len() - whole };
        for line in bytes[..whole].split_inclusive(|b| *b == b'\n') {
            let number = ledger.events.len() + 1;
            let event = event(line, number).map_err(|why| format!("line {number} {why}"))?;
            ledger.events.push(event);
        }
        Ok(ledger)
    }

    /// How many events of a kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|e| e["t"] == kind).count()
    }

    /// Whether an event has all of these: a kind, and fields of its payload.
    pub(crate) fn has(&self, kind: &str, fields: &[(&str, &str)]) -> bool {
        self.events.iter().filter(|e| e["t"] == kind).any(|e| fields.iter().all(|(name, v)| e["payload"][name] == *v))
    }

    /// Whether a task has an event of this kind.
    pub(crate) fn has_of(&self, kind: &str, task: &str) -> bool {
        self.events.iter().any(|e| e["t"] == kind && e.get("task").is_some_and(|t| t == task))
    }

    /// Whether the run is over.
    pub(crate) fn is_ended(&self) -> bool {
        self.count("run_ended") > 0
    }

    /// What holds for every log at every time.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut open: BTreeMap<&str, u64> = BTreeMap::new();
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        let mut over: BTreeMap<&str, &str> = BTreeMap::new();
        let mut ended = false;
        for (i, event) in self.events.iter().enumerate() {
            let fail = |why: &str| Err(format!("line {} ({}): {why}", i + 1, Value::Object(event.clone())));
            let kind = event["t"].as_str().unwrap_or_default();
            let task = event.get("task").and_then(Value::as_str);
            let attempt = event.get("attempt").and_then(Value::as_u64);
            if (kind == "run_started") != (i == 0) {
                return fail("a log begins with run_started, once");
            }
            if ended && !BEHIND_THE_END.contains(&kind) {
                return fail("stands behind the end of the run");
            }
            match (kind, task, attempt) {
                ("run_ended", ..) if !open.is_empty() => return fail(&format!("attempts are open: {open:?}")),
                ("run_ended", ..) => ended = true,
                ("started", Some(task), Some(n)) => {
                    if over.contains_key(task) || open.contains_key(task) || n != last.get(task).unwrap_or(&0) + 1 {
                        return fail("an attempt that may not begin");
                    }
                    open.insert(task, n);
                    last.insert(task, n);
                }
                ("spawned" | "progress" | "checkpoint" | "signal", Some(task), Some(n)) => {
                    if open.get(task) != Some(&n) {
                        return fail("of an attempt that is not open");
                    }
                }
                ("done" | "failed" | "timed_out" | "cancelled" | "lost" | "skipped", Some(task), _) => {
                    if over.contains_key(task) || open.remove(task) != attempt {
                        return fail("an outcome of what is not open");
                    }
                    if event["payload"]["will_retry"] != true {
                        over.insert(task, kind);
                    }
                }
                ("started" | "spawned" | "done" | "failed" | "timed_out" | "lost" | "skipped", ..) => {
                    return fail("names no task or attempt");
                }
                (
                    "run_started" | "worker_started" | "worker_exited" | "worker_lost" | "cancel_requested"
                    | "delivered" | "decision" | "observed" | "awaited" | "adopted" | "signal_released"
                    | "log_repaired",
                    ..,
                ) => {}
                _ => return fail("no kind that is written here"),
            }
        }
        Ok(())
    }

    /// What holds for a run that is over: an outcome for each of its tasks, and nothing torn.
    pub(crate) fn check_ended(&self, tasks: &[&str]) -> Result<(), String> {
        self.check()?;
        if self.count("run_ended") != 1 {
            return Err("the run has not ended".into());
        }
        let outcome = |task: &&&str| {
            let kinds = ["done", "failed", "timed_out", "cancelled", "lost", "skipped"];
            !kinds.iter().any(|kind| self.has_of(kind, task))
        };
        match tasks.iter().find(outcome) {
            Some(task) => Err(format!("task {task} has no outcome")),
            None => Ok(()),
        }
    }
}

fn locked(mut file: File) -> Result<Flock<File>, String> {
    let end = Instant::now() + LOCK;
    loop {
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < end => file = back,
            Err((_, e)) => return Err(format!("cannot be locked: {e}")),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn event(line: &[u8], number: usize) -> Result<Map<String, Value>, String> {
    let shown = || String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
    if line.len() > MAX_LINE || !line.starts_with(b"{\"t\":\"") {
        return Err(format!("is too long, or does not begin with its kind: {}", shown()));
    }
    let Ok(Value::Object(event)) = serde_json::from_slice(line) else {
        return Err(format!("is no JSON object: {}", shown()));
    };
    if event.get("seq").and_then(Value::as_u64) != u64::try_from(number).ok() {
        return Err(format!("has another number: {}", shown()));
    }
    let mut places = event.keys().map(|key| KEYS.iter().position(|k| k == key));
    let mut before = None;
    if !places.all(|place| place.is_some() && std::mem::replace(&mut before, place) < place) {
        return Err(format!("has other keys, or in another order: {}", shown()));
    }
    if !event.get("t").is_some_and(Value::is_string) || !event.get("payload").is_some_and(Value::is_object) {
        return Err(format!("has no kind or payload: {}", shown()));
    }
    Ok(event)
}

/// A checker that finds nothing proves nothing.
#[test]
fn what_may_not_be_in_a_log_is_found() {
    let line = |seq: u64, kind: &str, rest: &str, payload: &str| {
        format!("{{\"t\":\"{kind}\",\"seq\":{seq},\"ts\":\"x\"{rest},\"payload\":{{{payload}}}}}\n")
    };
    let of = ",\"worker\":\"W1\",\"task\":\"a\",\"attempt\":1";
    let first = line(1, "run_started", "", "");
    let good = [
        first.clone(),
        line(2, "started", of, ""),
        line(3, "spawned", of, ""),
        line(4, "done", of, ""),
        line(5, "run_ended", "", ""),
        line(6, "delivered", "", ""),
    ];
    let judge = |lines: &[String]| Ledger::parse(lines.concat().as_bytes()).and_then(|l| l.check_ended(&["a"]));
    assert_eq!(judge(&good), Ok(()));
    let torn = Ledger::parse(format!("{}{{\"t\":", good.concat()).as_bytes()).expect("its whole lines are good");
    assert_eq!((torn.torn, torn.events.len()), (5, 6));
    let with = |i: usize, line: String| {
        let mut lines = good.to_vec();
        lines[i] = line;
        judge(&lines)
    };
    for (what, judged) in [
        ("a gap", with(4, line(6, "run_ended", "", ""))),
        ("the same number twice", with(4, line(4, "run_ended", "", ""))),
        ("two lines glued together", with(2, format!("{}{}", line(3, "spawned", of, "").trim_end(), good[3]))),
        ("half a line", with(3, "{\"t\":\"done\",\n".into())),
        ("another order of keys", with(5, "{\"t\":\"delivered\",\"ts\":\"x\",\"seq\":6,\"payload\":{}}\n".into())),
        ("no end", judge(&good[..4])),
        ("an end with an open attempt", judge(&[good[..3].to_vec(), vec![line(4, "run_ended", "", "")]].concat())),
        ("work behind the end", with(5, line(6, "worker_started", "", ""))),
        ("two ends", with(5, line(6, "run_ended", "", ""))),
        ("two outcomes", with(4, line(5, "lost", of, ""))),
        ("an outcome of another attempt", with(3, line(4, "done", &of.replace(":1", ":2"), ""))),
        ("an attempt while one is open", with(2, line(3, "started", &of.replace(":1", ":2"), ""))),
        ("the same attempt again", with(4, line(5, "started", of, ""))),
        ("progress of nobody", with(1, line(2, "progress", of, ""))),
        ("a second beginning", with(2, line(3, "run_started", "", ""))),
        ("a kind that there is not", with(2, line(3, "sparkle", "", ""))),
        ("a line without end", with(2, line(3, "spawned", of, &format!("\"x\":\"{}\"", "x".repeat(MAX_LINE))))),
    ] {
        assert!(judged.is_err(), "not found: {what}");
    }
}
