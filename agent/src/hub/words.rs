//! What each refusal of a hub means for who stands at the machine, and what to do.

use picket_protocol::hub::ProblemCode;

/// What to do about a refusal; nothing where the hub's own words say all there is.
pub fn way_out(code: ProblemCode) -> Option<&'static str> {
    use ProblemCode as Code;
    match code {
        Code::TokenUnknown | Code::TokenExpired | Code::TokenUsedUp | Code::TokenRevoked => {
            Some("make a new token on the hub with `picket hub token create`, and enrol with that")
        }
        Code::AddressRefused => {
            Some("enrol from an address that the token allows, or make a token that allows this one")
        }
        Code::EnrolmentDenied => Some("ask who operates the hub why, and enrol again with a new token"),
        Code::CsrInvalid => Some("try again, which makes a new key; if it stays, report it"),
        Code::ClockSkew => {
            Some("set the clock of this machine, for example with `timedatectl set-ntp true`, and try again")
        }
        Code::WireUnsupported => Some("update the side that is behind: `picket update apply` here, or the hub"),
        Code::CertificateRequired => Some("enrol first with `picket enroll`"),
        Code::CertificateExpired => Some("renew it with `picket cert renew`"),
        Code::RenewalTooLate => Some("enrol again with `picket enroll --force` and a new token"),
        Code::CertificateSuperseded => Some(
            "go back to the certificate before with `picket cert rollback`; if that does not help, another copy of \
                 this machine may use its identity: enrol this one anew with `picket enroll --force`",
        ),
        Code::Revoked | Code::UnknownAgent => {
            Some("if this machine is to come back, enrol it again with `picket enroll --force` and a new token")
        }
        Code::Unauthenticated | Code::Forbidden | Code::CsrfInvalid => {
            Some("this is no answer for an agent; check that the address is the hub's for agents, not for people")
        }
        Code::Blocked => Some("wait, or ask who operates the hub to lift the block"),
        Code::TooLarge => Some("lower outbox.batch_size"),
        Code::RateLimited | Code::Overloaded | Code::StorageUnavailable | Code::Draining => {
            Some("try again in a while; nothing is lost meanwhile")
        }
        Code::Internal => Some("the hub's own log says what failed; try again"),
        Code::NotFound | Code::MethodNotAllowed => {
            Some("check that the address is the hub's for agents, and that the hub is of a version with this function")
        }
        Code::Invalid
        | Code::UnsupportedMediaType
        | Code::NotAcceptable
        | Code::Conflict
        | Code::PreconditionFailed
        | Code::PreconditionRequired
        | Code::IdempotencyMismatch => Some("this should not happen; update both sides, and report it if it stays"),
        Code::Unknown => Some("the hub is of a later version; update this machine"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_way_out() {
        for code in ProblemCode::ALL {
            assert!(way_out(*code).is_some_and(|words| words.len() > 10), "{code:?}");
        }
    }
}
