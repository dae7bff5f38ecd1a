//! The deployment process end to end: people, windows, tasks, notifications,
//! documents, the audit — on real processes, with real mail, keys and paper.
//!
//! This module is the world that these tests share: five hosts, two components,
//! people with keys, routes to a mail server and to strict receivers, and the
//! guide's plan scaled down to seconds.

mod approvals;
mod audit;
mod back;
mod disturbed;
mod freezes;
mod papers;
mod readiness;
mod routes;
mod run;
mod tasks;
mod whole;
mod windows;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};
use tempfile::TempDir;
use tidegate_integration_tests::fleet::{Pairs, pairs};
use tidegate_integration_tests::mail::MailServer;
use tidegate_integration_tests::people::People;
use tidegate_integration_tests::receiver::{Receiver, WEBHOOK_SECRET};
use tidegate_integration_tests::release::http_smoke;
use tidegate_integration_tests::{Component, Fleet, Plan, Release, Task};

use crate::Result;

/// The key of PagerDuty's events, 32 characters.
pub(crate) const ROUTING_KEY: &str = "0123456789abcdef0123456789abcdef";
/// What stands in Slack's address where the real one has its secret.
pub(crate) const SLACK_SECRET: &str = "XsLaCkSeCrEt0123456789xy";
/// Three hosts of the first component, two of the second.
pub(crate) const API: usize = 3;
pub(crate) const WEB: usize = 2;
pub(crate) const HOSTS: usize = API + WEB;
/// A zone that is not UTC and has daylight saving.
pub(crate) const ZONE: &str = "Europe/Berlin";

/// A fleet with people and routes around it.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) people: People,
    pub(crate) receiver: Receiver,
    /// None where there is no aiosmtpd.
    pub(crate) mail: Option<MailServer>,
    secrets: TempDir,
}

/// `h1`–`h3` are `role=api`, `h4` and `h5` `role=web`; `h1` has the database.
pub(crate) fn roles(number: usize) -> Pairs {
    match number {
        1 => pairs(&[("role", "api"), ("db", "yes")]),
        n if n <= API => pairs(&[("role", "api")]),
        _ => pairs(&[("role", "web")]),
    }
}

impl World {
    /// The whole of it; `config` are sections of controller.toml more.
    pub(crate) fn new(config: &str) -> Result<Self> {
        Self::with(HOSTS, roles, config)
    }

    pub(crate) fn with(hosts: usize, labels: fn(usize) -> Pairs, config: &str) -> Result<Self> {
        let secrets = tempfile::Builder::new().prefix("tidegate-secrets-").tempdir().context("a directory for secrets")?;
        let (people, receiver) = (People::of_the_guide()?, Receiver::start()?);
        let mail = MailServer::start(&secrets.path().join("mail"))?;
        let mut world = Self { fleet: Fleet::builder(0).any_port().start()?, people, receiver, mail, secrets };
        let all = format!("{}{}{config}", world.people.config(), world.routes()?);
        world.fleet = Fleet::builder(hosts).labels(labels).config(&all).start()?;
        Ok(world)
    }

    /// A file only the controller's user may read; its path.
    fn secret(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.secrets.path().join(name);
        fs::write(&path, format!("{text}\n")).context("a secret")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("its mode")?;
        Ok(path)
    }

    /// `[routes.…]`: team (Slack), stakeholders (mail), on-call (PagerDuty), hook.
    fn routes(&self) -> Result<String> {
        let slack = self.secret("slack-url", &self.receiver.url(&format!("/slack/services/T0/B0/{SLACK_SECRET}")))?;
        let (key, hook) = (self.secret("pagerduty-key", ROUTING_KEY)?, self.secret("hook-key", WEBHOOK_SECRET)?);
        let mut toml = format!("[routes.team]\nvia = \"slack\"\nurl_file = {slack:?}\n");
        toml += &format!("[routes.on-call]\nvia = \"pagerduty\"\nrouting_key_file = {key:?}\nurl = \"{}\"\n", self.receiver.url(""));
        toml +=
            &format!("[routes.hook]\nvia = \"webhook\"\nurl = \"{}\"\nsecret_file = {hook:?}\n", self.receiver.url("/webhook/tidegate"));
        if let Some(mail) = &self.mail {
            toml += &format!(
                "[routes.stakeholders]\nvia = \"email\"\nserver = \"smtp://127.0.0.1:{}\"\nfrom = \"tidegate@example.com\"\nto = [\"stakeholders@example.com\"]\n",
                mail.port
            );
        }
        Ok(toml)
    }

    /// Where the plan's dashboards are: pages that answer.
    pub(crate) fn dashboard(&self) -> String {
        self.receiver.url("/dashboard/shop")
    }

