//! An event in the shape `rsigma-eval` asks for.

use rsigma_eval::{Event, EventValue};
use serde_json::Value;
use std::borrow::Cow;

use crate::view::EventView;

/// Borrowed, so that evaluating copies nothing.
pub(super) struct Seen<'a>(pub &'a EventView);

impl Event for Seen<'_> {
    fn get_field(&self, path: &str) -> Option<EventValue<'_>> {
        self.0.field(path).map(EventValue::from)
    }

    fn any_string_value(&self, pred: &dyn Fn(&str) -> bool) -> bool {
        self.0.raw().values().any(|value| any_string(value, pred))
    }

    fn all_string_values(&self) -> Vec<Cow<'_, str>> {
        let mut all = Vec::new();
        for value in self.0.raw().values() {
            collect(value, &mut all);
        }
        all
    }

    fn to_json(&self) -> Value {
        Value::Object(self.0.raw().clone())
    }

    fn visit_top_level_keys(&self, visit: &mut dyn FnMut(&str)) -> bool {
        for (name, _) in self.0.sigma_fields() {
            visit(name);
        }
        for name in self.0.raw().keys() {
            visit(name);
        }
        true
    }

    fn top_level_keys(&self) -> Option<Vec<Cow<'_, str>>> {
        let ours = self.0.sigma_fields().iter().map(|(name, _)| Cow::Borrowed(*name));
        Some(ours.chain(self.0.raw().keys().map(|name| Cow::Borrowed(name.as_str()))).collect())
    }
}

// An event is at most `MAX_EVENT_DEPTH` deep.
fn any_string(value: &Value, pred: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => pred(text),
        Value::Array(items) => items.iter().any(|item| any_string(item, pred)),
        Value::Object(map) => map.values().any(|item| any_string(item, pred)),
        _ => false,
    }
}

fn collect<'a>(value: &'a Value, all: &mut Vec<Cow<'a, str>>) {
    match value {
        Value::String(text) => all.push(Cow::Borrowed(text)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, all)),
        Value::Object(map) => map.values().for_each(|item| collect(item, all)),
        _ => {}
    }
}
