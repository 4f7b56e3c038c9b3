//! Breaks the updater, the installer and the supervisor at every system call they make, and cuts their power at every
//! moment that a disk can tell from another; then starts the machine again and looks whether it lives.
//!
//! A program of its own and not a test: the whole takes the better part of an hour, is gone on with where it was broken
//! off, and counts. `tests/sample.rs` runs the same code on a few points in each test run.
//!
//! - [`run`]: faults at calls (`strace --inject`), one a start of the machine.
//! - [`power`]: what was not synced is lost.
//! - [`scenario`]: the commands that are broken, and what must hold afterwards ([`survive`]).

pub mod call;
pub mod power;
pub mod run;
pub mod sameness;
pub mod scenario;
pub mod site;
pub mod stored;
pub mod survive;
