//! `/api/v1/users`, `/api/v1/permissions`, `/api/v1/tokens`: who may use the hub, and for what.

use super::{BODY_MAX, InPath, InQuery, absent, text};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{PageQuery, Paged};
use crate::api::people::words::{UserStatusWord, Word};
use crate::app::people::principal::{Action, beyond, grantable as all_grantable, is_everything};
use crate::app::people::sign_in::user_key;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{ApiToken, Grant, Permission, User, UserStatus, UserUpdate};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;
use uuid::Uuid;

/// The routes. They concern the whole hub: a permission for a tag is none.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::UsersRead, routes!(list_users))
        .route(Action::UsersWrite, routes!(create_user))
        .route(Action::UsersWrite, routes!(set_status))
        .route(Action::UsersWrite, routes!(delete_user))
        .route(Action::UsersRead, routes!(list_permissions))
        .route(Action::UsersWrite, routes!(grant))
        .route(Action::UsersWrite, routes!(revoke))
        .route(Action::UsersRead, routes!(list_tokens))
        .route(Action::UsersWrite, routes!(create_token))
        .route(Action::UsersWrite, routes!(revoke_token))
}

/// Somebody who may sign in.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
struct UserView {
    /// Their id.
    id: Uuid,
    /// How permissions name them.
    principal: String,
    /// What they sign in with.
    name: String,
    /// What they are called.
    display_name: String,
    /// Whether they may sign in.
    status: UserStatusWord,
    /// Whether they have set a password.
    has_password: bool,
    /// When they were added.
    created_at: Timestamp,
    /// When they signed in last.
    last_login: Option<Timestamp>,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            principal: user_key(user.id),
            name: user.name,
            display_name: user.display_name,
            status: Word(user.status),
            has_password: user.password.is_some(),
            created_at: user.created_at,
            last_login: user.last_login,
        }
    }
}

/// Users, by name.
#[utoipa::path(get, path = "/api/v1/users", tag = "users", params(PageQuery),
    responses((status = 200, body = Paged<UserView>)))]
async fn list_users(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<UserView>>> {
    caller.everywhere()?;
    let found = hub.db.users(hub.tenant, &page.request()?).await?;
    Ok(Json(Paged::of(found, |user| Some(user.into()))))
}

/// A new user.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewUser)]
struct NewUserBody {
    /// What they sign in with.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_.@-]+$")]
    name: String,
    /// What they are called.
    #[serde(default)]
    #[schema(max_length = 255)]
    display_name: String,
}

/// A user who was added, with the secret to set the first password with: shown this once.
#[derive(Serialize, ToSchema)]
struct MadeUser {
    /// The user.
    user: UserView,
    /// To be sent with the new password to `/api/v1/auth/setup`, once and within a day.
    setup_secret: String,
}

/// Adds a user. They may do nothing until it is granted.
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = NewUserBody,
    responses((status = 201, body = MadeUser)))]
async fn create_user(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: NewUserBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let display_name = if asked.display_name.is_empty() {
        asked.name.clone()
    } else {
        text("display_name", &asked.display_name, 255)?
    };
    let user = hub.create_user(&asked.name, &display_name, caller.key()).await?;
    let secret = hub.setup_secret(&user, caller.key()).await?;
    let made = MadeUser { user: user.into(), setup_secret: secret.to_string() };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Whether somebody may sign in.
#[derive(Deserialize, ToSchema)]
struct StatusBody {
    /// Whether they may.
    status: UserStatusWord,
}

/// Disables a user, or lets them in again. Disabled, they are nobody at once, whatever token they hold.
#[utoipa::path(put, path = "/api/v1/users/{user_id}/status", tag = "users", request_body = StatusBody,
    params(("user_id" = Uuid, Path)), responses((status = 200, body = UserView)))]
async fn set_status(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    request: Request,
) -> Outcome<Json<UserView>> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: StatusBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let user = hub.db.user(hub.tenant, id).await?.ok_or_else(|| absent("user"))?;
    not_oneself(&caller, id)?;
    not_above(&hub, &caller, &user_key(id)).await?;
    if asked.status.0 != UserStatus::Active {
        hub.not_the_last_admin(&user).await?;
    }
    hub.audit(caller.key(), "users.status", &user_key(id), json!({ "status": asked.status })).await?;
    let update = UserUpdate { status: Some(asked.status.0), ..UserUpdate::default() };
    let user = hub.db.update_user(hub.tenant, id, user.revision, &update, hub.clock.now()).await?;
    Ok(Json(user.into()))
}

