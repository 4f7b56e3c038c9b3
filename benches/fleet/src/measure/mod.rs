//! What a hub can do, beside what its store can do alone, in the same run.

pub mod beats;
pub mod ingest;
mod plain;

use std::path::PathBuf;
use std::time::Duration;

/// What is measured, and where.
pub struct Bench {
    /// The built `picket`.
    pub picket: PathBuf,
    /// The file system to measure.
    pub dir: PathBuf,
}

impl Bench {
    fn folder(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("picket-bench-").tempdir_in(&self.dir).unwrap()
    }
}

/// The middle one.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A time for people.
fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
