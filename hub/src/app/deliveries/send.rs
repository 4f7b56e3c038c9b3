//! Sends what is to be told: signed, one replica at a time, again after growing waits, with an end. A web hook that does
//! not answer keeps none of the others waiting.
//!
//! Signature and headers are those of the Standard Webhooks specification (1.0): `webhook-id`, `webhook-timestamp` and
//! `webhook-signature`, which is `v1,` and the base64 of the HMAC-SHA256 over `id.timestamp.body`. The id stays the same
//! when it is sent again: whoever is told twice knows by it.

use crate::server::told_to_stop;
use crate::state::Hub;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Delivery, FindingFilter, PageRequest, Result as DbResult};
use picket_transport::{Client, Network, Post, SafeUrl, Timeouts, TransportError};
use serde_json::json;
use sha2::Sha256;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use uuid::Uuid;

/// Posts at a time, and those of them that are to one web hook.
const AT_A_TIME: usize = 16;
const AT_A_TIME_EACH: usize = 2;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(20);
/// For how long what is being sent is this replica's alone.
const LEASE: SignedDuration = SignedDuration::from_secs(60);
/// How long it waits for something to tell before it looks anyway.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often it is tried; after that it is given up, and an operator may send it again. Some two and a half hours.
const ATTEMPTS: u32 = 12;
/// The wait after the first failure, doubled after each further one, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The longest for which a web hook is left alone that is not reached. It begins with [`FIRST_WAIT`], too.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// The longest answer that is read, in bytes; nothing of it is used.
const MAX_ANSWER: u64 = 64 << 10;

/// How it goes with a web hook.
#[derive(Default)]
struct Target {
    /// Posts to it that are under way.
    sending: usize,
    /// How often in a row it was not reached.
    failures: u32,
    /// Until when it is left alone.
    rests_until: Option<Timestamp>,
}

/// Those that are being told, or cannot be reached: none of them has all posts, however long it takes to answer.
#[derive(Default)]
struct Targets(HashMap<String, Target>);

impl Targets {
    /// Who is told nothing more for now.
    fn closed(&self, now: Timestamp) -> Vec<String> {
        let is_closed = |target: &Target| {
            let most = if target.failures == 0 { AT_A_TIME_EACH } else { 1 };
            target.sending >= most || target.rests_until.is_some_and(|until| until > now)
        };
        self.0.iter().filter(|(_, target)| is_closed(target)).map(|(name, _)| name.clone()).collect()
    }

    fn begun(&mut self, name: &str) {
        self.0.entry(name.to_owned()).or_default().sending += 1;
    }

    fn ended(&mut self, name: &str, reached: bool, now: Timestamp) {
        let Some(target) = self.0.get_mut(name) else { return };
        target.sending = target.sending.saturating_sub(1);
        if reached {
            (target.failures, target.rests_until) = (0, None);
        } else if target.rests_until.is_none_or(|until| until <= now) {
            // Of several that failed at once one counts.
            target.failures = target.failures.saturating_add(1);
            let rest = SignedDuration::try_from(rest(target.failures)).unwrap_or(SignedDuration::ZERO);
            target.rests_until = now.checked_add(rest).ok();
        }
        if target.sending == 0 && target.failures == 0 {
            self.0.remove(name);
        }
    }
}

/// For how long a web hook is left alone that was not reached so often in a row.
fn rest(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_WAIT.saturating_mul(doubled).min(LONGEST_REST)
}

/// The posts that are under way: what became of each, and to whom it was.
#[derive(Default)]
struct Sending {
    posts: JoinSet<DbResult<bool>>,
    to: HashMap<Id, String>,
    targets: Targets,
}

impl Sending {
    /// Begins to send what is due, as much as may be under way at once.
    async fn fill(&mut self, hub: &Arc<Hub>) -> DbResult<()> {
        let holder = hub.replica.to_string();
        while self.posts.len() < AT_A_TIME {
            let now = hub.clock.now();
            let until = now.checked_add(LEASE).unwrap_or(now);
            let except = self.targets.closed(now);
            let claimed = hub.db.claim_deliveries(hub.tenant, &holder, now, until, 1, &except).await?;
            if claimed.is_empty() {
                return Ok(());
            }
            // One was asked for; whatever is claimed is nobody else's until the lease ends.
            for delivery in claimed {
                let (hub, target) = (Arc::clone(hub), delivery.delivery.target.clone());
                self.targets.begun(&target);
                let post = self.posts.spawn(async move { deliver(&hub, delivery).await });
                self.to.insert(post.id(), target);
            }
        }
        Ok(())
    }

