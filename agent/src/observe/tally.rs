//! Which of a service's messages count, and how many have.
//!
//! Must not: read a message from anywhere.

use std::collections::BTreeSet;

use tidegate_protocol::metric::JournalWhat;

use super::signature::signature;

/// Distinct new errors that are counted.
const NEW_MAX: usize = 1_000;
/// Signatures of the baseline that are remembered.
const KNOWN_MAX: usize = 10_000;

/// syslog's `crit` and `err`.
const CRIT: u8 = 2;
const ERR: u8 = 3;

/// Critical texts where neither the release nor the plan names any.
const CRITICAL: [&str; 2] = ["panic", "FATAL"];
/// Texts of a line that reads like an error.
const ERRORS: [&str; 6] = ["ERROR", "error:", "Exception", "Traceback", "FATAL", "panicked"];
/// Texts that people who look after security want to hear of, whatever the plan
/// says; in lower case, and looked for in any case.
const SECURITY: [&str; 9] = [
    "authentication failure",
    "failed password",
    "invalid user",
    "possible break-in",
    "permission denied",
    "certificate verify failed",
    "sql injection",
    "segfault",
    "stack smashing detected",
];

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// syslog's; lower is worse.
    pub(super) priority: Option<u8>,
    pub(super) text: &'a str,
}

impl<'a> Entry<'a> {
    /// A line of a log; `<3>` at its beginning is its priority, as sd-daemon(3) has it.
    pub(super) fn of_line(line: &'a str) -> Self {
        let line = line.trim_end();
        let marked = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let digit = |n: &str| n.parse::<u8>().ok().filter(|priority| n.len() == 1 && *priority <= 7);
        match marked.and_then(|(n, text)| Some((digit(n)?, text))) {
            Some((priority, text)) => Self { priority: Some(priority), text },
            None => Self { priority: None, text: line },
        }
    }
}

/// What was counted of one observer.
#[derive(Debug)]
pub(super) struct Tally {
    what: JournalWhat,
    texts: Vec<String>,
    count: u64,
    note: Option<String>,
    /// Signatures of new errors, and of those that are not new.
    new: BTreeSet<u64>,
    known: BTreeSet<u64>,
}

impl Tally {
    /// Nothing counted yet.
    pub(super) fn new(what: JournalWhat) -> Self {
        Self { what, texts: Vec::new(), count: 0, note: None, new: BTreeSet::new(), known: BTreeSet::new() }
    }

    /// What counts from here on: the texts of the plan, and those that the release
    /// itself denies.
    pub(super) fn look_for(&mut self, patterns: &[String], denied: &[String]) {
        let own = match self.what {
            JournalWhat::Critical if patterns.is_empty() && denied.is_empty() => CRITICAL.as_slice(),
            JournalWhat::Critical => &[],
            JournalWhat::NewErrors => ERRORS.as_slice(),
            JournalWhat::Security => SECURITY.as_slice(),
        };
        let denied = if self.what == JournalWhat::Critical { denied } else { &[] };
        let all = own.iter().map(|text| (*text).to_owned()).chain(patterns.iter().chain(denied).cloned());
        let all = all.filter(|text| !text.is_empty());
        self.texts = if self.what == JournalWhat::Security { all.map(|text| text.to_lowercase()).collect() } else { all.collect() };
    }

    /// Takes a message in; true if it counts.
    pub(super) fn take(&mut self, entry: Entry<'_>) -> bool {
        if !self.counts(entry) {
            return false;
        }
        if self.what == JournalWhat::NewErrors {
            let signature = signature(entry.text);
            if self.known.contains(&signature) || self.new.contains(&signature) || self.new.len() >= NEW_MAX {
                return false;
            }
            self.new.insert(signature);
        }
        self.count = self.count.saturating_add(1);
        self.note = Some(entry.text.trim().chars().take(512).collect());
        true
    }

    /// A message of the baseline.
    pub(super) fn know(&mut self, entry: Entry<'_>) {
        if self.what == JournalWhat::NewErrors && self.known.len() < KNOWN_MAX && self.counts(entry) {
            self.known.insert(signature(entry.text));
        }
    }

