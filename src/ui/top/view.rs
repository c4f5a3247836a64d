//! What a person looks at, and what the keys do to it. Pure: what reaches beyond the view comes back as an [`Action`].

use crate::base::ids::RunId;
use crate::logic::view::Phase;
use crate::ui::lines;
use crate::ui::top::facts;
use crate::ui::top::keys::Key;
use crate::ui::top::layout::{self, Areas};
use crate::ui::top::picture::{Opened, Picture};

/// What fills the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Page {
    /// The list of tasks, and the selected one below it.
    #[default]
    Tasks,
    /// All that is known of a task, and its output.
    Detail,
    /// Its output alone.
    Log,
    /// A row for every worker, its attempts as bars over time.
    Timeline,
}

/// What the arrows move, where there is a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pane {
    /// The list of runs.
    Runs,
    /// The list of tasks.
    #[default]
    Tasks,
    /// The output.
    Output,
}

/// What stands before everything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Over {
    /// Nothing.
    #[default]
    Nothing,
    /// The keys.
    Help,
    /// A question.
    Ask(Question),
    /// The filter is being typed.
    Filter,
}

/// What is asked before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Cancel the selected run?
    CancelRun,
    /// Cancel this task of it?
    CancelTask(usize),
    /// Run again what it left undone?
    Retry,
}

/// What is shown of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shows {
    /// stdout, and the end of stderr below it.
    #[default]
    Both,
    /// stdout.
    Out,
    /// stderr.
    Err,
}

/// The state of the view.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// What fills it.
    pub page: Page,
    /// What the arrows move.
    pub pane: Pane,
    /// What stands before it.
    pub over: Over,
    /// The selected run.
    pub run: Option<RunId>,
    /// The selected task, by its place in the plan.
    pub task: usize,
    /// Which of its attempts is looked at; the last one where absent.
    pub attempt: Option<u32>,
    /// What of its output.
    pub shows: Shows,
    /// Only tasks with this in their id, title, state or worker are listed.
    pub filter: String,
    /// The first run, task and worker on the screen.
    pub first_run: usize,
    /// See `first_run`.
    pub first_task: usize,
    /// See `first_run`.
    pub first_worker: usize,
    /// The run that the selection of a task belongs to.
    pub(super) settled: Option<RunId>,
}

/// What a key asks for that the view cannot do by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Draw all of the screen anew, whatever was on it.
    Redraw,
    /// Leave.
    Leave,
    /// Leave, as Ctrl-C does it.
    Interrupt,
    /// Stop until somebody lets it go on.
    Suspend,
    /// Move the window on the output.
    Scroll(Scroll),
    /// Cancel the selected run, or this task of it.
    Cancel(Option<usize>),
    /// Run again what the selected run left undone.
    Retry,
    /// Say something.
    Say(String),
}

/// Where a window on the output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scroll {
    /// So many lines up.
    Up(usize),
    /// So many lines down.
    Down(usize),
    /// To the beginning.
    Home,
    /// To the end, and on with it.
    End,
}

impl View {
    /// A view that begins with a run, or with the first one that is listed.
    pub fn on(run: Option<RunId>) -> View {
        View { run, ..View::default() }
    }

    /// Where things stand on the screen.
    pub fn areas(&self, picture: &Picture<'_>) -> Areas {
        layout::areas(self, picture.runs.len(), picture.run.map_or(0, |run| run.plan.tasks.len()))
    }