    /// Notes what became of a post.
    fn ended(&mut self, ended: Result<(Id, DbResult<bool>), JoinError>, now: Timestamp) {
        let (id, reached) = match ended {
            Ok((id, Ok(reached))) => (id, reached),
            Ok((id, Err(error))) => {
                tracing::warn!(%error, "what became of a delivery is not noted; it is sent again");
                (id, true)
            }
            Err(error) => (error.id(), true),
        };
        if let Some(target) = self.to.remove(&id) {
            self.targets.ended(&target, reached, now);
        }
    }
}

/// Sends until the hub stops. What is being sent then is sent again by whoever comes next.
pub async fn run(hub: Arc<Hub>) {
    let (mut found, mut stop) = (hub.found.subscribe(), hub.stop.clone());
    let mut sending = Sending::default();
    loop {
        found.borrow_and_update();
        tokio::select! {
            filled = sending.fill(&hub) => {
                if let Err(error) = filled {
                    tracing::warn!(%error, "nobody is told of anything");
                }
            }
            () = told_to_stop(&mut stop) => return,
        }
        tokio::select! {
            Some(ended) = sending.posts.join_next_with_id() => sending.ended(ended, hub.clock.now()),
            _ = tokio::time::timeout(LOOK_AGAIN, found.changed()) => {}
            () = told_to_stop(&mut stop) => return,
        }
    }
}

/// Sends one. Says whether the other side was there, whatever it said.
async fn deliver(hub: &Hub, delivery: Delivery) -> DbResult<bool> {
    let (id, holder) = (delivery.delivery.id, hub.replica.to_string());
    let outcome = post(hub, &delivery).await?;
    let now = hub.clock.now();
    match outcome {
        Ok(()) => {
            tracing::debug!(%id, "a delivery was taken");
            hub.db.delivery_done(hub.tenant, id, &holder, now).await?;
            Ok(true)
        }
        Err((why, retry)) => {
            // Without randomness all wait equally long, which still works.
            let wait = retry.and_then(|asked| wait(delivery.attempts, asked, getrandom::u64().unwrap_or_default()));
            let next = wait.and_then(|wait| now.checked_add(SignedDuration::try_from(wait).ok()?).ok());
            if next.is_none() {
                tracing::warn!(%id, target = delivery.delivery.target, why, "a delivery is given up");
            }
            hub.db.delivery_failed(hub.tenant, id, &holder, &why, next, now).await?;
            // What is not worth to try again was answered, or is not to be told at all.
            Ok(retry.is_none())
        }
    }
}

/// Why it failed, and for how long the other side wants to be left alone if it is worth to try again.
type Failed = (String, Option<Duration>);

async fn post(hub: &Hub, delivery: &Delivery) -> DbResult<Result<(), Failed>> {
    let gone = |why: &str| Ok(Err((why.to_owned(), None)));
    let target = delivery.delivery.target.parse::<Uuid>().ok();
    let webhook = match target {
        Some(id) => hub.webhook(id).await?,
        None => None,
    };
    let Some((webhook, _)) = webhook else { return gone("the web hook is gone") };
    if !webhook.enabled {
        return gone("the web hook is disabled");
    }
    let (url, secret) = match hub.unseal(&webhook) {
        Ok(opened) => opened,
        Err(refusal) => return gone(&refusal.to_string()),
    };
    let mut payload = delivery.delivery.payload.clone();
    let event = payload["data"]["event_id"].as_str().and_then(|id| id.parse().ok());
    if let (Some(event), Some(rule)) = (event, payload["data"]["rule_id"].as_str()) {
        // Which finding it became was not known when this was decided.
        let filter = FindingFilter { event: Some(event), rule: Some(rule.to_owned()), ..FindingFilter::default() };
        let found = hub.db.findings(hub.tenant, &filter, &PageRequest::first(1)).await?;
        payload["data"]["finding_id"] = json!(found.items.first().map(|finding| finding.id));
    }
    let headers = signed(&delivery.delivery.id.to_string(), hub.clock.now(), &payload.to_string(), &secret);
    let user_agent = format!("picket-hub/{}", hub.build.version);
    let network = hub.network.clone();
    let sent =
        tokio::task::spawn_blocking(move || send(&client(&user_agent, &network), &url, &payload.to_string(), &headers))
            .await;
    Ok(match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err((error.to_string(), retry(&error))),
        Err(_) => Err(("the post broke off".to_owned(), Some(Duration::ZERO))),
    })
}

fn client(user_agent: &str, network: &Network) -> Client {
    Client::new(user_agent, Timeouts { connect: LIMIT / 2, response: LIMIT, stall: LIMIT }, network)
}

