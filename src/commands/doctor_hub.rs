//! What `picket doctor` says of the hub: whether this machine is an agent, and how its certificate stands. The network is not
//! asked; that is `picket test-connection`'s.

use super::Context;
use super::cert::{Uplink, identity, uplink};
use super::doctor::Findings;
use crate::error::CommandError;
use jiff::Timestamp;
use picket_agent::hub::{IdentityError, Via};
use picket_pki::{ChainPolicy, Renewal, check_agent_chain, renewal};

/// Looks at the identity.
pub(super) fn look(context: &Context<'_>, findings: &mut Findings) {
    let Ok(Uplink { settings, .. }) = uplink(context) else { return };
    if settings.via == Via::None {
        return findings.ok("hub", "no hub is spoken to (uplink.via is none)");
    }
    let (identity, lost) = match identity(context) {
        Ok(found) => found,
        Err(CommandError::Identity(IdentityError::NotEnrolled)) => {
            if settings.via == Via::Hub {
                findings.error("hub", "this machine is not enrolled, and events wait for that", "`picket enroll`");
            } else {
                findings.ok("hub", "not enrolled; events are kept on this machine");
            }
            return;
        }
        Err(CommandError::NotOwner(_) | CommandError::NeedsRoot(_)) => {
            return findings.warn("hub", "the identity can be seen by root only", "run `sudo picket doctor`");
        }
        Err(error) => {
            let fix = error.hint().unwrap_or_else(|| "`picket cert rollback`, or `picket enroll --force`".to_owned());
            return findings.error("hub", error.to_string(), fix);
        }
    };
    let record = &identity.record;
    match lost {
        Some(lost) => {
            let message = format!("the hub took the identity back at {} ({}): {}", lost.at, lost.code, lost.detail);
            return findings.error("hub", message, "`picket enroll` with a new token, if this machine is to come back");
        }
        None => findings.ok("hub", format!("enrolled at {} as {} ({})", record.hub, record.name, record.agent_id)),
    }
    let (leaf, now) = (identity.leaf(), Timestamp::now());
    let policy =
        ChainPolicy { roots: &identity.roots, identity: Some(identity.name()), pin: identity.client.key().pin(), now };
    match (renewal(leaf, now), check_agent_chain(identity.client.chain(), &policy)) {
        (Renewal::Expired, _) => {
            findings.error("certificate", format!("it expired at {}", leaf.not_after), "`picket cert renew`");
        }
        (_, Err(reason)) => findings.error("certificate", reason.to_string(), "`picket cert renew --force`"),
        (Renewal::Due, Ok(_)) => findings.warn(
            "certificate",
            format!("until {}; its renewal is due", leaf.not_after),
            "`picket test-connection`, then `picket cert renew`",
        ),
        (Renewal::NotBefore(_), Ok(_)) => findings.ok("certificate", format!("until {}", leaf.not_after)),
    }
}
