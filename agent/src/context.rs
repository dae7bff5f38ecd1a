//! What every operation on this host knows: who the host is, its local policy,
//! and one installed release of one component.
//!
//! Must not: start anything or decide what runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use serde::Deserialize;
use tidegate_protocol::release::{Argv, Service, SmokeCheck};
use tidegate_protocol::template::{self, BadTemplate};
use tidegate_protocol::{BootId, Component, ComponentName, HostName, ReleaseRef, Side, Version};

use crate::slot::Slot;

/// The host, as every operation sees it.
#[derive(Debug)]
pub struct Context {
    /// From the certificate.
    pub host: HostName,
    /// `[vars]` of agent.toml.
    pub vars: BTreeMap<String, String>,
    /// From the controller; they may change while the agent runs.
    pub labels: RwLock<BTreeMap<String, String>>,
    /// What the host allows.
    pub policy: Policy,
    /// The present boot.
    pub boot_id: BootId,
    /// The agent's own state.
    pub state_dir: PathBuf,
    /// Where releases are laid out.
    pub opt_dir: PathBuf,
    /// `supervised` components become transient units of the host's systemd.
    pub systemd: bool,
}

/// `[policy]` and `[commands]` of agent.toml: the controller cannot widen it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Components that may run here; absent = any.
    pub components: Option<Vec<String>>,
    /// Units that may be started and stopped; absent = any but the agent's own.
    pub units: Option<Vec<String>>,
    /// Directories in which links may be made.
    pub paths: Vec<PathBuf>,
    /// The user of smoke tests, checks, hooks and supervised services when the
    /// agent is root; absent = `nobody`.
    pub run_as: Option<String>,
    /// URL prefixes (`http://HOST:PORT/…`, `tcp://HOST:PORT`) beyond loopback that
    /// smoke tests may call.
    pub urls: Vec<String>,
    /// Commands of the host. A release may name them in checks and hooks, which run
    /// confined; a switch of sides may too, and that runs with the agent's own rights,
    /// in a process group that is killed when it ends. Its arguments come from the plan.
    pub commands: BTreeMap<String, Vec<String>>,
}

impl Policy {
    /// The user of commands and supervised services when the agent is root.
    #[must_use]
    pub fn run_as(&self) -> &str {
        self.run_as.as_deref().unwrap_or("nobody")
    }
}

/// One release of one component, laid out or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Which release.
    pub release: ReleaseRef,
    /// Its component, from the manifest.
    pub component: Component,
    /// Absolute path of its tree.
    pub dir: PathBuf,
    /// As which side it runs; none for a component without sides.
    pub side: Option<Side>,
}

impl Installed {
    /// `api of shop@2.1.0`, `api@green of shop@2.1.0`, for messages.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} of {}", self.slot(), self.release.id)
    }

    /// What it runs as.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot { component: self.component.name.clone(), side: self.side }
    }
}

impl Context {
    /// Replaces every `${…}` of `text`. For a side, `${side}` is known, and
    /// `${var.NAME}` is the host's `NAME_blue` or `NAME_green` before it is `NAME`.
    ///
    /// # Errors
    /// [`BadTemplate`]: a name that nothing defines, or an open brace.
    pub fn expand(&self, component: &Component, version: &Version, side: Option<Side>, text: &str) -> Result<String, BadTemplate> {
        self.expand_about(Some(&component.name), version, side, text)
    }

    /// As [`Context::expand`]; without a component `${component}` names nothing.
    pub(crate) fn expand_about(
        &self,
        component: Option<&ComponentName>,
        version: &Version,
        side: Option<Side>,
        text: &str,
    ) -> Result<String, BadTemplate> {
        let var = |name: &str| {
            let of_side = side.and_then(|side| self.vars.get(&format!("{name}_{side}")));
            of_side.or_else(|| self.vars.get(name)).cloned()
        };
        template::expand(text, |name| match name {
            "host" => Some(self.host.to_string()),
            "component" => component.map(ToString::to_string),
            "version" => Some(version.to_string()),
            "side" => side.map(|side| side.to_string()),
            _ => {
                if let Some(label) = name.strip_prefix("label.") {
                    // The map is replaced whole, so a writer's panic leaves it readable.
                    self.labels.read().unwrap_or_else(PoisonError::into_inner).get(label).cloned()
                } else {
                    name.strip_prefix("var.").and_then(var)
                }
            }
        })
    }

    /// As [`Context::expand`], for a string of `installed`.
    pub(crate) fn expand_in(&self, installed: &Installed, text: &str) -> Result<String, BadTemplate> {
        self.expand(&installed.component, &installed.release.id.version, installed.side, text)
    }

    /// Every element of an argv, expanded.
    pub(crate) fn expand_argv(&self, installed: &Installed, argv: &[String]) -> Result<Argv, BadTemplate> {
        argv.iter().map(|arg| self.expand_in(installed, arg)).collect()
    }

