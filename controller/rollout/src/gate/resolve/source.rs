//! `[metrics.NAME]`: which metric comes from where, and what a name means.
//!
//! Owns: the built-in names and their kinds, which source can serve which of them,
//! and the keys each source takes. Must not: know a criterion, a stage or a
//! trigger.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::release::Service;
use tidegate_protocol::{ComponentName, Millis, Number, Release, limits};

use crate::gate::{AgentSource, Kind, Metric, MetricSource, ReportNumber};
use crate::plan::PlanError;
use crate::spec::{MetricSpec, SourceKind, Spec, Worse};

const PROBE_PER_MINUTE: u32 = 60;
const PROBE_PER_MINUTE_MAX: u32 = 6_000;
const PROBE_TIMEOUT: Millis = Millis::from_secs(5);
const PROBE_TIMEOUT_MAX: Millis = Millis::from_secs(60);

/// The plan's blocks, checked, with the components they are about.
pub(super) struct Sources<'a> {
    spec: &'a Spec,
    /// The plan's components whose service writes messages that an agent reads.
    speaking: Vec<&'a ComponentName>,
}

pub(super) fn refused(key: impl Into<String>, message: impl Into<String>) -> PlanError {
    PlanError::Misfit { key: key.into(), message: message.into() }
}

/// What a plan may well ask, and cannot be judged here.
pub(super) fn unfounded(key: impl Into<String>, message: impl Into<String>) -> PlanError {
    PlanError::Gate { key: key.into(), message: message.into() }
}

/// `latency_p99` is 990; `checkout_p999` is 999.
fn permille(name: &str) -> Option<u16> {
    let (_, digits) = name.rsplit_once("_p")?;
    let number: u16 = digits.parse().ok()?;
    match digits.len() {
        2 => Some(number * 10),
        3 => Some(number),
        _ => None,
    }
    .filter(|p| (1..1_000).contains(p))
}

/// The kind of a built-in name.
pub(super) fn built_in(name: &str) -> Option<Kind> {
    Some(match name {
        "error_rate" => Kind::Ratio,
        "critical_errors" | "restarts" | "new_errors" | "security_warnings" | "alerts" => Kind::Count,
        "request_rate" => Kind::Rate,
        "service_cpu" | "host_cpu" | "service_memory" | "host_memory" => Kind::Percent,
        _ if name.starts_with("latency_p") => Kind::Quantile { permille: permille(name)? },
        _ => return None,
    })
}

/// The metrics that a name stands for.
pub(super) fn expand(name: &str) -> Vec<String> {
    let names: &[&str] = match name {
        "latency" => &["latency_p50", "latency_p99"],
        "cpu" => &["service_cpu", "host_cpu"],
        "memory" => &["service_memory", "host_memory"],
        _ => return [name.to_string()].into(),
    };
    names.iter().map(ToString::to_string).collect()
}

/// The name under which a group shares one block.
fn group(name: &str) -> Option<&'static str> {
    match name {
        "service_cpu" | "host_cpu" => Some("cpu"),
        "service_memory" | "host_memory" => Some("memory"),
        _ if matches!(built_in(name), Some(Kind::Quantile { .. })) => Some("latency"),
        _ => None,
    }
}

/// How to give a metric a source.
pub(super) fn fix(name: &str) -> String {
    let block = group(name).unwrap_or(name);
    match built_in(name) {
        Some(Kind::Ratio) => format!(
            "write [metrics.{block}] with source = \"probe\" and url, or source = \"scrape\" with url, bad and total, or source = \"prometheus\" with url and query"
        ),
        Some(Kind::Quantile { .. }) => format!(
            "write [metrics.{block}] with source = \"probe\" and url, or source = \"scrape\" with url and histogram, or [metrics.{name}] with source = \"prometheus\", url and query"
        ),
        Some(Kind::Rate) => {
            format!("write [metrics.{block}] with source = \"scrape\", url and counter, or source = \"prometheus\" with url and query")
        }
        Some(Kind::Count) if name == "alerts" => "write [metrics.alerts] with source = \"alertmanager\" and url".to_string(),
        Some(Kind::Count) => format!(
            "a component whose service is `command` has no messages that an agent reads: write [metrics.{block}] with source = \"scrape\", url and counter"
        ),
        _ => format!(
            "write [metrics.{block}] with source = \"prometheus\" (url, query), \"exec\" (run) or \"scrape\" (url and gauge, counter, histogram, or bad and total)"
        ),
    }
}