fn send(client: &Client, url: &SafeUrl, body: &str, headers: &[(String, String)]) -> Result<(), TransportError> {
    let post = Post {
        content_type: "application/json",
        body: body.as_bytes(),
        bearer: None,
        headers,
        trace: None,
        max_answer: MAX_ANSWER,
        limit: LIMIT,
    };
    client.post(url, &post).map(drop)
}

/// The headers that say which delivery it is, and that it is ours.
fn signed(id: &str, now: Timestamp, body: &str, secret: &str) -> Vec<(String, String)> {
    let key = STANDARD.decode(secret.trim_start_matches(super::SECRET_PREFIX)).unwrap_or_default();
    let seconds = now.as_second();
    // The keys are 32 bytes, within one block of SHA-256, so that they are used as they are (RFC 2104 §2).
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    let length = key.len().min(block.len());
    block[..length].copy_from_slice(&key[..length]);
    let mut mac = Hmac::<Sha256>::new(&block);
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let header = |name: &str, value: String| (name.to_owned(), value);
    vec![
        header("webhook-id", id.to_owned()),
        header("webhook-timestamp", seconds.to_string()),
        header("webhook-signature", format!("v1,{signature}")),
    ]
}

/// Whether it is worth to try again, and not before which time: not what this hub got wrong (RFC 9110 §15.5).
fn retry(error: &TransportError) -> Option<Duration> {
    match error {
        TransportError::Status { status, retry_after, .. } => {
            matches!(status, 408 | 425 | 429 | 500..=599).then_some(retry_after.unwrap_or_default())
        }
        // A post that was answered at too great a length has arrived.
        TransportError::Url(_) | TransportError::Authorities | TransportError::TooLarge { .. } => None,
        _ => Some(Duration::ZERO),
    }
}

/// The wait after the `attempt`th failure: doubled each time, of which a random half is left out, and at least what was
/// asked for; none when it was tried often enough.
fn wait(attempt: u32, asked: Duration, random: u64) -> Option<Duration> {
    if attempt >= ATTEMPTS {
        return None;
    }
    let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    let whole = FIRST_WAIT.saturating_mul(doubled).min(LONGEST_WAIT);
    // A thousand steps are random enough for two sides not to meet again.
    let steps = u32::try_from(random % 1000).unwrap_or_default();
    Some((whole / 2 + whole / 2000 * steps).max(asked.min(LONGEST_WAIT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_is_signed_as_standard_webhooks_does() {
        // The example that the specification's own libraries are tested with.
        let (secret, id) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek");
        let now = Timestamp::from_second(1_614_265_330).unwrap();
        let headers = signed(id, now, r#"{"test": 2432232314}"#, secret);
        let values: Vec<&str> = headers.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, [id, "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="]);
    }

    #[test]
    fn who_is_slow_or_away_has_few_of_the_posts_and_is_asked_less_and_less() {
        let at = |seconds: i64| Timestamp::from_second(1_614_265_330 + seconds).unwrap();
        let mut targets = Targets::default();
        targets.begun("slow");
        assert_eq!(targets.closed(at(0)), Vec::<String>::new());
        targets.begun("slow");
        assert_eq!(targets.closed(at(0)), ["slow"]);
        targets.ended("slow", false, at(20));
        targets.ended("slow", false, at(20));
        assert_eq!(targets.closed(at(24)), ["slow"], "it rests");
        assert_eq!(targets.closed(at(25)), Vec::<String>::new(), "and is tried again: two at once counted as one");
        targets.begun("slow");
        assert_eq!(targets.closed(at(25)), ["slow"], "with one");
        targets.ended("slow", false, at(25));
        assert_eq!(targets.closed(at(34)), ["slow"]);
        targets.ended("slow", true, at(36));
        assert!(targets.0.is_empty(), "it is back");
        assert_eq!((rest(1), rest(2), rest(40)), (FIRST_WAIT, FIRST_WAIT * 2, LONGEST_REST));
    }

    #[test]
    fn waits_grow_and_come_to_an_end() {
        let mut last = Duration::ZERO;
        for attempt in 1..ATTEMPTS {
            let shortest = wait(attempt, Duration::ZERO, 0).unwrap();
            assert!(shortest >= last && shortest >= FIRST_WAIT / 2 && shortest <= LONGEST_WAIT);
            assert!(wait(attempt, Duration::ZERO, 999).unwrap() <= LONGEST_WAIT);
            last = shortest;
        }
        assert_eq!(wait(ATTEMPTS, Duration::ZERO, 0), None);
        assert_eq!(wait(1, Duration::from_secs(30), 0), Some(Duration::from_secs(30)), "as the other side asks");
        assert_eq!(wait(1, Duration::from_secs(86_400), 0), Some(LONGEST_WAIT), "but not for ever");
    }
}
