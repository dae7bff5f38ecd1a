//! From evidence to verdicts.

use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::{HostName, Millis, Number};

use super::tally::Tally;
use super::{Criterion, Judgement, Metric, Observed, TriggerTest, Verdict};

/// What there is about one metric.
#[derive(Clone, Debug, Default)]
pub struct Exhibit {
    /// The changed hosts together, over the observation or the trigger's window.
    pub changed: Option<(Tally, Millis)>,
    /// The same, over the shortest recent time that has enough samples.
    pub recent: Option<(Tally, Millis)>,
    /// Each changed host.
    pub hosts: Vec<HostExhibit>,
    /// The hosts not changed yet, together, over the same time.
    pub control: Option<(Tally, Millis)>,
    /// Sealed before the first swap.
    pub baseline: Option<Observed>,
    /// Sources that cannot be read now, one sentence each.
    pub errors: Vec<String>,
}

/// One changed host.
#[derive(Clone, Debug)]
pub struct HostExhibit {
    /// Which.
    pub host: HostName,
    /// Over the observation or the window.
    pub window: (Tally, Millis),
    /// Over the shortest recent time that has enough samples.
    pub recent: Option<(Tally, Millis)>,
}

/// A trigger's test that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// What was seen.
    pub observed: Number,
    /// Beyond what.
    pub limit: Number,
    /// From how many samples.
    pub samples: u64,
    /// The one host that decided, if it was not the pooled value.
    pub host: Option<HostName>,
    /// One sentence.
    pub reason: String,
}

/// The verdict on one criterion.
#[must_use]
pub fn judge(criterion: &Criterion, metric: &Metric, _exhibit: &Exhibit) -> Judgement {
    Judgement {
        name: criterion.name.clone(),
        metric: criterion.metric.clone(),
        verdict: Verdict::Inconclusive,
        observed: None,
        limit: None,
        unit: metric.kind.unit().into(),
        samples: 0,
        reason: String::new(),
        host: None,
        advisory: criterion.advisory,
        perf: criterion.perf,
    }
}

/// Whether a trigger's test holds.
#[must_use]
pub fn trips(_test: &TriggerTest, _metric: &Metric, _exhibit: &Exhibit) -> Option<Trip> {
    None
}