/// Removes a user, their sessions and their permissions.
#[utoipa::path(delete, path = "/api/v1/users/{user_id}", tag = "users", params(("user_id" = Uuid, Path)),
    responses((status = 204, description = "They are gone")))]
async fn delete_user(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let user = hub.db.user(hub.tenant, id).await?.ok_or_else(|| absent("user"))?;
    not_oneself(&caller, id)?;
    not_above(&hub, &caller, &user_key(id)).await?;
    hub.not_the_last_admin(&user).await?;
    hub.audit(caller.key(), "users.delete", &user_key(id), json!({})).await?;
    hub.db.delete_user(hub.tenant, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Nobody locks themselves out by mistake.
fn not_oneself(caller: &Caller, id: Uuid) -> Outcome<()> {
    if caller.key() == user_key(id) { Err(itself()) } else { Ok(()) }
}

fn itself() -> Refusal {
    Refusal::new(ProblemCode::Conflict, "this is you: ask somebody else to do it")
}

/// Nobody changes, disables or removes somebody who may what they may not, nor a token of theirs: `users.write` alone is not the
/// way to be rid of administrators.
async fn not_above(hub: &Hub, caller: &Caller, principal: &str) -> Outcome<()> {
    let theirs = hub.db.permissions_of(hub.tenant, principal).await?;
    let Some(action) = beyond(&theirs, &caller.principal.grants) else { return Ok(()) };
    let detail = format!("{principal} has the permission {}, which you do not have yourself", action.as_str());
    Err(Refusal::new(ProblemCode::Forbidden, detail))
}

/// A permission, and who gave it.
#[derive(Serialize, ToSchema)]
#[schema(as = Grant)]
struct GrantView {
    /// Who: `user:<id>` or `token:<id>`.
    principal: String,
    /// What: an action, or a pattern such as `agents.*`.
    action: String,
    /// On agents with this tag only.
    tag: Option<String>,
    /// When it was given.
    granted_at: Timestamp,
    /// By whom.
    granted_by: String,
}

impl From<Grant> for GrantView {
    fn from(grant: Grant) -> Self {
        let Grant { permission, granted_at, granted_by } = grant;
        Self { principal: permission.principal, action: permission.action, tag: permission.tag, granted_at, granted_by }
    }
}

/// All permissions.
#[utoipa::path(get, path = "/api/v1/permissions", tag = "users", params(PageQuery),
    responses((status = 200, body = Paged<GrantView>)))]
async fn list_permissions(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<GrantView>>> {
    caller.everywhere()?;
    let found = hub.db.grants(hub.tenant, &page.request()?).await?;
    Ok(Json(Paged::of(found, |grant| Some(grant.into()))))
}

/// A permission.
#[derive(Deserialize, ToSchema)]
struct PermissionBody {
    /// Who: `user:<id>` or `token:<id>`.
    #[schema(pattern = "^(user|token):[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
    principal: String,
    /// What: an action such as `agents.read`, or a pattern: `agents.*`, `*.read`, `*`.
    #[schema(schema_with = grantable)]
    action: String,
    /// On agents with this tag only.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_.:/=-]+$")]
    tag: Option<String>,
}

/// What can be granted, for the description.
fn grantable() -> Object {
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some(all_grantable())).build()
}

impl PermissionBody {
    fn permission(self) -> Outcome<Permission> {
        let is_principal = self
            .principal
            .split_once(':')
            .is_some_and(|(kind, id)| ["user", "token"].contains(&kind) && id.parse::<Uuid>().is_ok());
        if !is_principal {
            return Err(Refusal::new(ProblemCode::Invalid, "principal is user:<id> or token:<id>"));
        }
        let tag = self.tag.map(super::agents::tag).transpose()?;
        Ok(Permission { principal: self.principal, action: self.action, tag })
    }
}

/// Gives a permission.
#[utoipa::path(post, path = "/api/v1/permissions", tag = "users", request_body = PermissionBody,
    responses((status = 204, description = "It is given, now or before")))]
async fn grant(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: PermissionBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let permission = asked.permission()?;
    within_own(&caller, &permission)?;
    hub.grant(&permission, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a permission back.
#[utoipa::path(post, path = "/api/v1/permissions/revoke", tag = "users", request_body = PermissionBody,
    responses((status = 204, description = "It is taken back, now or before")))]
