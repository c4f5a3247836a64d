//! `cpw demo`: the story that cpw exists for, played in a temporary folder by its own hooks. They are called as Claude Code
//! calls them, real workers run real tasks; only what the model wants and the user types is written here.

mod stage;

use serde_json::{Value, json};

use crate::base::env;
use crate::base::exit::{Exit, Wrong};
use crate::base::text::for_terminal;
use crate::cmd::demo::stage::{Said, Stage, Stopped};
use crate::sys::clock;
use crate::sys::host;
use crate::sys::process;
use crate::sys::signals;
use crate::ui::paint::Paint;
use crate::ui::print;
use crate::ui::story::{Page, Voice};
use crate::ui::when;

/// The project's files.
const FILES: [(&str, &str); 3] = [
    ("api.py", "def get():\n    # TODO: paging\n    return query()\n"),
    ("db.py", "def query():\n    return []\n"),
    ("ui.py", "def show(rows):\n    # TODO: colours\n    # TODO: widths\n    for row in rows:\n        print(row)\n"),
];

/// The project's rules.
const CONFIG: &str = include_str!("demo.json");

/// What the user types.
const PROMPT: &str = "Analyze api.py, db.py and ui.py and write report.md";

/// How long the tasks of [`CONFIG`] take one after the other, in seconds.
const ONE_BY_ONE: u64 = 1 + 2 + 3 + 5;

/// Show in six seconds what cpw does, without Claude
///
/// Plays a session in a temporary folder: a prompt starts three workers and a fourth task beside them, a read waits for the
/// worker that has the file, a report gets the results put into it, and the end waits for what still runs. The hooks, the
/// workers and their tasks are real; only what the model does is written down beforehand. Your settings, projects and
/// state are not touched, and everything it made is removed at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw demo                play it\n  \
    cpw demo --keep         and leave its folder, to look at the log and the results\n  \
    cpw demo | less         in a pipe it is plain text\n\n\
    Exit code: 0 · 1 a step did not do what it should, which is said · 130 interrupted")]
pub struct Args {
    /// Keep the folder that it was played in
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if std::env::var_os(env::DEPTH).is_some() || process::ancestor_env_has(env::DEPTH) {
        let hint = "run it in a terminal, or with a ! in front in Claude Code";
        return Err(Wrong::with_hint("cpw demo cannot run inside a task: hooks do nothing there", hint).into());
    }
    let termination = signals::catch_termination()?;
    // A disk or a limit that is full is an error to tell, not the end with everything left behind.
    signals::ignore_write_signals()?;
    let width = host::terminal_size(std::io::stdout()).map_or(80, |(width, _)| usize::from(width));
    let stage = Stage::set_up(&FILES, CONFIG, &termination)?;
    let mut show = Show {
        page: Page { width, paint: Paint::for_stdout() },
        stage,
        begun: clock::mono_ms(),
        step: "",
        heard: String::new(),
    };
    let played = show.play();
    let Show { page, stage, step, .. } = show;
    let (folder, project, home) = (stage.folder().to_owned(), stage.project(), stage.state());
    let reason = if played.is_err() { stage.swallowed() } else { None };
    let cleared = stage.clear(played.is_ok(), args.keep);
    if args.keep {
        let look = format!("cd '{}' && CPW_STATE_DIR='{}' cpw status", project.display(), home.display());
        print::out(format_args!(
            "\nIts folder is kept: {}\n  {look}\n  rm -r '{}'",
            folder.display(),
            folder.display()
        ));
    }
    let exit = match played {
        Ok(()) => {
            print::raw(farewell(page, args.keep).as_bytes());
            Exit::Ok
        }
        Err(Stopped::Unread) => Exit::Ok,
        Err(Stopped::Interrupted) => {
            print::err("cpw: interrupted; nothing of the demonstration is left running");
            Exit::Interrupted
        }
        Err(Stopped::Failed(why)) => {
            let reason = reason.map_or_else(String::new, |r| format!(" ({r})"));
            print::err(format_args!("cpw: the demonstration failed at \"{step}\": {}{reason}", for_terminal(&why)));
            print::err("hint: `cpw doctor` looks for what keeps cpw from working here");
            Exit::Failed
        }
    };
    cleared.map(|()| exit)
}

