//! plan.toml as people write it: every key of the contract, nothing else.
//!
//! Reading is strict: an unknown key, a unit that does not fit or a value out of
//! range is an error with the line. What this build cannot carry out is refused
//! by name, never ignored.

mod process;
mod switch;

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tidegate_protocol::{ComponentName, Millis, ReleaseId};

use crate::amount::Amount;
use crate::condition::Condition;
use crate::selector::Selector;

pub use self::process::{
    ApprovalSpec, ChangeSpec, ChangeType, ClockTime, ContactRole, ContactSpec, Day, Fit, Grade, Hours, Level, NotifySpec, RiskSpec, Role,
    Topic, Via, WindowSpec,
};
pub use self::switch::{Command, ExecCheck, HttpCheck, SwitchMode, SwitchSpec, TcpCheck, VerifyCheck, VerifySpec};

/// plan.toml.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What is rolled out.
    pub release: ReleaseId,
    /// Where; ANDed into every selector on hosts that carry the label `env`.
    pub environment: Option<String>,
    /// Who leads.
    pub lead: Option<String>,
    /// A selector per component.
    pub hosts: BTreeMap<ComponentName, Selector>,
    /// How hosts change together.
    pub strategy: Strategy,
    /// Rolling: the window. Big-bang: `max_hosts`.
    pub batch: Option<Amount>,
    /// Big-bang: refused above so many hosts (default 10); the same as `batch`.
    pub max_hosts: Option<u32>,
    /// Criteria after each wave.
    #[serde(default)]
    pub success: Vec<Condition>,
    /// What a lost host means.
    #[serde(default)]
    pub on_unreachable: OnUnreachable,
    /// Changed files on hosts do not stop the swap.
    #[serde(default)]
    pub accept_drift: bool,
    /// Newly matching hosts: wait for `host converge`, or at once.
    pub late_hosts: Option<LateHosts>,
    /// Canary stages.
    #[serde(default)]
    pub stage: Vec<StageSpec>,
    /// Triggers.
    #[serde(default)]
    pub rollback: Vec<TriggerSpec>,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsSpec,
    /// Rolling, big-bang, blue-green: observation after the hosts changed.
    pub bake: Option<Span>,
    /// Observation after everything, holding no lock.
    pub watch: Option<Span>,
    /// How metrics are judged.
    #[serde(default)]
    pub analysis: AnalysisSpec,
    /// Performance baseline.
    #[serde(default)]
    pub perf: Vec<PerfSpec>,
    /// Sources of metrics.
    #[serde(default)]
    pub metrics: BTreeMap<String, MetricSpec>,
    /// Signatures wanted.
    #[serde(default)]
    pub approval: Vec<ApprovalSpec>,
    /// When it may run.
    #[serde(default)]
    pub window: Vec<WindowSpec>,
    /// Whom to call.
    #[serde(default)]
    pub contact: Vec<ContactSpec>,
    /// Whom to tell.
    #[serde(default)]
    pub notify: Vec<NotifySpec>,
    /// The change request.
    pub change: Option<ChangeSpec>,
    /// Its risks.
    #[serde(default)]
    pub risk: Vec<RiskSpec>,
    /// What people look at; each must answer before the start.
    #[serde(default)]
    pub dashboards: Vec<String>,
    /// Items that a person attests before the start, besides those that the
    /// environment demands.
    #[serde(default)]
    pub attest: Vec<String>,
    /// RFC 3339: what has not begun by then is refused.
    pub start_by: Option<String>,
    /// Blue-green: the switch.
    pub switch: Option<SwitchSpec>,
    /// Blue-green: manual or automatic (default: automatic).
    pub switch_mode: Option<SwitchMode>,
    /// Blue-green: how long the old side is kept.
    pub keep_old: Option<Span>,
}

/// How hosts change together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// A sliding window.
    Rolling,
    /// All at once.
    BigBang,
    /// Stages.
    Canary,
    /// Two slots and a switch.
    BlueGreen,
}

