//! What a heartbeat says: the agent's health, the books of its streams, its certificate, its updater.

use super::clock::ms;
use picket_outbox::QueueStatus;
use picket_pki::Certificate;
use picket_protocol::event::Priority;
use picket_protocol::hub::{
    AgentHealth, CertificateState, ClassAccount, HEARTBEAT_MAX_CHECKS, HEARTBEAT_MAX_LEDGERS, HEARTBEAT_MAX_TEXT,
    StreamLedger, UpdateState,
};
use picket_protocol::update_status::{UPDATE_STATUS_MAX_BYTES, UpdateOutcome, UpdateStatus};
use picket_protocol::{CheckStatus, HealthReport};
use std::path::Path;
use uuid::Uuid;

/// The health report in short.
pub(crate) fn health(report: &HealthReport) -> AgentHealth {
    let (checks, chars) = HEARTBEAT_MAX_CHECKS;
    let not_passing = report.checks.iter().filter(|(_, check)| check.status != CheckStatus::Pass);
    let short = |text: &str| text.chars().take(chars).collect();
    let not_passing = not_passing.take(checks).map(|(code, check)| (code.clone(), short(&check.message))).collect();
    AgentHealth { status: report.status, not_passing }
}

/// The books of the streams that the hub has from their beginning: those from `first` on.
pub fn ledgers(queue: &QueueStatus, first: Uuid) -> Vec<StreamLedger> {
    let from = queue.boots.iter().position(|boot| boot.boot == first).unwrap_or(0);
    let boots = &queue.boots[from..];
    let boots = &boots[boots.len().saturating_sub(HEARTBEAT_MAX_LEDGERS)..];
    let account = |account: &picket_outbox::Account| ClassAccount {
        emitted: account.emitted,
        acknowledged: account.acknowledged,
        queued: account.queued,
        gaps: account.gaps.clone(),
    };
    let mut ledgers: Vec<StreamLedger> = boots
        .iter()
        .map(|boot| StreamLedger {
            boot_id: boot.boot,
            classes: Priority::ALL.into_iter().map(|class| (class, account(boot.ledger.of(class)))).collect(),
            untold: 0,
        })
        .collect();
    // Gaps are told in the present stream, whichever they are of.
    if let Some(present) = ledgers.last_mut() {
        present.untold = queue.untold;
    }
    ledgers
}

/// The certificate in short.
pub(crate) fn certificate(certificate: &Certificate, counts: &super::Counts) -> CertificateState {
    CertificateState {
        serial: certificate.serial.clone(),
        not_after: certificate.not_after,
        renewed: counts.renewed,
        last_error: counts.last_error.as_ref().map(|text| text.chars().take(HEARTBEAT_MAX_TEXT).collect()),
    }
}

/// What the updater published.
pub(crate) fn update(path: &Path) -> Option<UpdateState> {
    let bytes = picket_durable::read_if_present(path, UPDATE_STATUS_MAX_BYTES).ok()??;
    let status: UpdateStatus = serde_json::from_slice(&bytes).ok()?;
    let word = |outcome| match outcome {
        UpdateOutcome::Committed => "committed",
        UpdateOutcome::RolledBack => "rolled-back",
        UpdateOutcome::Refused => "refused",
        UpdateOutcome::Interrupted => "interrupted",
    };
    Some(UpdateState {
        current: status.current,
        running: status.running.map(|running| (running.to, running.step)),
        last: status.last.map(|last| (last.to, word(last.outcome).to_owned())),
        trust_expires: status.trust.map(|trust| trust.first().1),
    })
}

/// How far the own clock is ahead of the hub's, in milliseconds: the hub's time is of half a round trip ago (RFC 5905 §8).
pub(crate) fn clock_ahead(own: jiff::Timestamp, hub: jiff::Timestamp, round_trip: std::time::Duration) -> i64 {
    own.as_millisecond().saturating_sub(ms(round_trip / 2)).saturating_sub(hub.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_outbox::{BootAccount, Ledger};
    use std::time::Duration;

    #[test]
    fn the_clock_is_compared_with_half_a_round_trip_in_mind() {
        let at = |ms| jiff::Timestamp::from_millisecond(ms).unwrap();
        assert_eq!(clock_ahead(at(10_000), at(9_900), Duration::from_millis(200)), 0);
        assert_eq!(clock_ahead(at(5_000), at(65_000), Duration::ZERO), -60_000);
    }

    #[test]
    fn the_hub_is_told_the_books_of_the_streams_it_has_from_their_beginning() {
        let boots: Vec<BootAccount> =
            (0..12).map(|_| BootAccount { boot: Uuid::now_v7(), last_seq: 1, ledger: Ledger::default() }).collect();
        let ids: Vec<Uuid> = boots.iter().map(|boot| boot.boot).collect();
        let status = QueueStatus {
            ledger: Ledger::default(),
            ledger_holds: true,
            boots,
            unknown_gaps: 0,
            untold: 3,
            queued: picket_outbox::Queued::default(),
            bytes: 0,
            max_bytes: 0,
            in_memory: 0,
            oldest_seconds: None,
            quarantined: 0,
            set_aside: 0,
            delays: picket_outbox::Delays::default(),
            trouble: None,
        };
        let told = |first| ledgers(&status, first).iter().map(|ledger| ledger.boot_id).collect::<Vec<_>>();
        assert_eq!(told(ids[9]), ids[9..]);
        assert_eq!(told(ids[1]), ids[4..], "no more than eight");
        assert_eq!(told(Uuid::nil()), ids[4..], "the first is long gone from the books");
        assert_eq!(ledgers(&status, ids[9]).last().unwrap().untold, 3);
    }
}
