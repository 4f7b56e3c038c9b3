//! What the outbox remembers besides its records: the books, the marks of each lane, and who it is.
//!
//! It is written in the same transaction as the records it speaks of, twice (two tables are two pages: a damaged page
//! takes one), and once more beside the database after the commit ([`crate::marks`]).

use crate::ledger::Ledger;
use picket_protocol::event::Priority;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// How many boots have books of their own; older ones are added up into one.
const BOOTS_KEPT: usize = 8;

/// The books of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootAccount {
    /// The boot id on the wire.
    pub boot: Uuid,
    /// The last sequence given.
    pub last_seq: u64,
    /// Its books.
    pub ledger: Ledger,
}

/// The marks of one lane. Ids count from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneMarks {
    /// The last id given.
    pub(crate) last: i64,
    /// Everything up to here is gone.
    pub(crate) removed_to: i64,
    /// What lies between the two was evicted while what is before it was handed out, and stays.
    pub(crate) kept_to: i64,
    pub(crate) evicted_to: i64,
}

/// Which records were handed out and not yet acknowledged: in each lane all up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// Tells this lease from earlier ones.
    pub(crate) token: u64,
    pub(crate) to: [i64; 4],
}

/// The time that the outbox counted itself, which no clock jump reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Aged {
    /// Milliseconds since the outbox was made.
    pub(crate) ms: i64,
    /// Milliseconds since boot when that was so.
    since_boot_ms: i64,
    /// The wall clock when that was so, in milliseconds.
    wall_ms: i64,
}

/// The longest time between two boots that counts, in milliseconds: the wall clock is all there is to measure it by,
/// and it may be wrong by years. Too short keeps records longer than asked for, which the byte quota bounds.
const OFF_MS_MAX: i64 = 24 * 3_600_000;

impl Aged {
    /// Lets the time pass that passed.
    pub(crate) fn advance(&mut self, since_boot_ms: i64, wall_ms: i64, same_boot: bool) {
        let passed = if same_boot {
            since_boot_ms.saturating_sub(self.since_boot_ms).max(0)
        } else {
            wall_ms.saturating_sub(self.wall_ms).clamp(0, OFF_MS_MAX)
        };
        *self = Self { ms: self.ms.saturating_add(passed), since_boot_ms, wall_ms };
    }
}

/// The form of the state and of the tables it stands beside, as this version writes them.
///
/// The updater keeps a way back of one release, so a queue must serve the release before the one that wrote it. A release
/// raises the form by at most one and only adds: members of the state, columns with defaults. It says in the state, under
/// `reads_from`, the oldest form whose code can go on with the queue. This version takes a queue of the next form if that
/// allows it, leaves the number as it is, and keeps the members that it does not know. Anything newer is refused.
pub const STATE_FORM: i64 = 1;
/// The oldest form whose code can go on with a queue of this version.
pub const STATE_READS_FROM: i64 = 1;

/// Why there is no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateError {
    /// It does not open, or is not one.
    Damaged,
    /// A later version wrote it.
    Later(i64),
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`STATE_FORM`] of the latest version that wrote it.
    pub(crate) form: i64,
    /// [`STATE_READS_FROM`] of that version; the first ones did not say it.
    #[serde(default = "first_form")]
    pub(crate) reads_from: i64,
    /// Who keeps these books; a new one when they begin at zero.
    pub(crate) books: Uuid,
    /// Counts the commits.
    pub(crate) commit: u64,
    /// The kernel's boot id of the last opening.
    pub(crate) kernel_boot: String,
    /// The boots with books of their own, the present one last.
    pub(crate) boots: Vec<BootAccount>,
    /// All earlier boots.
    pub(crate) earlier: Ledger,
    /// Gaps of which nobody knows the size.
    pub(crate) unknown_gaps: u64,
    /// Missing events of which the receiver was told.
    pub(crate) told: u64,
    pub(crate) lanes: [LaneMarks; 4],
    pub(crate) lease: Option<Lease>,
    pub(crate) leases: u64,
    pub(crate) aged: Aged,
    /// Rows in quarantine.
    pub(crate) quarantined: u64,
    /// Database files that were set aside.
    pub(crate) set_aside: u64,
    /// What a later version added.
    #[serde(flatten)]
    pub(crate) added: serde_json::Map<String, serde_json::Value>,
}

fn first_form() -> i64 {
    1
}

impl State {
    /// Books that begin at zero.
    pub(crate) fn new(kernel_boot: &str) -> Self {
        Self {
            form: STATE_FORM,
            reads_from: STATE_READS_FROM,
            books: Uuid::now_v7(),
            commit: 0,
            kernel_boot: kernel_boot.to_owned(),
            boots: Vec::new(),
            earlier: Ledger::default(),
            unknown_gaps: 0,
            told: 0,
            lanes: [LaneMarks::default(); 4],
            lease: None,
            leases: 0,
            aged: Aged::default(),
            quarantined: 0,
            set_aside: 0,
            added: serde_json::Map::new(),
        }
    }

