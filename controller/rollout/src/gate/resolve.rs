//! From plan.toml to [`Gating`]: the guide's defaults filled in, words taken
//! apart, what has no source refused by name.
//!
//! Owns: stages, criteria, triggers and their default sizes of samples. Must not:
//! know hosts or waves; `after_wave` is the caller's.

mod guide;
mod measure;
mod source;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{Millis, Release, limits};

use self::measure::{least, limit_of, no_count, number, quantity, tolerance};
use self::source::{Sources, built_in, expand, fix, refused, unfounded};
use super::{Analysis, Criterion, Gating, Kind, Metric, MetricSource, Reference, Stage, Test, Trigger, TriggerTest};
use crate::condition::{Ask, Condition, Limit, Op};
use crate::plan::PlanError;
use crate::spec::{AnalysisSpec, Compare, PerfSpec, Quantity, Spec, StageSpec, Strategy, TriggerAction, TriggerSpec};

/// Where a plan does not say how long is observed.
const BAKE: Millis = Millis::from_secs(300);
const INVESTIGATE: Millis = Millis::from_secs(900);
const STAGES_MAX: usize = 20;
/// Most metrics, criteria of one stage, and triggers of a plan.
const LIST_MAX: usize = 64;
/// Of one component; one more is the rollout's own, for a relapse of smoke tests.
const OBSERVERS_MAX: usize = limits::OBSERVERS_MAX - 1;
/// Looked at and shown whether or not something judges it.
const SHOWN: [&str; 8] =
    ["error_rate", "latency_p50", "latency_p99", "request_rate", "service_cpu", "host_cpu", "service_memory", "host_memory"];

/// Resolves what `spec` judges by. `first_install`: no host runs any of the
/// components yet. `after_wave` of the stages is left 0 for the caller.
///
/// # Errors
/// [`PlanError::Gate`].
pub fn resolve(spec: &Spec, manifest: &Release, first_install: bool) -> Result<Gating, PlanError> {
    let mut resolver = Resolver {
        sources: Sources::new(spec, manifest)?,
        compare: match spec.analysis.compare.unwrap_or_default() {
            Compare::Control => Reference::Control,
            Compare::Before => Reference::Baseline,
        },
        first_install,
        metrics: BTreeMap::new(),
        triggers: Vec::new(),
        not_armed: Vec::new(),
    };
    if spec.metrics.len() > LIST_MAX || spec.rollback.len() > LIST_MAX || spec.perf.len() > LIST_MAX {
        return Err(refused("metrics", format!("at most {LIST_MAX} metrics, triggers and perf rows are taken")));
    }
    for (name, block) in &spec.metrics {
        for name in expand(name).iter().filter(|_| block.tolerance.is_some()) {
            if let Some(metric) = resolver.sources.find(name)? {
                tolerance(name, &metric, block.tolerance.as_deref(), resolver.compare, true)?;
            }
        }
    }
    resolver.triggers(&spec.rollback)?;
    let stages = if spec.strategy == Strategy::Canary { resolver.canary(spec)? } else { resolver.simple(spec)? };
    for name in SHOWN {
        if let Some(metric) = resolver.sources.find(name)? {
            resolver.metrics.entry(name.to_string()).or_insert(metric);
        }
    }
    check_observers(spec, &resolver.metrics)?;
    let tests = stages.iter().flat_map(|s| &s.criteria).map(|c| &c.test);
    let tests = tests.chain(resolver.triggers.iter().flat_map(|t| &t.tests).map(|t| &t.test));
    let needs_baseline = tests.into_iter().any(relative);
    Ok(Gating {
        analysis: analysis(&spec.analysis, needs_baseline)?,
        metrics: resolver.metrics,
        stages,
        triggers: resolver.triggers,
        not_armed: resolver.not_armed,
    })
}

/// The share of the hosts that is changed after each canary stage, percent, in
/// order, the guide's where the plan names no stage; empty for other strategies.
#[must_use]
pub fn percents(spec: &Spec) -> Vec<u8> {
    if spec.strategy != Strategy::Canary {
        return Vec::new();
    }
    if spec.stage.is_empty() { guide::stages().iter().map(|s| s.percent).collect() } else { spec.stage.iter().map(|s| s.percent).collect() }
}