fn text<'a>(at: &str, key: &str, value: Option<&'a String>) -> Result<&'a String, PlanError> {
    match value {
        Some(text) if !text.trim().is_empty() && text.len() <= 4_096 => Ok(text),
        Some(_) => Err(refused(format!("{at}.{key}"), "it must not be empty, nor longer than 4096 bytes")),
        None => Err(refused(at, format!("its source needs the key {key}"))),
    }
}

fn url<'a>(at: &str, block: &'a MetricSpec) -> Result<&'a String, PlanError> {
    let url = text(at, "url", block.url.as_ref())?;
    let agent = matches!(block.source, SourceKind::Probe | SourceKind::Scrape);
    if url.starts_with("http://") || (!agent && url.starts_with("https://")) {
        return Ok(url);
    }
    let wanted = if agent { "http://" } else { "http:// or https://" };
    Err(refused(format!("{at}.url"), format!("{url:?} must begin with {wanted}")))
}

fn per_minute(at: &str, rate: Option<&String>) -> Result<u32, PlanError> {
    let Some(rate) = rate else { return Ok(PROBE_PER_MINUTE) };
    let parsed = match rate.rsplit_once('/') {
        Some((number, "s")) => number.parse::<u32>().ok().and_then(|n| n.checked_mul(60)),
        Some((number, "m")) => number.parse().ok(),
        _ => None,
    };
    parsed
        .filter(|n| (1..=PROBE_PER_MINUTE_MAX).contains(n))
        .ok_or_else(|| refused(format!("{at}.rate"), format!("{rate:?}: write for example \"10/s\" or \"60/m\", at most \"100/s\"")))
}

/// The keys that a block has beside `source` and what every source takes.
fn keys(block: &MetricSpec) -> Vec<&'static str> {
    [
        ("url", block.url.is_some()),
        ("rate", block.rate.is_some()),
        ("timeout", block.timeout.is_some()),
        ("bad", block.bad.is_some()),
        ("total", block.total.is_some()),
        ("histogram", block.histogram.is_some()),
        ("counter", block.counter.is_some()),
        ("gauge", block.gauge.is_some()),
        ("query", block.query.is_some()),
        ("samples", block.samples.is_some()),
        ("unit", block.unit.is_some()),
        ("matchers", !block.matchers.is_empty()),
        ("deny", !block.deny.is_empty()),
        ("run", block.run.is_some()),
        ("component", block.component.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, given)| given.then_some(key))
    .collect()
}

