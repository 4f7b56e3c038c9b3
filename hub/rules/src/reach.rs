//! Which events a rule's log source reaches.

use crate::view::{Kind, Product};

/// `logsource` of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogSource {
    pub category: Option<String>,
    pub product: Option<String>,
    pub service: Option<String>,
}

impl LogSource {
    /// The kinds of events it reaches, on any of our operating systems.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| self.reaches(*kind))
    }

    /// Whether events of a kind belong to it: what it names must be so, what it leaves out may be anything.
    pub fn reaches(&self, kind: Kind) -> bool {
        let product = self.product.as_deref();
        let product = match kind.service() {
            Some(_) => product.is_none_or(|name| name.eq_ignore_ascii_case("picket")),
            None => product.is_none_or(|name| system(name).is_some()),
        };
        product && same(self.category.as_deref(), kind.category()) && same(self.service.as_deref(), kind.service())
    }

    /// The one operating system it is about, where it names one.
    pub fn system(&self) -> Option<Product> {
        system(self.product.as_deref()?)
    }
}

fn same(asked: Option<&str>, given: Option<&str>) -> bool {
    asked.is_none_or(|asked| given.is_some_and(|given| asked.eq_ignore_ascii_case(given)))
}

fn system(name: &str) -> Option<Product> {
    [Product::Linux, Product::Macos, Product::Windows].into_iter().find(|p| p.as_str().eq_ignore_ascii_case(name))
}

/// The fields that events of a log source may have; none where it reaches nothing.
pub(crate) fn known_fields(source: &LogSource) -> Vec<&'static str> {
    let mut fields: Vec<&str> = source.kinds().flat_map(Kind::fields).copied().collect();
    if !fields.is_empty() {
        fields.push("AgentId");
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}
