//! `picket config history`, `diff` and `restore`.

use super::JsonArgs;
use clap::Args;

/// Which configuration of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pick {
    /// So many changes back; 0 is the newest.
    Back(u64),
    /// The newest whose digest begins with this.
    Digest(String),
}

fn parse_pick(text: &str) -> Result<Pick, String> {
    match text {
        "current" => return Ok(Pick::Back(0)),
        "previous" => return Ok(Pick::Back(1)),
        _ => {}
    }
    if let Some(back) = text.strip_prefix('-') {
        return back.parse().map(Pick::Back).map_err(|_| "expected a number after the dash, for example -2".to_owned());
    }
    let digest = text.to_ascii_lowercase();
    if (4..=64).contains(&digest.len()) && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Pick::Digest(digest));
    }
    Err("expected current, previous, -N (N changes back), or the first four or more digits of a digest".to_owned())
}

/// `picket config history`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HistoryArgs {
    /// How many.
    #[arg(short = 'n', long, default_value_t = 20)]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket config diff`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DiffArgs {
    /// The earlier one: current, previous, -N for N changes back, or the beginning of a digest.
    #[arg(default_value = "previous", value_parser = parse_pick, allow_negative_numbers = true)]
    pub(crate) from: Pick,
    /// The later one, said in the same way.
    #[arg(default_value = "current", value_parser = parse_pick, allow_negative_numbers = true)]
    pub(crate) to: Pick,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// `picket config restore`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigRestoreArgs {
    /// Which one: previous, -N for N changes back, or the beginning of a digest.
    #[arg(value_name = "DIGEST", value_parser = parse_pick, allow_negative_numbers = true)]
    pub(crate) entry: Pick,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Restore it even if this version cannot use it.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_picked_by_word_by_distance_or_by_digest() {
        assert_eq!(parse_pick("current"), Ok(Pick::Back(0)));
        assert_eq!(parse_pick("previous"), Ok(Pick::Back(1)));
        assert_eq!(parse_pick("-7"), Ok(Pick::Back(7)));
        assert_eq!(parse_pick("3F2A"), Ok(Pick::Digest("3f2a".into())));
        for wrong in ["", "3f2", "-x", "--", "older", "3f2g", &"a".repeat(65)] {
            assert!(parse_pick(wrong).is_err(), "{wrong}");
        }
    }
}
