//! The host's systemd over D-Bus: units of the host, and transient units for
//! supervised components.
//!
//! A job's result and then the unit's properties are believed, never a mere
//! reply. The connection is made when first needed and made again when it broke;
//! every call has a timeout.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use tidegate_protocol::report::{Cause, Failure};
use tokio::time::timeout;
use zbus::export::futures_core::Stream;
use zbus::message::Type as MessageType;
use zbus::{Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

use super::{Process, Status};
use crate::context::{Context, Installed};
use crate::error::{chain, failure};
use crate::exec::{self, Mode, Program};
use crate::slot::Slot;

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// One call.
const CALL: Duration = Duration::from_secs(10);
/// One job: systemd's own default for a start, and as much for the stop before it.
const JOB: Duration = Duration::from_secs(180);
/// Signals of other jobs that may arrive before ours is read.
const SIGNALS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_023);
/// Tries to start a transient unit whose predecessor is still being unloaded.
const UNLOAD_TRIES: u32 = 50;
const UNLOAD_PAUSE: Duration = Duration::from_millis(100);

/// A call or a job that failed.
#[derive(Debug, thiserror::Error)]
enum BusError {
    #[error("cannot connect to the system bus: is D-Bus running, and is the agent root?")]
    Connect(#[source] zbus::Error),
    #[error("systemd refused {method}")]
    Call { method: &'static str, source: zbus::Error },
    #[error("systemd did not answer {method} within {} s", CALL.as_secs())]
    Silent { method: &'static str },
    #[error("systemd answered {method} in an unknown form")]
    Answer { method: &'static str, source: zbus::Error },
    #[error("the connection to systemd ended while its job {method} ran")]
    Lost { method: &'static str },
    #[error("systemd's job {method} did not end within {} s", JOB.as_secs())]
    Endless { method: &'static str },
    #[error("systemd's job {method} ended as {result:?}")]
    Job { method: &'static str, result: String },
}

impl BusError {
    /// systemd's own name of the error, without its common beginning.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Call { source: zbus::Error::MethodError(name, _, _), .. } => name.as_str().rsplit('.').next(),
            _ => None,
        }
    }
}

/// The way to systemd.
#[derive(Default)]
pub(super) struct Systemd {
    connection: tokio::sync::Mutex<Option<Connection>>,
}

/// A supervised component as a transient unit, worked out.
pub(super) struct Transient {
    unit: String,
    description: String,
    program: Program,
    dir: String,
    env: Vec<String>,
    /// None: a user that exists only while the unit runs.
    user: Option<String>,
    state_directory: String,
}

/// The unit that runs a supervised component; for a side, an instance of it.
pub(super) fn transient_unit(slot: &Slot) -> String {
    format!("tidegate-{slot}.service")
}

impl Transient {
    pub(super) fn of(ctx: &Context, installed: &Installed, run: &[String], env: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let title = installed.title();
        let denied = |e: &dyn std::error::Error| failure(Cause::Policy, &format!("service.supervised of {title}: {e}"));
        let program = exec::resolve(ctx, installed, run).map_err(|e| denied(&e))?;
        let expand = |(name, value): (&String, &String)| {
            let value = ctx.expand_in(installed, value).map_err(|e| denied(&e))?;
            Ok(format!("{name}={value}"))
        };
        Ok(Self {
            unit: transient_unit(&installed.slot()),
            description: format!("{title} (kept by tidegate-agent)"),
            program,
            dir: installed.dir.to_string_lossy().into_owned(),
            env: env.iter().map(expand).collect::<Result<_, Failure>>()?,
            user: ctx.policy.run_as.clone(),
            // Not shared by two sides: each may have a user of its own.
            state_directory: format!("tidegate-{}", installed.slot()),
        })
    }

    fn properties(&self) -> Vec<(&'static str, Variant<'_>)> {
        let path = self.program.path.to_string_lossy().into_owned();
        // systemd would replace `$NAME` in arguments: `$$` is a plain dollar.
        let args = self.program.args.iter().map(|arg| arg.replace('$', "$$"));
        let argv: Vec<String> = std::iter::once(path.clone()).chain(args).collect();
        let mut properties: Vec<(&'static str, Variant<'_>)> = vec![
            ("Description", self.description.as_str().into()),
            // The job fails when the program cannot be executed.
            ("Type", "exec".into()),
            ("ExecStart", vec![(path, argv, false)].into()),
            ("WorkingDirectory", self.dir.as_str().into()),
            ("Environment", self.env.clone().into()),
            ("Restart", "always".into()),
            ("RestartUSec", 1_000_000_u64.into()),
            // The controller judges restarts; systemd never gives up.
            ("StartLimitIntervalUSec", 0_u64.into()),
            ("KillMode", "control-group".into()),
            ("TimeoutStopUSec", 10_000_000_u64.into()),
            ("CollectMode", "inactive-or-failed".into()),
            ("StateDirectory", vec![self.state_directory.clone()].into()),
            ("NoNewPrivileges", true.into()),
            ("ProtectSystem", "strict".into()),
            ("ProtectHome", "read-only".into()),
            ("ProtectControlGroups", true.into()),
            ("ProtectKernelTunables", true.into()),
            ("PrivateTmp", true.into()),
            ("RestrictSUIDSGID", true.into()),
        ];
        match &self.user {
            Some(user) => properties.push(("User", user.as_str().into())),
            None => properties.push(("DynamicUser", true.into())),
        }
        properties
    }
}

impl Systemd {
    /// The unit's file is there and can be read.
    pub(super) async fn preflight(&self, unit: &str) -> Result<(), Failure> {
        let fail = |e: BusError| start_failed(unit, &e);
        let path = self.load(unit).await.map_err(fail)?;
        let state: String = self.property(&path, UNIT, "LoadState").await.map_err(fail)?;
        if state == "loaded" {
            return Ok(());
        }
        let fix = if state == "not-found" { "install its unit file on this host" } else { "see `systemctl status` on this host" };
        Err(failure(Cause::StartFailed, &format!("the unit {unit} is {state}: {fix}")))
    }

    pub(super) async fn status(&self, unit: &str) -> Result<Status, Failure> {
        let fail = |e: BusError| start_failed(unit, &e);
        let path = self.load(unit).await.map_err(fail)?;
        let state: String = self.property(&path, UNIT, "ActiveState").await.map_err(fail)?;
        let pid: u32 = self.property(&path, SERVICE, "MainPID").await.map_err(fail)?;
        let restarts: u32 = self.property(&path, SERVICE, "NRestarts").await.map_err(fail)?;
        let main = if pid == 0 { None } else { Process::find(pid) };
        Ok(Status { active: matches!(state.as_str(), "active" | "reloading"), main, restarts })
    }

    /// Starts it, or restarts it if it runs.
    pub(super) async fn restart(&self, unit: &str) -> Result<(), Failure> {
        // A unit that failed too often would refuse the start.
        drop(self.call(MANAGER_PATH, MANAGER, "ResetFailedUnit", &(unit,)).await);
        self.job("RestartUnit", &(unit, "replace")).await.map_err(|e| start_failed(unit, &e))
    }

    /// Stops it; one that is not there does not run.
    pub(super) async fn stop(&self, unit: &str) -> Result<(), Failure> {
        match self.job("StopUnit", &(unit, "replace")).await {
            Ok(()) => {}
            Err(error) if error.name() == Some("NoSuchUnit") => return Ok(()),
            Err(error) => return Err(start_failed(unit, &error)),
        }
        let status = self.status(unit).await?;
        match status.main {
            Some(main) => {
                Err(failure(Cause::StartFailed, &format!("the unit {unit} was stopped, but its main process {} still runs", main.pid)))
            }
            None => Ok(()),
        }
    }

    /// Replaces the transient unit of a supervised component by a new one.
    pub(super) async fn start_transient(&self, transient: &Transient) -> Result<(), Failure> {
        let unit = transient.unit.as_str();
        self.stop(unit).await?;
        let auxiliary: Vec<(String, Vec<(String, OwnedVariant)>)> = Vec::new();
        let mut tries = 0;
        loop {
            drop(self.call(MANAGER_PATH, MANAGER, "ResetFailedUnit", &(unit,)).await);
            match self.job("StartTransientUnit", &(unit, "replace", transient.properties(), &auxiliary)).await {
                Ok(()) => return Ok(()),
                Err(error) if error.name() == Some("UnitExists") && tries < UNLOAD_TRIES => {
                    tries += 1;
                    tokio::time::sleep(UNLOAD_PAUSE).await;
                }
                Err(error) => return Err(start_failed(unit, &error)),
            }
        }
    }

    /// Asks for a job and waits for its result.
    async fn job<B: Serialize + DynamicType + Sync>(&self, method: &'static str, body: &B) -> Result<(), BusError> {
        let connection = self.connection().await?;
        // Without it systemd sends no signals; a second time is refused, which is fine.
        drop(self.call(MANAGER_PATH, MANAGER, "Subscribe", &()).await);
        let answer = |source: zbus::Error| BusError::Answer { method, source };
        let rule = MatchRule::builder().msg_type(MessageType::Signal).interface(MANAGER).member("JobRemoved").path(MANAGER_PATH);
        let rule = rule.build().map_err(answer)?;
        // Watched before it is asked for: a quick job must not slip by.
        let stream = timeout(CALL, MessageStream::for_match_rule(rule, &connection, Some(SIGNALS_MAX))).await;
        let mut stream = stream.map_err(|_| BusError::Silent { method })?.map_err(|source| BusError::Call { method, source })?;
        let reply = self.call(MANAGER_PATH, MANAGER, method, body).await?;
        let job: OwnedObjectPath = reply.body().deserialize().map_err(answer)?;
        let result = timeout(JOB, async {
            loop {
                let message = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
                let Some(Ok(message)) = message else { return Err(BusError::Lost { method }) };
                let body = message.body();
                let removed = body.deserialize::<(u32, OwnedObjectPath, String, String)>();
                if let Ok((_, path, _, result)) = removed
                    && path == job
                {
                    return Ok(result);
                }
            }
        });
        let result = result.await.map_err(|_| BusError::Endless { method })??;
        if result == "done" { Ok(()) } else { Err(BusError::Job { method, result }) }
    }

    async fn load(&self, unit: &str) -> Result<OwnedObjectPath, BusError> {
        let method = "LoadUnit";
        let reply = self.call(MANAGER_PATH, MANAGER, method, &(unit,)).await?;
        reply.body().deserialize().map_err(|e| BusError::Answer { method, source: e })
    }

    async fn property<T>(&self, path: &OwnedObjectPath, interface: &str, name: &'static str) -> Result<T, BusError>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let answer = |source: zbus::Error| BusError::Answer { method: name, source };
        let reply = self.call(path.as_str(), PROPERTIES, "Get", &(interface, name)).await?;
        let value: OwnedVariant = reply.body().deserialize().map_err(answer)?;
        T::try_from(value).map_err(|e| answer(e.into()))
    }

    async fn call<B: Serialize + DynamicType + Sync>(
        &self,
        path: &str,
        interface: &str,
        method: &'static str,
        body: &B,
    ) -> Result<Message, BusError> {
        let connection = self.connection().await?;
        let reply = timeout(CALL, connection.call_method(Some(DESTINATION), path, Some(interface), method, body)).await;
        match reply {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(source)) => {
                if !matches!(source, zbus::Error::MethodError(..) | zbus::Error::FDO(_)) {
                    *self.connection.lock().await = None;
                }
                Err(BusError::Call { method, source })
            }
            Err(_) => {
                *self.connection.lock().await = None;
                Err(BusError::Silent { method })
            }
        }
    }

    async fn connection(&self) -> Result<Connection, BusError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|c| !c.is_closed()) {
            return Ok(connection.clone());
        }
        let made = timeout(CALL, Connection::system()).await.map_err(|_| BusError::Silent { method: "Hello" })?;
        let connection = made.map_err(BusError::Connect)?;
        *kept = Some(connection.clone());
        Ok(connection)
    }
}

fn start_failed(unit: &str, error: &BusError) -> Failure {
    let look = if matches!(error, BusError::Job { .. } | BusError::Endless { .. }) {
        format!("; see `journalctl -u {unit}` on this host")
    } else {
        String::new()
    };
    failure(Cause::StartFailed, &format!("{unit}: {}{look}", chain(error)))
}

/// The last lines of a unit's own messages, as one line; empty when the journal
/// cannot be read.
pub(super) async fn log_tail(ctx: &Context, unit: &str) -> String {
    let args = [&format!("_SYSTEMD_UNIT={unit}"), "--lines=6", "--output=cat", "--no-pager", "--quiet"];
    let program = Program { path: "journalctl".into(), args: args.into_iter().map(str::to_owned).collect() };
    let cwd = if ctx.state_dir.is_dir() { ctx.state_dir.as_path() } else { Path::new("/") };
    let ran = exec::run_program(&program, cwd, Mode::Manager, None, CALL, &mut |_| true).await;
    ran.map(|ran| if ran.success { ran.stdout } else { String::new() }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use tidegate_protocol::release::Service;

    fn transient(run_as: Option<&str>) -> Transient {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.policy.run_as = run_as.map(str::to_owned);
        let run = ["bin/api", "--port=${var.port}", "$HOME"].map(str::to_owned);
        let env = [("ZONE".to_owned(), "${label.zone}".to_owned())].into();
        let it = installed(dir.path(), "2.1.0", &[("bin/api", b"x")], Service::Supervised { run: run.to_vec(), env: BTreeMap::new() });
        Transient::of(&ctx, &it, &run, &env).unwrap()
    }

    #[test]
    fn the_call_has_the_signature_that_systemd_documents() {
        let transient = transient(None);
        let auxiliary: Vec<(String, Vec<(String, OwnedVariant)>)> = Vec::new();
        let body = ("x.service", "replace", transient.properties(), &auxiliary);
        assert_eq!(body.signature().to_string(), "(ssa(sv)a(sa(sv)))");
        let signature = |name: &str| {
            let properties = transient.properties();
            let (_, value) = properties.iter().find(|(n, _)| *n == name).unwrap();
            value.value_signature().to_string()
        };
        let wanted = [
            ("ExecStart", "a(sasb)"),
            ("Environment", "as"),
            ("StateDirectory", "as"),
            ("Restart", "s"),
            ("RestartUSec", "t"),
            ("StartLimitIntervalUSec", "t"),
            ("NoNewPrivileges", "b"),
            ("ProtectSystem", "s"),
            ("DynamicUser", "b"),
        ];
        for (name, text) in wanted {
            assert_eq!(signature(name), text, "{name}");
        }
    }

    #[test]
    fn words_are_expanded_by_the_host_and_never_by_systemd() {
        let of_host = transient(Some("run"));
        assert_eq!(of_host.unit, "tidegate-api.service");
        assert_eq!(of_host.env, ["ZONE=b"]);
        let properties = of_host.properties();
        let shown = format!("{:?}", properties.iter().find(|(n, _)| *n == "ExecStart").unwrap());
        assert!(shown.contains("--port=8081") && shown.contains("$$HOME"), "{shown}");
        assert!(properties.iter().any(|(n, v)| *n == "User" && *v == Variant::from("run")));
        assert!(!properties.iter().any(|(n, _)| *n == "DynamicUser"));
    }
}
