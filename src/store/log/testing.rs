//! A disk in memory that fails at the call one chooses: an error, a process that dies before or after it, a write that is
//! cut short, a power cut that keeps only what was synced and any part of what came after.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::base::ids::{CheckpointName, RunId, TaskId, Topic, WorkerNo};
use crate::logic::simulation::{plan, run_started, task};
use crate::model::event::{
    Acquire, Adopted, Answer, Awaited, Body, CancelRequested, Checkpoint, Decided, Decision, Delivered, Done, Draft,
    Ended, Holder, LogRepaired, Observed, Opened, Process, Progress, Queued, Reason, Release, Renew, ResultFile,
    RunEnded, Signal, SignalReleased, Skipped, Started, Usage, Verdict, Vote,
};
use crate::model::resource::Resource;
use crate::model::signal::Addressee;
use crate::model::vote::Choice;
use crate::sys::dir::FileId;
use crate::sys::medium::{Hold, Medium};

/// What goes wrong at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails with this errno, and does nothing.
    Errno(i32),
    /// The process dies before it.
    KillBefore,
    /// The process dies when it was carried out, before it hears of that.
    KillAfter,
    /// Of what is written or read only this many bytes go out or come; then, dead or not, as said.
    Short {
        /// Bytes that go out.
        bytes: usize,
        /// Whether the process dies of it; else it hears of the short write.
        dies: bool,
    },
}

#[derive(Debug, Default)]
struct Inner {
    now: Vec<u8>,
    /// As of the last sync.
    synced: Vec<u8>,
    inode: u64,
    calls: usize,
    fault: Option<(usize, Fault)>,
    struck: bool,
    /// Processes that are dead.
    dead: Vec<u32>,
    locked: Option<u32>,
}

/// The disk, with one file on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Rc<RefCell<Inner>>);

impl Disk {
    /// A disk that holds these bytes, all of them synced.
    pub(super) fn holding(bytes: &[u8]) -> Disk {
        let inner = Inner { now: bytes.to_vec(), synced: bytes.to_vec(), ..Inner::default() };
        Disk(Rc::new(RefCell::new(inner)))
    }

    /// The file as process `process` has it open.
    pub(super) fn open(&self, process: u32) -> Handle {
        let inode = self.0.borrow().inode;
        Handle { disk: self.clone(), process, id: FileId { dev: 1, ino: inode, size: 0, nlink: 1, born: 0 } }
    }

    /// From now on: the `n`-th call (from 1) goes wrong.
    pub(super) fn arm(&self, n: usize, fault: Fault) {
        let mut inner = self.0.borrow_mut();
        inner.calls = 0;
        inner.struck = false;
        inner.fault = Some((n, fault));
    }

    /// From now on nothing goes wrong. Returns whether something did.
    pub(super) fn disarm(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        inner.fault = None;
        inner.struck
    }

    pub(super) fn is_dead(&self, process: u32) -> bool {
        self.0.borrow().dead.contains(&process)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.borrow().now.clone()
    }

    /// What may be on the disk after a power cut now: what was synced and a part of what came after it (every seventh length,
    /// and those around the ends of lines), the missing end gone or full of zeros.
    pub(super) fn after_a_power_cut(&self) -> Vec<Vec<u8>> {
        let inner = self.0.borrow();
        let same = inner.now.iter().zip(&inner.synced).take_while(|(a, b)| a == b).count();
        let mut all = vec![inner.synced.clone()];
        let near = |cut: usize| inner.now[cut.saturating_sub(2)..inner.now.len().min(cut + 2)].contains(&b'\n');
        for cut in (same..=inner.now.len()).filter(|&cut| cut % 7 == 0 || near(cut)) {
            all.push(inner.now[..cut].to_vec());
            let mut zeros = inner.now[..cut].to_vec();
            zeros.resize(inner.now.len(), 0);
            all.push(zeros);
        }
        all
    }
}

/// The file, as one process has it open.
#[derive(Debug)]
pub(super) struct Handle {
    disk: Disk,
    process: u32,
    id: FileId,
}

fn gone() -> io::Error {
    io::Error::other("this process is dead")
}

