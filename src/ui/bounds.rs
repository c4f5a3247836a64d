//! In words what bounded a run: the steps of the path from its beginning to its end, and what more workers would have
//! changed. Text for a terminal; whoever puts it elsewhere escapes it.

use crate::logic::timeline::{Micros, Segment, Timeline, What, Why};
use crate::model::plan::Plan;
use crate::ui::when;

/// The most steps that one sentence names.
const MAX_STEPS: usize = 7;

/// Microseconds, for people.
pub fn span(micros: Micros) -> String {
    when::ms(u64::try_from(micros / 1000).unwrap_or(0))
}

/// What the run was waiting for in a part of its path: `build`, `waiting for a free worker`.
pub fn step(segment: &Segment, timeline: &Timeline, plan: &Plan) -> String {
    let name = |i: usize| plan.tasks[i].id.as_str();
    match segment.what {
        What::Work(a) => {
            let attempt = &timeline.attempts[a];
            let again = if attempt.number > 1 { format!(" (attempt {})", attempt.number) } else { String::new() };
            format!("{}{again}", name(attempt.task))
        }
        What::Lease(a) => format!("{} waiting for a lease", name(timeline.attempts[a].task)),
        What::Wait(_, why) => format!("waiting for {}", why_short(why)),
        What::Vote(v) => format!("waiting for the vote {}", plan.votes[v].topic),
        What::Nothing if segment.at.to == timeline.run.to && timeline.ended.is_some() => "ending the run".into(),
        What::Nothing => "nothing running".into(),
    }
}

fn why_short(why: Why) -> &'static str {
    match why {
        Why::Slot(_) => "a free worker",
        Why::Resource(_) => "what it holds",
        Why::Pause => "the pause before a further attempt",
        Why::Quota => "the provider's quota",
        Why::Worker => "a worker to start or to notice",
        Why::ByHand => "somebody who began it by hand",
    }
}

/// Why an attempt did not begin when it was ready: `for a free worker, until lint ended`.
pub fn why(why: Why, timeline: &Timeline, plan: &Plan) -> String {
    let until = |a: usize| plan.tasks[timeline.attempts[a].task].id.as_str();
    match why {
        Why::Slot(a) => format!("for a free worker, until {} ended", until(a)),
        Why::Resource(a) => format!("for what it holds, until {} ended", until(a)),
        other => format!("for {}", why_short(other)),
    }
}

/// `Bounded by: build 40 s, then waiting for a free worker 12 s, then test 8 s.` Steps that hardly count are summed up.
pub fn sentence(timeline: &Timeline, plan: &Plan) -> String {
    let mut longest: Vec<usize> = (0..timeline.path.len()).collect();
    longest.sort_by_key(|&i| std::cmp::Reverse(timeline.path[i].at.length()));
    let least = timeline.run.length() / 100;
    let mut named: Vec<usize> =
        longest.into_iter().take(MAX_STEPS).filter(|&i| timeline.path[i].at.length() >= least).collect();
    named.sort_unstable();
    if named.is_empty() {
        return "Nothing has run yet.".into();
    }
    let text = |(place, &i): (usize, &usize)| {
        let segment = &timeline.path[i];
        // Whose wait it was says what comes next, where that is named.
        let who = match segment.what {
            What::Wait(task, _) if next_task(timeline, named.get(place + 1)) != Some(task) => {
                format!(" ({})", plan.tasks[task].id)
            }
            _ => String::new(),
        };
        format!("{}{who} {}", step(segment, timeline, plan), span(segment.at.length()))
    };
    let told: Micros = named.iter().map(|&i| timeline.path[i].at.length()).sum();
    let rest = timeline.run.length() - told;
    let mut all: Vec<String> = named.iter().enumerate().map(text).collect();
    if rest > least {
        all.push(format!("and {} in {} shorter steps between", span(rest), timeline.path.len() - named.len()));
    }
    let lead = if timeline.ended.is_some() { "Bounded by" } else { "So far" };
    format!("{lead}: {}.", all.join(", then ").replace("then and", "and"))
}

