//! The built binary, end to end, without root: every command, the agent, the updater on the supervisor.
//!
//! Real builds, real signatures, a real server on loopback. Each test has an installation of its own in a temporary
//! folder; they run side by side.
#![expect(clippy::disallowed_methods, reason = "tests look at files and processes directly")]
#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod agent;
mod bad_release;
mod bundle;
mod cache;
mod cli;
mod config;
mod data;
mod dev;
mod docs;
mod fetcher;
mod history;
mod hooks;
mod hostile;
mod house;
mod hub;
mod hub_data;
mod hub_nats;
mod install;
mod judges;
mod killpoints;
mod listing;
mod minisign;
mod network;
mod ownership;
mod peers;
mod portable;
mod prometheus;
mod proxy;
mod records;
mod regressions;
mod release;
mod rollouts;
mod runbooks;
mod trust;
mod update;
