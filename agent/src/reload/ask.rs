//! Asking for the configuration to be read anew, and hearing what came of it.

use super::Wake;
use crate::hub::pushed::Effective;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// How long the parts of the agent may take to follow a new configuration.
const LIMIT: Duration = Duration::from_secs(20);

/// What answers.
type Answer = dyn Fn() -> Result<Effective, Vec<String>> + Send + Sync;

/// Asks for the configuration to be read anew.
#[derive(Clone)]
pub(crate) struct Asker(Arc<Answer>);

impl Asker {
    pub(super) fn of(wakes: SyncSender<Wake>) -> Self {
        Self::answering(move || {
            let (reply, answer) = sync_channel(1);
            let gone = || Err(vec!["the agent stops".to_owned()]);
            if wakes.send(Wake::Hub(reply)).is_err() {
                return gone();
            }
            let late = || Err(vec![format!("it did not take effect within {} s", LIMIT.as_secs())]);
            answer.recv_timeout(LIMIT).unwrap_or_else(|_| late())
        })
    }

    /// One that answers so.
    pub(crate) fn answering(answer: impl Fn() -> Result<Effective, Vec<String>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// Has the configuration read; the one in force, or why the new one is not. Blocks.
    pub(crate) fn ask(&self) -> Result<Effective, Vec<String>> {
        (self.0)()
    }
}
