//! Input that looks like an attack (`input_validation.forbidden_patterns`): it is told of, and never refused for that.
//!
//! Rules and events are not looked at: a security product must be able to hear of attacks, and to say what they look like.
//! What is told names the place and the pattern, not the text: it may be a password.

use super::access::{Asker, From};
use crate::api::body::{in_time, is_json};
use crate::app::admission::Each;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Query, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use picket_protocol::hub::ProblemCode;
use regex::{RegexSet, RegexSetBuilder};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// How much of a body is looked at, in bytes: more than any document of the API but rules has.
const LOOK: usize = 64 << 10;
/// How large the patterns may become, compiled, in bytes each.
const MAX_COMPILED: usize = 1 << 20;
/// Routes that take what attacks look like.
const NOT_LOOKED_AT: [&str; 2] = ["/api/v1/events", "/api/v1/rules"];
/// How often the same is told of one principal or address: once a minute, three times at once.
const TOLD: (Duration, u32) = (Duration::from_secs(60), 3);

/// The patterns, and how often they were told of.
#[derive(Debug)]
pub struct Suspicions {
    patterns: RegexSet,
    told: Each<String>,
}

impl Suspicions {
    /// Compiles them; letters match in either case.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(patterns: &[String]) -> Result<Self, String> {
        let set = RegexSetBuilder::new(patterns).case_insensitive(true).size_limit(MAX_COMPILED).build();
        let patterns = set.map_err(|error| error.to_string().replace('\n', " "))?;
        Ok(Self { patterns, told: Each::new("suspicious inputs", TOLD.0, TOLD.1) })
    }

    /// The first place in these that matches, and the pattern.
    fn find<'a>(&'a self, texts: &'a [(String, String)]) -> Option<(&'a str, &'a str)> {
        texts.iter().find_map(|(place, text)| {
            let index = self.patterns.matches(text).iter().next()?;
            Some((place.as_str(), self.patterns.patterns()[index].as_str()))
        })
    }
}

/// Looks at a request on its way.
///
/// # Errors
/// `invalid` for a text that is longer than any may be, and for a body that does not arrive.
pub(super) async fn noticed(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Result<Response, Refusal> {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    if NOT_LOOKED_AT.iter().any(|prefix| route.starts_with(prefix)) {
        return Ok(next.run(request).await);
    }
    let (request, texts) = read(request).await?;
    within(&texts, hub.security.policies.input_validation.max_input_length)?;
    if let Some((place, pattern)) = hub.suspicions.find(&texts) {
        let address = request.extensions().get::<From>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |from| from.0);
        let principal = request.extensions().get::<Asker>().and_then(Asker::key);
        let who = principal.clone().unwrap_or_else(|| address.to_string());
        if hub.suspicions.told.admit(&format!("{who} {pattern}")).is_ok() {
            let details = json!({
                "address": address, "principal": principal, "method": request.method().as_str(), "route": route,
                "place": place, "pattern": pattern,
            });
            let telling = Arc::clone(&hub);
            hub.tasks.spawn(async move { telling.report("suspicious_input", details).await });
        }
    }
    Ok(next.run(request).await)
}

/// Refuses a text of more than `limit` characters, whatever its field allows.
fn within(texts: &[(String, String)], limit: u32) -> Outcome<()> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let too_long = |(_, text): &&(String, String)| text.len() > limit && text.chars().count() > limit;
    texts.iter().find(too_long).map_or(Ok(()), |(place, _)| {
        let detail = format!("the text at {place} is longer than the {limit} characters that are taken");
        Err(Refusal::new(ProblemCode::Invalid, detail))
    })
}

/// The texts of a request, by their places, and the request as it was.
async fn read(request: Request) -> Outcome<(Request, Vec<(String, String)>)> {
    let mut texts = Vec::new();
    if let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()) {
        texts.extend(pairs.into_iter().map(|(name, value)| (format!("?{name}"), value)));
    }
    if !is_json(request.headers()) {
        return Ok((request, texts));
    }
    let (parts, mut body) = request.into_parts();
    // Nobody has looked yet who asks: somebody may send half a body and keep the connection for it.
    let (seen, pieces) = in_time(beginning(&mut body)).await?;
    if let Ok(value) = serde_json::from_slice::<Value>(&seen) {
        walk(&value, &mut String::new(), &mut texts);
    }
    let whole = Body::from_stream(stream::iter(pieces).chain(body.into_data_stream()));
    Ok((Request::from_parts(parts, whole), texts))
}

