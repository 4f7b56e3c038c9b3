//! `/api/v1/configs`: configurations of agents, and who gets which.

use super::{BODY_MAX, InPath, InQuery, absent};
use crate::api::body;
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{PageQuery, Paged};
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use picket_hub_db::{Assignment, ConfigTarget, ConfigVersion};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

/// The largest configuration, in bytes of JSON.
const MAX_CONFIG: usize = 128 << 10;

/// The routes. They concern the whole fleet: a permission for a tag is none.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::ConfigsRead, routes!(list))
        .route(Action::ConfigsWrite, routes!(create))
        .route(Action::ConfigsRead, routes!(show))
        .route(Action::ConfigsRead, routes!(assignments))
        .route(Action::ConfigsWrite, routes!(assign))
        .route(Action::ConfigsWrite, routes!(unassign))
}

/// A configuration.
#[derive(Serialize, ToSchema)]
#[schema(as = Config)]
struct ConfigView {
    /// Its number, from 1.
    version: i64,
    /// Keys (dotted) and values.
    #[schema(value_type = Object)]
    settings: Value,
    /// The SHA-256 of it.
    sha256: String,
    /// What it is for.
    comment: String,
    /// When it was made.
    created_at: Timestamp,
    /// By whom.
    created_by: String,
}

impl From<ConfigVersion> for ConfigView {
    fn from(config: ConfigVersion) -> Self {
        let ConfigVersion { version, document, sha256, comment, created_at, created_by } = config;
        Self { version, settings: document, sha256, comment, created_at, created_by }
    }
}

/// Configurations, the latest first.
#[utoipa::path(get, path = "/api/v1/configs", tag = "configs", params(PageQuery),
    responses((status = 200, body = Paged<ConfigView>)))]
async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<ConfigView>>> {
    caller.everywhere()?;
    let found = hub.db.configs(hub.tenant, &page.request()?).await?;
    Ok(Json(Paged::of(found, |config| Some(config.into()))))
}

/// A new configuration. It never changes; another one takes its place.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewConfig)]
struct NewConfigBody {
    /// Keys (dotted) and values. An agent takes only keys that a hub may set, and says which it refuses.
    #[schema(value_type = Object)]
    settings: Value,
    /// What it is for.
    #[serde(default)]
    #[schema(max_length = 1000)]
    comment: String,
}

/// Makes a configuration. Nobody gets it until it is assigned.
#[utoipa::path(post, path = "/api/v1/configs", tag = "configs", request_body = NewConfigBody,
    responses((status = 201, body = ConfigView)))]
async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<Response> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: NewConfigBody = body::json(&parts.headers, body, BODY_MAX).await?;
    let text = asked.settings.to_string();
    if !asked.settings.is_object() || text.len() > MAX_CONFIG {
        let detail = format!("settings is a JSON object of at most {MAX_CONFIG} bytes");
        return Err(Refusal::new(ProblemCode::Invalid, detail));
    }
    if asked.comment.chars().count() > 1000 || asked.comment.chars().any(|c| c.is_control() && c != '\n') {
        return Err(Refusal::new(
            ProblemCode::Invalid,
            "comment has at most 1000 characters, and no control characters",
        ));
    }
    let sha256 = picket_pki::SpkiPin::of_spki(text.as_bytes()).to_hex();
    hub.audit(caller.key(), "configs.create", &sha256, json!({ "comment": asked.comment })).await?;
    let config = ConfigVersion {
        version: 0,
        document: asked.settings,
        sha256,
        comment: asked.comment,
        created_at: hub.clock.now(),
        created_by: caller.principal.name.clone(),
    };
    let made = hub.db.create_config(hub.tenant, &config).await?;
    Ok((StatusCode::CREATED, Json(ConfigView::from(made))).into_response())
}

/// One configuration.
#[utoipa::path(get, path = "/api/v1/configs/{version}", tag = "configs", params(("version" = i64, Path)),
    responses((status = 200, body = ConfigView)))]
async fn show(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(version): InPath<i64>,
) -> Outcome<Json<ConfigView>> {
    caller.everywhere()?;
    let config = hub.db.config(hub.tenant, version).await?.ok_or_else(|| absent("configuration"))?;
    Ok(Json(config.into()))
}

/// A tag.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(pattern = "^[A-Za-z0-9_.:/=-]{1,64}$")]
struct TagView(String);

