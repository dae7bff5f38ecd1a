//! plan.toml as people write it: every key of the contract, nothing else.
//!
//! Reading is strict: an unknown key, a unit that does not fit or a value out of
//! range is an error with the line. What this build cannot carry out is refused
//! by name, never ignored.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tidegate_protocol::{ComponentName, Millis, ReleaseId};

use crate::amount::Amount;
use crate::condition::Condition;
use crate::selector::Selector;

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
    /// How metrics are judged.
    pub analysis: Option<toml::Table>,
    /// Performance baseline.
    #[serde(default)]
    pub perf: Vec<toml::Table>,
    /// Sources of metrics.
    #[serde(default)]
    pub metrics: BTreeMap<String, toml::Table>,
    /// Signatures wanted.
    #[serde(default)]
    pub approval: Vec<toml::Table>,
    /// When it may run.
    #[serde(default)]
    pub window: Vec<toml::Table>,
    /// Whom to call.
    #[serde(default)]
    pub contact: Vec<toml::Table>,
    /// Whom to tell.
    #[serde(default)]
    pub notify: Vec<toml::Table>,
    /// The change request.
    pub change: Option<toml::Table>,
    /// Its risks.
    #[serde(default)]
    pub risk: Vec<toml::Table>,
    /// Blue-green: the switch.
    pub switch: Option<toml::Table>,
    /// Blue-green: manual or automatic.
    pub switch_mode: Option<String>,
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

    fn check(&self, file: &str) -> Result<(), SpecError> {
        let bad =
            |key: &str, message: &str| Err(SpecError::Value { file: file.to_string(), key: key.to_string(), message: message.to_string() });
        if self.hosts.is_empty() {
            return bad("hosts", "no component is named; write for example hosts = { api = \"role=api\" }");
        }
        match self.strategy {
            Strategy::Rolling if self.max_hosts.is_some() => {
                return bad("max_hosts", "belongs to strategy \"big-bang\"; a rolling plan takes batch");
            }
            Strategy::BigBang if matches!(self.batch, Some(Amount::Percent(_))) => {
                return bad("batch", "with strategy \"big-bang\" it is max_hosts, a whole number");
            }
            Strategy::Canary | Strategy::BlueGreen => return bad("strategy", "this version carries out \"rolling\" and \"big-bang\""),
            _ => {}
        }
        if self.batch == Some(Amount::Count(0))
            || self.limits.max_parallel == Some(Amount::Count(0))
            || self.limits.rollback_parallel == Some(Amount::Count(0))
        {
            return bad("batch", "batch, max_parallel and rollback_parallel must be at least 1");
        }
        // What would change what happens to a host must not be read and ignored.
        let unsupported = [
            ("stage", !self.stage.is_empty()),
            ("rollback", !self.rollback.is_empty()),
            ("success", !self.success.is_empty()),
            ("metrics", !self.metrics.is_empty()),
            ("perf", !self.perf.is_empty()),
            ("analysis", self.analysis.is_some()),
            ("approval", !self.approval.is_empty()),
            ("window", !self.window.is_empty()),
            ("notify", !self.notify.is_empty()),
            ("switch", self.switch.is_some()),
            ("switch_mode", self.switch_mode.is_some()),
            ("keep_old", self.keep_old.is_some()),
            ("late_hosts", self.late_hosts == Some(LateHosts::Auto)),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, used)| *used) {
            return bad(key, "this version does not enforce it yet, and a plan must not promise what is not enforced; remove it");
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
        for (extra, key) in [("[[stage]]\nname=\"x\"\npercent=5\n", "stage"), ("[[approval]]\nrole=\"cab\"\n", "approval")] {
            let message = Spec::parse(&alloc::format!("{GOOD}{extra}"), "plan.toml").unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}
