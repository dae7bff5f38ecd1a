//! Counters of a page that outlives the service's process, such as an exporter
//! beside it: what they stood at before the process is not of it.
//!
//! A page says with `process_start_time_seconds` whose it is; without that, one
//! whose counters did not fall when the process changed is another's.

use tidegate_protocol::metric::Reading;

/// Two looks at a host's clocks may differ by a little: a page of this age is the
/// service's own.
const SAME_MS: u64 = 300;
/// And one of about this age may be anybody's.
const SLACK_MS: u64 = 2_000;

/// One counter's base.
#[derive(Debug, Default)]
pub(super) struct Rebase {
    last: Option<Reading>,
    base: Option<Reading>,
    /// The process changed since the last reading.
    changed: bool,
}

impl Rebase {
    /// Another main process than before.
    pub(super) fn another(&mut self) {
        (self.changed, self.base) = (true, None);
    }

    /// What was counted since the process began at `process_ms`. `page_ms` is when
    /// the page says that its own process began.
    pub(super) fn take(&mut self, raw: Reading, page_ms: Option<u64>, process_ms: u64) -> Reading {
        // Of about the same age: the counters themselves must tell.
        let older = page_ms.and_then(|page| {
            let apart = page.abs_diff(process_ms);
            if apart <= SAME_MS { Some(false) } else { (apart > SLACK_MS).then_some(page < process_ms) }
        });
        let first = std::mem::take(&mut self.changed);
        let grew = |before: &Reading| minus(&raw, before).is_some();
        self.base = match (self.base.take(), older) {
            // It began again by itself.
            (Some(base), _) if minus(&raw, &base).is_none() => None,
            (Some(base), Some(true) | None) => Some(base),
            (_, Some(false)) => None,
            (None, Some(true)) if first || self.last.is_none() => self.last.take().filter(grew).or_else(|| Some(raw.clone())),
            (None, None) if first => self.last.take().filter(grew),
            (None, _) => None,
        };
        self.last = Some(raw.clone());
        self.base.as_ref().and_then(|base| minus(&raw, base)).unwrap_or(raw)
    }
}

/// None where something fell, or the two are not of one kind.
fn minus(now: &Reading, before: &Reading) -> Option<Reading> {
    Some(match (now, before) {
        (Reading::Ratio { bad, total }, Reading::Ratio { bad: b, total: t }) => {
            Reading::Ratio { bad: bad.checked_sub(*b)?, total: total.checked_sub(*t)? }
        }
        (Reading::Histogram { bounds_us, counts }, Reading::Histogram { bounds_us: bounds, counts: before }) if bounds_us == bounds => {
            let counts = counts.iter().zip(before).map(|(now, before)| now.checked_sub(*before)).collect::<Option<Vec<_>>>()?;
            Reading::Histogram { bounds_us: bounds_us.clone(), counts }
        }
        (Reading::Count(now), Reading::Count(before)) => Reading::Count(now.checked_sub(*before)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rebase: &mut Rebase, page: Option<u64>, process: u64, raw: &[u64]) -> Vec<Reading> {
        raw.iter().map(|n| rebase.take(Reading::Count(*n), page, process)).collect()
    }

    #[test]
    fn a_page_of_the_service_itself_is_taken_as_it_is() {
        let mut rebase = Rebase::default();
        assert_eq!(counts(&mut rebase, None, 10_000, &[500, 600]), [Reading::Count(500), Reading::Count(600)]);
        rebase.another();
        assert_eq!(counts(&mut rebase, None, 90_000, &[3, 7]), [Reading::Count(3), Reading::Count(7)]);
        rebase.another();
        assert_eq!(counts(&mut rebase, Some(95_000), 95_100, &[8, 9]), [Reading::Count(8), Reading::Count(9)]);
    }

    #[test]
    fn an_exporter_beside_it_begins_with_each_process() {
        let mut rebase = Rebase::default();
        counts(&mut rebase, None, 10_000, &[43_000, 43_508]);
        rebase.another();
        assert_eq!(counts(&mut rebase, None, 90_000, &[43_510, 43_600]), [Reading::Count(2), Reading::Count(92)]);
        // It was restarted by itself.
        assert_eq!(counts(&mut rebase, None, 90_000, &[5]), [Reading::Count(5)]);
    }

    #[test]
    fn what_the_page_says_of_its_age_decides() {
        // One that began a moment before the service did not fall when that changed.
        let mut rebase = Rebase::default();
        counts(&mut rebase, Some(89_000), 50_000, &[500]);
        rebase.another();
        assert_eq!(counts(&mut rebase, Some(89_000), 90_000, &[502]), [Reading::Count(2)]);
        // An agent that has just started knows nothing of before.
        let mut rebase = Rebase::default();
        assert_eq!(counts(&mut rebase, Some(10_000), 90_000, &[43_508, 43_510]), [Reading::Count(0), Reading::Count(2)]);
    }
}