/// The task that works in a part of the path.
fn next_task(timeline: &Timeline, place: Option<&usize>) -> Option<usize> {
    match timeline.path[*place?].what {
        What::Work(a) => Some(timeline.attempts[a].task),
        _ => None,
    }
}

/// What would have been with a worker for every task that is ready; nothing where that makes no difference to tell of.
pub fn unlimited(timeline: &Timeline) -> Option<String> {
    let (ideal, wall) = (timeline.unlimited?, timeline.run.length());
    if ideal.saturating_mul(100) >= wall.saturating_mul(97) {
        return Some("More workers would not have made it shorter.".into());
    }
    Some(format!(
        "With a worker free for every task it would have taken about {} instead of {}.",
        span(ideal),
        span(wall)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};
    use crate::logic::timeline::{Recorder, Stretch};

    /// A timeline with this path, in seconds; a step without a task is a wait for a free worker.
    fn with(steps: &[(i64, Option<usize>)], unlimited: Option<i64>) -> (Plan, Timeline) {
        let plan = plan(vec![task("build"), task("test")]);
        let mut timeline = Recorder::new(&plan).finish(None);
        let second = 1_000_000;
        let mut at = 0;
        for (length, work) in steps {
            let what = work.map_or(What::Wait(1, Why::Slot(0)), What::Work);
            timeline.path.push(Segment { at: Stretch { from: at, to: at + length * second }, what });
            at += length * second;
        }
        let attempt = |task: usize| crate::logic::timeline::Attempt {
            task,
            number: 1 + u32::try_from(task).unwrap(),
            worker: None,
            token: 1,
            closed: None,
            span: None,
            ready: 0,
            why: Why::Worker,
            cause: None,
            ran: Stretch { from: 0, to: 0 },
            outcome: crate::logic::view::Phase::Running,
            again: false,
            refused: false,
            taken: false,
            line: None,
            usage: crate::model::event::Usage::default(),
            leased: Vec::new(),
            checkpoints: Vec::new(),
        };
        timeline.attempts = vec![attempt(0), attempt(1)];
        timeline.run = Stretch { from: 0, to: at };
        timeline.unlimited = unlimited.map(|s| s * second);
        (plan, timeline)
    }

    #[test]
    fn what_bounded_a_run_is_a_sentence() {
        let (plan, timeline) = with(&[(40, Some(0)), (12, None), (8, Some(1))], Some(48));
        let text = sentence(&timeline, &plan);
        assert_eq!(text, "So far: build 40 s, then waiting for a free worker 12 s, then test (attempt 2) 8.0 s.");
        let text = unlimited(&timeline).unwrap();
        assert_eq!(text, "With a worker free for every task it would have taken about 48 s instead of 1 min.");
        let (plan, timeline) = with(&[(40, None), (12, Some(0))], None);
        let text = sentence(&timeline, &plan);
        assert_eq!(text, "So far: waiting for a free worker (test) 40 s, then build 12 s.");
        let (_, timeline) = with(&[(40, Some(0))], Some(39));
        assert_eq!(unlimited(&timeline).unwrap(), "More workers would not have made it shorter.");
        let (plan, nothing) = with(&[], None);
        assert_eq!((sentence(&nothing, &plan).as_str(), unlimited(&nothing)), ("Nothing has run yet.", None));
    }

    #[test]
    fn of_many_steps_the_longest_are_named() {
        let many: Vec<(i64, Option<usize>)> = (1..=20).map(|n| (n, Some(0))).collect();
        let (plan, timeline) = with(&many, None);
        let text = sentence(&timeline, &plan);
        assert_eq!(text.matches("build").count(), 7, "{text}");
        assert!(text.ends_with("then build 20 s, and 1 min 31 s in 13 shorter steps between."), "{text}");
    }
}
