//! Hosts as witnesses of the journal: each remembers the highest head it was told.
//!
//! Owns: which heads hosts say, which of them do not fit our journal, and when
//! hosts hear of a newer head.

use tidegate_protocol::message::VERSION_PROCESS;
use tidegate_protocol::{HostName, JournalHead, Millis, Timestamp};

use super::HeadCheck;
use super::state::State;
use crate::outbox::Word;

/// A head is told at most so often: hosts keep each one durably.
const TELL_EVERY: Millis = Millis::from_secs(5);

/// What a host remembers of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Who.
    pub host: HostName,
    /// What it said last.
    pub head: JournalHead,
    /// What did not fit when it said so.
    pub finding: Option<String>,
}

/// The head as hosts know it.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Durable here.
    ours: Option<JournalHead>,
    /// Told to all that were there.
    told: Option<JournalHead>,
    told_at: Timestamp,
}

impl Heads {
    pub(super) const fn new(ours: Option<JournalHead>) -> Self {
        // Nobody is connected yet: each hears it at its hello.
        Self { ours, told: ours, told_at: Timestamp(0) }
    }

    pub(super) const fn appended(&mut self, head: Option<JournalHead>) {
        self.ours = head;
    }

    pub(super) fn word(&self) -> Option<Word> {
        self.ours.map(Word::Head)
    }

    /// When a newer one is to be told.
    pub(super) fn due(&self) -> Option<Timestamp> {
        (self.ours != self.told).then(|| self.told_at + TELL_EVERY)
    }
}

impl State {
    /// Tells all hosts of the newest durable record, not too often.
    pub fn tell_heads(&mut self, now: Timestamp) {
        if self.heads.due().is_none_or(|at| now < at) {
            return;
        }
        self.heads.told = self.heads.ours;
        self.heads.told_at = now;
        let Some(head) = self.heads.ours else { return };
        let sessions = self.registry.iter().filter_map(|(_, h)| h.session());
        for session in sessions.filter(|s| s.version >= VERSION_PROCESS) {
            session.outbox.put(Word::Head(head));
        }
    }

    /// A host says what it remembers.
    pub(super) fn remembered(&mut self, host: &HostName, head: JournalHead, check: HeadCheck) {
        let ours = self.heads.ours;
        let last = ours.map_or(0, |o| o.seq);
        let finding = if head.seq > last {
            Some(format!("it remembers record {}, the journal ends at {last}: its end was cut off, or it was replaced", head.seq))
        } else if check == HeadCheck::Differs || ours.is_some_and(|o| o.seq == head.seq && o.hash != head.hash) {
            Some(format!("it remembers another record {} than the journal has: the journal was replaced", head.seq))
        } else {
            None
        };
        let Some(known) = self.registry.get_mut(host) else { return };
        known.head = Some(head);
        if let Some(finding) = finding
            && known.head_finding.is_none()
        {
            tracing::error!(%host, seq = head.seq, "a host's memory of the journal does not fit: {finding}. See `tidegate audit verify`");
            known.head_finding = Some(finding);
        }
    }

    /// What all hosts remember.
    pub(super) fn witnesses(&self) -> Vec<Witness> {
        let of = |(host, known): (&HostName, &crate::registry::Host)| {
            known.head.map(|head| Witness { host: host.clone(), head, finding: known.head_finding.clone() })
        };
        self.registry.iter().filter_map(of).collect()
    }
}
