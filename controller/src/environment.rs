//! `[environments.NAME]` of controller.toml: what a rollout there must bring.
//!
//! Owns: which rows, approvals and attestations a place demands, and the ages it
//! takes. Must not: check anything itself. A plan adds to it, never drops.

use std::collections::BTreeSet;

use serde::Deserialize;
use tidegate_protocol::{Digest, HostName, Millis};
use tidegate_rollout::Surroundings;
use tidegate_rollout::process::{
    APPROVAL_VALID_DEFAULT, ATTEST_ROWS, DRILL_MAX_AGE_DEFAULT, Estimate, ROUTE_TEST_MAX_AGE_DEFAULT, Role, is_item_name,
};
use tidegate_rollout::readiness::{self, Rules};
use tidegate_rollout::spec::Span;

/// Where releases run first, where nothing else is said.
const STAGING_DEFAULT: &str = "staging";
/// Most entries of each list.
const ENTRIES_MAX: usize = 256;
/// Asked for by the row of the runbook itself, where it did not change.
const STILL_VALID: &str = "runbook-still-valid";

/// Rows that a switch of the environment stands for.
const WINDOWS: &[&str] = &["window", "rollback-time"];
const CHANGE: &[&str] = &["change-request", "risk-assessment", "downtime-declared", "change-template"];
const CONTACTS: &[&str] = &["on-call-identified", "support-available"];
const TRIGGERS: &[&str] = &["trigger-sources"];

/// What a rollout to an environment must bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Whose signatures.
    pub approvals: Vec<Role>,
    /// How long one is good.
    pub approval_valid: Millis,
    /// Rows of the checklist, by item; what persons attest included.
    pub demanded: BTreeSet<String>,
    /// Of those, what persons attest.
    pub attest: Vec<String>,
    /// Looked at in addition to those of the plan.
    pub dashboards: Vec<String>,
    /// What the rows are held against.
    pub rules: Rules,
}

/// `[environments.NAME]` as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnvironmentFile {
    approvals: Option<Vec<Role>>,
    #[serde(default)]
    readiness: Readiness,
    attest: Option<Vec<String>>,
    windows: Option<bool>,
    change: Option<bool>,
    contacts: Option<bool>,
    triggers: Option<bool>,
    staging: Option<String>,
    #[serde(default)]
    config_differs: BTreeSet<String>,
    #[serde(default)]
    dashboards: Vec<String>,
    drill_max_age: Option<Span>,
    route_test_max_age: Option<Span>,
    approval_valid: Option<Span>,
    #[serde(default)]
    standard_changes: BTreeSet<Digest>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "\"guide\", \"auto\" or a list of items is wanted, for example [\"tested-in-staging\"]")]
enum Readiness {
    Word(Word),
    Items(BTreeSet<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// The whole checklist of the process guide.
    Guide,
    /// What the program checks by itself at any rate.
    Auto,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::Word(Word::Auto)
    }
}

impl Environment {
    /// One that controller.toml does not name: only what the program can check by
    /// itself.
    #[must_use]
    pub fn unconfigured(name: &str) -> Self {
        Self {
            name: name.into(),
            approvals: Vec::new(),
            approval_valid: APPROVAL_VALID_DEFAULT,
            demanded: BTreeSet::new(),
            attest: Vec::new(),
            dashboards: Vec::new(),
            rules: Rules { staging: before(name, None), ..Rules::default() },
        }
    }

