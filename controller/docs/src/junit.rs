//! Smoke test results as JUnit XML: a suite per host and component, a case per
//! test. `failure`: it ran and did not hold; `error`: the host failed and no test
//! says why; `skipped`: not run. Properties say what was tested.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::Cause;
use tidegate_protocol::release::Suite;
use tidegate_protocol::report::{SmokeResult, SmokeStatus};
use tidegate_rollout::plan::Wave;
use tidegate_rollout::record::TargetState;
use tidegate_rollout::status::rfc3339;

use crate::doc3::asserts;
use crate::fold::TargetFact;
use crate::html::escape;
use crate::story::Story;
use crate::text::clean;

#[derive(Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    ms: u64,
}

/// `smoke.junit.xml`.
pub(crate) fn render(story: &Story<'_>) -> String {
    let facts = &story.facts;
    let mut suites = String::new();
    let mut all = Counts::default();
    let waves: BTreeMap<usize, &Wave> = facts.plan.waves.iter().map(|w| (w.index, w)).collect();
    for target in facts.targets.iter().filter(|t| t.origin.is_some()) {
        let mut own = Counts::default();
        let cases = cases(story, target, &mut own);
        let stage = target.wave.and_then(|w| waves.get(&w));
        let planned = facts.plan.components.iter().find(|c| c.name == target.component);
        let running = target.proof.as_ref().and_then(|p| p.running_sha256);
        let properties: Vec<(&str, String)> = [
            ("rollout", Some(facts.input.id.to_string())),
            ("release", Some(facts.plan.release.id.to_string())),
            ("manifest_sha256", Some(facts.plan.release.manifest.to_string())),
            ("component", Some(target.component.to_string())),
            ("digest", planned.map(|c| c.tree_sha256.to_string())),
            ("running_sha256", running.map(|d| d.to_string())),
            ("host", Some(target.host.to_string())),
            ("stage", stage.map(|w| w.name.clone())),
            ("environment", facts.plan.environment.clone()),
            ("state", Some(target.state.word().to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|v| (name, v)))
        .collect();
        let at = target.smoke_at.map_or_else(String::new, |t| format!(" timestamp=\"{}\"", rfc3339(t.0).get(..19).unwrap_or_default()));
        suites.push_str(&format!(
            "  <testsuite name=\"{}\" hostname=\"{}\" {}{at}>\n    <properties>\n",
            attribute(&format!("{} {}", target.host, target.component)),
            attribute(target.host.as_str()),
            own.attributes(true),
        ));
        for (name, value) in properties {
            suites.push_str(&format!("      <property name=\"{name}\" value=\"{}\"/>\n", attribute(&value)));
        }
        suites.push_str("    </properties>\n");
        suites.push_str(&cases);
        suites.push_str("  </testsuite>\n");
        all.add(&own);
    }
    let name = attribute(&format!("{} {}", facts.plan.release.id, facts.input.id));
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{name}\" {}>\n{suites}</testsuites>\n", all.attributes(false))
}

fn cases(story: &Story<'_>, target: &TargetFact, counts: &mut Counts) -> String {
    let mut out = String::new();
    let class = attribute(&format!("{}.{}", target.component, target.host));
    let known = story.facts.component(&target.component).map_or(&[][..], |c| &c.smoke);
    let mut case = |name: &str, ms: u64, body: Option<String>| {
        counts.tests += 1;
        counts.ms = counts.ms.saturating_add(ms);
        out.push_str(&format!("    <testcase classname=\"{class}\" name=\"{}\" time=\"{}\"", attribute(name), seconds(ms)));
        match body {
            None => out.push_str("/>\n"),
            Some(body) => out.push_str(&format!(">\n{body}    </testcase>\n")),
        }
    };
    let (mut failures, mut skipped, mut errors) = (0, 0, 0);
    let mut one = |result: &SmokeResult, name: String, what: &str| {
        let body = match result.status {
            SmokeStatus::Pass => None,
            SmokeStatus::Fail => {
                failures += 1;
                Some(failure("failure", &result.message, "smoke", what))
            }
            SmokeStatus::Skipped => {
                skipped += 1;
                Some(format!("      <skipped message=\"{}\"/>\n", attribute(&result.message)))
            }
        };
        case(&name, result.duration_ms, body);
    };
    for smoke in known {
        let name = format!("{} {}", smoke.id, smoke.name);
        match target.smoke.iter().find(|r| r.id == smoke.id) {
            Some(result) => one(result, name, &asserts(smoke)),
            None if smoke.suite == Suite::Critical => {
                let message = format!("not run: the host is {}", target.state);
                let result = SmokeResult { id: smoke.id.clone(), status: SmokeStatus::Skipped, duration_ms: 0, message };
                one(&result, name, "");
            }
            None => {}
        }
    }
    // What the manifest does not know is told all the same.
    for result in target.smoke.iter().filter(|r| known.iter().all(|k| k.id != r.id)) {
        one(result, result.id.clone(), "");
    }
    let told = target.smoke.iter().any(|r| r.status == SmokeStatus::Fail);
    let failed = target.failure.as_ref().filter(|f| !told && (f.cause != Cause::Trigger || target.state == TargetState::RevertFailed));
    if let Some(of) = failed {
        errors += 1;
        case("deployment of the host", 0, Some(failure("error", &of.message, &of.cause.to_string(), "")));
    }
    (counts.failures, counts.skipped, counts.errors) = (failures, skipped, errors);
    out
}

fn failure(tag: &str, message: &str, kind: &str, what: &str) -> String {
    let what = if what.is_empty() { String::new() } else { format!("{}\n", content(what)) };
    format!("      <{tag} message=\"{}\" type=\"{}\">{what}{}</{tag}>\n", attribute(message), attribute(kind), content(message))
}

/// XML has no way to write most control characters: cleaned, then escaped.
fn attribute(text: &str) -> String {
    escape(&clean(text, 2_000, false))
}

fn content(text: &str) -> String {
    escape(&clean(text, 8_000, false))
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.tests += other.tests;
        self.failures += other.failures;
        self.errors += other.errors;
        self.skipped += other.skipped;
        self.ms = self.ms.saturating_add(other.ms);
    }

    /// `testsuites` counts what is skipped in its suites only.
    fn attributes(&self, suite: bool) -> String {
        let skipped = if suite { format!(" skipped=\"{}\"", self.skipped) } else { String::new() };
        format!("tests=\"{}\" failures=\"{}\" errors=\"{}\"{skipped} time=\"{}\"", self.tests, self.failures, self.errors, seconds(self.ms))
    }
}
