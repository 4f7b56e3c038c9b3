//! What came out, held against what went in.
//!
//! Four books are compared, each kept by another: what the source made (its marks), what the agent's queue says, what the hub
//! counted, and the rows that the hub has. They agree when
//! - each row is there once, and none that was never made;
//! - in each stream `stored + gaps = emitted`, by the hub's own reckoning and by the queue's;
//! - what is missing was in memory when an agent was killed, and as much is missing as the gaps say: no event is missing that
//!   was known to be durable, or that nobody speaks of;
//! - there is a finding for each marked event that is there, and one for each agent's counted path with the exact count.

use super::books::Books;
use super::child::{LastWord, last_word};
use super::marks;
use crate::event::{self, MARK_EVERY};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use uuid::Uuid;

/// An agent as the audit knows it.
pub struct Subject {
    /// Its place.
    pub index: u32,
    /// Who it is at the hub.
    pub id: Uuid,
    /// Its folder.
    pub folder: PathBuf,
    /// How often it was killed.
    pub kills: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events made.
    pub made: u64,
    /// Events stored.
    pub stored: u64,
    /// Events missing, as gaps told.
    pub gaps: u64,
    /// Events that came again and were dropped.
    pub duplicates: u64,
    /// Findings that there should be, and are.
    pub findings: u64,
    /// What is not as it must be.
    pub wrong: Vec<String>,
}

/// The numbers that came, and how many came again as rows.
#[derive(Default)]
struct Came {
    bits: Vec<u64>,
    rows: u64,
    twice: u64,
}

impl Came {
    fn note(&mut self, number: u64) {
        let (word, bit) = (usize::try_from(number / 64).unwrap(), 1 << (number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.rows += 1;
        self.twice += u64::from(self.bits[word] & bit != 0);
        self.bits[word] |= bit;
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap();
        self.bits.get(word).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// Compares everything.
pub fn audit(books: &Books, subjects: &[Subject]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut came: HashMap<Uuid, Came> = HashMap::new();
    books.each_event(|agent, kind, details| {
        if kind == "file"
            && let Some(number) = event::number(details)
        {
            came.entry(agent).or_default().note(number);
        }
    });
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let (streams, told) = (books.streams(), books.told());
    for subject in subjects {
        let came = came.remove(&subject.id).unwrap_or_default();
        let word: LastWord = serde_json::from_slice(&fs::read(last_word(&subject.folder)).unwrap()).unwrap();
        let mut wrong = |what: String| verdict.wrong.push(format!("agent {}: {what}", subject.index));
        if !word.holds {
            wrong("the queue's books do not add up".into());
        }
        let (mut stored, mut gaps, mut emitted) = (0, 0, 0);
        for ledger in &word.streams {
            let (made, acknowledged, queued, missing) = ledger.total();
            emitted += made;
            let stream = streams.iter().find(|stream| stream.agent == subject.id && stream.boot == ledger.boot_id);
            let Some(stream) = stream else {
                wrong(format!("the hub does not know stream {}", ledger.boot_id));
                continue;
            };
            (stored, gaps) = (stored + stream.stored, gaps + stream.gaps);
            verdict.duplicates += stream.duplicates;
            if stream.stored + stream.gaps != made {
                wrong(format!("the hub: stored {} + gaps {} is not emitted {made}", stream.stored, stream.gaps));
            }
            if (stream.stored, stream.gaps, queued) != (acknowledged, missing, 0) {
                wrong(format!(
                    "the queue: acknowledged {acknowledged}, missing {missing}, queued {queued}; the hub: stored {}, gaps {}",
                    stream.stored, stream.gaps
                ));
            }
            // What the hub itself would show: emitted - stored - gaps - waiting, by the last heartbeat.
            let heard =
                told.get(&subject.id).and_then(|told| told.iter().find(|heard| heard.boot_id == ledger.boot_id));
            let unaccounted = heard.map(|heard| {
                let (made, _, queued, _) = heard.total();
                i128::from(made) - i128::from(stream.stored + stream.gaps) - i128::from(queued + heard.untold)
            });
            if unaccounted != Some(0) {
                wrong(format!("unaccounted is {unaccounted:?} in stream {}", ledger.boot_id));
            }
        }
        let known: u64 = streams.iter().filter(|stream| stream.agent == subject.id).map(|stream| stream.stored).sum();
        if known != stored {
            wrong(format!("the hub stored {known} in all streams, and {stored} in those that the agent knows"));
        }
        let (made, windows) = marks::told(&subject.folder);
        let missing: Vec<u64> = (1..=made).filter(|number| !came.has(*number)).collect();
        if came.twice > 0 {
            wrong(format!("{} events are there twice", came.twice));
        }
        if came.rows != stored {
            wrong(format!("there are {} rows, and the hub says it stored {stored}", came.rows));
        }
        if came.rows - came.twice + missing.len() as u64 != made {
            wrong(format!("there are events that were never made: {} rows of {made}", came.rows));
        }
        // A process that was killed between noting and handing over leaves a number that was never emitted.
        let never_handed = made.checked_sub(emitted);
        if never_handed.is_none_or(|count| count > subject.kills || missing.len() as u64 != gaps + count) {
            let missing = missing.len();
            wrong(format!("made {made}, emitted {emitted}, missing {missing}, gaps {gaps}, killed {}", subject.kills));
        }
        let in_window = |number: &u64| windows.iter().any(|(after, to)| (after + 1..=*to).contains(number));
        if let Some(lost) = missing.iter().find(|number| !in_window(number)) {
            wrong(format!("event {lost} was durable and is lost"));
        }
        verdict.made += made;
        verdict.stored += stored;
        verdict.gaps += gaps;
        for number in (1..=made).filter(|number| came.has(*number) && number % MARK_EVERY < 2) {
            *expected.entry(event::path(subject.index, number)).or_default() += 1;
        }
    }
    let told = books.findings().into_iter().filter(|finding| finding.title.ends_with("By The Load"));
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for finding in told {
        if found.insert(finding.entity.clone(), finding.events).is_some() {
            verdict.wrong.push(format!("there are two findings on {}", finding.entity));
        }
    }
    verdict.findings = found.len() as u64;
    if found != expected {
        let differs = |(path, count): &(&String, &u64)| found.get(*path) != Some(*count);
        let example = expected.iter().find(differs).map(|(path, count)| {
            format!("{path} should have {count} events and has {}", found.get(path).copied().unwrap_or_default())
        });
        let example = example.or_else(|| found.keys().find(|path| !expected.contains_key(*path)).cloned());
        let (found, expected) = (found.len(), expected.len());
        verdict
            .wrong
            .push(format!("{found} findings, expected {expected}; for example {}", example.unwrap_or_default()));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_and_what_never_came_shows() {
        let mut came = Came::default();
        [1, 2, 64, 2].into_iter().for_each(|number| came.note(number));
        assert_eq!((came.rows, came.twice, came.has(64), came.has(3), came.has(9999)), (4, 1, true, false, false));
    }
}