    /// Brings the selection in line with what there is. To be called before it is drawn.
    pub fn settle(&mut self, picture: &Picture<'_>) {
        let at = self.selected_run(picture);
        self.run = picture.runs.get(at).map(|row| row.id.clone());
        if matches!(self.over, Over::Ask(_)) && self.settled != self.run {
            // It was asked of a run that has gone.
            self.over = Over::Nothing;
        }
        let areas = self.areas(picture);
        self.first_run = layout::scrolled(self.first_run, at, usize::from(areas.runs.height), picture.runs.len());
        let Some(run) = picture.run else { return };
        if self.settled.as_ref() != Some(&run.plan.run) {
            self.settled = Some(run.plan.run.clone());
            self.task = most_interesting(run);
            (self.attempt, self.first_task, self.first_worker) = (None, 0, 0);
        }
        let chosen = chosen(run, &self.filter);
        let at = place(&chosen, self.task);
        if let Some(&task) = chosen.get(at)
            && task != self.task
        {
            (self.task, self.attempt) = (task, None);
        }
        self.first_task = layout::scrolled(self.first_task, at, layout::task_rows(self, &areas), chosen.len());
        let rows = usize::from(areas.body.height.saturating_sub(2));
        self.first_worker = self.first_worker.min(run.past.worker_count().saturating_sub(rows));
    }

    fn selected_run(&self, picture: &Picture<'_>) -> usize {
        let wanted = self.run.as_ref();
        picture.runs.iter().position(|row| Some(&row.id) == wanted).unwrap_or(0)
    }

    /// Rows of the output.
    pub fn output_rows(&self, picture: &Picture<'_>) -> usize {
        let detail = usize::from(self.areas(picture).detail.height).saturating_sub(1);
        detail - facts::rows(self, picture.run.map_or(0, |run| facts::of(run, self, picture).len()), detail)
    }

    /// What a key does.
    pub fn key(&mut self, key: Key, picture: &Picture<'_>) -> Action {
        match key {
            Key::Ctrl('c') => return Action::Interrupt,
            Key::Ctrl('z') => return Action::Suspend,
            Key::Ctrl('l') => return Action::Redraw,
            _ => {}
        }
        match self.over {
            Over::Nothing => self.plain(key, picture),
            Over::Help => {
                self.over = Over::Nothing;
                Action::Nothing
            }
            Over::Ask(question) => self.answer(key, question),
            Over::Filter => self.type_filter(key, picture),
        }
    }

    fn answer(&mut self, key: Key, question: Question) -> Action {
        self.over = Over::Nothing;
        match (key, question) {
            (Key::Char('y' | 'Y'), Question::CancelRun) => Action::Cancel(None),
            (Key::Char('y' | 'Y'), Question::CancelTask(i)) => Action::Cancel(Some(i)),
            (Key::Char('y' | 'Y'), Question::Retry) => Action::Retry,
            _ => Action::Say("nothing was done".into()),
        }
    }

    fn type_filter(&mut self, key: Key, picture: &Picture<'_>) -> Action {
        /// Nobody has longer names.
        const LONGEST: usize = 64;
        match key {
            Key::Char(c) if self.filter.chars().count() < LONGEST => self.filter.push(c),
            Key::Backspace => drop(self.filter.pop()),
            Key::Enter => self.over = Over::Nothing,
            Key::Escape => {
                self.filter.clear();
                self.over = Over::Nothing;
            }
            Key::Up | Key::Down => self.step(key, picture),
            _ => {}
        }
        Action::Nothing
    }

    fn plain(&mut self, key: Key, picture: &Picture<'_>) -> Action {
        match key {
            Key::Char('q') => return Action::Leave,
            Key::Escape => return self.back(),
            Key::Char('?') => self.over = Over::Help,
            Key::Char('l') => self.toggle(Page::Log),
            Key::Char('t') => self.toggle(Page::Timeline),
            Key::Char('/') => (self.over, self.page, self.pane) = (Over::Filter, Page::Tasks, Pane::Tasks),
            Key::Char('c') => return self.ask_cancel(picture),
            Key::Char('r') => return self.ask_retry(picture),
            Key::Char('e') => {
                self.shows = match self.shows {
                    Shows::Both => Shows::Out,
                    Shows::Out => Shows::Err,
                    Shows::Err => Shows::Both,
                }
            }
            Key::Char('f') => return Action::Scroll(Scroll::End),
            Key::Char('n') => self.move_task(picture, |at, last| (at + 1).min(last)),
            Key::Char('p') => self.move_task(picture, |at, _| at.saturating_sub(1)),
            Key::Left => self.move_attempt(picture, false),
            Key::Right => self.move_attempt(picture, true),
            Key::Tab => self.turn(picture, &[Pane::Runs, Pane::Tasks, Pane::Output]),
            Key::BackTab => self.turn(picture, &[Pane::Output, Pane::Tasks, Pane::Runs]),
            Key::Enter => self.enter(),
            Key::Char('k') => return self.go(Key::Up, picture),
            Key::Char('j') => return self.go(Key::Down, picture),
            Key::Char('g') => return self.go(Key::Home, picture),
            Key::Char('G') => return self.go(Key::End, picture),
            Key::Char(' ') => return self.go(Key::PageDown, picture),
            Key::Up | Key::Down | Key::PageUp | Key::PageDown | Key::Home | Key::End => return self.go(key, picture),
            Key::Backspace | Key::Ctrl(_) | Key::Char(_) => {}
        }
        Action::Nothing
    }