impl Strategy {
    /// The word of the contract.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::BigBang => "big-bang",
            Self::Canary => "canary",
            Self::BlueGreen => "blue-green",
        }
    }
}

/// What a lost host means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnreachable {
    /// A failed host.
    #[default]
    Fail,
    /// Wait for it, up to the deadline of what it was doing.
    Wait,
    /// Leave it out; it does not count.
    Skip,
}

/// What a host that matches only later gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LateHosts {
    /// Nothing until `host converge`.
    Wait,
    /// The release, at once.
    Auto,
}

/// A duration in a file: `"30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Millis);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map(Self).map_err(|e| D::Error::custom(alloc::format!("{text:?} is {e}")))
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0.to_string())
    }
}

/// A canary stage.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// For people.
    pub name: String,
    /// Share of the hosts changed after it.
    pub percent: u8,
    /// Observation.
    pub bake: Option<Span>,
    /// Observation after the last stage.
    pub watch: Option<Span>,
    /// Criteria.
    #[serde(default)]
    pub success: Vec<Condition>,
    /// Attestations.
    #[serde(default)]
    pub attest: Vec<String>,
}

/// A trigger.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerSpec {
    /// When.
    pub when: Condition,
    /// Then.
    pub action: TriggerAction,
    /// `investigate`: roll back unless acknowledged in time.
    pub after: Option<Span>,
    /// Fewer samples judge nothing.
    pub min_samples: Option<u64>,
}

/// What a trigger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TriggerAction {
    /// At once.
    Rollback,
    /// Pause, page, wait.
    Investigate,
    /// All hosts at once.
    Emergency,
}

/// `[limits]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// Most hosts in flight.
    pub max_parallel: Option<Amount>,
    /// The failure budget (default 0).
    pub max_failed_hosts: Option<Amount>,
    /// Hosts that stay in service.
    pub min_healthy: Option<Amount>,
    /// From swap to healthy (default 5m).
    pub healthy_deadline: Option<Span>,
    /// From healthy to confirmed (default 120s).
    pub confirm_within: Option<Span>,
    /// Most hosts on the way back (default twice `max_parallel`).
    pub rollback_parallel: Option<Amount>,
}

/// `[analysis]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AnalysisSpec {
    /// How long is observed before the first swap (default 5m).
    pub baseline: Option<Span>,
    /// What `within … of baseline` compares with while unchanged hosts exist.
    pub compare: Option<Compare>,
    /// Between two readings (default 15s).
    pub interval: Option<Span>,
    /// What an inconclusive gate leads to (default extend).
    pub inconclusive: Option<OnInconclusive>,
    /// What triggers look back on, at most (default 5m).
    pub window: Option<Span>,
    /// A person who was asked about an inconclusive gate and does not answer:
    /// back after this (default 60m).
    pub deadline: Option<Span>,
    /// A source in error for so long: a person is asked (default 60m).
    pub error_deadline: Option<Span>,
}

/// What a comparison is made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// Hosts not changed yet, while there are any; else the sealed baseline.
    #[default]
    Control,
    /// The sealed baseline.
    Before,
}

/// What an inconclusive gate leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnInconclusive {
    /// Once more the stage's length, then pause, then back at the deadline.
    #[default]
    Extend,
    /// Pause, then back at the deadline.
    Pause,
    /// Back at once.
    Fail,
}

/// `[[perf]]`: Expected / Actual.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PerfSpec {
    /// For people; else the metric's name.
    pub name: Option<String>,
    /// Which metric.
    pub metric: String,
    /// At most: `"500ms"`, `"2s"`, `"0.5%"` or a number.
    pub max: Quantity,
    /// Fewer samples are inconclusive.
    pub min_samples: Option<u64>,
}

/// A limit in a file: a duration, a percentage or a number.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Quantity {
    /// `"500ms"`, `"0.5%"`.
    Text(String),
    /// A number.
    Number(f64),
}