fn analysis(spec: &AnalysisSpec, needs_baseline: bool) -> Result<Analysis, PlanError> {
    let default = Analysis::default();
    let out = Analysis {
        baseline: spec.baseline.map_or(default.baseline, |s| s.0),
        compare: spec.compare.unwrap_or_default(),
        interval: spec.interval.map_or(default.interval, |s| s.0),
        inconclusive: spec.inconclusive.unwrap_or_default(),
        window: spec.window.map_or(default.window, |s| s.0),
        deadline: spec.deadline.map_or(default.deadline, |s| s.0),
        error_deadline: spec.error_deadline.map_or(default.error_deadline, |s| s.0),
        needs_baseline,
    };
    if out.interval < Millis(100) || out.interval > Millis::from_secs(300) {
        return Err(refused("analysis.interval", "from 100ms to 5m is wanted"));
    }
    if out.baseline < out.interval && needs_baseline {
        return Err(refused("analysis.baseline", format!("it must be at least the interval, {}: nothing would be sealed", out.interval)));
    }
    if out.window < out.interval {
        return Err(refused("analysis.window", format!("it must be at least the interval, {}: triggers would see nothing", out.interval)));
    }
    for (key, span) in [("analysis.deadline", out.deadline), ("analysis.error_deadline", out.error_deadline)] {
        if span.0 == 0 {
            return Err(refused(key, "more than 0s is wanted"));
        }
    }
    Ok(out)
}

/// What agents measure of one component is bounded.
fn check_observers(spec: &Spec, metrics: &BTreeMap<String, Metric>) -> Result<(), PlanError> {
    for component in spec.hosts.keys() {
        let observers: BTreeSet<&str> = metrics
            .values()
            .filter_map(|metric| match &metric.source {
                MetricSource::Agent { observer, component: of, .. } if of.as_ref().is_none_or(|c| c == component) => {
                    Some(observer.as_str())
                }
                _ => None,
            })
            .collect();
        if observers.len() > OBSERVERS_MAX {
            let message = format!("{} metrics would be measured of {component}, at most {OBSERVERS_MAX} are", observers.len());
            return Err(refused("metrics", message));
        }
    }
    Ok(())
}

fn relative(test: &Test) -> bool {
    !matches!(test, Test::Limit { .. })
}

/// Cpu and memory are shown, and decide only where the plan says so.
fn load(name: &str) -> bool {
    built_in(name) == Some(Kind::Percent)
}

struct Resolver<'a> {
    sources: Sources<'a>,
    compare: Reference,
    first_install: bool,
    metrics: BTreeMap<String, Metric>,
    triggers: Vec<Trigger>,
    not_armed: Vec<String>,
}