    /// Tries every string of service, check, hooks and smoke tests.
    ///
    /// # Errors
    /// The first one that does not expand.
    pub fn check_templates(&self, installed: &Installed) -> Result<(), BadTemplate> {
        let component = &installed.component;
        let mut texts: Vec<&str> = Vec::new();
        match &component.service {
            Service::Systemd(unit) => texts.push(unit),
            Service::Command { start, stop, status } => texts.extend([start, stop, status].into_iter().flatten().map(String::as_str)),
            Service::Supervised { run, env } => texts.extend(run.iter().chain(env.values()).map(String::as_str)),
        }
        for argv in [&component.check, &component.before, &component.after].into_iter().flatten() {
            texts.extend(argv.iter().map(String::as_str));
        }
        for smoke in &component.smoke {
            match &smoke.check {
                SmokeCheck::Http { url, body, .. } => texts.extend([Some(url), body.as_ref()].into_iter().flatten().map(String::as_str)),
                SmokeCheck::Tcp { address } => texts.push(address),
                SmokeCheck::Exec { run } => texts.extend(run.iter().map(String::as_str)),
                SmokeCheck::Journal { deny, .. } => texts.extend(deny.iter().map(String::as_str)),
                SmokeCheck::File { path, .. } => texts.push(path),
                SmokeCheck::Systemd { .. } => {}
            }
        }
        texts.into_iter().try_for_each(|text| self.expand_in(installed, text).map(drop))
    }

    /// Where the output of a component's own processes goes on hosts without
    /// systemd.
    pub(crate) fn log_file(&self, slot: &Slot) -> PathBuf {
        self.state_dir.join("logs").join(format!("{slot}.log"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;
    use tidegate_protocol::release::{FileEntry, Proof};
    use tidegate_protocol::{Digest, Millis};

    /// A context below `dir`, without systemd, with `var.port` = 8081.
    pub(crate) fn context(dir: &Path) -> Context {
        Context {
            host: "web-1".parse().unwrap(),
            vars: [("port".to_owned(), "8081".to_owned())].into(),
            labels: RwLock::new([("zone".to_owned(), "b".to_owned())].into()),
            policy: Policy::default(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().parse().unwrap(),
            state_dir: dir.join("state"),
            opt_dir: dir.join("opt"),
            systemd: false,
        }
    }

    /// A component with these files (written below `dir`) and this service.
    pub(crate) fn installed(dir: &Path, version: &str, files: &[(&str, &[u8])], service: Service) -> Installed {
        let tree = dir.join("opt").join(version);
        let mut entries: Vec<FileEntry> = Vec::new();
        for (path, bytes) in files {
            let to = tree.join(path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(&to, bytes).unwrap();
            std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
            entries.push(FileEntry { path: path.parse().unwrap(), digest: Digest::of(bytes), size: bytes.len() as u64, mode: 0o555 });
        }
        let component = Component {
            name: "api".parse().unwrap(),
            files: entries,
            links: BTreeMap::new(),
            service,
            proof: Proof::Executable,
            check: None,
            before: None,
            after: None,
            arch: None,
            keep: 3,
            smoke: Vec::new(),
        };
        let release = ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest: Digest::of(version.as_bytes()) };
        Installed { release, component, dir: tree, side: None }
    }

    /// A directory that an unprivileged user may enter: commands run as `nobody`
    /// when the tests run as root.
    pub(crate) fn scratch() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn a_side_has_its_own_vars_before_the_host_s() {
        let dir = scratch();
        let mut context = context(dir.path());
        context.vars.insert("port_green".to_owned(), "8082".to_owned());
        let mut installed = installed(dir.path(), "2.1.0", &[], Service::Systemd("shop-api@${side}.service".into()));
        for (side, text) in [(None, "8081"), (Some(Side::Blue), "8081"), (Some(Side::Green), "8082")] {
            installed.side = side;
            assert_eq!(context.expand_in(&installed, "${var.port}").unwrap(), text);
        }
        assert_eq!(context.expand_in(&installed, "shop-api@${side}.service").unwrap(), "shop-api@green.service");
        assert_eq!(context.check_templates(&installed), Ok(()));
    }

    #[test]
    fn templates_know_the_host_and_refuse_typos() {
        let dir = scratch();
        let context = context(dir.path());
        let service = Service::Supervised { run: vec!["bin/api".into(), "${var.port}".into()], env: BTreeMap::new() };
        let mut installed = installed(dir.path(), "2.1.0", &[], service);
        let text = context.expand_in(&installed, "${host} ${component} ${version} ${label.zone} ${var.port}").unwrap();
        assert_eq!(text, "web-1 api 2.1.0 b 8081");
        assert_eq!(context.check_templates(&installed), Ok(()));
        assert!(matches!(context.expand_in(&installed, "${side}"), Err(BadTemplate::Unknown { .. })));
        installed.component.smoke.push(tidegate_protocol::release::Smoke {
            id: "SMK-001".into(),
            name: "up".into(),
            suite: tidegate_protocol::release::Suite::Critical,
            check: SmokeCheck::Tcp { address: "127.0.0.1:${var.prot}".into() },
            timeout: Millis(100),
            retry_for: Millis(100),
        });
        assert!(matches!(context.check_templates(&installed), Err(BadTemplate::Unknown { name, .. }) if name == "var.prot"));
    }
}