/// `[metrics.NAME]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricSpec {
    /// Which kind.
    pub source: SourceKind,
    /// probe, scrape: what the agent calls. prometheus, alertmanager: base URL.
    pub url: Option<String>,
    /// probe: how often, as `"10/s"` or `"60/m"` (default 1/s).
    pub rate: Option<String>,
    /// probe: of one request (default 5s).
    pub timeout: Option<Span>,
    /// scrape: the counter of bad ones.
    pub bad: Option<String>,
    /// scrape: the counter of all.
    pub total: Option<String>,
    /// scrape: a histogram's base name.
    pub histogram: Option<String>,
    /// scrape: one counter.
    pub counter: Option<String>,
    /// scrape: one gauge.
    pub gauge: Option<String>,
    /// prometheus: PromQL with `$hosts`.
    pub query: Option<String>,
    /// prometheus: PromQL for the number of samples behind the answer.
    pub samples: Option<String>,
    /// prometheus, exec: the unit of the answer: `ms`, `s`, `ratio`, `percent`.
    pub unit: Option<String>,
    /// alertmanager: matchers such as `job="shop"`.
    #[serde(default)]
    pub matchers: Vec<String>,
    /// journal: texts that count as well.
    #[serde(default)]
    pub deny: Vec<String>,
    /// exec: a name of `[commands]` or a file of the release, and arguments.
    pub run: Option<Command>,
    /// Of which component, where the plan has several.
    pub component: Option<ComponentName>,
    /// Fewer samples judge nothing.
    pub min_samples: Option<u64>,
    /// In `stable` and `no_degradation`: how much worse is allowed (`"10%"`).
    pub tolerance: Option<String>,
    /// In `stable` and `no_degradation`: shown, but does not decide. Default:
    /// true for cpu and memory.
    pub advisory: Option<bool>,
    /// Which direction is bad (default: higher).
    pub worse: Option<Worse>,
}

/// Which direction is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Worse {
    /// More is worse.
    Higher,
    /// Less is worse.
    Lower,
}

/// Where a metric comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The agent calls a URL at a rate.
    Probe,
    /// The agent reads the service's own Prometheus endpoint.
    Scrape,
    /// The controller asks a Prometheus server.
    Prometheus,
    /// The controller polls Alertmanager.
    Alertmanager,
    /// Numbers of the agents' reports.
    Host,
    /// The service's own messages.
    Journal,
    /// A command on the host.
    Exec,
}

/// A plan that does not read, or asks for what cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not the file it should be; names line and column.
    #[error("{file}: {message}")]
    Syntax {
        /// Which file.
        file: String,
        /// Line, column, what was found and what is wanted.
        message: String,
    },
    /// It reads, but does not make sense.
    #[error("{file}: {key}: {message}")]
    Value {
        /// Which file.
        file: String,
        /// Which key.
        key: String,
        /// What is wrong and what to write.
        message: String,
    },
}