    /// Checks what was written.
    ///
    /// # Errors
    /// One sentence: the key, what is wrong and what to write.
    pub(crate) fn new(name: &str, file: EnvironmentFile) -> Result<Self, String> {
        let bad = |key: &str, message: String| Err(format!("{name}.{key}: {message}"));
        let guide = matches!(file.readiness, Readiness::Word(Word::Guide));
        let known: BTreeSet<&str> = readiness::items().collect();
        let mut demanded: BTreeSet<String> = match &file.readiness {
            Readiness::Word(Word::Guide) => readiness::automatic().map(|(item, ..)| item.to_owned()).collect(),
            Readiness::Word(Word::Auto) => BTreeSet::new(),
            Readiness::Items(items) => {
                if let Some(item) = items.iter().find(|item| !known.contains(item.as_str())) {
                    let all: Vec<&str> = known.into_iter().collect();
                    return bad("readiness", format!("{item:?} is no item of the checklist; there are: {}", all.join(", ")));
                }
                items.clone()
            }
        };
        for (switch, rows) in [(file.windows, WINDOWS), (file.change, CHANGE), (file.contacts, CONTACTS), (file.triggers, TRIGGERS)] {
            match switch {
                Some(true) => demanded.extend(rows.iter().map(|r| (*r).to_owned())),
                // The guide asks for them; who says no, means it. A list is meant as well.
                Some(false) if guide => demanded.retain(|item| !rows.contains(&item.as_str())),
                Some(false) | None => {}
            }
        }
        let of_people = |item: &&str| ATTEST_ROWS.iter().any(|(known, ..)| known == item);
        let mut attest = match file.attest {
            Some(items) => items,
            None if guide => ATTEST_ROWS.iter().map(|(item, ..)| (*item).to_owned()).filter(|item| item != STILL_VALID).collect(),
            None => Vec::new(),
        };
        for item in demanded.iter().filter(|item| of_people(&item.as_str())) {
            if !attest.contains(item) {
                attest.push(item.clone());
            }
        }
        for item in &attest {
            if !is_item_name(item) {
                return bad("attest", format!("{item:?} is not a name: lower-case letters, digits and '-', at most 64"));
            }
            if readiness::automatic().any(|(known, ..)| known == item) {
                return bad("attest", format!("{item} is checked by the program; write it into readiness"));
            }
            if attest.iter().filter(|other| *other == item).count() > 1 {
                return bad("attest", format!("{item} stands there twice"));
            }
        }
        demanded.extend(attest.iter().cloned());
        let approvals = match file.approvals {
            Some(roles) => roles,
            None if guide => vec![Role::TechLead, Role::Security, Role::Operations, Role::ProductOwner],
            None => Vec::new(),
        };
        for (i, role) in approvals.iter().enumerate() {
            if approvals.iter().take(i).any(|other| other == role) {
                return bad("approvals", format!("{role} stands there twice"));
            }
        }
        for (key, len) in [
            ("attest", attest.len()),
            ("config_differs", file.config_differs.len()),
            ("dashboards", file.dashboards.len()),
            ("standard_changes", file.standard_changes.len()),
        ] {
            if len > ENTRIES_MAX {
                return bad(key, format!("{len} entries, at most {ENTRIES_MAX} are taken"));
            }
        }
        if let Some(url) = file.dashboards.iter().find(|u| !u.starts_with("https://") && !u.starts_with("http://")) {
            return bad("dashboards", format!("{url:?} is not an address that begins with https:// or http://"));
        }
        if file.staging.as_deref().is_some_and(|s| s.trim().is_empty()) {
            return bad("staging", "it is empty: name the environment that releases run in first, or remove it".into());
        }
        let age = |key: &str, span: Option<Span>, default: Millis| match span {
            Some(span) if span.0 < Millis::from_secs(1) => Err(format!("{name}.{key}: at least 1s is wanted")),
            Some(span) => Ok(span.0),
            None => Ok(default),
        };
        Ok(Self {
            approvals,
            approval_valid: age("approval_valid", file.approval_valid, APPROVAL_VALID_DEFAULT)?,
            demanded,
            attest,
            dashboards: file.dashboards,
            rules: Rules {
                staging: before(name, file.staging),
                differs: file.config_differs,
                drill_max_age: age("drill_max_age", file.drill_max_age, DRILL_MAX_AGE_DEFAULT)?,
                route_test_max_age: age("route_test_max_age", file.route_test_max_age, ROUTE_TEST_MAX_AGE_DEFAULT)?,
                standard_changes: file.standard_changes,
            },
            name: name.into(),
        })
    }

    /// What it adds to a plan. The estimate may be replaced once the plan is resolved.
    #[must_use]
    pub fn surroundings(&self, online: BTreeSet<HostName>, estimate: Estimate) -> Surroundings {
        Surroundings {
            approvals: self.approvals.clone(),
            approval_valid: self.approval_valid,
            demanded: self.demanded.clone(),
            attest: self.attest.clone(),
            dashboards: self.dashboards.clone(),
            online,
            estimate,
        }
    }
}