impl Handle {
    /// Makes a call; `fault` sees what is to go wrong in it.
    fn call<T>(&self, act: impl FnOnce(&mut Inner, Option<Fault>) -> io::Result<T>) -> io::Result<T> {
        let inner = &mut *self.disk.0.borrow_mut();
        if inner.dead.contains(&self.process) {
            return Err(gone());
        }
        inner.calls += 1;
        let fault = inner.fault.filter(|(n, _)| *n == inner.calls).map(|(_, fault)| fault);
        inner.struck |= fault.is_some();
        let die = |inner: &mut Inner| {
            inner.dead.push(self.process);
            if inner.locked == Some(self.process) {
                inner.locked = None;
            }
            Err(gone())
        };
        match fault {
            Some(Fault::Errno(n)) => Err(io::Error::from_raw_os_error(n)),
            Some(Fault::KillBefore) => die(inner),
            Some(Fault::KillAfter | Fault::Short { dies: true, .. }) => {
                drop(act(inner, fault));
                die(inner)
            }
            Some(Fault::Short { dies: false, .. }) | None => act(inner, fault),
        }
    }
}

impl Medium for Handle {
    fn id(&self) -> &FileId {
        &self.id
    }

    fn len(&self) -> io::Result<u64> {
        self.call(|inner, _| Ok(inner.now.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call(|inner, fault| {
            let from = usize::try_from(offset).unwrap().min(inner.now.len());
            let mut n = buffer.len().min(inner.now.len() - from);
            if let Some(Fault::Short { bytes, .. }) = fault {
                // 0 would be the end of the file.
                n = n.min(bytes.max(1));
            }
            buffer[..n].copy_from_slice(&inner.now[from..from + n]);
            Ok(n)
        })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call(|inner, fault| {
            assert_eq!(inner.locked, Some(self.process), "written without the lock");
            let n = match fault {
                Some(Fault::Short { bytes: n, .. }) => n.min(bytes.len()),
                _ => bytes.len(),
            };
            inner.now.extend_from_slice(&bytes[..n]);
            Ok(n)
        })
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.call(|inner, _| {
            assert_eq!(inner.locked, Some(self.process), "cut without the lock");
            inner.now.truncate(usize::try_from(length).unwrap());
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call(|inner, _| {
            inner.synced.clone_from(&inner.now);
            Ok(())
        })
    }

    fn lock(&self, hold: Hold, _: Duration) -> io::Result<bool> {
        self.call(|inner, _| {
            if inner.locked.is_some() {
                return Ok(false);
            }
            if hold == Hold::Exclusive {
                inner.locked = Some(self.process);
            }
            Ok(true)
        })
    }

    fn unlock(&self) -> io::Result<()> {
        self.call(|inner, _| {
            if inner.locked == Some(self.process) {
                inner.locked = None;
            }
            Ok(())
        })
    }

    fn named_len(&self) -> io::Result<Option<u64>> {
        self.call(|inner, _| Ok((inner.inode == self.id.ino).then_some(inner.now.len() as u64)))
    }
}

impl Drop for Handle {
    /// A file that is closed gives its lock back.
    fn drop(&mut self) {
        let mut inner = self.disk.0.borrow_mut();
        if inner.locked == Some(self.process) {
            inner.locked = None;
        }
    }
}

fn resources() -> Vec<Resource> {
    vec![Resource::of_normal("db"), Resource::of_normal("file:src/app.rs")]
}

fn holder(task: &TaskId) -> Holder {
    Holder {
        process: Process { pid: 4, start_time: 5, boot_id: "b".into() },
        run: RunId::new("r-1").ok(),
        task: Some(task.clone()),
        attempt: Some(1),
        worker: Some(WorkerNo(1)),
        session: Some("s-1".into()),
        tool_use_id: Some("toolu_1".into()),
        label: Some("make test".into()),
    }
}

/// An event of every kind, in an order in which they could stand.
#[expect(clippy::too_many_lines, reason = "a list")]
pub(super) fn every_kind() -> Vec<Draft> {
    let a = TaskId::new("task-a").unwrap();
    let me = WorkerNo(1);
    let process = || Process { pid: 4242, start_time: 123_456, boot_id: "boot".into() };
    let ended =
        |reason: &str| Ended { exit: Some(3), reason: reason.into(), duration_ms: Some(12), ..Ended::default() };
    let attempt = |body| Draft::attempt(Some(me), &a, 1, body);
    let mut all = vec![
        Draft::run(run_started(&plan(vec![task("task-a")]), "boot")),
        Draft::worker(me, Body::WorkerStarted(process())),
        attempt(Body::Started(Started {
            cwd: "/somewhere".into(),
            span: Some("00f067aa0ba902b7".into()),
            title: Some("A title".into()),
            mono_ms: 7,
            budget_usd: None,
            after: Some("build@compiled".into()),
            expected_ms: Some(40_000),
        })),
        attempt(Body::Spawned(process())),
        attempt(Body::Progress(Progress {
            percent: Some(40),
            note: Some("é 👾 \u{7f}".into()),
            ..Progress::default()
        })),
        attempt(Body::Failed(ended("exit 3: no \"luck\"\n"))),
        attempt(Body::TimedOut(ended("its time limit was over"))),
        attempt(Body::Lost(ended("the worker died"))),
        attempt(Body::Cancelled(ended("cancelled"))),
        attempt(Body::Checkpoint(Checkpoint {
            name: CheckpointName::new("compiled").unwrap(),
            data: Some(serde_json::json!({"at": "\u{2028}\n"})),
            inject: true,
        })),
        attempt(Body::Signal(Signal {
            id: 7,
            hook: Addressee::PreToolUse,
            exit: 2,
            message: Some("the \"schema\" is being changed\n".into()),
            data: Some("workers/W1/signals/task-a.1.5-6".into()),
            matcher: Some("Bash(psql*)".into()),
            own: true,
            sticky: true,
            expires: Some(9000),
            more: 9,
        })),
        attempt(Body::SignalReleased(SignalReleased { id: None, reason: "the task released it".into() })),
        attempt(Body::Done(Done {
            exit: 0,
            duration_ms: 1234,
            result: Some(ResultFile {
                path: "workers/W1/out/task-a.1/result.md".into(),
                bytes: 9,
                sha256: "1".repeat(64),
            }),
            summary: Some("5 findings".into()),
            usage: Some(Usage { turns: 2, tokens: 30, cost_usd: 0.25 }),
            cut_bytes: 5,
            from: None,
        })),
        Draft::task(&a, Body::Skipped(Skipped { because: "task-b".into() })),
        Draft::run(Body::CancelRequested(CancelRequested { by: "user".into() })),
        Draft::run(Body::Decision(Decision {
            hook: "PreToolUse".into(),
            tool: Some("Read".into()),
            answer: Answer::Block,
            reason: "claimed by task-a".into(),
            ..Decision::default()
        })),
        attempt(Body::Awaited(Awaited { id: 7, matcher: Some("Read(api.py)".into()), on: None, done: false })),
        attempt(Body::Awaited(Awaited { id: 7, matcher: None, on: None, done: true })),
        Draft::run(Body::Observed(Observed {
            hook: "PreToolUse".into(),
            phase: "before".into(),
            tool: "Read".into(),
            target: "api.py".into(),
            tool_use_id: None,
            awaited: vec![4],
        })),
        Draft::run(Body::Adopted(Adopted {
            session: "s-2".into(),
            from: "s-1".into(),
            client: Some(Process { pid: 4, start_time: 5, boot_id: "b".into() }),
        })),
        // The kinds of the project's log.
        Draft::run(Body::Opened(Opened { v: 1, cpw: "0.1.0".into() })),
        Draft::run(Body::Queued(Queued {
            resources: resources(),
            holder: holder(&a),
            holding: vec![2],
            mono_ms: 5,
            until: Some(9),
        })),
        Draft::run(Body::Acquire(Acquire {
            token: 3,
            resources: resources(),
            holder: holder(&a),
            request: Some(2),
            mono_ms: 6,
            expires: Some(60),
        })),
        Draft::run(Body::Renew(Renew { token: 3, expires: 90 })),
        Draft::run(Body::Release(Release { token: 3, reason: "given back".into(), refused: true })),
        Draft::run(Body::Expired(Release { token: 3, reason: "its time was over".into(), refused: false })),
        Draft::run(Body::LogRepaired(LogRepaired { bytes: 17, sha256: "0".repeat(64) })),
        Draft::worker(me, Body::WorkerLost(Reason { reason: "the worker died".into() })),
        Draft::worker(me, Body::WorkerExited(Reason { reason: "nothing to do".into() })),
        Draft::run(Body::RunEnded(RunEnded {
            status: Verdict::Failed,
            reason: "task-a failed".into(),
            done: 0,
            failed: 1,
            skipped: 0,
            cancelled: 0,
        })),
        Draft::run(Body::Delivered(Delivered {
            news: vec![6, 11, 18],
            hook: "Stop".into(),
            session: "01234567-89ab-cdef-0123-456789abcdef".into(),
            prompt_id: None,
            more: false,
            signals: Vec::new(),
            chars: 0,
        })),
    ];
    all.splice(5..5, votes(attempt));
    all
}

fn votes(attempt: impl Fn(Body) -> Draft) -> [Draft; 2] {
    [
        attempt(Body::Vote(Vote {
            topic: Topic::new("release").unwrap(),
            decision: Some(Choice::Abort),
            reason: Some("\"no\"\u{2028}".into()),
            refused: Some("it is decided".into()),
        })),
        Draft::run(Body::Verdict(Decided {
            topic: Topic::new("release").unwrap(),
            result: Choice::Abort,
            proceed: 1,
            abort: 1,
            absent: 3,
            no_quorum: true,
            escalates: true,
        })),
    ]
}