const fn takes(source: SourceKind) -> (&'static str, &'static [&'static str]) {
    match source {
        SourceKind::Probe => ("probe", &["url", "rate", "timeout", "component"]),
        SourceKind::Scrape => ("scrape", &["url", "bad", "total", "histogram", "counter", "gauge", "unit", "component"]),
        SourceKind::Prometheus => ("prometheus", &["url", "query", "samples", "unit"]),
        SourceKind::Alertmanager => ("alertmanager", &["url", "matchers"]),
        SourceKind::Host => ("host", &[]),
        SourceKind::Journal => ("journal", &["deny", "component"]),
        SourceKind::Exec => ("exec", &["run", "unit", "component"]),
    }
}

fn report(name: &str) -> Option<ReportNumber> {
    Some(match name {
        "service_cpu" => ReportNumber::ServiceCpu,
        "host_cpu" => ReportNumber::HostCpu,
        "service_memory" => ReportNumber::ServiceMemory,
        "host_memory" => ReportNumber::HostMemory,
        "restarts" => ReportNumber::Restarts,
        _ => return None,
    })
}

fn journal(name: &str, patterns: &[String]) -> Option<AgentSource> {
    Some(match name {
        "critical_errors" => AgentSource::JournalCritical { patterns: patterns.to_vec() },
        "new_errors" => AgentSource::JournalNewErrors,
        "security_warnings" => AgentSource::JournalSecurity { patterns: patterns.to_vec() },
        _ => return None,
    })
}

/// What one number of a gauge, a command or a query is: its kind, and what it is
/// multiplied by. `ratio` says that a share without a unit is 0 to 1.
fn plain(at: &str, name: &str, unit: Option<&str>, query: bool) -> Result<(Kind, f64), PlanError> {
    // A name that ends in `_pNN` is a latency; the number of the quantile is only shown.
    let quantile = permille(name).map(|permille| Kind::Quantile { permille });
    let millis = quantile.unwrap_or(Kind::Quantile { permille: 500 });
    let kind = built_in(name).or(quantile);
    let bad = |wanted: &str| Err(refused(format!("{at}.unit"), format!("{:?} does not fit {name}: {wanted}", unit.unwrap_or("none"))));
    match (kind, unit) {
        (Some(Kind::Ratio), None | Some("ratio")) if query => Ok((Kind::Percent, 100.0)),
        (Some(Kind::Percent), Some("ratio")) if query => Ok((Kind::Percent, 100.0)),
        (Some(Kind::Ratio | Kind::Percent), None | Some("percent")) => Ok((Kind::Percent, 1.0)),
        (Some(Kind::Ratio | Kind::Percent), _) => bad(if query { "\"ratio\" or \"percent\"" } else { "\"percent\"" }),
        (Some(Kind::Quantile { .. }), None | Some("s")) if query => Ok((millis, 1_000.0)),
        (Some(Kind::Quantile { .. }), None | Some("ms")) => Ok((millis, 1.0)),
        (Some(Kind::Quantile { .. }), _) => bad(if query { "\"s\" or \"ms\"" } else { "\"ms\"" }),
        (Some(Kind::Rate), None) => Ok((Kind::Rate, 1.0)),
        (Some(Kind::Rate), _) => bad("it is per second and takes none"),
        (None | Some(Kind::Value), None) => Ok((Kind::Value, 1.0)),
        (None | Some(Kind::Value), Some("percent")) => Ok((Kind::Percent, 1.0)),
        (None | Some(Kind::Value), Some("ms")) => Ok((millis, 1.0)),
        (None | Some(Kind::Value), Some("ratio")) if query => Ok((Kind::Percent, 100.0)),
        (None | Some(Kind::Value), Some("s")) if query => Ok((millis, 1_000.0)),
        (None | Some(Kind::Value), _) => bad(if query { "\"ms\", \"s\", \"ratio\" or \"percent\"" } else { "\"ms\" or \"percent\"" }),
        (Some(Kind::Count), _) => Err(refused(at, format!("{name} is a count of events; give a query of your own another name"))),
    }
}

impl<'a> Sources<'a> {
    /// Checks every block, used or not.
    pub(super) fn new(spec: &'a Spec, manifest: &'a Release) -> Result<Self, PlanError> {
        let ours = manifest.components.iter().filter(|c| spec.hosts.contains_key(&c.name));
        let speaking = ours.filter(|c| !matches!(c.service, Service::Command { .. })).map(|c| &c.name).collect();
        let sources = Self { spec, speaking };
        for (name, block) in &spec.metrics {
            let at = format!("metrics.{name}");
            let word = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
            if !word
                || name.len() > limits::METRIC_NAME_BYTES_MAX
                || matches!(name.as_str(), "stable" | "no_degradation" | "declared" | "smoke")
            {
                return Err(refused(
                    at,
                    "a metric's name is a word of a-z, 0-9, _ and -, at most 64 bytes, and not stable, no_degradation, declared or smoke",
                ));
            }
            let (source, known) = takes(block.source);
            if let Some(key) = keys(block).into_iter().find(|key| !known.contains(key)) {
                let also = if known.is_empty() { "no key of its own".to_string() } else { known.join(", ") };
                return Err(refused(format!("{at}.{key}"), format!("source \"{source}\" does not take it; it takes {also}")));
            }
            if let Some(component) = block.component.as_ref().filter(|c| !spec.hosts.contains_key(*c)) {
                return Err(refused(format!("{at}.component"), format!("the plan has no hosts for component {component}")));
            }
            if block.min_samples == Some(0) {
                return Err(refused(format!("{at}.min_samples"), "at least 1 is wanted"));
            }
            for metric in expand(name) {
                sources.read(name, block, &metric)?;
            }
        }
        Ok(sources)
    }

    /// The block that says how a metric is judged: its own, else its group's.
    pub(super) fn block(&self, name: &str) -> Option<&'a MetricSpec> {
        self.spec.metrics.get(name).or_else(|| self.spec.metrics.get(group(name)?))
    }

    /// The names of blocks that are no built-in metric.
    pub(super) fn custom(&self) -> impl Iterator<Item = &'a String> {
        self.spec.metrics.keys().filter(|name| built_in(name).is_none() && expand(name).len() == 1)
    }

    /// Where a metric comes from; none where nothing says it.
    pub(super) fn find(&self, name: &str) -> Result<Option<Metric>, PlanError> {
        if let Some(block) = self.spec.metrics.get(name) {
            return self.read(name, block, name).map(Some);
        }
        if let Some((group, block)) = group(name).and_then(|g| Some((g, self.spec.metrics.get(g)?))) {
            return self.read(group, block, name).map(Some);
        }
        let of = |source| Metric { kind: built_in(name).unwrap_or(Kind::Value), source, higher_is_worse: true, min_samples: None };
        if let Some(number) = report(name) {
            return Ok(Some(of(MetricSource::Report(number))));
        }
        if let Some(what) = journal(name, &[]) {
            // A single component that writes messages is named; with several, all.
            let component = if self.speaking.len() == 1 { self.speaking.first().map(|c| (*c).clone()) } else { None };
            let source = MetricSource::Agent { observer: name.to_string(), what, component };
            return Ok((!self.speaking.is_empty()).then(|| of(source)));
        }
        // Requests that are sent or counted anyway tell more than one thing.
        let lends =
            |from: &str, sources: &[SourceKind]| self.spec.metrics.get_key_value(from).filter(|(_, block)| sources.contains(&block.source));
        let lender = match built_in(name) {
            Some(Kind::Rate) => lends("error_rate", &[SourceKind::Probe, SourceKind::Scrape]),
            Some(Kind::Quantile { .. }) => lends("error_rate", &[SourceKind::Probe]),
            Some(Kind::Ratio) => lends("latency", &[SourceKind::Probe]),
            _ => None,
        };
        let Some((from, block)) = lender else { return Ok(None) };
        let block = MetricSpec { min_samples: None, tolerance: None, advisory: None, worse: None, ..block.clone() };
        // The total of a ratio is read by the same observer.
        let observer = match built_in(name) {
            Some(Kind::Rate) => from.as_str(),
            _ => group(name).unwrap_or(name),
        };
        self.read(observer, &block, name).map(Some)
    }

    /// What the block called `block_name` says of `name`.
    fn read(&self, block_name: &str, block: &MetricSpec, name: &str) -> Result<Metric, PlanError> {
        let at = format!("metrics.{block_name}");
        let at = at.as_str();
        let shared = expand(block_name).len() > 1;
        let agent = |kind, what| (kind, MetricSource::Agent { observer: block_name.to_string(), what, component: block.component.clone() });
        let cannot = |source: &str| Err(refused(at, format!("source \"{source}\" does not serve {name}: {}", fix(name))));
        let (kind, source) = match block.source {
            SourceKind::Probe => {
                let (url, per_minute) = (url(at, block)?.clone(), per_minute(at, block.rate.as_ref())?);
                let timeout = block.timeout.map_or(PROBE_TIMEOUT, |t| t.0);
                if timeout.0 == 0 || timeout > PROBE_TIMEOUT_MAX {
                    return Err(refused(format!("{at}.timeout"), format!("more than 0s and at most {PROBE_TIMEOUT_MAX} is wanted")));
                }
                match built_in(name).or_else(|| permille(name).map(|permille| Kind::Quantile { permille })).unwrap_or(Kind::Ratio) {
                    kind @ (Kind::Ratio | Kind::Rate) => agent(kind, AgentSource::ProbeErrors { url, per_minute, timeout }),
                    kind @ Kind::Quantile { .. } => agent(kind, AgentSource::ProbeLatency { url, per_minute, timeout }),
                    _ => return cannot("probe"),
                }
            }
            SourceKind::Scrape if shared && block.gauge.is_some() => return Err(refused(at, "one gauge is one metric: name each of them")),
            SourceKind::Scrape => {
                let (kind, what) = scrape(at, block, name)?;
                agent(kind, what)
            }
            SourceKind::Prometheus if shared => {
                let names = expand(block_name).join("] and [metrics.");
                return Err(refused(at, format!("one query is one metric: write [metrics.{names}]")));
            }
            SourceKind::Prometheus => {
                let (url, query) = (url(at, block)?.clone(), text(at, "query", block.query.as_ref())?.clone());
                let samples = block.samples.as_ref().map(|s| text(at, "samples", Some(s))).transpose()?.cloned();
                let (kind, scale) = plain(at, name, block.unit.as_deref(), true)?;
                (kind, MetricSource::Prometheus { url, query, samples, scale: Number::new(scale).unwrap_or_default() })
            }
            SourceKind::Alertmanager if name == "alerts" => {
                if block.matchers.iter().any(|m| m.trim().is_empty() || !m.contains('=')) {
                    return Err(refused(format!("{at}.matchers"), "write matchers such as 'job=\"shop\"'"));
                }
                (Kind::Count, MetricSource::Alertmanager { url: url(at, block)?.clone(), matchers: block.matchers.clone() })
            }
            SourceKind::Alertmanager => return Err(refused(at, "source \"alertmanager\" serves [metrics.alerts] only")),
            SourceKind::Host => match report(name) {
                Some(number) => (built_in(name).unwrap_or(Kind::Percent), MetricSource::Report(number)),
                None => return Err(refused(at, "source \"host\" serves cpu, memory and restarts only")),
            },
            SourceKind::Journal => {
                let silent = match &block.component {
                    Some(component) => !self.speaking.contains(&component),
                    None => self.speaking.is_empty(),
                };
                match journal(name, &block.deny) {
                    None => {
                        return Err(refused(
                            at,
                            "source \"journal\" serves critical_errors, new_errors and security_warnings only; texts of your own go to [metrics.critical_errors] as deny",
                        ));
                    }
                    Some(_) if silent => return cannot("journal"),
                    Some(AgentSource::JournalNewErrors) if !block.deny.is_empty() => {
                        return Err(refused(format!("{at}.deny"), "every new error message counts; texts go to [metrics.critical_errors]"));
                    }
                    Some(_) if block.deny.len() > 64 || block.deny.iter().any(|d| d.is_empty() || d.len() > limits::MESSAGE_BYTES_MAX) => {
                        return Err(refused(format!("{at}.deny"), "at most 64 texts, none empty or longer than 512 bytes"));
                    }
                    Some(what) => agent(Kind::Count, what),
                }
            }
            SourceKind::Exec if shared => return Err(refused(at, "one command is one metric: name each of them")),
            SourceKind::Exec => {
                let run = block.run.as_ref().map(crate::spec::Command::argv).unwrap_or_default();
                if run.is_empty() || run.len() > limits::ARGV_MAX || run.iter().any(String::is_empty) {
                    return Err(refused(
                        at,
                        "its source needs run, a name of the host's [commands] or a file of the release, and arguments",
                    ));
                }
                let (kind, _) = plain(at, name, block.unit.as_deref(), false)?;
                if kind == Kind::Rate {
                    return cannot("exec");
                }
                agent(kind, AgentSource::Exec { run })
            }
        };
        let higher_is_worse = block.worse.map_or(name != "request_rate", |worse| worse == Worse::Higher);
        Ok(Metric { kind, source, higher_is_worse, min_samples: block.min_samples })
    }
}

