//! Asking an agent how it is, over its local API.

use picket_protocol::{HealthReport, LivezReport};
use picket_transport::{Client, Network, SafeUrl, Timeouts};
use std::time::Duration;

/// The largest answer that is read, in bytes.
const MAX_BYTES: u64 = 256 << 10;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks whichever agent runs on this machine.
pub trait Probe {
    /// `/livez`; `None` when nobody answers, or not in our words.
    fn livez(&self) -> Option<LivezReport>;
    /// `/health`, healthy or not.
    fn health(&self) -> Option<HealthReport>;
}

/// Asks over HTTP.
#[derive(Debug, Clone)]
pub struct HttpProbe {
    client: Client,
    base: SafeUrl,
}

impl HttpProbe {
    /// Asks the health server at `base` (`http://127.0.0.1:9091`).
    pub fn new(base: SafeUrl, user_agent: &str) -> Self {
        let timeouts = Timeouts { connect: LIMIT, response: LIMIT, stall: LIMIT };
        Self { client: Client::new(user_agent, timeouts, &Network::default()), base }
    }
}

impl Probe for HttpProbe {
    fn livez(&self) -> Option<LivezReport> {
        let bytes = self.client.get_bytes(&self.base.join("livez").ok()?, MAX_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn health(&self) -> Option<HealthReport> {
        // An unhealthy agent answers 503 with the same document.
        let bytes = self.client.get_any_status(&self.base.join("health").ok()?, MAX_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}
