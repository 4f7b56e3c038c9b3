//! `/api/v1/auth`: saying who one is.

use crate::api::body;
use crate::api::people::access::{COOKIE_NAME, Caller, From, cookie};
use crate::api::people::guarded::Guarded;
use crate::app::people::csrf;
use crate::app::people::principal::Proof;
use crate::app::people::sign_in::user_key;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::header::{SET_COOKIE, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::routes;
use zeroize::Zeroizing;

/// The routes.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        // These find out by themselves who asks, and count failures against abuse.
        .route_for_nobody(routes!(login))
        .route_for_nobody(routes!(token))
        .route_for_nobody(routes!(setup))
        // Public keys are for everybody who checks a token.
        .route_for_nobody(routes!(keys))
        .route_for_all(routes!(whoami))
        .route_for_all(routes!(logout))
}

/// The longest body with a name and a password, in bytes.
const CREDENTIALS_MAX: usize = 8 << 10;

/// A name and a password.
#[derive(Deserialize, ToSchema)]
struct Credentials {
    /// What they sign in with.
    name: String,
    /// Their password.
    #[schema(format = Password)]
    password: String,
}

/// A session that has begun.
#[derive(Serialize, ToSchema)]
struct Session {
    /// Who signed in.
    name: String,
    /// The token that changes need in the header `X-CSRF-Token`.
    csrf_token: String,
    /// When the session ends at the latest.
    ends_at: Timestamp,
    /// Whether a new password must be set first.
    must_change_password: bool,
}

/// Begins a session: its cookie comes with the answer.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "auth", request_body = Credentials,
    responses((status = 200, body = Session)))]
async fn login(
    State(hub): State<Arc<Hub>>,
    Extension(From(from)): Extension<From>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: Credentials = body::json(&parts.headers, body, CREDENTIALS_MAX).await?;
    let agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let password = Zeroizing::new(asked.password);
    let signed_in = hub.sign_in(&asked.name, &password, from, agent).await?;
    let details = serde_json::json!({ "address": from.to_string() });
    hub.audit(&user_key(signed_in.user.id), "auth.login", &signed_in.user.name, details).await?;
    let session = Session {
        name: signed_in.user.name,
        csrf_token: signed_in.csrf,
        ends_at: signed_in.ends_at,
        must_change_password: signed_in.user.must_change,
    };
    let mut response = Json(session).into_response();
    set_cookie(&mut response, &signed_in.cookie, None);
    Ok(response)
}

/// The session's cookie: for this host and TLS only, out of reach of scripts, not sent with what other sites ask for.
fn set_cookie(response: &mut Response, value: &str, max_age: Option<u32>) {
    let age = max_age.map_or_else(String::new, |seconds| format!("; Max-Age={seconds}"));
    let text = Zeroizing::new(format!("{COOKIE_NAME}={value}; Path=/; Secure; HttpOnly; SameSite=Strict{age}"));
    if let Ok(mut value) = HeaderValue::from_str(&text) {
        value.set_sensitive(true);
        response.headers_mut().append(SET_COOKIE, value);
    }
}

/// A token of one hour.
#[derive(Serialize, ToSchema)]
struct Bearer {
    /// The token, to be sent as `Authorization: Bearer`.
    token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// Until when it holds.
    expires_at: Timestamp,
}

/// A name and a password for a token of one hour (JWT, `EdDSA`).
#[utoipa::path(post, path = "/api/v1/auth/token", tag = "auth", request_body = Credentials,
    responses((status = 200, body = Bearer)))]
async fn token(
    State(hub): State<Arc<Hub>>,
    Extension(From(from)): Extension<From>,
    request: Request,
) -> Outcome<Response> {
    let (parts, body) = request.into_parts();
    let asked: Credentials = body::json(&parts.headers, body, CREDENTIALS_MAX).await?;
    let password = Zeroizing::new(asked.password);
    let user = hub.user_by_password(&asked.name, &password, from).await?;
    let key = user_key(user.id);
    hub.audit(&key, "auth.token", &user.name, serde_json::json!({ "address": from.to_string() })).await?;
    let (token, expires_at) = hub.tokens.issue(&key, hub.clock.now())?;
    Ok(Json(Bearer { token, token_type: "Bearer", expires_at }).into_response())
}