    /// Begins at zero. What another release said is the baseline of the next.
    pub(super) fn begin(&mut self, another_release: bool) {
        let new = std::mem::take(&mut self.new);
        if another_release {
            let room = KNOWN_MAX.saturating_sub(self.known.len());
            self.known.extend(new.into_iter().take(room));
        }
        (self.count, self.note) = (0, None);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The last message that counted.
    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Whether it is to be said at once.
    pub(super) fn urgent(&self) -> bool {
        self.what == JournalWhat::Critical
    }

    fn counts(&self, entry: Entry<'_>) -> bool {
        let worse = |than: u8| entry.priority.is_some_and(|priority| priority <= than);
        let by_priority = match self.what {
            JournalWhat::Critical => worse(CRIT),
            JournalWhat::NewErrors => worse(ERR),
            JournalWhat::Security => false,
        };
        if by_priority {
            return true;
        }
        if self.what == JournalWhat::Security {
            let text = entry.text.to_lowercase();
            return self.texts.iter().any(|wanted| text.contains(wanted.as_str()));
        }
        self.texts.iter().any(|wanted| entry.text.contains(wanted.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(what: JournalWhat, patterns: &[&str], denied: &[&str]) -> Tally {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let mut tally = Tally::new(what);
        tally.look_for(&owned(patterns), &owned(denied));
        tally
    }

    fn taken(tally: &mut Tally, lines: &[&str]) -> u64 {
        let before = tally.count();
        for line in lines {
            tally.take(Entry::of_line(line));
        }
        tally.count() - before
    }

    #[test]
    fn priorities_stand_before_the_line() {
        assert_eq!(Entry::of_line("<2>no disk\n"), Entry { priority: Some(2), text: "no disk" });
        for line in ["no disk", "<8>x", "<22>x", "<02>x", "<x>y", "<2", "<+2>x"] {
            assert_eq!(Entry::of_line(line), Entry { priority: None, text: line });
        }
    }

    #[test]
    fn critical_is_by_priority_or_by_the_texts_of_plan_and_release() {
        let mut bare = tally(JournalWhat::Critical, &[], &[]);
        assert_eq!(taken(&mut bare, &["<2>a", "<3>b", "<0>c", "thread panicked", "FATAL: d", "fatal"]), 4);
        assert_eq!(bare.note(), Some("FATAL: d"));
        let mut named = tally(JournalWhat::Critical, &["lost quorum"], &["corrupt"]);
        assert_eq!(taken(&mut named, &["panic", "lost quorum now", "index corrupt", "<1>x"]), 3);
        bare.begin(false);
        assert_eq!((bare.count(), bare.note()), (0, None));
    }

    #[test]
    fn new_errors_are_distinct_and_not_of_the_baseline() {
        let mut tally = tally(JournalWhat::NewErrors, &["slow"], &["never"]);
        tally.know(Entry::of_line("ERROR request 1 failed"));
        tally.know(Entry::of_line("all is well 5"));
        let lines = ["ERROR request 77 failed", "all is well 6", "error: no disk 1", "error: no disk 2", "<3>odd", "never", "slow query"];
        assert_eq!(taken(&mut tally, &lines), 3);
        assert_eq!(tally.note(), Some("slow query"));
        // The same release again: what it says is new again, what was known is not.
        tally.begin(false);
        assert_eq!(taken(&mut tally, &lines), 3);
        // Another release: all of it was there before.
        tally.begin(true);
        assert_eq!(taken(&mut tally, &lines), 0);
        let many: Vec<String> = (0..2_000).map(|n| format!("ERROR {}", "ab ".repeat(n % 130) + &"xy ".repeat(n / 130))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(taken(&mut tally, &many) <= NEW_MAX as u64);
    }

    #[test]
    fn security_is_looked_for_in_any_case() {
        let mut tally = tally(JournalWhat::Security, &["Token Replayed"], &["panic"]);
        let lines = ["PERMISSION DENIED for x", "sshd: Invalid user bob", "token replayed by 7", "panic", "<0>down"];
        assert_eq!(taken(&mut tally, &lines), 3);
    }
}
