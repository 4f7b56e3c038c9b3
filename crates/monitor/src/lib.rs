//! Samples in rings, thresholds that do not flap, alerts with a life.
//!
//! [`Monitor`] is the pure core: it is told samples with their time and answers with summaries and with what happened to
//! alerts; it has no clock, no thread and no file. [`Notifier`] takes the events of alerts to people: the log, e-mail,
//! webhooks, each on a thread of its own, so that a mail server that hangs holds up neither the sampler nor another
//! channel.
//!
//! Bounds: a series keeps at most [`Limits::samples`] samples and none older than [`Limits::retention`]; there are at
//! most [`Limits::series`] series; [`MAX_ACTIVE`] alerts are open and [`MAX_RECENT`] closed ones remembered; names and
//! tags have the lengths in [`sample`]. A series that is full of samples takes 12 KiB; at the defaults (60 samples an
//! hour) it takes about 1 KiB, so 512 series about half a MiB.

mod alert;
mod book;
pub mod channel;
mod memory;
mod monitor;
mod operations;
mod ring;
pub mod sample;
mod series;
mod settings;
mod summary;
mod threshold;

pub use alert::{Acknowledgement, Alert};
pub use book::{AcknowledgeError, MAX_ACTIVE, MAX_BY, MAX_NOTE, MAX_RECENT};
pub use channel::{Attempt, ChannelError, ChannelStatus, Hear, Notifier, NotifierOptions};
pub use memory::{Memory, MemoryError};
pub use monitor::{Counts, Limits, Monitor};
pub use operations::{MAX_OPERATIONS, Operations};
pub use sample::{Moment, Refusal, Sample, Tags};
pub use series::SeriesInfo;
pub use settings::{
    AlertingSettings, ChannelKind, ChannelLevel, ChannelSettings, Comparison, PerformanceSettings, SmtpSettings,
    SmtpTls, ThresholdSettings, Thresholds,
};
pub use summary::{Stats, Summary};
pub use threshold::{Change, State, Threshold, ThresholdError};