    fn back(&mut self) -> Action {
        if self.page != Page::Tasks {
            self.page = Page::Tasks;
        } else if self.filter.is_empty() {
            return Action::Leave;
        } else {
            self.filter.clear();
        }
        Action::Nothing
    }

    fn toggle(&mut self, page: Page) {
        self.page = if self.page == page { Page::Tasks } else { page };
    }

    /// The next pane of `order` that has rows.
    fn turn(&mut self, picture: &Picture<'_>, order: &[Pane]) {
        let areas = self.areas(picture);
        let shown = |pane: &Pane| match pane {
            Pane::Runs => areas.runs.height > 0,
            Pane::Tasks => areas.body.height > 0,
            Pane::Output => areas.detail.height > 0,
        };
        let at = order.iter().position(|p| *p == self.pane).unwrap_or(0);
        let next = (1..order.len()).map(|n| order[(at + n) % order.len()]).find(|p| shown(p));
        if let Some(next) = next.filter(|_| self.page == Page::Tasks) {
            self.pane = next;
        }
    }

    fn enter(&mut self) {
        match (self.page, self.pane) {
            (Page::Tasks, Pane::Runs) => self.pane = Pane::Tasks,
            (Page::Tasks | Page::Timeline, _) => self.page = Page::Detail,
            (Page::Detail, _) => self.page = Page::Log,
            (Page::Log, _) => {}
        }
    }

    /// Moves what the arrows move.
    fn go(&mut self, key: Key, picture: &Picture<'_>) -> Action {
        if matches!((self.page, self.pane), (Page::Detail | Page::Log, _) | (Page::Tasks, Pane::Output)) {
            let page = self.output_rows(picture).saturating_sub(1).max(1);
            return Action::Scroll(match key {
                Key::Up => Scroll::Up(1),
                Key::Down => Scroll::Down(1),
                Key::PageUp => Scroll::Up(page),
                Key::PageDown => Scroll::Down(page),
                Key::Home => Scroll::Home,
                _ => Scroll::End,
            });
        }
        self.step(key, picture);
        Action::Nothing
    }

    fn step(&mut self, key: Key, picture: &Picture<'_>) {
        let areas = self.areas(picture);
        let rows = match (self.page, self.pane) {
            (Page::Tasks, Pane::Runs) => usize::from(areas.runs.height),
            (Page::Tasks, _) => layout::task_rows(self, &areas),
            _ => usize::from(areas.body.height.saturating_sub(2)),
        };
        let page = rows.saturating_sub(1).max(1);
        let to = |at: usize, last: usize| match key {
            Key::Up => at.saturating_sub(1),
            Key::Down => (at + 1).min(last),
            Key::PageUp => at.saturating_sub(page),
            Key::PageDown => (at + page).min(last),
            Key::Home => 0,
            _ => last,
        };
        match (self.page, self.pane) {
            (Page::Timeline, _) => {
                let last = picture.run.map_or(0, |run| run.past.worker_count().saturating_sub(rows));
                self.first_worker = to(self.first_worker, last);
            }
            (_, Pane::Runs) => {
                let at = to(self.selected_run(picture), picture.runs.len().saturating_sub(1));
                self.run = picture.runs.get(at).map(|row| row.id.clone());
            }
            _ => self.move_task(picture, to),
        }
    }

