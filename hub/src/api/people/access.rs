//! Who asks, and whether they may.

use super::limits;
use crate::app::people::abuse::{client, counted_as};
use crate::app::people::csrf;
use crate::app::people::principal::{Action, Principal, Proof, Scope};
use crate::refusal::{Outcome, Refusal};
use crate::server::Peer;
use crate::state::Hub;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;
use picket_hub_db::BlockSubject;
use picket_protocol::hub::ProblemCode;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The session's cookie. The prefix makes browsers send it to this host only, and over TLS only (RFC 6265bis §4.1.3.2).
pub(crate) const COOKIE_NAME: &str = "__Host-picket";
/// The header with the token against forged requests.
pub(crate) const CSRF_HEADER: &str = "x-csrf-token";

/// From where a request comes, with proxies that are trusted left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From(pub(crate) IpAddr);

/// What came of finding out who asks.
#[derive(Debug, Clone)]
pub(crate) struct Asker(Result<Option<Arc<Principal>>, Refusal>);

impl Asker {
    /// How the audit log names them, where they said who they are.
    pub(crate) fn key(&self) -> Option<String> {
        self.0.as_ref().ok()?.as_ref().map(|principal| principal.key.clone())
    }
}

/// Who asks, and on which agents they may do what the route does.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub principal: Arc<Principal>,
    /// On which agents.
    pub scope: Scope,
    /// From where.
    pub from: IpAddr,
}

impl Caller {
    /// How the audit log names them.
    pub fn key(&self) -> &str {
        &self.principal.key
    }

    /// Refuses who may do this on some agents only.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn everywhere(&self) -> Outcome<()> {
        if self.scope == Scope::Everything {
            return Ok(());
        }
        let detail = "this concerns the whole fleet, and your permission is for agents with certain tags only";
        Err(Refusal::new(ProblemCode::Forbidden, detail))
    }
}

/// Finds out who asks, and keeps everybody to their rate. Whether they may is the routes' business.
pub(crate) async fn found_out(
    State(hub): State<Arc<Hub>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let peer = request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Peer::ip);
    // A proxy may add a line of its own instead of going on in the one that whoever asked wrote: all of them are one list
    // (RFC 9110 §5.3). A line that is no text hides what stands before it.
    let lines = request.headers().get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or("?"));
    let forwarded = lines.collect::<Vec<_>>().join(",");
    let from = client(peer, Some(&forwarded), &hub.security.trusted_proxies);
    let address = counted_as(from);
    hub.not_blocked(&BlockSubject::Address(address.clone())).await?;
    let asker = who(&hub, request.headers(), from).await;
    let counted = match &asker {
        Ok(Some(principal)) => principal.key.clone(),
        Ok(None) | Err(_) => address,
    };
    limits::within(&hub, &counted)?;
    request.extensions_mut().insert(From(from));
    request.extensions_mut().insert(Asker(asker.map(|principal| principal.map(Arc::new))));
    Ok(next.run(request).await)
}

/// Who asks: a bearer token is believed before a cookie.
async fn who(hub: &Hub, headers: &HeaderMap, from: IpAddr) -> Outcome<Option<Principal>> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        let token = token.ok_or_else(|| {
            Refusal::new(ProblemCode::Unauthenticated, "the header Authorization must be: Bearer and a token")
        })?;
        return hub.by_bearer(token, from).await.map(Some);
    }
    match cookie(headers) {
        Some(cookie) => hub.by_session(&cookie).await.map(Some),
        None => Ok(None),
    }
}

/// The value of the session's cookie.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value.to_owned())
}

/// Lets a request through to a route that needs `action`, or says why not.
pub(crate) async fn allowed(
    State((hub, action)): State<(Arc<Hub>, Option<Action>)>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let from = request.extensions().get::<From>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |from| from.0);
    let asker = request.extensions().get::<Asker>().cloned().map_or(Ok(None), |asker| asker.0);
    let principal = asker?.ok_or_else(|| {
        let detail = "say who you are: with a session, or with the header Authorization: Bearer and a token";
        Refusal::new(ProblemCode::Unauthenticated, detail)
    })?;
    let scope = match action {
        // What everybody may who is somebody: asking who one is, signing out.
        None => Scope::Everything,
        Some(action) => principal.scope(action).ok_or_else(|| {
            let detail = format!("this needs the permission {}; ask somebody who may grant it", action.as_str());
            Refusal::new(ProblemCode::Forbidden, detail)
        })?,
    };
    not_forged(&hub, &principal, &request)?;
    request.extensions_mut().insert(Caller { principal, scope, from });
    Ok(next.run(request).await)
}

/// Refuses a change that a session's cookie asks for without the token that only our own pages have.
fn not_forged(hub: &Hub, principal: &Principal, request: &Request) -> Outcome<()> {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let policy = &hub.security.policies.csrf_protection;
    if is_safe || !matches!(principal.proof, Proof::Session { .. }) || !policy.require_csrf {
        return Ok(());
    }
    let token = request.headers().get(CSRF_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let cookie = cookie(request.headers()).unwrap_or_default();
    if csrf::holds(token, &cookie, hub.clock.now(), i64::from(policy.token_max_age)) {
        return Ok(());
    }
    let detail =
        format!("a change with a session needs its token in the header {CSRF_HEADER}; get one at /api/v1/auth/whoami");
    Err(Refusal::new(ProblemCode::CsrfInvalid, detail))
}
