//! Which version of the wire agent and hub speak.

use crate::refusal::{Outcome, Refusal};
use picket_protocol::hub::{ProblemCode, WIRE, WIRE_HEADER};
use picket_protocol::versions::VersionRange;

/// The version that both sides know, by what the agent says; one that says nothing is in the oldest.
///
/// # Errors
/// `wire_unsupported` with who is behind, when there is none.
pub fn common_version(said: Option<&str>) -> Outcome<u32> {
    let Some(said) = said else { return Ok(WIRE.oldest) };
    let theirs = said.parse::<VersionRange>().map_err(|_| {
        Refusal::new(
            ProblemCode::WireUnsupported,
            format!("the header {WIRE_HEADER} is no range of versions, such as 1-2"),
        )
    })?;
    WIRE.common(theirs).ok_or_else(|| {
        let (behind, which) = if theirs.newest < WIRE.oldest { ("agent", theirs) } else { ("hub", WIRE) };
        let detail = format!(
            "this hub speaks versions {WIRE} of the protocol and the agent {theirs}: update the {behind}, which is behind ({which})"
        );
        Refusal::new(ProblemCode::WireUnsupported, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_have_none_in_common_say_who_is_behind() {
        assert_eq!(common_version(None), Ok(WIRE.oldest));
        assert_eq!(
            common_version(Some("1-7")),
            Ok(WIRE.newest),
            "an agent of a later version that still knows this one"
        );
        let refusal = common_version(Some("8-9")).unwrap_err();
        assert_eq!(refusal.code(), ProblemCode::WireUnsupported);
        assert!(refusal.to_string().contains("update the hub"), "{refusal}");
        assert!(common_version(Some("x")).is_err());
    }
}
