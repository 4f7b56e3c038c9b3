//! What may be shown of a change: value by value, secrets left out.
//!
//! Picket's own keys hold no secrets, they name files of them. But an address may carry one: a user and a password before
//! its host, a token in its query, and the whole path of a webhook is one with several services. And a later version
//! may have a key that is a secret; its name tells.

use serde::Serialize;
use serde_json::Value;

/// What stands where a value is not shown.
const HIDDEN: &str = "(not shown)";

/// One value that differs, ready to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The key, down to the single value: `thresholds.memory_usage.warning`, `alerting.channels[1].url`.
    pub key: String,
    /// What it was, secrets left out; nothing where it was not there.
    pub from: Option<Value>,
    /// What it is.
    pub to: Option<Value>,
    /// Whether what differs is not shown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

/// How `key` differs between two values: groups name by name, lists place by place.
pub fn differences(key: &str, from: Option<&Value>, to: Option<&Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(key.to_owned(), from, to, &mut found);
    found
}

fn compare(key: String, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<Difference>) {
    match (from, to) {
        _ if from == to => {}
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let added = after.keys().filter(|name| !before.contains_key(*name));
            for name in before.keys().chain(added) {
                compare(format!("{key}.{name}"), before.get(name), after.get(name), found);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for place in 0..before.len().max(after.len()) {
                compare(format!("{key}[{place}]"), before.get(place), after.get(place), found);
            }
        }
        _ => {
            let shown = |value: Option<&Value>| value.map(|value| redacted(&key, value));
            let (from, to) = (shown(from), shown(to));
            let hidden = from == to;
            found.push(Difference { key, from, to, hidden });
        }
    }
}

/// `value` without what is secret in it.
fn redacted(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| (name.clone(), redacted(&format!("{key}.{name}"), value));
            Value::Object(fields.iter().map(field).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| redacted(key, item)).collect()),
        Value::String(text) if is_secret(key) && !text.is_empty() => HIDDEN.into(),
        Value::String(text) if last(key) == "proxy" && text.contains('@') => {
            // With or without a scheme, and whatever stands in the password.
            let (scheme, rest) = text.split_once("://").map_or(("", text.as_str()), |(scheme, rest)| (scheme, rest));
            let host = rest.rsplit('@').next().unwrap_or_default();
            let slashes = if scheme.is_empty() { "" } else { "://" };
            format!("{scheme}{slashes}…@{host}").into()
        }
        Value::String(text) if text.contains("://") => address(text, is_webhook(key)).into(),
        other => other.clone(),
    }
}

/// The last name of a key, without its place in a list.
fn last(key: &str) -> &str {
    let name = key.rsplit('.').next().unwrap_or(key);
    name.split('[').next().unwrap_or(name)
}

fn is_secret(key: &str) -> bool {
    let name = last(key);
    let tells = ["password", "passphrase", "secret", "token", "credential", "private_key", "api_key"];
    !name.ends_with("_file") && tells.iter().any(|word| name.contains(word))
}

fn is_webhook(key: &str) -> bool {
    last(key) == "url"
}

/// An address without user, password, query and fragment, and without its path where that is a secret itself.
fn address(text: &str, hide_path: bool) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return HIDDEN.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (host, user) = match authority.rsplit_once('@') {
        Some((_, host)) => (host, "…@"),
        None => (authority, ""),
    };
    let plain = &path[..path.find(['?', '#']).unwrap_or(path.len())];
    let query = if plain.len() < path.len() { "?…" } else { "" };
    if hide_path && plain.len() > 1 {
        return format!("{scheme}://{user}{host}/…");
    }
    format!("{scheme}://{user}{host}{plain}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_in_a_group_or_a_list_is_told_value_by_value() {
        let before = json!({ "cpu": { "warning": 70.0, "critical": 85.0 }, "hosts": ["a", "b"] });
        let after = json!({ "cpu": { "warning": 60.0, "critical": 85.0 }, "hosts": ["a"], "new": { "for": "5m" } });
        let told: Vec<String> = differences("thresholds", Some(&before), Some(&after))
            .into_iter()
            .map(|d| format!("{}: {:?} {:?}", d.key, d.from.map(|v| v.to_string()), d.to.map(|v| v.to_string())))
            .collect();
        assert_eq!(
            told,
            [
                r#"thresholds.cpu.warning: Some("70.0") Some("60.0")"#,
                r#"thresholds.hosts[1]: Some("\"b\"") None"#,
                r#"thresholds.new: None Some("{\"for\":\"5m\"}")"#,
            ]
        );
    }

    #[test]
    fn what_is_secret_is_not_shown_and_that_it_changed_is() {
        let url = |text: &str| json!([{ "url": text }]);
        let before = url("https://hooks.example.com/services/T0/S3CR3T");
        let after = url("https://hooks.example.com/services/T0/0TH3R");
        let [changed] = &differences("alerting.channels", Some(&before), Some(&after))[..] else { panic!() };
        assert_eq!((changed.key.as_str(), changed.hidden), ("alerting.channels[0].url", true));
        assert_eq!(changed.to, Some("https://hooks.example.com/…".into()));
        let added = differences("alerting.channels", None, Some(&after));
        assert!(!serde_json::to_string(&added).unwrap().contains("0TH3R"), "{added:?}");
        for (key, value, shown) in [
            ("update.releases", "https://ann:pw@example.com:8443/r?t=1#x", "https://…@example.com:8443/r?…"),
            ("update.releases", "https://example.com/r", "https://example.com/r"),
            ("uplink.proxy", "http://ann:p/w@proxy:3128", "http://…@proxy:3128"),
            ("uplink.proxy", "ann:pw@proxy:3128", "…@proxy:3128"),
            ("uplink.proxy", "http://proxy:3128", "http://proxy:3128"),
            ("x.url", "https://example.com", "https://example.com"),
            ("x.url", "https://example.com/?token=1", "https://example.com/?…"),
            ("x.password", "hunter2", HIDDEN),
            ("x.tokens[1]", "hunter2", HIDDEN),
            ("smtp.password_file", "/etc/picket/smtp", "/etc/picket/smtp"),
        ] {
            assert_eq!(redacted(key, &value.into()), Value::from(shown), "{key}");
        }
    }
}