fn scrape(at: &str, block: &MetricSpec, name: &str) -> Result<(Kind, AgentSource), PlanError> {
    let url = url(at, block)?.clone();
    let given = [block.bad.is_some() || block.total.is_some(), block.histogram.is_some(), block.counter.is_some(), block.gauge.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(refused(at, "source \"scrape\" needs one of: bad and total, histogram, counter, gauge"));
    }
    let kind = built_in(name);
    let misfit = |what: &str| Err(refused(at, format!("{what} does not serve {name}: {}", fix(name))));
    if block.unit.is_some() && block.gauge.is_none() {
        return Err(refused(format!("{at}.unit"), "only a gauge takes one; histograms are in seconds, as Prometheus has them"));
    }
    if block.bad.is_some() || block.total.is_some() {
        let (bad, total) = (text(at, "bad", block.bad.as_ref())?.clone(), text(at, "total", block.total.as_ref())?.clone());
        let what = AgentSource::ScrapeRatio { url, bad, total };
        return match kind.unwrap_or(Kind::Ratio) {
            kind @ (Kind::Ratio | Kind::Rate) => Ok((kind, what)),
            _ => misfit("bad and total"),
        };
    }
    if let Some(histogram) = &block.histogram {
        let what = AgentSource::ScrapeHistogram { url, name: text(at, "histogram", Some(histogram))?.clone() };
        return match kind.or_else(|| permille(name).map(|permille| Kind::Quantile { permille })) {
            Some(kind @ Kind::Quantile { .. }) => Ok((kind, what)),
            None => Err(refused(at, format!("a histogram's metric ends in its quantile: write [metrics.{name}_p99]"))),
            Some(_) => misfit("a histogram"),
        };
    }
    if let Some(counter) = &block.counter {
        let what = AgentSource::ScrapeCounter { url, series: text(at, "counter", Some(counter))?.clone() };
        return match kind.unwrap_or(Kind::Count) {
            kind @ (Kind::Count | Kind::Rate) if !matches!(name, "restarts" | "alerts") => Ok((kind, what)),
            _ => misfit("a counter"),
        };
    }
    let series = text(at, "gauge", block.gauge.as_ref())?.clone();
    let (kind, _) = plain(at, name, block.unit.as_deref(), false)?;
    if kind == Kind::Rate {
        return misfit("a gauge");
    }
    Ok((kind, AgentSource::ScrapeGauge { url, series }))
}