/// The secret of a link, and the password to be.
#[derive(Deserialize, ToSchema)]
struct FirstPassword {
    /// The secret of the link.
    secret: String,
    /// The password to be: 12 characters or more.
    #[schema(format = Password)]
    password: String,
}

/// Sets a first password with the secret of a link that holds once.
#[utoipa::path(post, path = "/api/v1/auth/setup", tag = "auth", request_body = FirstPassword,
    responses((status = 204, description = "The password is set")))]
async fn setup(
    State(hub): State<Arc<Hub>>,
    Extension(From(from)): Extension<From>,
    request: Request,
) -> Outcome<StatusCode> {
    let (parts, body) = request.into_parts();
    let asked: FirstPassword = body::json(&parts.headers, body, CREDENTIALS_MAX).await?;
    let (secret, password) = (Zeroizing::new(asked.secret), Zeroizing::new(asked.password));
    match hub.set_up(&secret, &password).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(refusal) => {
            if refusal.code() == ProblemCode::Unauthenticated {
                hub.note_failure(from, None).await;
            }
            Err(refusal)
        }
    }
}

/// The public keys under which tokens are signed (JSON Web Key Set, RFC 7517).
#[utoipa::path(get, path = "/api/v1/auth/keys", tag = "auth", responses((status = 200, body = Object)))]
async fn keys(State(hub): State<Arc<Hub>>) -> Json<serde_json::Value> {
    Json(hub.tokens.key_set())
}

/// Who asks, and what they may.
#[derive(Serialize, ToSchema)]
#[schema(as = WhoAmI)]
struct WhoAmIView {
    /// How permissions and the audit log name them.
    principal: String,
    /// What people call them.
    name: String,
    /// By what they said who they are: `session`, `jwt` or `api_token`.
    via: String,
    /// What they may.
    permissions: Vec<PermissionView>,
    /// For sessions: the token that changes need in the header `X-CSRF-Token`. It holds for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
}

/// A permission.
#[derive(Serialize, ToSchema)]
#[schema(as = Permission)]
struct PermissionView {
    /// What: an action, or a pattern such as `agents.*`.
    action: String,
    /// On agents with this tag only.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

/// Who one is, and what one may.
#[utoipa::path(get, path = "/api/v1/auth/whoami", tag = "auth", responses((status = 200, body = WhoAmIView)))]
async fn whoami(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Json<WhoAmIView> {
    let principal = &caller.principal;
    let permissions =
        principal.grants.iter().map(|grant| PermissionView { action: grant.action.clone(), tag: grant.tag.clone() });
    let (via, csrf_token) = match principal.proof {
        Proof::Session { .. } => ("session", cookie(&headers).map(|cookie| csrf::token(&cookie, hub.clock.now()))),
        Proof::Jwt { .. } => ("jwt", None),
        Proof::ApiToken { .. } => ("api_token", None),
    };
    Json(WhoAmIView {
        principal: principal.key.clone(),
        name: principal.name.clone(),
        via: via.to_owned(),
        permissions: permissions.collect(),
        csrf_token,
    })
}

/// Ends the session.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "auth", responses((status = 204, description = "It has ended")))]
async fn logout(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Outcome<Response> {
    let Proof::Session { id_hash } = caller.principal.proof else {
        return Err(Refusal::new(ProblemCode::Conflict, "only a session can be ended; an API token is revoked"));
    };
    hub.audit(caller.key(), "auth.logout", &caller.principal.name, serde_json::json!({})).await?;
    hub.db.delete_session(hub.tenant, &id_hash).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, "", Some(0));
    Ok(response)
}