fn farewell(page: Page, kept: bool) -> String {
    let mut out = format!("\n{}\n", page.paint.bold("In a project of yours"));
    let again = ("  cpw demo --keep", "plays this again and leaves its log and its results");
    for (command, what) in [
        ("  cpw init", "wires the hooks, and writes a rule to start from"),
        ("  cpw allow", "approves that rule; nothing runs before"),
        ("  claude", "then type a prompt that names files"),
        ("  cpw status", "shows what runs, in another terminal"),
    ]
    .into_iter()
    .chain((!kept).then_some(again))
    {
        out.push_str(&page.says(Voice::Model, command, what));
    }
    out
}

/// The show as it goes on.
struct Show<'a> {
    page: Page,
    stage: Stage<'a>,
    begun: u64,
    /// What it is at, for people.
    step: &'static str,
    /// Everything that the model was told.
    heard: String,
}

impl Show<'_> {
    fn begin(&mut self, title: &'static str) -> Result<(), Stopped> {
        self.step = title;
        say(&self.page.heading(clock::mono_ms().saturating_sub(self.begun), title))
    }

    fn row(&self, voice: Voice, label: &str, text: &str) -> Result<(), Stopped> {
        if text.is_empty() { Ok(()) } else { say(&self.page.says(voice, label, &for_terminal(text))) }
    }

    /// What a hook said, to whom.
    fn told(&mut self, said: &Said) -> Result<(), Stopped> {
        self.heard.push_str(said.context());
        self.row(Voice::User, "you see", said.for_user())?;
        self.row(Voice::Model, "the model is told", said.context())
    }

    fn play(&mut self) -> Result<(), Stopped> {
        let place = self.stage.folder().display().to_string();
        say(&self.page.plain(&format!(
            "A session with three files, played by cpw's own hooks and workers in {place}. No Claude takes part, no \
             account and no network; what the model wants is written down beforehand."
        )))?;
        self.prompt()?;
        self.read()?;
        self.read_again()?;
        self.write()?;
        self.stop()?;
        self.sum_up()
    }

    fn prompt(&mut self) -> Result<(), Stopped> {
        self.begin("You type a prompt")?;
        self.row(Voice::User, "you", &format!("> {PROMPT}"))?;
        self.stage.hook(&["session-start"], "SessionStart", &json!({"source": "startup"}))?;
        let said = self.stage.hook(&["user-prompt-submit"], "UserPromptSubmit", &json!({"prompt": PROMPT}))?;
        let text = format!(
            "took {} before the model reads a word: a rule matches, a plan of 4 tasks is written, workers start. No \
             tokens are spent on that.",
            when::ms(said.ms)
        );
        self.row(Voice::Hook, "the prompt hook", &text)?;
        expect(said.for_user().contains("started 4 tasks"), "no run was started")?;
        self.told(&said)
    }

    fn read(&mut self) -> Result<(), Stopped> {
        self.begin("The model wants to read api.py, which a worker has")?;
        let input = json!({"file_path": self.stage.file("api.py")});
        self.row(Voice::Model, "the model", "Read(api.py)")?;
        let said = self.held(1, "Read", &input, "the worker is done")?;
        self.told(&said)?;
        self.after(1, "Read", &input)
    }

    fn read_again(&mut self) -> Result<(), Stopped> {
        self.begin("The model goes on; after each step it hears what is new, once")?;
        let input = json!({"file_path": self.stage.file("db.py")});
        self.row(Voice::Model, "the model", "Read(db.py)")?;
        let said = self.held(2, "Read", &input, "its worker is done, too")?;
        self.told(&said)?;
        self.after(2, "Read", &input)
    }

    fn write(&mut self) -> Result<(), Stopped> {
        self.begin("The model writes its report, and the results come into it")?;
        let text = "# Report\n\nThree files were looked at.\n";
        let input = json!({"file_path": self.stage.file("report.md"), "content": text});
        self.row(Voice::Model, "the model", "Write(report.md)")?;
        let said = self.held(3, "Write", &input, "all three results are there")?;
        let wanted = said.input().and_then(|input| input["content"].as_str());
        let written = wanted.ok_or_else(|| Stopped::Failed("the results were not put into the report".into()))?;
        self.row(Voice::Hook, "what is written", "the model's text, and behind it what the rule's `merge` adds:")?;
        say(&self.page.change(text, &for_terminal(written)))?;
        let file = self.stage.project().join("report.md");
        std::fs::write(file, written)?;
        self.told(&said)?;
        let input = said.input().cloned().unwrap_or_default();
        self.after(3, "Write", &input)
    }

    fn stop(&mut self) -> Result<(), Stopped> {
        self.begin("The model wants to stop, while a task still runs")?;
        let fields = json!({"stop_hook_active": false, "last_assistant_message": "The report is written."});
        let said = self.stage.hook(&["stop"], "Stop", &fields)?;
        let text =
            format!("waited {} inside the hook, which costs no model request, and hands over:", when::ms(said.ms));
        self.row(Voice::Hook, "the stop hook", &text)?;
        self.told(&said)?;
        self.begin("The model goes on with that, and stops again")?;
        let again = json!({"stop_hook_active": true, "last_assistant_message": "All checks have passed."});
        let said = self.stage.hook(&["stop"], "Stop", &again)?;
        expect(said.context().is_empty(), "the same was told twice")?;
        self.row(Voice::Hook, "the stop hook", "has nothing new, and lets it stop")?;
        self.stage.hook(&["session-end"], "SessionEnd", &json!({"reason": "other"})).map(drop)
    }

    fn sum_up(&mut self) -> Result<(), Stopped> {
        let took = clock::mono_ms().saturating_sub(self.begun);
        let folder = self.stage.run().ok_or_else(|| Stopped::Failed("there is no run".into()))?;
        let view = folder.open_view()?.view;
        let done = view.counts.done;
        expect(done == 4, "not all of the four tasks are done")?;
        for task in ["api.py", "db.py", "ui.py", "checks"] {
            let news = self.heard.matches(&format!("done: {task}")).count();
            expect(news == 1, &format!("the model was told {news} times, not once, that {task} is done"))?;
        }
        let text = format!(
            "\n{done} tasks done by {} workers in {}; one after the other they take {ONE_BY_ONE} s. All that happened is in \
             one file, events.jsonl, a line each.",
            view.last_worker,
            when::ms(took),
        );
        say(&self.page.plain(&text))
    }

    /// A call that the hook is to hold and then to let pass.
    fn held(&self, number: usize, tool: &str, input: &Value, until: &str) -> Result<Said, Stopped> {
        let said = self.stage.before_tool(number, tool, input)?;
        if let Some(reason) = said.refusal() {
            return Err(Stopped::Failed(format!("the hook refused the call: {reason}")));
        }
        let text = format!("held the call for {}, until {until}, and lets it pass", when::ms(said.ms));
        self.row(Voice::Hook, "the tool hook", &text)?;
        Ok(said)
    }

    /// What comes behind a call.
    fn after(&mut self, number: usize, tool: &str, input: &Value) -> Result<(), Stopped> {
        let said = self.stage.after_tool(number, tool, input)?;
        self.told(&said)
    }
}

/// Who has seen enough closes the pipe.
fn say(text: &str) -> Result<(), Stopped> {
    if print::raw(text.as_bytes()) || print::lost() { Ok(()) } else { Err(Stopped::Unread) }
}

fn expect(holds: bool, or: &str) -> Result<(), Stopped> {
    if holds { Ok(()) } else { Err(Stopped::Failed(or.into())) }
}
