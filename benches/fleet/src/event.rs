//! The events that simulated agents tell of: each numbered, so that what comes out can be held against what went in.

use jiff::Timestamp;
use picket_protocol::event::EventBody;
use serde_json::{Value, json};

/// One in so many events is marked; the next one is counted.
pub const MARK_EVERY: u64 = 500;

/// What stands before the number in an event's hash.
const HASH: &str = "\"sha256\":\"";

/// The path of event `number` of agent `index`. A rule finds marked paths, each another one; another rule finds the counted
/// path, which is always the same.
pub fn path(index: u32, number: u64) -> String {
    match number % MARK_EVERY {
        0 => format!("/srv/marked/{index}/{number}"),
        1 => format!("/srv/counted/{index}"),
        _ => format!("/srv/app/releases/{:06}/config/{index}/settings.yaml", number % 999_983),
    }
}

/// The details of event `number`, about 400 bytes. The number stands in the hash.
pub fn details(index: u32, number: u64, at: Timestamp) -> Value {
    json!({
        "timestamp": at,
        "action": "modified",
        "path": path(index, number),
        "kind": "file",
        "meta": {"size": number * 7 % 100_000, "mode": 33188, "uid": 1000, "gid": 1000, "inode": number + 1_000_000,
                 "modified": at},
        "sha256": format!("{number:064x}"),
        "actor": {"pid": number % 32_768, "exe": "/usr/bin/python3.11", "uid": 1000, "user": "deploy"},
        "method": "fanotify",
        "confidence": "observed",
    })
}

/// The event with this number, as a watcher would hand it to the queue.
pub fn event(index: u32, number: u64, at: Timestamp) -> EventBody {
    serde_json::from_value(json!({"type": "file", "details": details(index, number, at)})).unwrap()
}

/// The number in the text of an event's details.
pub fn number(details: &str) -> Option<u64> {
    let begin = details.find(HASH).or_else(|| details.find("\"sha256\": \"").map(|at| at + 1))? + HASH.len();
    u64::from_str_radix(details.get(begin..begin + 64)?.trim_start_matches('0'), 16).ok()
}

/// A rule that finds what is marked, and one that finds what is counted.
pub const RULES: [(&str, &str); 2] = [
    (
        "marked.yml",
        "title: Marked By The Load\nid: 8d1f4c38-1d0d-4a4e-9d51-0a4b6c7f1a01\nstatus: test\nlogsource:\n    product: linux\n    \
         category: file_event\ndetection:\n    selection:\n        TargetFilename|startswith: '/srv/marked/'\n    \
         condition: selection\nlevel: low\n",
    ),
    (
        "counted.yml",
        "title: Counted By The Load\nid: 8d1f4c38-1d0d-4a4e-9d51-0a4b6c7f1a02\nstatus: test\nlogsource:\n    product: linux\n    \
         category: file_event\ndetection:\n    selection:\n        TargetFilename|startswith: '/srv/counted/'\n    \
         condition: selection\nlevel: low\n",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_its_number_whoever_wrote_the_json() {
        for number in [1, 499, 500, 501, u64::from(u32::MAX)] {
            let details = details(3, number, Timestamp::UNIX_EPOCH);
            assert_eq!(super::number(&details.to_string()), Some(number));
            let spaced = serde_json::to_string_pretty(&details).unwrap();
            assert_eq!(super::number(&spaced), Some(number));
            event(3, number, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(super::number("{}"), None);
    }

    #[test]
    fn one_in_five_hundred_is_marked() {
        let marked = (1..=5000).filter(|number| path(0, *number).starts_with("/srv/marked/")).count();
        assert_eq!(marked, 10);
    }
}
