//! Who changes a run: workers that run its tasks, and anybody who finishes what a dead worker left behind. There is no step
//! that only one particular process can do; locks decide who does it now.

pub mod again;
pub mod attempt;
pub mod claude;
pub mod crew;
pub mod environ;
pub mod git;
pub mod hung;
pub mod isolate;
pub mod launch;
pub mod outcome;
pub mod patch;
pub mod planner;
pub mod seats;
pub mod spools;
pub mod starter;
pub mod vigil;
pub mod worker;
