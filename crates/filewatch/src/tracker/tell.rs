//! From what was seen to the event that is told.

use super::Tracker;
use super::pending::Seen;
use crate::baseline::{Id, TOP};
use crate::emit::HashJob;
use crate::stat::{Stat, kind};
use base64::Engine;
use jiff::Timestamp;
use picket_protocol::event::{EventBody, FileAction, FileEvent, FileKind, GapEvent, GapReason};

impl Tracker {
    /// Tells of a file, if its name is one to tell of.
    pub(super) fn tell(
        &self,
        action: FileAction,
        path: &[u8],
        from: Option<&[u8]>,
        stat: &Stat,
        seen: &Seen,
        hash: Option<HashJob>,
    ) {
        if !self.parts.filter.tells(path) && !from.is_some_and(|from| self.parts.filter.tells(from)) {
            return;
        }
        let text = String::from_utf8_lossy(path);
        let is_text = matches!(text, std::borrow::Cow::Borrowed(_));
        let event = FileEvent {
            timestamp: seen.at,
            action,
            path: text.into_owned(),
            path_base64: (!is_text).then(|| base64::engine::general_purpose::STANDARD.encode(path)),
            path_from: from.map(|from| String::from_utf8_lossy(from).into_owned()),
            kind: kind(stat.mode),
            meta: (stat.is_known() && action != FileAction::Deleted).then(|| stat.meta()),
            sha256: None,
            actor: seen.actor.as_deref().cloned(),
            method: seen.method,
            confidence: seen.confidence,
            fold: None,
        };
        let hash = if event.kind == FileKind::File { hash } else { None };
        self.parts.emitter.tell(EventBody::File(event), hash);
    }

    pub(super) fn tell_gap(&self, reason: GapReason, count: Option<u64>, since: Option<Timestamp>, detail: &str) {
        let event = GapEvent {
            timestamp: Timestamp::now(),
            reason,
            source: "files".to_owned(),
            count,
            since,
            detail: detail.to_owned(),
        };
        self.parts.emitter.tell(EventBody::Gap(event), None);
    }

    /// The hash to make for a file of that stat, if it is to be made.
    pub(super) fn hash_job(&mut self, parent: Id, name: &[u8], stat: &Stat) -> Option<HashJob> {
        let limit = self.parts.settings.hash_max_size.0;
        if limit == 0 || !stat.is_regular() || stat.size > limit || parent == TOP {
            return None;
        }
        let folder = self.folders.open(&self.baseline, parent).ok()?;
        Some(HashJob { folder, name: name.into(), ino: stat.ino, limit })
    }
}