/// Who.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "target", content = "value", rename_all = "snake_case")]
#[schema(as = ConfigTarget)]
enum TargetView {
    /// Every agent.
    All,
    /// Agents with this tag.
    Tag(#[schema(inline)] TagView),
    /// This agent.
    Agent(Uuid),
}

impl From<ConfigTarget> for TargetView {
    fn from(target: ConfigTarget) -> Self {
        match target {
            ConfigTarget::All => Self::All,
            ConfigTarget::Tag(tag) => Self::Tag(TagView(tag)),
            ConfigTarget::Agent(id) => Self::Agent(id),
        }
    }
}

impl TargetView {
    fn target(self) -> Outcome<ConfigTarget> {
        Ok(match self {
            Self::All => ConfigTarget::All,
            Self::Tag(tag) => ConfigTarget::Tag(super::agents::tag(tag.0)?),
            Self::Agent(id) => ConfigTarget::Agent(id),
        })
    }
}

/// Who should have which configuration.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(as = ConfigAssignment)]
struct AssignmentView {
    /// Who.
    #[serde(flatten)]
    target: TargetView,
    /// Which version.
    #[schema(minimum = 1)]
    version: i64,
    /// Among the tags of an agent the highest wins.
    #[serde(default)]
    priority: i32,
}

/// Who should have which.
#[utoipa::path(get, path = "/api/v1/config-assignments", tag = "configs",
    responses((status = 200, body = Vec<AssignmentView>)))]
async fn assignments(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
) -> Outcome<Json<Vec<AssignmentView>>> {
    caller.everywhere()?;
    let found = hub.db.assignments(hub.tenant).await?;
    let view = |kept: Assignment| AssignmentView {
        target: kept.target.into(),
        version: kept.version,
        priority: kept.priority,
    };
    Ok(Json(found.into_iter().map(view).collect()))
}

/// Says who should have which. Connected agents get it at once.
#[utoipa::path(put, path = "/api/v1/config-assignments", tag = "configs", request_body = AssignmentView,
    responses((status = 204, description = "It is said")))]
async fn assign(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: AssignmentView = body::json(&parts.headers, body, BODY_MAX).await?;
    let details = json!(asked);
    let assignment = Assignment {
        target: asked.target.target()?,
        version: asked.version,
        priority: asked.priority,
        updated_at: hub.clock.now(),
        updated_by: caller.principal.name.clone(),
    };
    hub.audit(caller.key(), "configs.assign", &asked.version.to_string(), details).await?;
    hub.db.assign_config(hub.tenant, &assignment).await?;
    offer(&hub, &assignment.target);
    Ok(StatusCode::NO_CONTENT)
}

/// Takes back who should have which.
#[utoipa::path(post, path = "/api/v1/config-assignments/remove", tag = "configs", request_body = TargetView,
    responses((status = 204, description = "It is taken back, now or before")))]
async fn unassign(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Outcome<StatusCode> {
    caller.everywhere()?;
    let (parts, body) = request.into_parts();
    let asked: TargetView = body::json(&parts.headers, body, BODY_MAX).await?;
    let details = json!(asked);
    let target = asked.target()?;
    hub.audit(caller.key(), "configs.unassign", "configs", details).await?;
    hub.db.unassign_config(hub.tenant, &target).await?;
    offer(&hub, &target);
    Ok(StatusCode::NO_CONTENT)
}

/// Gives it to those whom it concerns now; who is away gets it when it connects.
fn offer(hub: &Arc<Hub>, target: &ConfigTarget) {
    hub.configs_changed(match target {
        ConfigTarget::Agent(id) => Some(*id),
        ConfigTarget::All | ConfigTarget::Tag(_) => None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_a_configuration_is_everybody_or_a_tag_or_an_agent() {
        for (text, target) in [
            (r#"{"target":"all"}"#, ConfigTarget::All),
            (r#"{"target":"all","value":null}"#, ConfigTarget::All),
            (r#"{"target":"tag","value":"web"}"#, ConfigTarget::Tag("web".into())),
            (r#"{"target":"agent","value":"00000000-0000-0000-0000-000000000000"}"#, ConfigTarget::Agent(Uuid::nil())),
        ] {
            let read: TargetView = serde_json::from_str(text).unwrap();
            assert_eq!(read.target().unwrap(), target);
            let whole = text.replace('}', r#","version":1}"#);
            let read: AssignmentView = serde_json::from_str(&whole).unwrap();
            assert_eq!(read.target.target().unwrap(), target, "{whole}");
        }
        for wrong in [r#"{"target":"tag"}"#, r#"{"target":"agent","value":"web"}"#, r#"{"target":"some"}"#, "{}"] {
            assert!(serde_json::from_str::<TargetView>(wrong).is_err(), "{wrong}");
        }
        let spaced: TargetView = serde_json::from_str(r#"{"target":"tag","value":"a b"}"#).unwrap();
        assert!(spaced.target().is_err());
    }
}