impl Resolver<'_> {
    /// A metric that something needs.
    fn need(&mut self, key: &str, name: &str) -> Result<Metric, PlanError> {
        let Some(metric) = self.sources.find(name)? else {
            return Err(unfounded(key, format!("{name} has no source: {}", fix(name))));
        };
        self.metrics.insert(name.to_string(), metric.clone());
        Ok(metric)
    }

    fn triggers(&mut self, specs: &[TriggerSpec]) -> Result<(), PlanError> {
        let guide = specs.is_empty();
        let specs = if guide { guide::triggers() } else { specs.to_vec() };
        for (index, spec) in specs.iter().enumerate() {
            let key = if guide { "rollback".to_string() } else { format!("rollback[{}].when", index + 1) };
            if guide && let Some(why) = self.unarmed(spec)? {
                self.not_armed.push(format!("{}: {why}", spec.when));
                continue;
            }
            let trigger = self.trigger(&key, spec)?;
            self.triggers.push(trigger);
        }
        Ok(())
    }

    /// Why a trigger of the guide cannot be armed.
    fn unarmed(&self, spec: &TriggerSpec) -> Result<Option<String>, PlanError> {
        let Ask::Compare { metric, limit, .. } = &spec.when.ask else { return Ok(None) };
        if self.sources.find(metric)?.is_none() {
            return Ok(Some(format!("{metric} has no source: {}", fix(metric))));
        }
        let first = self.first_install && matches!(limit, Limit::OfBaseline(_));
        Ok(first.then(|| "there is no baseline, no host runs it yet".to_string()))
    }

    fn trigger(&mut self, key: &str, spec: &TriggerSpec) -> Result<Trigger, PlanError> {
        let after = match (spec.action, spec.after) {
            (TriggerAction::Investigate, after) => after.map_or(INVESTIGATE, |s| s.0),
            (_, None) => Millis(0),
            (_, Some(_)) => return Err(refused(key, "after belongs to action = \"investigate\"; others act at once")),
        };
        let mut out = Trigger { when: spec.when.clone(), action: spec.action, tests: Vec::new(), declared: None, after };
        match &spec.when.ask {
            Ask::Declared(_) if spec.min_samples.is_some() => {
                return Err(refused(key, "what a person declares has no samples: remove min_samples"));
            }
            Ask::Declared(name) => out.declared = Some(name.clone()),
            Ask::Within { .. } | Ask::Stable | Ask::NoDegradation => {
                return Err(refused(
                    key,
                    format!(
                        "a trigger says what must not be, {:?} what shall be: write for example \"error_rate > 1%\"",
                        spec.when.to_string()
                    ),
                ));
            }
            Ask::Compare { metric, op, limit } => {
                for name in expand(metric) {
                    let metric = self.need(key, &name)?;
                    let test = self.compare(key, &name, &metric, *op, *limit)?;
                    let min_samples = spec.min_samples.unwrap_or_else(|| least(&name, &metric, &test, true));
                    out.tests.push(TriggerTest { metric: name, test, min_samples });
                }
            }
        }
        Ok(out)
    }

    fn compare(&self, key: &str, name: &str, metric: &Metric, op: Op, limit: Limit) -> Result<Test, PlanError> {
        if let Limit::OfBaseline(percent) = limit {
            no_count(key, name, metric)?;
            self.baseline(key, name)?;
            return Ok(Test::OfBaseline { op, percent: number(percent) });
        }
        Ok(Test::Limit { op, limit: number(limit_of(key, name, metric, limit)?) })
    }

    /// Something is compared with how it was before.
    fn baseline(&self, key: &str, name: &str) -> Result<(), PlanError> {
        if self.first_install {
            return Err(unfounded(
                key,
                format!("{name} is compared with a baseline, but no host runs it yet: on a first install write a limit of its own"),
            ));
        }
        Ok(())
    }

    fn criterion(&self, name: &str, metric: &Metric, words: String, test: Test, min_samples: Option<u64>) -> Criterion {
        // What goes back at once says how bad is too bad.
        let mut back = self.triggers.iter().filter(|t| t.action != TriggerAction::Investigate).flat_map(|t| &t.tests);
        Criterion {
            name: words,
            metric: name.to_string(),
            min_samples: min_samples.or(metric.min_samples).unwrap_or_else(|| least(name, metric, &test, false)),
            test,
            advisory: false,
            fails_beyond: back.find(|t| t.metric == name).map(|t| t.test),
            perf: false,
        }
    }

    fn criteria(&mut self, key: &str, conditions: &[Condition]) -> Result<Vec<Criterion>, PlanError> {
        let mut out = Vec::new();
        for condition in conditions {
            let words = |name: &str, names: &[String]| if names.len() > 1 { format!("{condition}: {name}") } else { condition.to_string() };
            match &condition.ask {
                Ask::Compare { metric, op, limit } => {
                    let names = expand(metric);
                    for name in &names {
                        let metric = self.need(key, name)?;
                        let test = self.compare(key, name, &metric, *op, *limit)?;
                        out.push(self.criterion(name, &metric, words(name, &names), test, None));
                    }
                }
                Ask::Within { metric, percent } => {
                    let names = expand(metric);
                    for name in &names {
                        let metric = self.need(key, name)?;
                        no_count(key, name, &metric)?;
                        self.baseline(key, name)?;
                        let test = Test::Within { percent: number(*percent), of: self.compare };
                        out.push(self.criterion(name, &metric, words(name, &names), test, None));
                    }
                }
                Ask::Stable => out.extend(self.tolerances(key, condition, self.compare, true)?),
                Ask::NoDegradation => out.extend(self.tolerances(key, condition, Reference::Control, false)?),
                Ask::Declared(_) => {
                    return Err(refused(key, format!("\"{condition}\" belongs to [[rollback]]; what a person attests goes to attest")));
                }
            }
        }
        if out.len() > LIST_MAX {
            return Err(refused(key, format!("it stands for {} tests, at most {LIST_MAX} are taken", out.len())));
        }
        Ok(out)
    }

    /// `stable` and `no_degradation`: one criterion for each metric with a source.
    fn tolerances(&mut self, key: &str, condition: &Condition, of: Reference, band: bool) -> Result<Vec<Criterion>, PlanError> {
        let mut names: Vec<String> = SHOWN.iter().map(ToString::to_string).collect();
        names.extend(self.sources.custom().filter(|n| self.sources.block(n).is_some_and(|b| b.tolerance.is_some())).cloned());
        let mut out = Vec::new();
        for name in names {
            let Some(metric) = self.sources.find(&name)? else { continue };
            let block = self.sources.block(&name);
            let test = tolerance(&name, &metric, block.and_then(|b| b.tolerance.as_deref()), of, band)?;
            self.baseline(key, &name)?;
            let mut criterion = self.criterion(&name, &metric, format!("{condition}: {name}"), test, None);
            criterion.advisory = block.and_then(|b| b.advisory).unwrap_or_else(|| load(&name));
            self.metrics.insert(name, metric);
            out.push(criterion);
        }
        if out.iter().all(|c| c.advisory) {
            let message = format!("\"{condition}\" has nothing to decide by (cpu and memory are advisory): {}", fix("error_rate"));
            return Err(unfounded(key, message));
        }
        Ok(out)
    }

    /// `[[perf]]`: Expected / Actual.
    fn perf(&mut self, rows: &[PerfSpec]) -> Result<Vec<Criterion>, PlanError> {
        let mut out = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let key = format!("perf[{}]", index + 1);
            let limit = match &row.max {
                Quantity::Number(value) => Some(*value).filter(|v| v.is_finite()).map(Limit::Number),
                Quantity::Text(text) => quantity(text),
            };
            let Some(limit) = limit else {
                return Err(refused(format!("{key}.max"), "write a duration (\"500ms\"), a percentage (\"0.5%\") or a number"));
            };
            let names = expand(&row.metric);
            for name in &names {
                let metric = self.need(&format!("{key}.metric"), name)?;
                let limit = limit_of(&format!("{key}.max"), name, &metric, limit)?;
                let words = match &row.name {
                    Some(words) if names.len() > 1 => format!("{words}: {name}"),
                    Some(words) => words.clone(),
                    None => name.clone(),
                };
                let test = Test::Limit { op: Op::AtMost, limit: number(limit) };
                let criterion = self.criterion(name, &metric, words, test, row.min_samples);
                out.push(Criterion { perf: true, ..criterion });
            }
        }
        Ok(out)
    }

    fn canary(&mut self, spec: &Spec) -> Result<Vec<Stage>, PlanError> {
        let guide = spec.stage.is_empty();
        let mut specs = if guide { guide::stages() } else { spec.stage.clone() };
        if let (Some(watch), Some(last)) = (spec.watch, specs.last_mut()) {
            if last.watch.is_some() && !guide {
                return Err(refused("watch", "the last stage has one already: keep one of the two"));
            }
            last.watch = Some(watch);
        }
        if !guide {
            check_stages(&specs)?;
        }
        let perf = self.perf(&spec.perf)?;
        let mut out = Vec::new();
        for stage in &specs {
            let key = if guide { "stage".to_string() } else { format!("stage \"{}\".success", stage.name) };
            let criteria = self.criteria(&key, &stage.success).map_err(|e| if guide { own_stages(e) } else { e })?;
            let bake = stage.bake.map_or(Millis(0), |s| s.0);
            let watch = stage.watch.map(|s| s.0);
            // What is only watched has been seen for no time before.
            let judged = bake.0 > 0 || watch.is_none();
            let mut now = if judged { criteria.clone() } else { Vec::new() };
            if bake.0 > 0 {
                now.extend(perf.iter().cloned());
            }
            out.push(self.stage(&stage.name, bake, false, stage.attest.clone(), now));
            if let Some(watch) = watch {
                let all = criteria.into_iter().chain(perf.iter().cloned()).collect();
                out.push(Stage { watch: true, ..self.stage(&format!("{}: watch", stage.name), watch, false, Vec::new(), all) });
            }
        }
        if !perf.is_empty() && !out.iter().any(|s| s.criteria.iter().any(|c| c.perf)) {
            return Err(refused("perf", "no stage observes anything: give one of them a bake"));
        }
        Ok(out)
    }

    /// Rolling, big-bang and blue-green: at most one observation, and the watch.
    fn simple(&mut self, spec: &Spec) -> Result<Vec<Stage>, PlanError> {
        let mut criteria = self.criteria("success", &spec.success)?;
        criteria.extend(self.perf(&spec.perf)?);
        let mut out = Vec::new();
        if !criteria.is_empty() && spec.bake.is_some_and(|b| b.0.0 == 0) {
            return Err(refused("bake", "no time of observation, no verdict: more than 0s is wanted"));
        }
        // Without criteria there is nothing that could stand; a bake is still waited for.
        let standing = spec.strategy == Strategy::Rolling && !criteria.is_empty();
        if !criteria.is_empty() || spec.bake.is_some_and(|b| b.0.0 > 0) {
            let bake = spec.bake.map_or(BAKE, |b| b.0);
            out.push(self.stage("Observation", bake, standing, Vec::new(), criteria.clone()));
        }
        if let Some(watch) = spec.watch.filter(|w| w.0.0 > 0) {
            out.push(Stage { watch: true, ..self.stage("Watch", watch.0, false, Vec::new(), criteria) });
        }
        Ok(out)
    }

    fn stage(&self, name: &str, bake: Millis, standing: bool, attest: Vec<String>, criteria: Vec<Criterion>) -> Stage {
        Stage { name: name.to_string(), after_wave: 0, bake, standing, attest, watch: false, criteria }
    }
}