    fn move_task(&mut self, picture: &Picture<'_>, to: impl Fn(usize, usize) -> usize) {
        let Some(run) = picture.run else { return };
        let chosen = chosen(run, &self.filter);
        let at = to(place(&chosen, self.task), chosen.len().saturating_sub(1));
        if let Some(&task) = chosen.get(at) {
            (self.task, self.attempt) = (task, None);
        }
    }

    fn move_attempt(&mut self, picture: &Picture<'_>, on: bool) {
        let Some(run) = picture.run else { return };
        let numbers: Vec<u32> = run.past.of(self.task).iter().map(|t| t.number).collect();
        let last = numbers.len().saturating_sub(1);
        let at = self.attempt.and_then(|n| numbers.iter().position(|m| *m == n)).unwrap_or(last);
        let at = if on { (at + 1).min(last) } else { at.saturating_sub(1) };
        // The last one stays the last one, also when there is a new one.
        self.attempt = numbers.get(at).copied().filter(|_| at < last);
    }

    fn ask_cancel(&mut self, picture: &Picture<'_>) -> Action {
        let Some(run) = picture.run else { return Action::Say("there is no run to cancel".into()) };
        if let Some(end) = &run.state.view.ended {
            return Action::Say(format!("the run has ended already: {}", lines::verdict(end.status)));
        }
        if self.page == Page::Timeline || (self.page == Page::Tasks && self.pane == Pane::Runs) {
            self.over = Over::Ask(Question::CancelRun);
            return Action::Nothing;
        }
        let Some(task) = run.state.tasks.get(self.task) else { return Action::Nothing };
        if task.phase.is_final() {
            let id = &run.plan.tasks[self.task].id;
            return Action::Say(format!("{id} is {} already; c on the list of runs means the run", task.phase.word()));
        }
        self.over = Over::Ask(Question::CancelTask(self.task));
        Action::Nothing
    }

    fn ask_retry(&mut self, picture: &Picture<'_>) -> Action {
        let Some(run) = picture.run else { return Action::Say("there is no run to retry".into()) };
        let counts = run.state.view.counts;
        if run.state.view.ended.is_none() {
            return Action::Say("the run goes on; what it leaves undone can be run again once it has ended".into());
        }
        if counts.done == counts.total {
            return Action::Say("everything in it is done".into());
        }
        self.over = Over::Ask(Question::Retry);
        Action::Nothing
    }
}

/// The task that a person looks for first: one that failed, else one that runs.
fn most_interesting(run: Opened<'_>) -> usize {
    let find = |wanted: fn(Phase) -> bool| run.state.tasks.iter().position(|t| wanted(t.phase));
    let failed = find(|p| matches!(p, Phase::Failed | Phase::TimedOut | Phase::Lost));
    failed.or_else(|| find(|p| p == Phase::Running)).unwrap_or(0)
}

/// The tasks that are listed, in the order of the plan.
pub fn chosen(run: Opened<'_>, filter: &str) -> Vec<usize> {
    if filter.is_empty() {
        return (0..run.plan.tasks.len()).collect();
    }
    let wanted = filter.to_lowercase();
    let fits = |i: &usize| {
        let (spec, task) = (&run.plan.tasks[*i], &run.state.tasks[*i]);
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        has(spec.id.as_str())
            || has(task.phase.word())
            || spec.title.as_deref().or(spec.item.as_deref()).is_some_and(has)
            || task.worker.is_some_and(|w| w.to_string().to_lowercase() == wanted)
    };
    (0..run.plan.tasks.len()).filter(fits).collect()
}

