//! Gates and triggers: what must hold before the next wave, and what takes a
//! rollout back at any time.
//!
//! Owns: the resolved form of a plan's metrics, criteria, stages and triggers
//! ([`Gating`]), how cumulative readings become values ([`tally`], [`series`]),
//! and how values become verdicts ([`judge`]). Must not: fetch a number, read a
//! clock, or change a rollout's state.

pub mod judge;
pub mod resolve;
pub mod series;
pub mod tally;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use tidegate_protocol::release::Argv;
use tidegate_protocol::{Millis, Number};

use crate::condition::{Condition, Op};
use crate::spec::{Compare, OnInconclusive, TriggerAction};

/// Everything a plan judges by, resolved: built-in defaults filled in, words like
/// `latency` and `stable` taken apart into one test per metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gating {
    /// By name: those that criteria, triggers or the status need.
    #[serde(default)]
    pub metrics: BTreeMap<String, Metric>,
    /// In order of waves; a rollout without one completes as soon as all hosts are
    /// confirmed.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// Armed from the first swap to the end.
    #[serde(default)]
    pub triggers: Vec<Trigger>,
    /// Of the built-in triggers, those without a source, with why.
    #[serde(default)]
    pub not_armed: Vec<String>,
    /// How metrics are judged.
    pub analysis: Analysis,
}

/// What follows once a wave's hosts are settled: observation, then a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// For people.
    pub name: String,
    /// Index (from 1) of the last wave before this gate.
    pub after_wave: usize,
    /// Least time of observation; for a standing verdict the most that is waited
    /// for it.
    pub bake: Millis,
    /// Rolling: every admission needs this verdict, not only what follows the wave.
    #[serde(default)]
    pub standing: bool,
    /// A person attests these by name.
    #[serde(default)]
    pub attest: Vec<String>,
    /// The observation is the final watch: it holds no lock.
    #[serde(default)]
    pub watch: bool,
    /// All must pass.
    pub criteria: Vec<Criterion>,
}

/// One test of one metric, with the words it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criterion {
    /// As written, where needed with the metric: `stable: latency_p99`.
    pub name: String,
    /// Key of [`Gating::metrics`].
    pub metric: String,
    /// What must hold.
    pub test: Test,
    /// Fewer samples are inconclusive, not pass.
    pub min_samples: u64,
    /// Shown, but does not decide.
    #[serde(default)]
    pub advisory: bool,
    /// Beyond it the verdict is fail, between it and the test's limit
    /// inconclusive: the limit of the trigger on the same metric.
    #[serde(default)]
    pub fails_beyond: Option<Test>,
    /// A `[[perf]]` row: Expected / Actual.
    #[serde(default)]
    pub perf: bool,
}

/// What a value is held against. Values are in the metric's natural unit: percent
/// for ratios and shares, milliseconds for latencies, else as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// `value op limit`.
    Limit {
        /// How.
        op: Op,
        /// Against what.
        limit: Number,
    },
    /// No worse than the reference by more than so many percent of it.
    Within {
        /// Percent.
        percent: Number,
        /// Of what.
        of: Reference,
    },
    /// `value op percent of the reference`; 200 is twice the value.
    OfBaseline {
        /// How.
        op: Op,
        /// Percent.
        percent: Number,
    },
    /// No worse than the reference by more than so many of the metric's own units.
    Margin {
        /// Units: percentage points for a metric in percent.
        units: Number,
        /// Of what.
        of: Reference,
    },
    /// Neither above nor below the reference by more than so many percent of it.
    Band {
        /// Percent.
        percent: Number,
        /// Of what.
        of: Reference,
    },
}

/// What a value is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// The values sealed before the first swap.
    Baseline,
    /// Hosts not changed yet, at the same time; without any, the baseline, and the
    /// verdict says so.
    Control,
}

/// A metric of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// How readings become a value.
    pub kind: Kind,
    /// Where readings come from.
    pub source: MetricSource,
    /// Higher is worse (false: lower is worse).
    pub higher_is_worse: bool,
    /// Fewer samples judge nothing, where the criterion does not say.
    #[serde(default)]
    pub min_samples: Option<u64>,
}

/// How readings become a value, and its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Bad of all, percent. One sample per request.
    Ratio,
    /// A quantile of latencies, milliseconds; in thousandths: 990 is the p99.
    Quantile {
        /// 1 to 999.
        permille: u16,
    },
    /// So many since the observation began. Needs no minimum of samples.
    Count,
    /// Requests per second, from the total of a ratio or a count.
    Rate,
    /// The mean of what was read, a share in percent (`cpu`, `memory`).
    Percent,
    /// The mean of what was read.
    Value,
}

impl Kind {
    /// For people: `%`, `ms`, `/s` or nothing.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Ratio | Self::Percent => "%",
            Self::Quantile { .. } => "ms",
            Self::Rate => "/s",
            Self::Count | Self::Value => "",
        }
    }
}

/// Where a metric comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricSource {
    /// The agents measure it: the observer that each watch gets.
    Agent {
        /// The key of its readings; `latency_p50` and `latency_p99` share one.
        observer: String,
        /// What the agent does.
        what: AgentSource,
        /// Of which component; none = of every component of the plan.
        component: Option<tidegate_protocol::ComponentName>,
    },
    /// Numbers that every report has.
    Report(ReportNumber),
    /// The controller asks a Prometheus server.
    Prometheus {
        /// Base URL.
        url: String,
        /// PromQL; `$hosts` is bound to the hosts judged.
        query: String,
        /// PromQL for the number of samples behind it.
        samples: Option<String>,
        /// What an answer is multiplied by to be in the natural unit.
        scale: Number,
    },
    /// The controller polls Alertmanager: alerts that fire and did not before the
    /// start.
    Alertmanager {
        /// Base URL.
        url: String,
        /// Matchers (`job="shop"`), all of which must match.
        matchers: Vec<String>,
    },
}

