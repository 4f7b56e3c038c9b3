//! The renewal of the certificate: when, and how it is put in force.

use super::exchange::{self, ExchangeError};
use super::keeper::Live;
use super::record::IdentityError;
use super::store::CertStore;
use crate::keep::told;
use jiff::Timestamp;
use picket_pki::{Certificate, Renewal, renewal};
use picket_transport::hub::HubCallError;
use std::time::Duration;

/// Why the certificate is to be renewed now, if it is.
pub(crate) fn renewal_reason(
    certificate: &Certificate,
    now: Timestamp,
    asked: bool,
    look_is_due: bool,
) -> Option<&'static str> {
    match renewal(certificate, now) {
        _ if asked => Some("asked"),
        Renewal::Expired => Some("expired"),
        Renewal::Due if look_is_due => Some("due"),
        Renewal::Due | Renewal::NotBefore(_) => None,
    }
}

/// Renews the certificate of `live`, unless somebody did meanwhile; what went wrong, and when to try again.
pub(super) fn renew(store: &CertStore, live: &Live, reason: &str) -> Result<(), (String, Option<Duration>)> {
    let failed = |error: &IdentityError| (told(error), None);
    let lock = match store.lock() {
        Ok(lock) => lock,
        Err(error) => return Err(failed(&error)),
    };
    if store.current() != Some(live.identity.generation) {
        return Ok(());
    }
    let renewed = exchange::renew(&live.identity, reason, &live.options);
    let outcome = match renewed {
        Ok(set) => store.install(&lock, &set).map(|_| set).map_err(|error| failed(&error)),
        Err(error) => {
            let after = match &error {
                ExchangeError::Call(call) => {
                    if let (true, HubCallError::Problem(problem)) = (call.costs_identity(), call) {
                        let serial = &live.identity.leaf().serial;
                        let (code, detail) = (problem.code.as_str(), &problem.detail);
                        let _ = store.mark_lost(&lock, serial, code, detail, Timestamp::now());
                    }
                    call.retry_after()
                }
                _ => None,
            };
            Err((told(&error), after))
        }
    };
    match outcome {
        Ok(set) => {
            tracing::info!(serial = set.chain[0].serial, until = %set.chain[0].not_after, "the certificate is renewed");
            store.count(|counts| (counts.renewed, counts.last_error) = (counts.renewed + 1, None));
            Ok(())
        }
        Err((error, after)) => {
            store.count(|counts| {
                (counts.not_renewed, counts.last_error) = (counts.not_renewed + 1, Some(error.clone()));
            });
            Err((error, after))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::store::tests::Fleet;
    use jiff::SignedDuration;

    #[test]
    fn a_certificate_is_renewed_when_it_is_due_and_looked_at_when_it_expired_and_when_the_hub_asks() {
        let leaf = Fleet::new().set("https://hub.example").chain.remove(0);
        let at = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
        assert_eq!(renewal_reason(&leaf, at(0), false, true), None);
        assert_eq!(renewal_reason(&leaf, at(0), true, false), Some("asked"));
        assert_eq!(renewal_reason(&leaf, at(62), false, false), None, "it waits for its hour");
        assert_eq!(renewal_reason(&leaf, at(62), false, true), Some("due"));
        assert_eq!(renewal_reason(&leaf, at(91), false, false), Some("expired"));
    }
}
