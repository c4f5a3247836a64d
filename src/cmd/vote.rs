//! `cpw vote`: a task votes. Whether that counts, and whether it decides, is said under the log's lock, and the verdict is
//! written with the vote that completes it.

use serde_json::{Value, json};

use crate::base::exit::{Exit, Wrong};
use crate::base::ids::Topic;
use crate::base::text::one_line;
use crate::cmd::inside;
use crate::logic::view::View;
use crate::logic::vote::{Cast, Refusal, Tally};
use crate::model::event::{Body, Draft, Vote};
use crate::model::vote::Choice;
use crate::sys::clock;
use crate::ui::print;

/// The longest reason, in characters.
const MAX_REASON: usize = 300;

/// Inside a task: vote about something that the plan lets it vote about
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, in the command of a task that is one of the voters of the vote `deploy`:\n  \
    cpw vote deploy proceed\n  \
    cpw vote deploy abort --reason 'the migration is not reversible'\n  \
    make check && cpw vote deploy proceed || cpw vote deploy abort\n\n\
    Prints how it stands, or what came out. Each task has one vote, the first, whatever its attempts. A vote that comes when it \
    is decided,\n\
    and the same vote of a further attempt, do not count; that is said on stderr and is no failure of the task.\n\
    Exit code: 0 · 1 the task has voted otherwise, is no voter, or its attempt is over · 3 not inside a task, no such vote or choice")]
pub struct Args {
    /// What is voted about, as `votes` of the plan has it
    topic: String,
    /// proceed or abort
    #[arg(value_name = "proceed|abort")]
    decision: String,
    /// Why, in one line of at most 300 characters
    #[arg(long)]
    reason: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let inside = inside::attempt("vote")?;
    let decision = Choice::by_name(&args.decision);
    let reason = args.reason.as_deref().map(|reason| one_line(reason, MAX_REASON));
    let now_ms = clock::mono_ms();
    let cast = inside.within(|tx| {
        let Some(poll) = Topic::new(&args.topic).ok().and_then(|topic| tx.fold.poll(&topic)) else {
            return Ok(Err(unknown(tx.fold, &args.topic).into()));
        };
        let vote = Vote { topic: poll.topic.clone(), decision, reason, refused: None };
        let cast = poll.cast(&inside.task, inside.attempt, vote, Some(now_ms), tx.fold.cancelled);
        for body in &cast.bodies {
            match body {
                // What came out is nobody's own.
                Body::Verdict(_) => tx.emit(Draft::run(body.clone()))?,
                _ => inside.emit(tx, body.clone())?,
            };
        }
        Ok(Ok(cast))
    })?;
    if cast.refusal == Some(Refusal::UnknownChoice) {
        let what = format!("'{}' is no choice", one_line(&args.decision, 60));
        return Err(Wrong::with_hint(what, "vote proceed or abort").into());
    }
    if let Some(refusal) = &cast.refusal {
        print::err(format_args!("cpw: this vote about {} does not count: {}", cast.poll.topic, refusal.why()));
    }
    if args.json {
        print::out(object(&cast));
    } else if cast.refusal.as_ref().is_none_or(Refusal::is_harmless) {
        print::out(cast.poll.stands());
    }
    let good = cast.refusal.as_ref().is_none_or(Refusal::is_harmless);
    Ok(if good { Exit::Ok } else { Exit::Failed })
}

fn unknown(view: &View, given: &str) -> Wrong {
    let topics: Vec<&str> = view.polls.iter().map(|poll| poll.topic.as_str()).collect();
    let hint = if topics.is_empty() {
        "its plan has no votes".to_owned()
    } else {
        format!("the votes of its plan are {}", topics.join(", "))
    };
    Wrong::with_hint(format!("nobody votes about '{}' in this run", one_line(given, 80)), hint)
}

fn object(cast: &Cast) -> Value {
    let Tally { proceed, abort, open, absent } = cast.poll.tally();
    json!({
        "topic": cast.poll.topic, "counted": cast.refusal.is_none(), "why": cast.refusal.as_ref().map(Refusal::why),
        "proceed": proceed, "abort": abort, "open": open, "absent": absent,
        "verdict": cast.poll.verdict.as_ref().map(|verdict| verdict.result), "no_quorum": cast.poll.verdict.as_ref().map(|v| v.no_quorum),
    })
}
