//! The exit codes of the command line. Hooks do not use them: what a hook answers is decided in one place of the hook room.
//! 2 is never among them, because Claude Code reads it as "block" (and many tools use it for wrong usage).

/// What a command ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It worked; of `run`: every task did.
    Ok = 0,
    /// The run or the task failed, or the answer is no.
    Failed = 1,
    /// Wrong usage or wrong input; nothing was done.
    Usage = 3,
    /// What was waited for did not happen in time.
    TimedOut = 4,
    /// The command that `lease` was to become cannot be executed.
    NotExecutable = 126,
    /// There is no such command.
    NotFound = 127,
    /// Cancelled by Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// Every code with its meaning, for help and manual.
    pub const TABLE: [(Exit, &'static str); 7] = [
        (Exit::Ok, "it worked; of `run`: every task is done"),
        (Exit::Failed, "the run or task failed, or the answer is no"),
        (Exit::Usage, "wrong usage or input; nothing was done"),
        (Exit::TimedOut, "what was waited for did not happen in time"),
        (Exit::NotExecutable, "`lease`: its command cannot be executed"),
        (Exit::NotFound, "`lease`: there is no such command"),
        (Exit::Interrupted, "ended by Ctrl-C"),
    ];
}

impl From<Exit> for std::process::ExitCode {
    fn from(e: Exit) -> Self {
        std::process::ExitCode::from(e as u8)
    }
}

/// An error that the person at the terminal can mend: wrong usage or wrong input. It ends a command with [`Exit::Usage`]
/// and names the thing, the reason and the next step.
#[derive(Debug)]
pub struct Wrong {
    /// What is wrong, naming the thing and the reason; a sentence without full stop.
    pub what: String,
    /// What to do now, if there is something to say; printed as `hint: …`.
    pub hint: Option<String>,
}

impl Wrong {
    /// An error without a hint.
    pub fn new(what: impl Into<String>) -> Self {
        Wrong { what: what.into(), hint: None }
    }

    /// An error with the next step.
    pub fn with_hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Wrong { what: what.into(), hint: Some(hint.into()) }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Wrong {}
