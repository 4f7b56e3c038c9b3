//! The description of the API (`OpenAPI` 3.1), made from the code that answers, and a page that shows it.

use super::guarded::Needs;
use super::idempotency::IdempotencyKey;
use super::problem::ProblemView;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use picket_protocol::hub::PROBLEM_MEDIA_TYPE;
use std::fmt::Write as _;
use std::sync::Arc;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoParams as _, OpenApi as _};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Picket hub",
        description = "Agents, events, findings, and everything else that a hub knows. Errors are problems (RFC 9457) with a `code`. Lists come in pages; a change names the version that it is about (`If-Match`); a POST with an `Idempotency-Key` may be sent twice.",
        license(name = "MIT", identifier = "MIT")
    ),
    components(schemas(ProblemView))
)]
struct Described;

/// The beginning of the document: what it is, and how to say who one is.
pub(super) fn document() -> OpenApi {
    let mut document = Described::openapi();
    "1".clone_into(&mut document.info.version);
    let components = document.components.get_or_insert_with(Default::default);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API token, or a token of /api/v1/auth/token (JWT, EdDSA, one hour)"))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let cookie = ApiKeyValue::with_description(
        super::access::COOKIE_NAME,
        "A session of /api/v1/auth/login; changes need the header X-CSRF-Token besides",
    );
    components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    document
}

/// The operations of a path, with their methods.
pub(super) fn operations(item: &mut PathItem) -> Vec<(&'static str, &mut Operation)> {
    let all = [
        ("GET", item.get.as_mut()),
        ("PUT", item.put.as_mut()),
        ("POST", item.post.as_mut()),
        ("DELETE", item.delete.as_mut()),
        ("PATCH", item.patch.as_mut()),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation?))).collect()
}

/// Says of an operation what it needs, and what any operation may come to.
pub(super) fn guard(operation: &mut Operation, method: &str, needs: Needs) {
    let schemes: &[&str] = if needs == Needs::Nothing { &[] } else { &["bearer", "session"] };
    let schemes = schemes.iter().map(|name| SecurityRequirement::new(*name, Vec::<String>::new()));
    // An empty list says that the route is open (OpenAPI 3.1 §4.8.10).
    operation.security = Some(schemes.collect());
    let words = match needs {
        Needs::Nothing => "Open: nobody needs to have said who they are.".to_owned(),
        Needs::Somebody => "Needs no permission.".to_owned(),
        Needs::Permission(action) => format!("Needs the permission `{}`.", action.as_str()),
    };
    let before = operation.description.take().map(|text| format!("{text}\n\n")).unwrap_or_default();
    operation.description = Some(before + &words);
    if method == "POST" && matches!(needs, Needs::Permission(_)) {
        let key = IdempotencyKey::into_params(|| None);
        operation.parameters.get_or_insert_default().extend(key.into_iter().map(RefOr::T));
    }
    problems(operation);
}

/// Adds the problems that any operation may come to.
pub(super) fn problems(operation: &mut Operation) {
    let words = [
        ("400", "The request is not valid"),
        ("401", "Authentication is needed"),
        ("403", "This is not permitted"),
        ("404", "There is no such thing, or none that one may see"),
        ("409", "The request does not fit the present state"),
        ("412", "It has been changed meanwhile"),
        ("413", "The request is too large"),
        ("415", "The media type is not supported"),
        ("422", "The idempotency key belongs to another request"),
        ("428", "The version must be named"),
        ("429", "Too many requests"),
        ("503", "The hub is busy, stopping, or cannot store at present"),
    ];
    for (status, description) in words {
        let schema = RefOr::Ref(Ref::from_schema_name("Problem"));
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let response = ResponseBuilder::new().description(description).content(PROBLEM_MEDIA_TYPE, content).build();
        operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
    }
}

/// The document as JSON, and as a page.
pub(super) fn router(document: &OpenApi) -> Router {
    let page: Arc<str> = page(document).into();
    // Strings and numbers: nothing of it can fail.
    let json: Arc<str> = document.to_pretty_json().unwrap_or_default().into();
    let json = move || {
        let json = Arc::clone(&json);
        async move { ([(CONTENT_TYPE, "application/json")], json.to_string()).into_response() }
    };
    let page = move || {
        let page = Arc::clone(&page);
        async move { ([(CONTENT_TYPE, "text/html; charset=utf-8")], page.to_string()).into_response() }
    };
    Router::new().route("/api/openapi.json", get(json)).route("/api/docs", get(page))
}

/// A page without script or style of anybody else's: every operation, what it does, what it needs, what it answers.
fn page(document: &OpenApi) -> String {
    let mut html = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Picket hub API</title>\
         <meta name=\"viewport\" content=\"width=device-width\"></head><body><h1>Picket hub API</h1>",
    );
    let _ = write!(
        html,
        "<p>{}</p><p>As a document for programs: <a href=\"/api/openapi.json\">/api/openapi.json</a></p>",
        escape(document.info.description.as_deref().unwrap_or_default())
    );
    for (path, item) in &document.paths.paths {
        let mut item = item.clone();
        for (method, operation) in operations(&mut item) {
            let _ = write!(html, "<h2><code>{method} {}</code></h2>", escape(path));
            for text in [&operation.summary, &operation.description].into_iter().flatten() {
                let _ = write!(html, "<p>{}</p>", escape(text));
            }
            let _ = write!(html, "<ul>");
            for (status, response) in &operation.responses.responses {
                if let RefOr::T(response) = response {
                    let _ = write!(html, "<li><code>{}</code> {}</li>", escape(status), escape(&response.description));
                }
            }
            let _ = write!(html, "</ul>");
        }
    }
    html.push_str("</body></html>\n");
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
