//! The bells of a run: who waits for what hangs one, and who has written something rings those that it concerns. The rules
//! are `logic::wake`'s; this is the hand that pulls.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;

use crate::base::ids::WorkerNo;
use crate::logic::wake::{Concern, Wake};
use crate::store::log;
use crate::store::run::{BELLS, RunDir};
use crate::sys::bell::{self, Bell};
use crate::sys::dir::Dir;

/// Hangs a bell that rings when something happens in the run that is of this concern.
pub fn hang(folder: &RunDir, concern: &Concern) -> io::Result<Bell> {
    Bell::hang(&folder.dir.sub(BELLS)?, &concern.name(), || folder.dir.open_read(log::NAME))
}

/// Rings whom `wake` names, except `own`: whoever writes knows what it wrote. Whoever cannot be rung looks by itself, later.
pub fn ring(folder: &RunDir, wake: &Wake, own: &[OsString]) {
    if wake.is_empty() {
        return;
    }
    let Ok(bells) = folder.dir.sub(BELLS) else { return };
    let Ok(names) = bells.names_at_most(bell::MOST) else { return };
    let (own, others): (Vec<OsString>, Vec<OsString>) = names.into_iter().partition(|name| own.contains(name));
    let hung: Vec<Hung<'_>> = others.iter().filter_map(|name| Hung::of(name)).collect();
    for one in hung.iter().filter(|one| wake.rings(&one.concern) && one.concern != Concern::Lead) {
        one.ring(&bells);
    }
    let offer = wake.offered();
    let mine = own.iter().filter_map(|name| Hung::of(name));
    // The writer itself, where it is idle: it found nothing to take now, and knows when there will be.
    let mut taken = mine.filter(|one| one.is_one_of(&offer.idle)).count();
    let mut idle = hung.iter().filter(|one| one.is_one_of(&offer.idle));
    while taken < offer.wanted
        && let Some(one) = idle.next()
    {
        // One that is stopped may take it in an hour, so that the next one is asked too.
        taken += usize::from(one.ring(&bells) && !bell::is_stopped(one.pid));
    }
    // The leader starts workers for what nobody has taken.
    if wake.rings(&Concern::Lead) || taken < offer.wanted {
        let leads = |name: &OsString| Hung::of(name).is_some_and(|one| one.concern == Concern::Lead);
        let mut heard = own.iter().any(leads);
        for one in hung.iter().filter(|one| one.concern == Concern::Lead) {
            heard |= one.ring(&bells);
        }
        // Nobody leads just now, so that everybody who could looks.
        if !heard {
            for one in hung.iter().filter(|one| matches!(one.concern, Concern::Worker(_))) {
                one.ring(&bells);
            }
        }
    }
}

/// A bell in the folder.
struct Hung<'a> {
    name: &'a OsStr,
    pid: i32,
    concern: Concern,
}

impl Hung<'_> {
    fn of(name: &OsStr) -> Option<Hung<'_>> {
        let (pid, concern) = bell::parts(name)?;
        Some(Hung { name, pid, concern: Concern::parse(concern) })
    }

    fn is_one_of(&self, workers: &BTreeSet<WorkerNo>) -> bool {
        matches!(self.concern, Concern::Worker(worker) if workers.contains(&worker))
    }

    /// Whether somebody heard it. One that nobody listens to is swept away.
    fn ring(&self, bells: &Dir) -> bool {
        bell::ring(bells, self.name).unwrap_or(false)
    }
}