/// Where `task` stands among those that are listed, or the next one.
fn place(chosen: &[usize], task: usize) -> usize {
    chosen.partition_point(|i| *i < task).min(chosen.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::top::testing::Scene;

    fn press(view: &mut View, scene: &Scene, keys: &[Key]) -> Action {
        let mut last = Action::Nothing;
        for key in keys {
            last = view.key(*key, &scene.picture());
            view.settle(&scene.picture());
        }
        last
    }

    fn chars(text: &str) -> Vec<Key> {
        text.chars().map(Key::Char).collect()
    }

    #[test]
    fn it_begins_with_what_went_wrong_and_the_arrows_move_on() {
        let scene = Scene::new();
        let mut view = scene.view((80, 24));
        assert_eq!(scene.plan.tasks[view.task].id.as_str(), "evil");
        press(&mut view, &scene, &[Key::Up, Key::Char('k')]);
        assert_eq!(view.task, 2);
        press(&mut view, &scene, &[Key::End, Key::Down]);
        assert_eq!(view.task, 6);
        press(&mut view, &scene, &[Key::Home, Key::Up, Key::Char('n')]);
        assert_eq!(view.task, 1);
        press(&mut view, &scene, &[Key::Tab, Key::Tab, Key::Down]);
        assert_eq!((view.pane, view.run.as_ref()), (Pane::Runs, Some(&scene.rows[1].id)));
    }

    #[test]
    fn nothing_is_cancelled_without_a_clear_yes() {
        let scene = Scene::new();
        let mut view = scene.view((80, 24));
        assert!(matches!(press(&mut view, &scene, &chars("c")), Action::Say(why) if why.contains("already")));
        view.task = 1;
        for no in [Key::Char('n'), Key::Enter, Key::Escape, Key::Char('c')] {
            assert_eq!(press(&mut view, &scene, &chars("c")), Action::Nothing);
            assert_eq!(view.over, Over::Ask(Question::CancelTask(1)));
            assert!(matches!(press(&mut view, &scene, &[no]), Action::Say(_)), "{no:?}");
            assert_eq!(view.over, Over::Nothing);
        }
        assert_eq!(press(&mut view, &scene, &chars("cy")), Action::Cancel(Some(1)));
        press(&mut view, &scene, &[Key::BackTab]);
        assert_eq!(press(&mut view, &scene, &chars("cy")), Action::Cancel(None), "in the list of runs it is the run");
        press(&mut view, &scene, &[Key::Tab]);
        assert_eq!(press(&mut view, &scene, &chars("tcy")), Action::Cancel(None), "on the timeline too");
    }

    #[test]
    fn a_question_goes_with_the_run_that_it_was_asked_of() {
        let mut scene = Scene::new();
        let mut view = scene.view((80, 24));
        view.task = 1;
        press(&mut view, &scene, &chars("c"));
        scene.rows.remove(0);
        view.settle(&scene.picture());
        assert_eq!(view.over, Over::Nothing);
    }

    #[test]
    fn only_a_run_that_has_ended_is_run_again() {
        let mut scene = Scene::new();
        let mut view = scene.view((80, 24));
        assert!(matches!(press(&mut view, &scene, &chars("r")), Action::Say(why) if why.contains("goes on")));
        scene.end();
        assert_eq!(press(&mut view, &scene, &chars("ry")), Action::Retry);
        assert!(matches!(press(&mut view, &scene, &chars("c")), Action::Say(why) if why.contains("ended")));
    }

    #[test]
    fn there_is_a_way_back_from_everywhere() {
        let scene = Scene::new();
        let mut view = scene.view((80, 24));
        for (keys, page) in [("l", Page::Log), ("t", Page::Timeline)] {
            press(&mut view, &scene, &chars(keys));
            assert_eq!(view.page, page);
            assert_eq!(press(&mut view, &scene, &[Key::Escape]), Action::Nothing);
            assert_eq!(view.page, Page::Tasks);
        }
        press(&mut view, &scene, &[Key::Enter, Key::Enter, Key::Enter]);
        assert_eq!(view.page, Page::Log);
        press(&mut view, &scene, &chars("l?"));
        assert_eq!((view.page, view.over), (Page::Tasks, Over::Help));
        assert_eq!(press(&mut view, &scene, &chars("q")), Action::Nothing, "it closes the help");
        assert_eq!(press(&mut view, &scene, &chars("q")), Action::Leave);
        assert_eq!(press(&mut view, &scene, &[Key::Escape]), Action::Leave);
        for over in [Over::Help, Over::Filter, Over::Ask(Question::CancelRun), Over::Nothing] {
            view.over = over;
            assert_eq!(view.key(Key::Ctrl('c'), &scene.picture()), Action::Interrupt, "{over:?}");
        }
    }

    #[test]
    fn a_filter_lists_what_has_the_text_and_the_selection_stays_on_it() {
        let scene = Scene::new();
        let mut view = scene.view((80, 24));
        press(&mut view, &scene, &chars("/fla"));
        let listed = |view: &View| chosen(scene.picture().run.unwrap(), &view.filter);
        assert_eq!((listed(&view), view.task), (vec![2], 2));
        press(&mut view, &scene, &[Key::Backspace, Key::Backspace, Key::Backspace]);
        press(&mut view, &scene, &chars("running"));
        assert_eq!((listed(&view), view.task), (vec![1], 1), "the state counts as well");
        press(&mut view, &scene, &[Key::Enter, Key::Down]);
        assert_eq!(view.task, 1);
        assert_eq!(press(&mut view, &scene, &[Key::Escape]), Action::Nothing, "it takes the filter away");
        assert_eq!((listed(&view).len(), view.task), (7, 1));
        press(&mut view, &scene, &chars("/nowhere"));
        assert_eq!(listed(&view), [] as [usize; 0]);
        press(&mut view, &scene, &[Key::Down, Key::Escape]);
        assert_eq!(view.filter, "");
    }

    #[test]
    fn attempts_are_chosen_and_the_last_one_stays_the_last() {
        let scene = Scene::new();
        let mut view = scene.view((80, 24));
        view.task = 2;
        press(&mut view, &scene, &[Key::Left]);
        assert_eq!(view.attempt, Some(1));
        press(&mut view, &scene, &[Key::Left, Key::Right]);
        assert_eq!(view.attempt, None);
        press(&mut view, &scene, &[Key::Left, Key::Down]);
        assert_eq!(view.attempt, None, "another task has other attempts");
    }

    #[test]
    fn the_output_is_scrolled_where_it_has_the_screen_or_the_focus() {
        let scene = Scene::new();
        let mut view = scene.view((80, 24));
        press(&mut view, &scene, &chars("l"));
        assert_eq!(press(&mut view, &scene, &[Key::Up]), Action::Scroll(Scroll::Up(1)));
        assert_eq!(press(&mut view, &scene, &[Key::PageUp]), Action::Scroll(Scroll::Up(20)));
        assert_eq!(press(&mut view, &scene, &chars("g")), Action::Scroll(Scroll::Home));
        assert_eq!(press(&mut view, &scene, &chars("f")), Action::Scroll(Scroll::End));
        press(&mut view, &scene, &[Key::Escape, Key::Tab]);
        assert_eq!(view.pane, Pane::Output);
        assert_eq!(press(&mut view, &scene, &[Key::Down]), Action::Scroll(Scroll::Down(1)));
    }

    #[test]
    fn no_key_on_no_size_and_no_run_is_too_much() {
        let scene = Scene::new();
        let nothing = crate::ui::top::picture::Picture { runs: &[], run: None, ..scene.picture() };
        let keys = ["jkgG lltt/x??neefprcyrn", "\u{1b}"];
        let special = [Key::Up, Key::PageDown, Key::Home, Key::Tab, Key::BackTab, Key::Enter, Key::Left, Key::Escape];
        for size in [(1, 1), (0, 0), (3, 2), (60, 15), (200, 100)] {
            for picture in [nothing, scene.picture()] {
                let mut view = View { size, ..View::default() };
                for key in keys.iter().flat_map(|k| k.chars()).map(Key::Char).chain(special) {
                    view.settle(&picture);
                    view.key(key, &picture);
                }
            }
        }
    }
}