/// What an agent does for a metric; see `tidegate_protocol::metric::Source`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentSource {
    /// `probe` for errors.
    ProbeErrors {
        /// What is called.
        url: String,
        /// How often.
        per_minute: u32,
        /// Of one request.
        timeout: Millis,
    },
    /// `probe` for latency.
    ProbeLatency {
        /// What is called.
        url: String,
        /// How often.
        per_minute: u32,
        /// Of one request.
        timeout: Millis,
    },
    /// `scrape` of two counters.
    ScrapeRatio {
        /// Where.
        url: String,
        /// Of these.
        bad: String,
        /// Out of these.
        total: String,
    },
    /// `scrape` of a histogram.
    ScrapeHistogram {
        /// Where.
        url: String,
        /// Base name.
        name: String,
    },
    /// `scrape` of a counter.
    ScrapeCounter {
        /// Where.
        url: String,
        /// Which.
        series: String,
    },
    /// `scrape` of a gauge.
    ScrapeGauge {
        /// Where.
        url: String,
        /// Which.
        series: String,
    },
    /// Messages at priority crit or worse, and these.
    JournalCritical {
        /// Texts that count as well.
        patterns: Vec<String>,
    },
    /// Error messages that were not there before.
    JournalNewErrors,
    /// Security patterns.
    JournalSecurity {
        /// Texts that count as well.
        patterns: Vec<String>,
    },
    /// A command's last line.
    Exec {
        /// Of the release or of `[commands]`.
        run: Argv,
    },
    /// The component's critical smoke tests, again.
    Smoke,
}

/// Which number of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportNumber {
    /// The service's, percent of one core.
    ServiceCpu,
    /// The service's, percent of the machine's memory.
    ServiceMemory,
    /// The machine's, percent of all cores.
    HostCpu,
    /// The machine's, percent of its memory.
    HostMemory,
    /// Starts of the service after the first.
    Restarts,
}

/// Something that takes a rollout back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// As written.
    pub when: Condition,
    /// What it does.
    pub action: TriggerAction,
    /// Any of these holds: one per metric that the condition stands for. Empty
    /// for `declared NAME`.
    pub tests: Vec<TriggerTest>,
    /// `declared NAME`.
    #[serde(default)]
    pub declared: Option<String>,
    /// Investigate: roll back unless somebody acts in time.
    pub after: Millis,
}

/// One test of a trigger: it trips when the test *holds*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerTest {
    /// Key of [`Gating::metrics`].
    pub metric: String,
    /// What must hold.
    pub test: Test,
    /// Fewer samples judge nothing.
    pub min_samples: u64,
}

/// How metrics are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analysis {
    /// How long is observed before the first swap; only if something needs it.
    pub baseline: Millis,
    /// What `within … of baseline` in criteria means while there is a choice.
    pub compare: Compare,
    /// Between two readings.
    pub interval: Millis,
    /// What an inconclusive gate leads to.
    pub inconclusive: OnInconclusive,
    /// What triggers look back on, at most.
    pub window: Millis,
    /// A person who was asked and does not answer: then back.
    pub deadline: Millis,
    /// A source in error for so long: a person is asked.
    pub error_deadline: Millis,
    /// Some criterion or trigger needs sealed values.
    pub needs_baseline: bool,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            baseline: Millis::from_secs(300),
            compare: Compare::Control,
            interval: Millis::from_secs(15),
            inconclusive: OnInconclusive::Extend,
            window: Millis::from_secs(300),
            deadline: Millis::from_secs(3_600),
            error_deadline: Millis::from_secs(3_600),
            needs_baseline: false,
        }
    }
}

/// What a gate says of one criterion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// Too few samples, or between the limit and the rollback limit.
    Inconclusive,
    /// The source cannot be read.
    Error,
    /// It does not hold, and time will not mend it.
    Fail,
}

impl Verdict {
    /// The word of the contract.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Error => "error",
            Self::Fail => "fail",
        }
    }
}

/// The verdict on one criterion, with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The criterion's.
    pub name: String,
    /// Which metric.
    pub metric: String,
    /// pass, inconclusive, error, fail.
    pub verdict: Verdict,
    /// What was seen; that of the worst host where one host decided.
    pub observed: Option<Number>,
    /// Against what, in the same unit.
    pub limit: Option<Number>,
    /// `%`, `ms`, `/s` or nothing.
    pub unit: String,
    /// From how many samples.
    pub samples: u64,
    /// One sentence: value, limit, samples, reference, and what is missing.
    pub reason: String,
    /// The one host that decided, if it was not the pooled value.
    pub host: Option<tidegate_protocol::HostName>,
    /// Shown, but does not decide.
    #[serde(default)]
    pub advisory: bool,
    /// A `[[perf]]` row.
    #[serde(default)]
    pub perf: bool,
}

/// The worst of those that decide; pass where there is none.
#[must_use]
pub fn overall(judgements: &[Judgement]) -> Verdict {
    judgements.iter().filter(|j| !j.advisory).map(|j| j.verdict).max().unwrap_or(Verdict::Pass)
}

/// A value of one metric in one group of hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Which metric.
    pub metric: String,
    /// Of whom.
    pub group: Group,
    /// In the natural unit; none without samples.
    pub value: Option<Number>,
    /// From how many samples.
    pub samples: u64,
}

/// Which hosts a value is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Before the first swap, all of them.
    Baseline,
    /// Changed.
    Changed,
    /// Not changed yet.
    Control,
    /// The one of the changed hosts that is worst.
    Worst,
}
