//! `picket release …`, what is said of a release that is out: rollout, stop, resume, head, plan.

use super::release::RepositoryArgs;
use super::{JsonArgs, parse_version};
use clap::{Args, ValueEnum};
use picket_protocol::rollout::{MAX_JITTER_SECONDS, MAX_ROLLOUT_SECONDS};
use picket_protocol::{Wave, Window, WindowTime};
use semver::Version;
use std::path::PathBuf;

/// In which time windows are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WindowClock {
    /// The time zone of each machine.
    Local,
    /// UTC.
    Utc,
}

impl From<WindowClock> for WindowTime {
    fn from(clock: WindowClock) -> Self {
        match clock {
            WindowClock::Local => Self::Local,
            WindowClock::Utc => Self::Utc,
        }
    }
}

/// The waves of a rollout.
#[derive(Debug, Clone, Args)]
pub(crate) struct WavesArgs {
    /// The waves: how long after the start, and how many percent of all machines from then on; the last is 100.
    #[arg(long, value_name = "AFTER:PERCENT,…", value_delimiter = ',', value_parser = parse_wave)]
    pub(crate) waves: Vec<Wave>,
    /// From when the waves count (RFC 3339); now if not given.
    #[arg(long, value_name = "TIME")]
    pub(crate) start: Option<jiff::Timestamp>,
    /// The least time between two waves.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_rollout_time)]
    pub(crate) soak: u32,
    /// Over how long the machines of a wave are spread.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_jitter)]
    pub(crate) jitter: u32,
    /// When machines may restart for it, where their operator says nothing; can be given more than once.
    #[arg(long, value_name = "WINDOW")]
    pub(crate) window: Vec<Window>,
    /// In which time the windows are meant.
    #[arg(long, value_enum, default_value_t = WindowClock::Local)]
    pub(crate) window_time: WindowClock,
}

impl WavesArgs {
    /// Whether it says anything of how a release comes out.
    pub(crate) fn says_something(&self) -> bool {
        !self.waves.is_empty() || !self.window.is_empty() || self.jitter > 0
    }
}

/// `picket release rollout`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  picket release rollout 1.4.0 --waves 0h:1,1d:10,3d:50,7d:100 --jitter 4h
  picket release rollout 1.4.0 --waves 0h:5,2d:100 --window 'mon-fri 22:00-06:00'
  picket release rollout 1.4.0 --everybody")]
pub(crate) struct RolloutArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Version,
    #[command(flatten)]
    pub(crate) waves: WavesArgs,
    /// Let every machine take it at once.
    #[arg(long, conflicts_with_all = ["waves", "start", "soak", "jitter", "window", "window_time"])]
    pub(crate) everybody: bool,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release stop`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  picket release stop 1.4.0 --reason 'it fills disks'
  picket release stop --reason 'we look into it' && picket release publish --key targets.key --key online.key")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version; everything if not given.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Option<Version>,
    /// Why, for the people whose machines wait.
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) reason: String,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release resume`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version; everything if not given.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Option<Version>,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release head`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  picket release head 1.3.2
  picket release head 1.3.2 --allow-downgrade-from 1.4.0")]
pub(crate) struct HeadArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version that machines should run.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Version,
    /// Machines on this newer version go back to it; can be given more than once. Without it, none does.
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub(crate) allow_downgrade_from: Vec<Version>,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket release plan`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  picket release plan --machines 20000 --failure-rate 5%
  picket release plan 1.4.0 --waves 0h:1,1d:10,3d:100 --machines 500
  picket release plan --ids machine-ids.txt --json")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// The version; the channel's head if not given.
    #[arg(value_parser = parse_version)]
    pub(crate) version: Option<Version>,
    #[command(flatten)]
    pub(crate) waves: WavesArgs,
    /// How many machines the fleet has.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) machines: u32,
    /// The ids of the fleet's machines (their /etc/machine-id), one a line: says of each when it has its turn.
    #[arg(long, value_name = "FILE", conflicts_with = "machines")]
    pub(crate) ids: Option<PathBuf>,
    /// Let so many machines fail with the release, and say what a stop after each wave would have spared.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub(crate) failure_rate: Option<u16>,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

fn parse_wave(text: &str) -> Result<Wave, String> {
    let expected = "a wave looks like 1d:10, one day after the start for 10 % of all machines";
    let (after, percent) = text.split_once(':').ok_or(expected)?;
    let after_seconds = parse_rollout_time(after)?;
    let percent = percent.trim_end_matches('%').trim().parse().map_err(|_| expected)?;
    Ok(Wave { after_seconds, percent })
}

fn parse_rollout_time(text: &str) -> Result<u32, String> {
    parse_seconds(text, MAX_ROLLOUT_SECONDS)
}

fn parse_jitter(text: &str) -> Result<u32, String> {
    parse_seconds(text, MAX_JITTER_SECONDS)
}

fn parse_seconds(text: &str, most: u32) -> Result<u32, String> {
    let expected = || format!("a duration such as 30m, 4h or 3d, at most {} days", most / 86_400);
    let span: jiff::Span = text.trim().parse().map_err(|_| expected())?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| expected())?;
    u32::try_from(duration.as_secs()).ok().filter(|seconds| *seconds <= most).ok_or_else(expected)
}

/// A percentage in hundredths of a percent.
fn parse_percent(text: &str) -> Result<u16, String> {
    let expected = || "a percentage such as 5% or 0.5%".to_owned();
    let number: f64 = text.trim().trim_end_matches('%').trim().parse().map_err(|_| expected())?;
    if !(0.0..=100.0).contains(&number) {
        return Err(expected());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10,000, checked above")]
    let hundredths = (number * 100.0).round() as u16;
    Ok(hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_durations_and_percentages_are_read_as_people_write_them() {
        assert_eq!(parse_wave("1d:10"), Ok(Wave { after_seconds: 86_400, percent: 10 }));
        assert_eq!(parse_wave("0s:100%"), Ok(Wave { after_seconds: 0, percent: 100 }));
        assert_eq!(parse_wave("1h 30m:5").map(|wave| wave.after_seconds), Ok(5400));
        for bad in ["1d", "10:1d", "1d:x", "-1d:10", "400d:100", "1d:300"] {
            assert!(parse_wave(bad).is_err(), "{bad}");
        }
        assert_eq!([parse_percent("5%"), parse_percent("0.25")], [Ok(500), Ok(25)]);
        for bad in ["-1%", "101%", "NaN", "five"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
    }
}