/// The guide's criteria are demands: a plan that cannot meet them names its own.
fn own_stages(error: PlanError) -> PlanError {
    match error {
        PlanError::Gate { key, message } => PlanError::Gate {
            key,
            message: format!("the guide's stages judge by it, and {message}; or write [[stage]] with success of your own"),
        },
        other => other,
    }
}

fn check_stages(stages: &[StageSpec]) -> Result<(), PlanError> {
    if stages.len() > STAGES_MAX {
        return Err(refused("stage", format!("{} stages, at most {STAGES_MAX} are taken", stages.len())));
    }
    let mut before = 0;
    let last = stages.len().saturating_sub(1);
    for (index, stage) in stages.iter().enumerate() {
        let key = |key: &str| format!("stage \"{}\".{key}", stage.name);
        if stage.name.trim().is_empty() {
            return Err(refused(format!("stage[{}].name", index + 1), "it must not be empty"));
        }
        if stage.percent <= before || stage.percent > 100 {
            return Err(refused(key("percent"), format!("{}: percents rise from stage to stage, from 1 to 100", stage.percent)));
        }
        before = stage.percent;
        if index == last && stage.percent != 100 {
            return Err(refused(key("percent"), format!("{}: the last stage changes all hosts, write percent = 100", stage.percent)));
        }
        if index != last && stage.watch.is_some() {
            return Err(refused(key("watch"), "only the last stage is watched; before others write bake"));
        }
        if stage.watch.is_some_and(|w| w.0.0 == 0) {
            return Err(refused(key("watch"), "more than 0s is wanted"));
        }
        let bake = stage.bake.map_or(0, |b| b.0.0);
        if bake == 0 && (index != last || !stage.success.is_empty()) && stage.watch.is_none() {
            return Err(refused(key("bake"), "no time of observation, no verdict: write for example bake = \"30m\""));
        }
        if stage.attest.iter().any(|item| item.trim().is_empty()) {
            return Err(refused(key("attest"), "an item must not be empty"));
        }
    }
    Ok(())
}