    /// `[[notify]]` as the guide has it, and everything to the hook.
    pub(crate) fn notify(&self) -> String {
        let mail = if self.mail.is_some() { "[[notify]]\non = [\"completed\"]\nto = \"stakeholders\"\nvia = \"email\"\n" } else { "" };
        format!(
            "[[notify]]\non = [\"started\", \"stage\"]\nto = \"team\"\nvia = \"slack\"\n{mail}\
             [[notify]]\non = [\"issue\", \"paused\", \"rollback\"]\nto = \"on-call\"\nvia = \"pagerduty\"\n\
             [[notify]]\non = [\"started\", \"completed\", \"issue\", \"rollback\"]\nto = \"hook\"\nvia = \"webhook\"\n"
        )
    }

    /// Puts `release` on all hosts at once, as what runs before.
    pub(crate) fn ship(&self, release: &Release) -> Result {
        self.fleet.import(release)?;
        let hosts = if self.fleet.hosts.len() == HOSTS { BOTH } else { r#"{ api = "role=api" }"# };
        let plan = Plan::to(&release.id(), "big-bang", hosts).batch(&self.fleet.hosts.len().to_string()).line("environment = \"first\"");
        self.fleet.roll(&plan)?.expect_code(0)?;
        Ok(())
    }

    /// Every service, asked itself, is of `version`.
    pub(crate) fn expect_version(&self, version: &str) -> Result {
        self.fleet.expect_version(version)
    }
}

/// Selectors of both components.
pub(crate) const BOTH: &str = r#"{ api = "role=api", web = "role=web" }"#;

/// One of the two components, with an integration test more.
fn component(name: &str) -> Component {
    let integration = "id = \"INT-001\"\nname = \"Payment gateway\"\nsuite = \"integration\"\n\
                       http = { url = \"http://127.0.0.1:${var.port}/health\", status = 200 }\ntimeout = \"2s\"\nretry_for = \"5s\"";
    let smokes = [http_smoke("port", "5s"), integration.to_owned()];
    let smokes: Vec<&str> = smokes.iter().map(String::as_str).collect();
    Component::new(name).controlled().conf("latency_ms = 5").smoke(&smokes).line("check = [\"bin/demo-service\", \"--check-config\"]")
}

/// `shop@VERSION` with both components and its papers, without tasks.
pub(crate) fn plain(version: &str) -> Release {
    Release::new(version).documented().component(component("api")).component(component("web"))
}

/// The same with backup and migrations.
pub(crate) fn with_tasks(version: &str) -> Release {
    plain(version)
        .known_issues("The search box is slow on Mondays")
        .task(Task::new("Backup database", "db=yes", "echo backup_20261124"))
        .task(Task::new("Deploy database migrations", "db=yes", "echo working; echo 3 migrations").undo("echo 3 migrations undone"))
}

/// A window that is open now: it began at least an hour ago and lasts for hours.
pub(crate) fn open_window() -> String {
    let began = local(-SignedDuration::from_mins(90));
    format!(
        "[[window]]\ndays = [\"{}\"]\nstart_time = \"{}\"\nlength_minutes = 480\ntime_zone = \"{ZONE}\"\n",
        began.strftime("%a"),
        began.strftime("%H:%M")
    )
}

/// A window that is closed now, and opens in some hours.
pub(crate) fn closed_window() -> String {
    let opens = local(SignedDuration::from_hours(3));
    format!(
        "[[window]]\ndays = [\"{}\"]\nstart_time = \"{}\"\nlength_minutes = 60\ntime_zone = \"{ZONE}\"\n",
        opens.strftime("%a"),
        opens.strftime("%H:%M")
    )
}

/// The clock of [`ZONE`], from now.
pub(crate) fn local(from_now: SignedDuration) -> Zoned {
    let zone = TimeZone::get(ZONE).unwrap_or(TimeZone::UTC);
    (Timestamp::now() + from_now).to_zoned(zone)
}

/// The three contacts of the guide, there at any hour.
pub(crate) const CONTACTS: &str = "\
    [[contact]]\nrole = \"lead\"\nname = \"Lea Lead\"\nphone = \"+49 30 1001\"\navailable = \"always\"\n\
    [[contact]]\nrole = \"on-call\"\nname = \"Otto Oncall\"\nphone = \"+49 30 1002\"\navailable = \"always\"\n\
    [[contact]]\nrole = \"escalation\"\nname = \"Eva Escalation\"\nphone = \"+49 30 1003\"\navailable = \"always\"\n";

/// The change request of the guide, with one risk.
pub(crate) const CHANGE: &str = "\
    [change]\nid = \"CR-1042\"\ntype = \"normal\"\nrisk = \"low\"\nsummary = \"Shop 2.0.0 for the winter sale\"\n\
    justification = \"Checkout is too slow\"\ndowntime = \"30s\"\nrollback_time = \"5m\"\n\
    [[risk]]\nname = \"Migration locks a table\"\nlikelihood = \"L\"\nimpact = \"H\"\nmitigation = \"It runs in batches\"\n";
