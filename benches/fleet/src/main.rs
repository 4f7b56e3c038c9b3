//! The command line of the load: run by `scripts/faults` and `scripts/bench hub`.

use clap::{Parser, Subcommand};
use picket_load::faults::{self, Nats, Plan, child, damage};
use picket_load::measure::{self, Bench};
use picket_load::process;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Simulated fleets around a real hub.
#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One agent that is to be killed: started by `faults`.
    #[command(hide = true)]
    Agent {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        index: u32,
        #[arg(long)]
        rate: u32,
        #[arg(long)]
        quick: bool,
        #[arg(long)]
        nats: Option<String>,
    },
    /// Kill agents, hub and database at random, and compare the books at the end.
    Faults {
        /// The built `picket`.
        #[arg(long)]
        picket: PathBuf,
        /// For how long.
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// What decides what is killed when.
        #[arg(long)]
        seed: Option<u64>,
        /// `sqlite`, `postgres` or `both`, one after the other.
        #[arg(long, default_value = "both")]
        store: String,
        /// What NATS is for; else it is the hub's bus with PostgreSQL, and is not there with SQLite.
        #[arg(long)]
        nats: Option<Nats>,
        /// How many agents.
        #[arg(long, default_value_t = 10)]
        agents: u32,
        /// Events a second of each.
        #[arg(long, default_value_t = 500)]
        rate: u32,
        /// Where everything lies meanwhile.
        #[arg(long, default_value = "/tmp")]
        dir: PathBuf,
    },
    /// Tear a hub's database and fill its disk, and hear what it says.
    Damage {
        /// The built `picket`.
        #[arg(long)]
        picket: PathBuf,
        /// Where everything lies meanwhile.
        #[arg(long, default_value = "/tmp")]
        dir: PathBuf,
    },
    /// Measure.
    Measure {
        /// The built `picket`.
        #[arg(long)]
        picket: PathBuf,
        /// On which file system.
        #[arg(long, default_value = "/tmp")]
        dir: PathBuf,
        #[command(subcommand)]
        what: What,
    },
}

#[derive(Subcommand)]
enum What {
    /// Durable events a second over mutual TLS, beside the store alone.
    Ingest {
        /// Events of a round.
        #[arg(long, default_value_t = 160_000)]
        events: u64,
    },
    /// Agents connected and heart-beating.
    Beats {
        /// How many, step by step.
        #[arg(long, value_delimiter = ',', default_value = "1000,2500,5000,10000")]
        agents: Vec<u32>,
        /// For how many seconds each step is held.
        #[arg(long, default_value_t = 60)]
        hold: u64,
    },
    /// Enrolments a second, and how soon a new agent is usable.
    Enrolment {
        /// How many machines.
        #[arg(long, default_value_t = 1000)]
        machines: u32,
    },
    /// A fleet that comes back after a restart of the hub.
    Reconnect {
        /// How many agents.
        #[arg(long, default_value_t = 1000)]
        agents: u32,
    },
}

fn main() -> ExitCode {
    match Line::parse().command {
        Command::Agent { folder, index, rate, quick, nats } => {
            child::live(&child::Orders { folder, index, rate, quick, nats });
            ExitCode::SUCCESS
        }
        Command::Faults { picket, minutes, seed, store, nats, agents, rate, dir } => {
            let seed = seed.unwrap_or_else(picket_outbox::random);
            let mut failed = false;
            for name in ["sqlite", "postgres"] {
                if store != "both" && store != name {
                    continue;
                }
                let folder = faults::folder(&dir);
                let plan = Plan {
                    picket: picket.clone(),
                    load: std::env::current_exe().unwrap(),
                    agents,
                    rate,
                    duration: Duration::from_secs_f64(minutes * 60.0),
                    seed,
                    postgres: name == "postgres",
                    nats: nats.unwrap_or(if name == "postgres" { Nats::Bus } else { Nats::No }),
                    quick: false,
                    patience: Duration::from_secs(900),
                    folder: folder.path().to_owned(),
                };
                let outcome = faults::run(&plan);
                faults::tell(name, &plan, &outcome);
                if !outcome.verdict.wrong.is_empty() {
                    failed = true;
                    println!("  everything is kept in {}", folder.keep().display());
                }
            }
            if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Command::Damage { picket, dir } => {
            println!("damage:");
            let mut wrong = damage::torn(&picket, &dir);
            match damage::full(&picket, &dir) {
                Some(more) => wrong.extend(more),
                None => println!("  full disk: skipped, for no file system may be mounted here; run as root"),
            }
            wrong.iter().for_each(|wrong| println!("  WRONG: {wrong}"));
            if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Command::Measure { picket, dir, what } => {
            let bench = Bench { picket, dir };
            println!("load average before: {}", process::load_average());
            match what {
                What::Ingest { events } => measure::ingest::run(&bench, events),
                What::Beats { agents, hold } => measure::beats::run(&bench, &agents, Duration::from_secs(hold)),
                What::Enrolment { machines } => measure::beats::enrolment(&bench, machines),
                What::Reconnect { agents } => measure::beats::reconnect(&bench, agents),
            }
            ExitCode::SUCCESS
        }
    }
}
