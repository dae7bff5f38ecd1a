//! What plans are judged by, before and after: metrics servers tried for `rollout
//! plan`, and a plan replayed against a journal. Touches no host.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate_protocol::RolloutId;
use tidegate_rollout::gate::MetricSource;
use tidegate_rollout::replay::replay;
use tidegate_rollout::{FetchFrom, Fetched, Plan};
use tokio::task::JoinSet;

use super::doc::{PlanDoc, ReadinessDoc};
use super::msg::{ErrorCode, ErrorDoc};
use super::server::{Ended, Operators, blocking};
use crate::core::{Prepared, json, no_rollout};

/// Of one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries at once.
const TRIES_MAX: usize = 8;
/// Most records of one journal that are judged again.
const RECORDS_MAX: usize = 2_000_000;
/// Alerts named in one row.
const ALERTS_NAMED_MAX: usize = 3;

/// The plan's document with a row for each metric that the controller would fetch.
/// `may_call`: whether whoever asks may have the servers of a plan called.
pub(super) async fn tried(ctx: &Operators, document: String, may_call: bool) -> Result<String, Ended> {
    let mut doc: PlanDoc =
        serde_json::from_str(&document).map_err(|e| ErrorDoc::new(ErrorCode::Internal, "the plan does not read").cause(e.to_string()))?;
    let mut left = asked(&doc.plan);
    if left.is_empty() {
        return Ok(document);
    }
    if !may_call {
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        let observed = format!("not tried, they are tried for callers with the role operator: {}", names.join(", "));
        doc.readiness.push(ReadinessDoc::tried("metrics servers".into(), true, observed));
        return Ok(json(&doc)?);
    }
    left.reverse();
    let (mut flying, mut rows) = (JoinSet::new(), Vec::new());
    loop {
        while flying.len() < TRIES_MAX
            && let Some((name, from)) = left.pop()
        {
            let sources = ctx.sources.clone();
            flying.spawn(async move { (name, sources.fetch(&from, TRY_TIMEOUT).await) });
        }
        match flying.join_next().await {
            None => break,
            Some(Ok((name, result))) => rows.push(row(name, result)),
            Some(Err(error)) => {
                return Err(ErrorDoc::new(ErrorCode::Internal, "a try of a metric ended early").cause(error.to_string()).into());
            }
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    doc.refused_because.extend(rows.iter().filter(|r| !r.ok).map(|r| format!("{}: {}", r.name, r.observed)));
    doc.readiness.extend(rows);
    Ok(json(&doc)?)
}

/// Metric and question, over all hosts that would change.
fn asked(plan: &Plan) -> Vec<(String, FetchFrom)> {
    let hosts: BTreeSet<&str> = plan.targets().map(|(host, _)| host.as_str()).collect();
    let hosts = hosts.into_iter().collect::<Vec<_>>().join("|").replace('.', "[.]");
    let bind = |text: &String| text.replace("$hosts", &hosts);
    let from = |source: &MetricSource| match source {
        MetricSource::Prometheus { url, query, samples, .. } => {
            Some(FetchFrom::Prometheus { url: url.clone(), query: bind(query), samples: samples.as_ref().map(bind) })
        }
        MetricSource::Alertmanager { url, matchers } => Some(FetchFrom::Alertmanager { url: url.clone(), matchers: matchers.clone() }),
        MetricSource::Agent { .. } | MetricSource::Report(_) => None,
    };
    plan.gating.metrics.iter().filter_map(|(name, metric)| Some((name.clone(), from(&metric.source)?))).collect()
}

fn row(metric: String, result: Result<Fetched, String>) -> ReadinessDoc {
    let name = format!("metric {metric} can be read");
    let (ok, observed) = match result {
        Ok(Fetched::Value { value, samples: None }) => (true, format!("it is {value} now")),
        Ok(Fetched::Value { value, samples: Some(n) }) => (true, format!("it is {value} now, from {n} samples")),
        Ok(Fetched::Alerts(alerts)) if alerts.is_empty() => (true, "no alert fires".into()),
        Ok(Fetched::Alerts(alerts)) => {
            let named: Vec<&str> = alerts.values().take(ALERTS_NAMED_MAX).map(String::as_str).collect();
            let more = if alerts.len() > named.len() { ", …" } else { "" };
            (true, format!("{} alert(s) fire already and will not count: {}{more}", alerts.len(), named.join(", ")))
        }
        Err(observed) => (false, observed),
    };
    ReadinessDoc::tried(name, ok, observed)
}

/// What a plan would have said of a rollout's values.
pub(super) async fn replayed(ctx: &Operators, id: RolloutId, prepared: Prepared) -> Result<String, Ended> {
    let followed = ctx.core.follow(id.clone()).await?.ok_or_else(|| no_rollout(&id))?;
    let (upto, mut after) = (followed.ticks.borrow().seq, followed.first_seq.saturating_sub(1));
    let mut records = Vec::new();
    while after < upto {
        let page = ctx.store.events(id.clone(), after).await?;
        let Some(last) = page.last().map(|row| row.seq) else { break };
        records.extend(page.into_iter().map(|row| (row.at, row.record)));
        if records.len() > RECORDS_MAX {
            return Err(ErrorDoc::new(ErrorCode::Refused, format!("the journal of {id} has more than {RECORDS_MAX} records")).into());
        }
        after = last;
    }
    // Long journals are judged step by step: not on the runtime.
    let doc = blocking(move || replay(&prepared.spec, &prepared.manifest, &records)).await?;
    Ok(json(&doc.map_err(|e| ErrorDoc::new(ErrorCode::Refused, e.to_string()))?)?)
}