/// The beginning of a body, as far as it is looked at: in one, and as it came.
async fn beginning(body: &mut Body) -> (Vec<u8>, Vec<Result<Bytes, axum::Error>>) {
    let (mut seen, mut pieces) = (Vec::new(), Vec::new());
    while seen.len() < LOOK {
        match body.frame().await {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                seen.extend_from_slice(&data);
                pieces.push(Ok(data));
            }
            // Whoever reads it next hears that it broke off.
            Some(Err(error)) => {
                pieces.push(Err(error));
                break;
            }
            None => break,
        }
    }
    (seen, pieces)
}

/// The texts of a document, by JSON pointers (RFC 6901). The reader bounds how deep it goes.
fn walk(value: &Value, place: &mut String, texts: &mut Vec<(String, String)>) {
    let below = |step: &str, value: &Value, place: &mut String, texts: &mut Vec<(String, String)>| {
        let length = place.len();
        place.push('/');
        place.push_str(&step.replace('~', "~0").replace('/', "~1"));
        walk(value, place, texts);
        place.truncate(length);
    };
    match value {
        Value::String(text) => texts.push((place.clone(), text.clone())),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| below(&at.to_string(), value, place, texts));
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                // A name of the sender's own may be what matches.
                texts.push((place.clone(), name.clone()));
                below(name, value, place, texts);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::InputValidation;
    use axum::http::header::CONTENT_TYPE;

    fn usual() -> Suspicions {
        Suspicions::new(&InputValidation::default().forbidden_patterns).unwrap()
    }

    #[tokio::test]
    async fn the_place_of_what_looks_like_an_attack_is_found_and_the_request_stays_as_it_was() {
        let document = json!({"name": "ok", "list": [{"a/b": "x UNION  SELECT y"}]}).to_string();
        let request = Request::builder()
            .uri("/api/v1/agents?cursor=..%2F..%2Fetc&limit=5")
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(document.clone()))
            .unwrap();
        let (request, texts) = read(request).await.unwrap();
        let suspicions = usual();
        assert_eq!(suspicions.find(&texts), Some(("?cursor", r"\.\./")));
        assert_eq!(suspicions.find(&texts[2..]), Some(("/list/0/a~1b", r"union\s+select")));
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        assert_eq!(body, document.as_bytes());
    }

    #[tokio::test]
    async fn json_is_looked_at_however_its_media_type_is_written() {
        let of = async |media_type: &str| {
            let body = Body::from(r#"{"name":"../"}"#);
            let request = Request::builder().header(CONTENT_TYPE, media_type).body(body).unwrap();
            read(request).await.unwrap().1.len()
        };
        for taken in ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON ;q=\"x\""] {
            assert_eq!(of(taken).await, 2, "{taken}");
        }
        assert_eq!(of("text/plain; x=json").await, 0, "nobody reads it as JSON");
    }

    #[tokio::test]
    async fn a_body_that_is_long_or_no_json_passes_unread() {
        let long = format!(r#"{{"name":"{}"}}"#, "../".repeat(LOOK));
        let request =
            Request::builder().header(CONTENT_TYPE, "application/json").body(Body::from(long.clone())).unwrap();
        let (request, _) = read(request).await.unwrap();
        assert_eq!(axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap(), long.as_bytes());
        let request = Request::builder().body(Body::from("../")).unwrap();
        assert!(read(request).await.unwrap().1.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_is_not_waited_for() {
        let half = stream::iter([Ok::<_, axum::Error>(Bytes::from_static(b"{"))]).chain(stream::pending());
        let request =
            Request::builder().header(CONTENT_TYPE, "application/json").body(Body::from_stream(half)).unwrap();
        assert_eq!(read(request).await.unwrap_err().code(), ProblemCode::Invalid);
    }

    #[test]
    fn a_text_is_as_long_as_the_policy_says_in_characters() {
        let texts = |text: &str| vec![("/name".to_owned(), text.to_owned())];
        within(&texts("äöü"), 3).unwrap();
        let refusal = within(&texts("äöüß"), 3).unwrap_err();
        assert!(refusal.to_string().contains("/name") && refusal.to_string().contains('3'), "{refusal}");
    }

    #[test]
    fn a_pattern_that_cannot_be_used_says_why() {
        assert!(Suspicions::new(&["(".to_owned()]).unwrap_err().contains("unclosed group"));
        assert!(Suspicions::new(&[]).unwrap().find(&[(String::new(), "../".into())]).is_none());
    }
}