impl Spec {
    /// Reads plan.toml. `file` is only named in errors.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn parse(text: &str, file: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text)
            .map_err(|e| SpecError::Syntax { file: file.to_string(), message: e.to_string().trim_end().to_string() })?;
        spec.check(file)?;
        Ok(spec)
    }

    /// Keys that only some strategies have: what is not looked at must not be
    /// written.
    fn of_strategies(&self) -> [(&'static str, bool, &'static [Strategy], &'static str); 8] {
        use Strategy::{BigBang, BlueGreen, Canary, Rolling};
        let stages = "a canary observes in its stages: write it into [[stage]]";
        let sides = "only it has two sides";
        [
            ("stage", !self.stage.is_empty(), &[Canary], "others take success, bake and watch"),
            ("success", !self.success.is_empty(), &[Rolling, BigBang, BlueGreen], stages),
            ("bake", self.bake.is_some(), &[Rolling, BigBang, BlueGreen], stages),
            (
                "batch",
                self.batch.is_some(),
                &[Rolling, BigBang],
                "the waves of a canary are its stages, blue-green switches all; limits.max_parallel bounds both",
            ),
            ("max_hosts", self.max_hosts.is_some(), &[BigBang], "a rolling plan takes batch"),
            ("switch", self.switch.is_some(), &[BlueGreen], sides),
            ("switch_mode", self.switch_mode.is_some(), &[BlueGreen], sides),
            ("keep_old", self.keep_old.is_some(), &[BlueGreen], sides),
        ]
    }

    fn check(&self, file: &str) -> Result<(), SpecError> {
        let bad =
            |key: &str, message: &str| Err(SpecError::Value { file: file.to_string(), key: key.to_string(), message: message.to_string() });
        if self.hosts.is_empty() {
            return bad("hosts", "no component is named; write for example hosts = { api = \"role=api\" }");
        }
        for (key, used, belongs, instead) in self.of_strategies() {
            if used && !belongs.contains(&self.strategy) {
                let words: Vec<String> = belongs.iter().map(|s| alloc::format!("\"{}\"", s.word())).collect();
                let message = alloc::format!("belongs to strategy {}; {instead}", words.join(" or "));
                return bad(key, &message);
            }
        }
        if self.strategy == Strategy::BigBang && matches!(self.batch, Some(Amount::Percent(_))) {
            return bad("batch", "with strategy \"big-bang\" it is max_hosts, a whole number");
        }
        match &self.switch {
            None if self.strategy == Strategy::BlueGreen => {
                return bad("switch", "strategy \"blue-green\" needs it: write for example switch = { run = \"lb-switch ${side}\" }");
            }
            None => {}
            Some(switch) => switch.check(&bad)?,
        }
        if self.batch == Some(Amount::Count(0))
            || self.limits.max_parallel == Some(Amount::Count(0))
            || self.limits.rollback_parallel == Some(Amount::Count(0))
        {
            return bad("batch", "batch, max_parallel and rollback_parallel must be at least 1");
        }
        self.check_process(&bad)?;
        // What would change what happens to a host must not be read and ignored.
        if self.late_hosts == Some(LateHosts::Auto) {
            return bad("late_hosts", "this version does not enforce it yet, and a plan must not promise what is not enforced; remove it");
        }
        for (key, span) in
            [("limits.healthy_deadline", self.limits.healthy_deadline), ("limits.confirm_within", self.limits.confirm_within)]
        {
            if span.is_some_and(|s| s.0 < Millis::from_secs(1)) {
                return bad(key, "at least 1s is wanted");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "release = \"shop@2.1.0\"\nhosts = { api = \"role=api\" }\nstrategy = \"rolling\"\nbatch = \"10%\"\n[limits]\nmax_failed_hosts = 1\nconfirm_within = \"30s\"\n";

    #[test]
    fn a_plan_reads() {
        let spec = Spec::parse(GOOD, "plan.toml").unwrap();
        assert_eq!(spec.batch, Some(Amount::Percent(10)));
        assert_eq!(spec.limits.confirm_within, Some(Span(Millis::from_secs(30))));
        assert_eq!(spec.on_unreachable, OnUnreachable::Fail);
    }

    #[test]
    fn errors_name_file_line_and_fix() {
        let cases = [
            ("typo = 1\n", &["line 1", "typo"][..]),
            ("batch = \"110%\"\n", &["110%", "0%"]),
            ("on_unreachable = \"ignore\"\n", &["ignore", "skip"]),
            ("success = [\"error_rate\"]\n", &["error_rate", "for example"]),
            ("[limits]\nconfirm_within = 30\n", &["line 5", "string"]),
            ("[limits]\nconfirm_within = \"30\"\n", &["30", "for example"]),
        ];
        for (line, wanted) in cases {
            let base = GOOD.replace("batch = \"10%\"\n", "").split("[limits]").next().unwrap().to_string();
            let text = if line.starts_with('[') { base + line } else { alloc::format!("{line}{base}") };
            let message = Spec::parse(&text, "plan.toml").unwrap_err().to_string();
            assert!(message.starts_with("plan.toml: "), "{message}");
            for part in wanted {
                assert!(message.contains(part), "{part:?} not in {message}");
            }
        }
        let other = |strategy: &str, extra: &str| {
            let plain = GOOD.replace("batch = \"10%\"\n", "").replace("\"rolling\"", strategy);
            let (top, limits) = plain.split_once("[limits]").unwrap();
            Spec::parse(&alloc::format!("{top}{extra}\n[limits]{limits}"), "plan.toml").unwrap_err().to_string()
        };
        let stage = "[[stage]]\nname = \"One\"\npercent = 100";
        let switch = "switch = { run = \"lb ${side}\" }";
        for (strategy, extra, wanted) in [
            ("\"rolling\"", stage, &["stage", "\"canary\"", "success"][..]),
            ("\"canary\"", "success = [\"stable\"]", &["success", "[[stage]]"]),
            ("\"canary\"", "bake = \"5m\"", &["bake", "[[stage]]"]),
            ("\"canary\"", "batch = 2", &["batch", "limits.max_parallel"]),
            ("\"blue-green\"", "batch = 2\nswitch = { run = \"lb\" }", &["batch", "limits.max_parallel"]),
            ("\"canary\"", "max_hosts = 2", &["max_hosts", "\"big-bang\""]),
            ("\"rolling\"", switch, &["switch", "\"blue-green\""]),
            ("\"big-bang\"", "switch_mode = \"manual\"", &["switch_mode", "\"blue-green\""]),
            ("\"canary\"", "keep_old = \"1h\"", &["keep_old", "\"blue-green\""]),
            ("\"blue-green\"", "", &["switch", "for example"]),
            ("\"blue-green\"", "switch = { run = \" \" }", &["switch.run", "[commands]"]),
            ("\"blue-green\"", "switch = { run = \"lb\", verify = { timeout = \"1s\" } }", &["switch.verify", "exactly one"]),
        ] {
            let message = other(strategy, extra);
            for part in wanted {
                assert!(message.contains(part), "{part:?} not in {message}");
            }
        }
        for (extra, wanted) in [
            ("[[approval]]\nrole = \"boss\"\n", &["boss", "tech-lead"][..]),
            ("[[approval]]\nrole = \"cab\"\noptional = true\n", &["approval.optional", "product owner"]),
            ("[[approval]]\nrole = \"cab\"\n[[approval]]\nrole = \"cab\"\n", &["approval", "twice"]),
            ("[[window]]\ndays = [\"Die\"]\n", &["Die", "Tue"]),
            ("[[window]]\nstart_time = \"22:00\"\n", &["length_minutes", "360"]),
            ("[[window]]\nstart_time = \"24:00\"\nlength_minutes = 1\n", &["24:00", "22:00"]),
            ("[[contact]]\nrole = \"lead\"\nname = \"a\"\nphone = \"1\"\navailable = \"late\"\n", &["late", "22:00-06:00"]),
            ("[[notify]]\non = []\nto = \"team\"\nvia = \"slack\"\n", &["notify.on", "issue"]),
            ("[change]\nid = \"C\"\ntype = \"normal\"\nrisk = \"low\"\nsummary = \"s\"\n", &["change.justification"]),
            ("[[risk]]\nname = \"r\"\nlikelihood = \"H\"\nimpact = \"H\"\n", &["risk.mitigation", "r"]),
        ] {
            let message = Spec::parse(&alloc::format!("{GOOD}{extra}"), "plan.toml").unwrap_err().to_string();
            for part in wanted {
                assert!(message.contains(part), "{part:?} not in {message}");
            }
        }
    }
}