/// Where releases run before they come here; nowhere, if this is that place.
fn before(name: &str, staging: Option<String>) -> Option<String> {
    Some(staging.unwrap_or_else(|| STAGING_DEFAULT.into())).filter(|staging| staging != name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Environment, String> {
        let file: EnvironmentFile = toml::from_str(text).map_err(|e| e.to_string())?;
        Environment::new("production", file)
    }

    #[test]
    fn the_guide_demands_every_row() {
        let guide = read("readiness = \"guide\"").unwrap();
        let all: BTreeSet<String> = readiness::items().filter(|item| *item != STILL_VALID).map(str::to_owned).collect();
        assert_eq!(guide.demanded, all);
        assert_eq!(guide.attest, ["security-exit", "images-signed", "alert-thresholds", "low-traffic"]);
        assert_eq!(guide.approvals, [Role::TechLead, Role::Security, Role::Operations, Role::ProductOwner]);
        assert_eq!(guide.rules.staging.as_deref(), Some("staging"));
        let less = read("readiness = \"guide\"\nwindows = false\nattest = [\"pen-test\"]\napprovals = []").unwrap();
        let gone: BTreeSet<&String> = guide.demanded.difference(&less.demanded).collect();
        for item in ["window", "rollback-time", "low-traffic", "security-exit"] {
            assert!(gone.contains(&item.to_owned()), "{item}");
        }
        assert_eq!((less.attest.as_slice(), less.approvals.len()), (&["pen-test".to_owned()][..], 0));
        assert!(less.demanded.contains("pen-test"));
    }

    #[test]
    fn nothing_said_demands_nothing() {
        let auto = read("").unwrap();
        assert_eq!(auto, Environment::unconfigured("production"));
        assert!(auto.demanded.is_empty() && auto.attest.is_empty() && auto.approvals.is_empty());
        assert_eq!(Environment::unconfigured("staging").rules.staging, None, "staging is not tested in staging");
        let some = read("readiness = [\"tested-in-staging\", \"low-traffic\"]\ntriggers = true\nstaging = \"canary\"").unwrap();
        assert_eq!(some.demanded.iter().map(String::as_str).collect::<Vec<_>>(), ["low-traffic", "tested-in-staging", "trigger-sources"]);
        assert_eq!(some.attest, ["low-traffic"], "a row that a person attests is attested");
        assert_eq!(some.rules.staging.as_deref(), Some("canary"));
    }

    #[test]
    fn errors_name_the_key_and_the_fix() {
        for (text, wanted) in [
            ("readiness = \"all\"", &["guide", "auto"][..]),
            ("readiness = [\"tested\"]", &["production.readiness", "tested-in-staging"]),
            ("attest = [\"No Spaces\"]", &["production.attest", "lower-case"]),
            ("attest = [\"capacity\"]", &["production.attest", "readiness"]),
            ("attest = [\"a\", \"a\"]", &["production.attest", "twice"]),
            ("approvals = [\"boss\"]", &["boss", "tech-lead"]),
            ("approvals = [\"cab\", \"cab\"]", &["production.approvals", "twice"]),
            ("drill_max_age = \"14\"", &["14", "for example"]),
            ("drill_max_age = \"0s\"", &["production.drill_max_age", "1s"]),
            ("dashboards = [\"grafana\"]", &["production.dashboards", "https://"]),
            ("staging = \" \"", &["production.staging"]),
            ("standard_changes = [\"abc\"]", &["standard_changes"]),
            ("drills = \"14d\"", &["drills", "drill_max_age"]),
        ] {
            let message = read(text).unwrap_err();
            for part in wanted {
                assert!(message.contains(part), "{part:?} is not in {message}");
            }
        }
    }

    #[test]
    fn it_adds_to_a_plan() {
        let guide = read("readiness = \"guide\"\ndashboards = [\"https://grafana/d/1\"]\napproval_valid = \"1d\"").unwrap();
        let around = guide.surroundings(BTreeSet::from(["h1".parse().unwrap()]), Estimate::default());
        assert_eq!((&around.demanded, &around.attest, &around.approvals), (&guide.demanded, &guide.attest, &guide.approvals));
        assert_eq!((around.approval_valid, around.dashboards.len(), around.online.len()), (Millis::from_secs(86_400), 1, 1));
    }
}
