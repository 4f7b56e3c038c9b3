//! An HTTP POST for each event.

use super::{Deliver, Failure, Sender, Wrong, certificates, chain, secret};
use crate::settings::ChannelSettings;
use picket_protocol::event::{AlertEvent, EventBody};
use picket_protocol::trace::TraceContext;
use picket_transport::{Client, Post, SafeUrl, Timeouts, TransportError};
use std::time::Duration;

/// How long a post may take, from the name's look-up to the end of the answer.
const LIMIT: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes; nothing of it is used.
const MAX_ANSWER: u64 = 64 << 10;

/// Posts `{"device_id": …, "type": "alert", "details": …}`, the details being [`AlertEvent`], as in the stream of events.
/// The alert's id is the correlation id.
pub(super) struct Webhook {
    url: SafeUrl,
    token_file: Option<String>,
    authorities: Option<Vec<u8>>,
    sender: Sender,
}

impl Webhook {
    pub fn new(settings: &ChannelSettings, sender: &Sender) -> Result<Self, Wrong> {
        let url = settings.url.as_deref().ok_or_else(|| Wrong::Channel("url", "is missing".to_owned()))?;
        // Whoever knows the address of a webhook may post to it.
        let url = SafeUrl::secret(url).map_err(|e| Wrong::Channel("url", e.to_string()))?;
        let authorities = settings.ca_file.as_deref().map(certificates).transpose();
        Ok(Self {
            url,
            token_file: settings.token_file.clone(),
            authorities: authorities.map_err(|reason| Wrong::Channel("ca_file", reason))?,
            sender: sender.clone(),
        })
    }

    /// A client for one post. Alerts are rare: the authorities of the machine, half a megabyte, need not stay in memory.
    fn client(&self) -> Result<Client, TransportError> {
        let timeouts = Timeouts { connect: LIMIT / 2, response: LIMIT, stall: LIMIT };
        match &self.authorities {
            Some(pem) => Client::trusting(&self.sender.user_agent, timeouts, pem, &self.sender.network.proxy),
            None => Ok(Client::new(&self.sender.user_agent, timeouts, &self.sender.network)),
        }
    }

    /// What the file of the token has now.
    fn token(&self) -> Result<Option<String>, String> {
        self.token_file.as_deref().map(secret).transpose()
    }

    fn post(&self, event: &AlertEvent, token: Option<&str>) -> Result<(), TransportError> {
        let mut body = serde_json::to_value(EventBody::Alert(event.clone())).unwrap_or_default();
        body["device_id"] = self.sender.device_id.clone().into();
        let body = body.to_string();
        let trace = TraceContext::from_headers(Some(&event.alert_id.to_string()), None);
        let post = Post {
            content_type: "application/json",
            body: body.as_bytes(),
            bearer: token,
            headers: &[],
            trace: Some(&trace),
            max_answer: MAX_ANSWER,
            limit: LIMIT,
        };
        self.client()?.post(&self.url, &post).map(drop)
    }
}

impl Deliver for Webhook {
    fn batch(&self) -> usize {
        1
    }

    fn obstacle(&self) -> Option<Wrong> {
        self.token().err().map(|reason| Wrong::Channel("token_file", reason))
    }

    fn deliver(&mut self, events: &[AlertEvent]) -> Result<(), Failure> {
        // Read anew: a token that was changed holds from the next attempt on.
        let token = self.token();
        let token =
            token.map_err(|reason| Failure { reason: format!("token_file: {reason}"), retry: true, wait: None })?;
        let failed = |error: TransportError| failure(&error, token.is_some());
        events.iter().try_for_each(|event| self.post(event, token.as_deref())).map_err(failed)
    }
}

/// Whether it is worth trying again: not what this machine or the request got wrong (RFC 9110 §15.5). A token that is
/// refused may be one change behind the server.
fn failure(error: &TransportError, token: bool) -> Failure {
    let (retry, wait) = match error {
        TransportError::Status { status, retry_after, .. } => {
            (matches!(status, 408 | 425 | 429 | 500..=599) || token && *status == 401, *retry_after)
        }
        // A post that was answered at too great a length has arrived: it is not said twice.
        TransportError::Url(_) | TransportError::Authorities | TransportError::TooLarge { .. } => (false, None),
        _ => (true, None),
    };
    Failure { reason: chain(error), retry, wait }
}