async fn revoke(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: PermissionBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let permission = asked.permission()?;
    if permission.principal == caller.key() {
        return Err(itself());
    }
    within_own(&caller, &permission)?;
    let mut left = hub.db.permissions_of(hub.tenant, &permission.principal).await?;
    left.retain(|other| *other != permission);
    let id = permission.principal.strip_prefix("user:").and_then(|id| id.parse().ok());
    if let Some(id) = id
        && !is_everything(&left)
        && let Some(user) = hub.db.user(hub.tenant, id).await?
    {
        hub.not_the_last_admin(&user).await?;
    }
    hub.revoke_grant(&permission, caller.key()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Nobody gives or takes what they do not have: `users.write` alone is not the way to everything.
fn within_own(caller: &Caller, permission: &Permission) -> Outcome<()> {
    match beyond(std::slice::from_ref(permission), &caller.principal.grants) {
        None => Ok(()),
        Some(action) => {
            let detail = format!("you cannot give or take {}, which you do not have yourself", action.as_str());
            Err(Refusal::new(ProblemCode::Forbidden, detail))
        }
    }
}

/// An API token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiToken)]
struct ApiTokenView {
    /// Its id.
    id: Uuid,
    /// What it is for.
    name: String,
    /// For whom it acts.
    principal: String,
    /// When it was made.
    created_at: Timestamp,
    /// By whom.
    created_by: String,
    /// When it ends.
    expires_at: Option<Timestamp>,
    /// When it was used last, to the minute.
    last_used: Option<Timestamp>,
    /// When it was revoked.
    revoked_at: Option<Timestamp>,
}

impl From<ApiToken> for ApiTokenView {
    fn from(token: ApiToken) -> Self {
        Self {
            id: token.id,
            name: token.name,
            principal: token.principal,
            created_at: token.created_at,
            created_by: token.created_by,
            expires_at: token.expires_at,
            last_used: token.last_used,
            revoked_at: token.revoked_at,
        }
    }
}

/// Which tokens.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct TokenQuery {
    /// That act for this principal.
    principal: Option<String>,
}

/// API tokens, the newest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "users", params(PageQuery, TokenQuery),
    responses((status = 200, body = Paged<ApiTokenView>)))]
async fn list_tokens(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
    InQuery(query): InQuery<TokenQuery>,
) -> Outcome<Json<Paged<ApiTokenView>>> {
    caller.everywhere()?;
    let found = hub.db.api_tokens(hub.tenant, query.principal.as_deref(), &page.request()?).await?;
    Ok(Json(Paged::of(found, |token| Some(token.into()))))
}

/// A new API token, which acts for who makes it.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewApiToken)]
struct NewTokenBody {
    /// What it is for.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// A principal of its own, with nothing but what is granted to it, instead of its maker.
    #[serde(default)]
    own_principal: bool,
    /// When it ends; for good unless it is said.
    expires_at: Option<Timestamp>,
}

/// An API token that was made, with its secret: shown this once.
#[derive(Serialize, ToSchema)]
struct MadeApiToken {
    /// To be sent as `Authorization: Bearer`.
    token: String,
    /// What it is like.
    details: ApiTokenView,
}

/// Makes an API token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "users", request_body = NewTokenBody,
    responses((status = 201, body = MadeApiToken)))]
async fn create_token(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: NewTokenBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let name = text("name", &asked.name, 255)?;
    let principal = if asked.own_principal { "" } else { caller.key() };
    let (kept, token) = hub.create_api_token(&name, principal, asked.expires_at, caller.key()).await?;
    let made = MadeApiToken { token: token.to_string(), details: kept.into() };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Revokes an API token.
#[utoipa::path(delete, path = "/api/v1/tokens/{token_id}", tag = "users", params(("token_id" = Uuid, Path)),
    responses((status = 204, description = "It is revoked, now or before")))]
async fn revoke_token(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let token = hub.db.api_token(hub.tenant, id).await?.ok_or_else(|| absent("API token"))?;
    not_above(&hub, &caller, &token.principal).await?;
    hub.audit(caller.key(), "api_tokens.revoke", &id.to_string(), json!({})).await?;
    hub.db.revoke_api_token(hub.tenant, id, hub.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
