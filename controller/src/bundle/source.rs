//! release.toml as CI writes it: every key of the contract, nothing else, and
//! what each value must be.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tidegate_protocol::release::{Argv, Proof, Service, Smoke, SmokeCheck, Suite};
use tidegate_protocol::{ComponentName, Digest, Millis, RelPath, ReleaseName, Version, template};
use toml::Spanned;

use super::error::BundleError;

/// release.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseToml {
    pub(super) name: ReleaseName,
    pub(super) version: Version,
    pub(super) notes: Option<Spanned<String>>,
    pub(super) known_issues: Option<String>,
    #[serde(default)]
    pub(super) runbook: RunbookToml,
    pub(super) expires: Option<Spanned<String>>,
    pub(super) floor: Option<Version>,
    #[serde(default)]
    pub(super) task: Vec<TaskToml>,
    #[serde(default)]
    pub(super) component: Vec<ComponentToml>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunbookToml {
    pub(super) deploy: Option<Spanned<String>>,
    pub(super) rollback: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskToml {
    pub(super) name: String,
    pub(super) tree: Spanned<String>,
    pub(super) run: Spanned<Argv>,
    pub(super) undo: Option<Spanned<Argv>>,
    #[serde(default = "yes")]
    pub(super) reversible: bool,
    #[serde(default)]
    pub(super) idempotent: bool,
    pub(super) on: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ComponentToml {
    pub(super) name: Spanned<ComponentName>,
    pub(super) tree: Spanned<String>,
    #[serde(default)]
    pub(super) links: BTreeMap<String, RelPath>,
    pub(super) service: Spanned<Service>,
    #[serde(default)]
    pub(super) proof: Proof,
    pub(super) check: Option<Spanned<Argv>>,
    pub(super) before: Option<Spanned<Argv>>,
    pub(super) after: Option<Spanned<Argv>>,
    pub(super) arch: Option<String>,
    #[serde(default = "three")]
    pub(super) keep: u32,
    #[serde(default)]
    pub(super) smoke: Vec<SmokeToml>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SmokeToml {
    pub(super) id: Spanned<String>,
    pub(super) name: String,
    #[serde(default)]
    pub(super) suite: Suite,
    http: Option<HttpToml>,
    tcp: Option<TcpToml>,
    pub(super) exec: Option<ExecToml>,
    systemd: Option<SystemdToml>,
    journal: Option<JournalToml>,
    file: Option<FileToml>,
    timeout: Option<Spanned<String>>,
    retry_for: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpToml {
    url: String,
    #[serde(default = "ok")]
    status: u16,
    body: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpToml {
    address: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecToml {
    pub(super) run: Argv,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SystemdToml {
    #[serde(default)]
    max_restarts: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalToml {
    deny: Vec<String>,
    #[serde(rename = "for")]
    watch: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToml {
    path: String,
    sha256: Digest,
}

const fn yes() -> bool {
    true
}

const fn three() -> u32 {
    3
}

const fn ok() -> u16 {
    200
}

const TIMEOUT_DEFAULT: Millis = Millis::from_secs(5);
const RETRY_FOR_DEFAULT: Millis = Millis::from_secs(30);
const WATCH_DEFAULT: Millis = Millis::from_secs(30);

/// Names the file and the line in errors.
pub(super) struct Source<'a> {
    pub(super) file: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Reads it.
    pub(super) fn parse(&self) -> Result<ReleaseToml, BundleError> {
        toml::from_str(self.text)
            .map_err(|e| BundleError::Syntax { file: self.file.to_path_buf(), message: e.to_string().trim_end().to_string() })
    }

    /// An error at a value.
    pub(super) fn bad<T>(&self, at: &Spanned<T>, what: impl Into<String>, fix: impl Into<String>) -> BundleError {
        let before = self.text.get(..at.span().start).unwrap_or(self.text);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        BundleError::Value { file: self.file.to_path_buf(), line, what: what.into(), fix: fix.into() }
    }

    /// A `${…}` that no host can define is a typo; hosts look up the others.
    pub(super) fn template<T>(&self, at: &Spanned<T>, text: &str) -> Result<(), BundleError> {
        let known = |name: &str| {
            matches!(name, "host" | "component" | "version" | "side") || name.starts_with("label.") || name.starts_with("var.")
        };
        template::expand(text, |name| known(name).then(String::new)).map(drop).map_err(|_| {
            self.bad(
                at,
                format!("{text:?} holds a '${{…}}' that no host knows"),
                "write ${host}, ${component}, ${version}, ${side}, ${label.NAME} or ${var.NAME}",
            )
        })
    }

    /// A day that exists.
    pub(super) fn expires(&self, at: &Spanned<String>) -> Result<String, BundleError> {
        let text = at.get_ref();
        match text.parse::<jiff::civil::Date>() {
            Ok(date) if date.to_string() == *text => Ok(text.clone()),
            _ => Err(self.bad(at, format!("expires: {text:?} is not a day"), "write YYYY-MM-DD, for example \"2027-01-31\"")),
        }
    }

    /// A smoke test with its one assertion.
    pub(super) fn smoke(&self, smoke: &SmokeToml) -> Result<Smoke, BundleError> {
        let id = smoke.id.get_ref();
        let word = !id.is_empty() && id.len() <= 63 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !word {
            return Err(self.bad(
                &smoke.id,
                format!("smoke test id {id:?} is not one"),
                "write letters, digits, '-', '_' and '.', at most 63, for example \"SMK-001\"",
            ));
        }
        let duration = |at: &Option<Spanned<String>>, key: &str, default: Millis| {
            at.as_ref().map_or(Ok(default), |at| {
                let wanted: Option<Millis> = at.get_ref().parse().ok();
                wanted.filter(|d| *d <= Millis::from_secs(86_400)).ok_or_else(|| {
                    self.bad(
                        at,
                        format!("smoke test {id}: {key}: {:?} is not a duration of at most a day", at.get_ref()),
                        "write a whole number with ms, s, m or h, for example \"30s\"",
                    )
                })
            })
        };
        let timeout = duration(&smoke.timeout, "timeout", TIMEOUT_DEFAULT)?;
        if timeout == Millis(0) {
            return Err(self.bad(&smoke.id, format!("smoke test {id}: a timeout of 0 can't pass"), "write for example timeout = \"5s\""));
        }
        let retry_for = duration(&smoke.retry_for, "retry_for", RETRY_FOR_DEFAULT)?;
        let check = self.assertion(smoke)?;
        Ok(Smoke { id: id.clone(), name: smoke.name.clone(), suite: smoke.suite, check, timeout, retry_for })
    }

    fn assertion(&self, smoke: &SmokeToml) -> Result<SmokeCheck, BundleError> {
        let id = smoke.id.get_ref();
        let bad = |what: &str, fix: &str| Err(self.bad(&smoke.id, format!("smoke test {id}: {what}"), fix));
        let given = [
            smoke.http.is_some(),
            smoke.tcp.is_some(),
            smoke.exec.is_some(),
            smoke.systemd.is_some(),
            smoke.journal.is_some(),
            smoke.file.is_some(),
        ];
        match given.iter().filter(|g| **g).count() {
            0 => return bad("it asserts nothing", "give it one of http, tcp, exec, systemd, journal, file"),
            1 => {}
            _ => {
                return bad(
                    "it has more than one check",
                    "keep one of http, tcp, exec, systemd, journal, file and make a smoke test of its own for each other",
                );
            }
        }
        let texts = [smoke.http.as_ref().map(|h| &h.url), smoke.tcp.as_ref().map(|t| &t.address), smoke.file.as_ref().map(|f| &f.path)];
        let texts = texts
            .into_iter()
            .flatten()
            .chain(smoke.http.iter().filter_map(|h| h.body.as_ref()))
            .chain(smoke.exec.iter().flat_map(|e| &e.run));
        for text in texts {
            self.template(&smoke.id, text)?;
        }
        if let Some(http) = &smoke.http {
            if http.url.starts_with("https://") {
                return bad(
                    "https is not spoken by smoke tests, which run beside the service",
                    "use the service's http port on loopback, or an exec test that makes the TLS request",
                );
            }
            let authority = http.url.strip_prefix("http://").and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
            if authority.is_empty() || authority.contains('@') || http.url.contains(|c: char| c.is_control() || c == ' ') {
                return bad(&format!("{:?} is not an http URL", http.url), "write for example url = \"http://127.0.0.1:8080/health\"");
            }
            if !(100..=599).contains(&http.status) {
                return bad(&format!("{} is not an http status", http.status), "write for example status = 200");
            }
            if http.body.as_ref().is_some_and(String::is_empty) {
                return bad(
                    "an empty body is contained in every answer, so it asserts nothing",
                    "write a text that a good answer contains, or leave body out",
                );
            }
            return Ok(SmokeCheck::Http { url: http.url.clone(), status: http.status, body: http.body.clone() });
        }
        if let Some(tcp) = &smoke.tcp {
            let port_ok = |port: &str| port.contains("${") || port.parse::<u16>().is_ok_and(|p| p > 0);
            return match tcp.address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port_ok(port) => Ok(SmokeCheck::Tcp { address: tcp.address.clone() }),
                _ => bad(&format!("{:?} is not an address", tcp.address), "write HOST:PORT, for example address = \"127.0.0.1:5432\""),
            };
        }
        if let Some(exec) = &smoke.exec {
            return Ok(SmokeCheck::Exec { run: exec.run.clone() });
        }
        if let Some(systemd) = &smoke.systemd {
            return Ok(SmokeCheck::Systemd { max_restarts: systemd.max_restarts });
        }
        if let Some(journal) = &smoke.journal {
            if journal.deny.is_empty() || journal.deny.iter().any(String::is_empty) {
                return bad(
                    "a journal check without a text in deny asserts nothing",
                    "write for example journal = { deny = [\"panic\"], for = \"30s\" }",
                );
            }
            let watch = match journal.watch.as_deref().map(str::parse::<Millis>) {
                None => WATCH_DEFAULT,
                Some(Ok(watch)) if watch > Millis(0) && watch <= Millis::from_secs(86_400) => watch,
                Some(_) => return bad("journal.for is not a duration of at most a day", "write for example for = \"30s\""),
            };
            return Ok(SmokeCheck::Journal { deny: journal.deny.clone(), watch });
        }
        match &smoke.file {
            Some(file) if file.path.is_empty() => bad("file.path is empty", "write an absolute path, or one below the tree"),
            Some(file) => Ok(SmokeCheck::File { path: file.path.clone(), sha256: file.sha256 }),
            None => bad("it asserts nothing", "give it one of http, tcp, exec, systemd, journal, file"),
        }
    }
}
