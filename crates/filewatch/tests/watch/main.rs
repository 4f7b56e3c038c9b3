//! Watchers on real file systems, by both of the kernel's interfaces.
#![expect(clippy::disallowed_methods, reason = "the tests are the programs whose doings are watched")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]
#![expect(clippy::print_stdout, reason = "a test says with what it runs, and why not with more")]

mod away;
mod harness;
mod limits;
mod model;
mod single;
mod trees;
