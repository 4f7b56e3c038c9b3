//! Words of which a field has one of a few: read, written and described in one place.

use picket_hub_db::{AgentStatus, CaseState, DeliveryState, EnrolmentState, FindingState};
use picket_hub_db::{RuleOrigin, Severity, UserStatus};
use picket_protocol::event::Priority;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// What has a few values, each with a word.
pub(crate) trait Vocabulary: Copy + 'static {
    /// What it is called in the description of the API.
    const NAME: &'static str;
    /// Every value.
    const ALL: &'static [Self];
    /// Its word.
    fn word(self) -> &'static str;
}

macro_rules! vocabularies {
    ($($kind:ident as $word:ident),+ $(,)?) => {
        $(impl Vocabulary for $kind {
            const NAME: &'static str = stringify!($kind);
            const ALL: &'static [Self] = $kind::ALL;
            fn word(self) -> &'static str {
                self.as_str()
            }
        }

        #[doc = concat!("A word for [`", stringify!($kind), "`].")]
        pub(crate) type $word = Word<$kind>;)+
    };
}

vocabularies! {
    AgentStatus as AgentStatusWord,
    CaseState as CaseStateWord,
    DeliveryState as DeliveryStateWord,
    EnrolmentState as EnrolmentStateWord,
    FindingState as FindingStateWord,
    RuleOrigin as RuleOriginWord,
    Severity as SeverityWord,
    UserStatus as UserStatusWord,
}

impl Vocabulary for Priority {
    const NAME: &'static str = "EventClass";
    const ALL: &'static [Self] = &Self::ALL;
    fn word(self) -> &'static str {
        self.as_str()
    }
}

/// A word for [`Priority`].
pub(crate) type ClassWord = Word<Priority>;

/// One of them, as a request or an answer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word<T>(pub(crate) T);

impl<'de, T: Vocabulary> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        let found = T::ALL.iter().find(|one| one.word() == text);
        found.map(|one| Self(*one)).ok_or_else(|| {
            let words: Vec<&str> = T::ALL.iter().map(|one| one.word()).collect();
            D::Error::custom(format_args!("one of {} is expected", words.join(", ")))
        })
    }
}

impl<T: Vocabulary> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.word())
    }
}

impl<T: Vocabulary> PartialSchema for Word<T> {
    fn schema() -> RefOr<Schema> {
        let words = T::ALL.iter().map(|one| one.word());
        ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some(words)).into()
    }
}

impl<T: Vocabulary> ToSchema for Word<T> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed(T::NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_of_its_kind_and_another_is_refused_with_those_that_there_are() {
        let read = |text: &str| serde_json::from_str::<Word<Severity>>(text);
        assert_eq!(read("\"high\"").unwrap(), Word(Severity::High));
        assert_eq!(serde_json::to_string(&Word(Severity::High)).unwrap(), "\"high\"");
        let refused = read("\"huge\"").unwrap_err().to_string();
        assert!(refused.contains("low") && refused.contains("critical") && !refused.contains("huge"), "{refused}");
        let described = serde_json::to_value(Word::<Severity>::schema()).unwrap();
        assert_eq!(described["enum"].as_array().unwrap().len(), Severity::ALL.len());
    }
}
