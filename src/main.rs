//! Picket: installer, service, agent, updater and release tool in one static binary.
//!
//! This crate is thin: it parses ([`cli`]), resolves ([`settings`]), wires the rooms together ([`wiring`]), runs one
//! command ([`commands`]) and prints ([`output`]). Nothing else prints, reads arguments or the environment, or exits.

mod build;
mod cli;
mod commands;
mod error;
mod exit_code;
mod output;
mod process;
mod settings;
mod wiring;

fn main() -> std::process::ExitCode {
    let process = process::Process::of_this();
    commands::run(&process).into()
}
