//! What the guide says where a plan does not: the stages of its section 2.3 and
//! the triggers of its table 3.3.

use alloc::string::ToString;
use alloc::vec::Vec;

use tidegate_protocol::Millis;

use crate::condition::Condition;
use crate::spec::{Span, StageSpec, TriggerAction, TriggerSpec};

fn conditions(texts: &[&str]) -> Vec<Condition> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Section 2.3 of the guide.
pub(super) fn stages() -> Vec<StageSpec> {
    let stage = |name: &str, percent, bake: Option<u64>, success: &[&str]| StageSpec {
        name: name.to_string(),
        percent,
        bake: bake.map(|minutes| Span(Millis::from_secs(60 * minutes))),
        watch: None,
        success: conditions(success),
        attest: Vec::new(),
    };
    let first = ["error_rate < 0.1%", "latency within 10% of baseline", "critical_errors == 0"];
    let mut early = stage("Early Adopters", 25, Some(60), &["error_rate < 0.1%", "stable"]);
    early.attest = ["no-customer-complaints".to_string()].into();
    let mut full = stage("Full", 100, None, &["stable"]);
    full.watch = Some(Span(Millis::from_secs(86_400)));
    [stage("Canary", 5, Some(30), &first), early, stage("Majority", 75, Some(120), &["stable", "no_degradation"]), full].into()
}

/// Table 3.3 of the guide.
pub(super) fn triggers() -> Vec<TriggerSpec> {
    let rows = [
        ("error_rate > 1%", TriggerAction::Rollback, Some(300)),
        ("latency_p50 > 200% of baseline", TriggerAction::Investigate, None),
        ("critical_errors > 0", TriggerAction::Rollback, None),
        ("declared data-corruption", TriggerAction::Emergency, None),
        ("declared security-incident", TriggerAction::Emergency, None),
    ];
    rows.into_iter()
        .filter_map(|(when, action, min_samples)| Some(TriggerSpec { when: when.parse().ok()?, action, after: None, min_samples }))
        .collect()
}