    /// Reads what [`serde_json`] wrote.
    ///
    /// # Errors
    /// [`StateError::Later`] says which form it has.
    pub(crate) fn read(json: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Form {
            form: i64,
            #[serde(default)]
            reads_from: Option<i64>,
        }
        let Form { form, reads_from } = serde_json::from_slice(json).map_err(|_| StateError::Damaged)?;
        let is_readable =
            form <= STATE_FORM || (form == STATE_FORM + 1 && reads_from.is_some_and(|oldest| oldest <= STATE_FORM));
        if !is_readable {
            return Err(StateError::Later(form));
        }
        serde_json::from_slice(json).map_err(|_| StateError::Damaged)
    }

    /// Begins a boot on the wire.
    pub(crate) fn begin_boot(&mut self, boot: Uuid) {
        self.boots.push(BootAccount { boot, last_seq: 0, ledger: Ledger::default() });
        while self.boots.len() > BOOTS_KEPT {
            let oldest = self.boots.remove(0);
            self.earlier.add(&oldest.ledger);
        }
    }

    /// The boot on the wire, present one.
    pub(crate) fn boot(&self) -> Uuid {
        self.boots.last().map_or(Uuid::nil(), |account| account.boot)
    }

    /// The next sequence of the present boot.
    pub(crate) fn next_seq(&mut self) -> u64 {
        match self.boots.last_mut() {
            Some(account) => {
                account.last_seq += 1;
                account.last_seq
            }
            None => 0,
        }
    }

    /// The books that a record of `boot` is in.
    pub(crate) fn books_of(&mut self, boot: Uuid) -> &mut Ledger {
        match self.boots.iter_mut().find(|account| account.boot == boot) {
            Some(account) => &mut account.ledger,
            None => &mut self.earlier,
        }
    }

    /// The books of the present boot.
    pub(crate) fn present(&mut self) -> &mut Ledger {
        match self.boots.last_mut() {
            Some(account) => &mut account.ledger,
            None => &mut self.earlier,
        }
    }

    /// The books of all boots together.
    pub(crate) fn ledger(&self) -> Ledger {
        let mut ledger = self.earlier.clone();
        self.boots.iter().for_each(|account| ledger.add(&account.ledger));
        ledger
    }

    /// What was emitted in each class, in the order of [`Priority::ALL`].
    pub(crate) fn emitted(&self) -> [u64; 3] {
        let ledger = self.ledger();
        Priority::ALL.map(|class| ledger.of(class).emitted)
    }

    /// The last id of `lane` that is handed out; what is after it can be evicted.
    pub(crate) fn leased_to(&self, lane: usize) -> i64 {
        self.lease.map_or(0, |lease| lease.to[lane])
    }

    /// Whether the row `id` of `lane` was acknowledged or given up. (A row beyond the last id is newer than this state.)
    pub(crate) fn is_gone(&self, lane: usize, id: i64) -> bool {
        let marks = self.lanes[lane];
        id <= marks.removed_to || (id > marks.kept_to && id <= marks.evicted_to)
    }
}

/// The boot id on the wire: a UUID of version 8 (RFC 9562 §5.8) from SHA-256 over the kernel's boot id and an id that is
/// new for every database and every time that its past is in doubt. So no (boot, sequence) is given twice, even if the
/// database is lost or put back from yesterday while the machine stays up.
pub(crate) fn wire_boot(kernel_boot: &str, incarnation: Uuid) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"picket outbox boot 1");
    hash.update(incarnation.as_bytes());
    hash.update(kernel_boot.as_bytes());
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_differs_for_each_kernel_boot_and_each_incarnation() {
        let (a, b) = (Uuid::now_v7(), Uuid::now_v7());
        assert_eq!(wire_boot("k1", a), wire_boot("k1", a));
        assert_ne!(wire_boot("k1", a), wire_boot("k2", a));
        assert_ne!(wire_boot("k1", a), wire_boot("k1", b));
        assert_eq!(wire_boot("k1", a).get_version_num(), 8);
    }

    #[test]
    fn no_clock_jump_makes_records_older_than_they_are() {
        const YEARS: i64 = 10 * 365 * 86_400_000;
        let mut aged = Aged::default();
        aged.advance(1000, YEARS, false);
        assert_eq!(aged.ms, OFF_MS_MAX);
        aged.advance(2000, 3 * YEARS, true);
        assert_eq!(aged.ms, OFF_MS_MAX + 1000);
        aged.advance(100, -YEARS, false);
        assert_eq!(aged.ms, OFF_MS_MAX + 1000);
        aged.advance(50, 0, true);
        assert_eq!(aged.ms, OFF_MS_MAX + 1000);
    }

    #[test]
    fn the_books_of_many_boots_stay_few_and_lose_nothing() {
        let mut state = State::new("k");
        for _ in 0..20 {
            state.begin_boot(Uuid::now_v7());
            state.present().emit(Priority::Low, 3);
        }
        assert_eq!(state.boots.len(), BOOTS_KEPT);
        assert_eq!(state.ledger().low.emitted, 60);
    }
}
