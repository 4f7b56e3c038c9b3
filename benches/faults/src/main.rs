//! The command line of the faults of updates: run by `scripts/faults`.

use clap::{Parser, Subcommand};
use picket_faults::call::Point;
use picket_faults::power;
use picket_faults::run::{self, Plan};
use picket_faults::scenario::{self, ALL, Scenario};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Breaks updates, and looks whether the machine lives.
#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A fault at every system call.
    Update {
        /// Only this scenario; may be given again.
        #[arg(long)]
        scenario: Vec<String>,
        /// Only this point, as a failure names it: CALL:NUMBER:FAULT.
        #[arg(long)]
        point: Option<Point>,
        /// So many points, chosen by the seed.
        #[arg(long)]
        sample: Option<usize>,
        /// What decides which are chosen, and their order.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Every call of a long transfer, too.
        #[arg(long)]
        every_chunk: bool,
        /// Start the machine after each point, even on a disk that was started before.
        #[arg(long)]
        each: bool,
        /// How many are tried side by side.
        #[arg(long, default_value_t = 8)]
        workers: usize,
        /// No point is begun after so many minutes.
        #[arg(long)]
        minutes: Option<u64>,
        /// Where failures are kept, and from where a run goes on that was broken off.
        #[arg(long)]
        dir: PathBuf,
        /// The executable, a test build, that all versions are made of.
        #[arg(long)]
        base: Option<PathBuf>,
    },
    /// Power cuts: every disk that one may leave.
    Power {
        /// Only this scenario; may be given again.
        #[arg(long)]
        scenario: Vec<String>,
        /// Only this state, as a failure names it.
        #[arg(long)]
        state: Option<usize>,
        /// So many states, chosen by the seed.
        #[arg(long)]
        sample: Option<usize>,
        /// What decides which are chosen, and the random ones among them.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many are tried side by side.
        #[arg(long, default_value_t = 8)]
        workers: usize,
        /// No state is begun after so many minutes.
        #[arg(long)]
        minutes: Option<u64>,
        /// Where failures are kept.
        #[arg(long)]
        dir: PathBuf,
        /// The executable, a test build, that all versions are made of.
        #[arg(long)]
        base: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    run::quiet_panics();
    match run::caught(|| obey(Line::parse().command)) {
        Ok(code) => code,
        Err(words) => {
            eprintln!("{words}");
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command) -> ExitCode {
    let minutes = |minutes: Option<u64>| minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let well = match command {
        Command::Update { scenario, point, sample, seed, every_chunk, each, workers, minutes: most, dir, base } => {
            let Some(scenarios) = chosen(&scenario, |_| true) else { return ExitCode::from(2) };
            let (ends, between) = if every_chunk { (usize::MAX / 4, 0) } else { (2, 4) };
            let limit = minutes(most);
            let plan =
                Plan { scenarios, base, only: point, sample, seed, ends, between, each, workers, limit, folder: dir };
            let outcome = run::run(&plan);
            run::tell(&plan, &outcome);
            outcome.failures.is_empty()
        }
        Command::Power { scenario, state, sample, seed, workers, minutes: most, dir, base } => {
            let Some(scenarios) = chosen(&scenario, power::is_recorded) else { return ExitCode::from(2) };
            let plan =
                power::Plan { scenarios, base, only: state, sample, seed, workers, limit: minutes(most), folder: dir };
            let outcome = power::run(&plan);
            power::tell(&plan, &outcome);
            outcome.failures.is_empty()
        }
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The scenarios of these names; all that are `fit` where there is none. `None`, and said so, when one is unknown.
fn chosen(names: &[String], fit: fn(&Scenario) -> bool) -> Option<Vec<Scenario>> {
    if names.is_empty() {
        return Some(ALL.into_iter().filter(fit).collect());
    }
    let named: Option<Vec<_>> = names.iter().map(|name| scenario::named(name).filter(fit)).collect();
    if named.is_none() {
        let names: Vec<&str> = ALL.iter().filter(|scenario| fit(scenario)).map(|scenario| scenario.name).collect();
        eprintln!("a scenario is one of: {}", names.join(", "));
    }
    named
}
