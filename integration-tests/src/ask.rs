//! What one asks of a fleet: through the CLI, and by asking the services.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::bins::programs;
use crate::client::{Answer, Poller, get};
use crate::fleet::{Fleet, READY_WITHIN};
use crate::output::Output;
use crate::plan::Plan;
use crate::release::Release;
use crate::wait::{Look, wait_until};

/// For any command, also one that waits for a rollout.
const COMMAND_WITHIN: Duration = Duration::from_secs(180);
/// For what is still reported of a rollout after it ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// For one request to a service.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Whoever drives a fleet: the CLI with a profile, and a directory for releases
/// and plans.
#[derive(Clone, Debug)]
pub struct Operator {
    cli: PathBuf,
    profile: PathBuf,
    work: PathBuf,
}

impl Operator {
    /// The first operator of the controller in `controller`; releases and plans
    /// are written below `work`.
    ///
    /// # Errors
    /// The programs do not build.
    pub fn first(controller: &Path, work: &Path) -> anyhow::Result<Self> {
        Ok(Self { cli: programs()?.cli.clone(), profile: controller.join("operators/admin"), work: work.to_owned() })
    }

    /// `tidegate ARGS` as this operator, not started yet.
    #[must_use]
    pub fn cli_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.cli);
        command.args(args).current_dir(&self.work).env("TIDEGATE_PROFILE", &self.profile);
        command
    }

    /// Runs `tidegate ARGS` to its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        Output::of(self.cli_command(args), COMMAND_WITHIN)
    }

    /// `tidegate ARGS --output json`, which must end with 0.
    ///
    /// # Errors
    /// It does not.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        self.cli(&args)?.expect_code(0)?.json()
    }

    /// Runs `tidegate ARGS` in the background.
    ///
    /// # Errors
    /// It does not start.
    pub fn cli_spawn(&self, args: &[&str]) -> anyhow::Result<Background> {
        let child = self.cli_command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Background { child: Some(child.with_context(|| format!("starting tidegate {}", args.join(" ")))?), line: args.join(" ") })
    }

    /// A name below `work/` that was not used before.
    #[must_use]
    pub fn fresh(&self, what: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.work.join(format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Packs a release; the bundle's path.
    ///
    /// # Errors
    /// The CLI says no.
    pub fn pack(&self, release: &Release) -> anyhow::Result<PathBuf> {
        self.pack_file(&release.write(&self.fresh("release"))?)
    }

    /// Packs what a release.toml names; the bundle's path, beside that file.
    ///
    /// # Errors
    /// The CLI says no.
    pub fn pack_file(&self, toml: &Path) -> anyhow::Result<PathBuf> {
        let bundle = toml.with_file_name("release.bundle");
        self.cli(&["release", "pack", "-f", path(toml)?, "-o", path(&bundle)?])?.expect_code(0)?;
        Ok(bundle)
    }

    /// Packs and imports a release; what `release import` printed.
    ///
    /// # Errors
    /// The CLI says no.
    pub fn import(&self, release: &Release) -> anyhow::Result<Value> {
        self.import_file(&release.write(&self.fresh("release"))?)
    }

    /// Packs and imports what a release.toml names, and removes its directory;
    /// what `release import` printed.
    ///
    /// # Errors
    /// The CLI says no.
    pub fn import_file(&self, toml: &Path) -> anyhow::Result<Value> {
        let bundle = self.pack_file(toml)?;
        let imported = self.json(&["release", "import", path(&bundle)?])?;
        // It was sent to the depot: 20 hosts copy it often enough.
        if let Some(dir) = bundle.parent() {
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        Ok(imported)
    }

    /// Writes a plan.toml; its path.
    ///
    /// # Errors
    /// The disk says no.
    pub fn plan_file(&self, plan: &Plan) -> anyhow::Result<String> {
        self.text_file("plan.toml", &plan.toml())
    }

    /// Writes a file with a fresh name; its path.
    ///
    /// # Errors
    /// The disk says no.
    pub fn text_file(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let dir = self.fresh("file");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let file = dir.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        Ok(path(&file)?.to_owned())
    }

    /// `rollout start --wait` with a plan.
    ///
    /// # Errors
    /// It does not end.
    pub fn roll(&self, plan: &Plan) -> anyhow::Result<Output> {
        let plan = self.plan_file(plan)?;
        self.cli(&["rollout", "start", "-f", &plan, "--wait"])
    }

    /// `rollout start --detach` with a plan; the rollout's id.
    ///
    /// # Errors
    /// It is refused.
    pub fn start_rollout(&self, plan: &Plan) -> anyhow::Result<String> {
        let plan = self.plan_file(plan)?;
        let started = self.json(&["rollout", "start", "-f", &plan, "--detach"])?;
        Ok(text(&started, "/id")?.to_owned())
    }

    /// `rollout status ID`.
    ///
    /// # Errors
    /// There is none.
    pub fn status(&self, id: &str) -> anyhow::Result<Value> {
        self.json(&["rollout", "status", id])
    }

    /// `rollout events ID`, oldest first.
    ///
    /// # Errors
    /// There is none.
    pub fn events(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        match self.json(&["rollout", "events", id])? {
            Value::Array(events) => Ok(events),
            other => bail!("events are no list: {other}"),
        }
    }

    /// A person's word about a rollout that must be heard: `rollout VERB ID ARGS`.
    ///
    /// # Errors
    /// It is refused.
    pub fn say(&self, verb: &str, id: &str, args: &[&str]) -> anyhow::Result<Output> {
        let words: Vec<&str> = ["rollout", verb, id].into_iter().chain(args.iter().copied()).collect();
        self.cli(&words)?.expect_code(0)
    }

    /// `rollout promote ID`.
    ///
    /// # Errors
    /// It is refused.
    pub fn promote(&self, id: &str, reason: &str) -> anyhow::Result<Output> {
        self.say("promote", id, &["--reason", reason])
    }

    /// `rollout promote ID --all`.
    ///
    /// # Errors
    /// It is refused.
    pub fn promote_all(&self, id: &str, reason: &str) -> anyhow::Result<Output> {
        self.say("promote", id, &["--all", "--reason", reason])
    }

    /// `rollout ack ID`.
    ///
    /// # Errors
    /// It is refused.
    pub fn ack(&self, id: &str) -> anyhow::Result<Output> {
        self.say("ack", id, &[])
    }

    /// `rollout declare ID WHAT`.
    ///
    /// # Errors
    /// It is refused.
    pub fn declare(&self, id: &str, what: &str, reason: &str) -> anyhow::Result<Output> {
        self.say("declare", id, &[what, "--reason", reason])
    }

    /// `rollout attest ID`.
    ///
    /// # Errors
    /// It is refused.
    pub fn attest(&self, id: &str, item: &str, note: &str) -> anyhow::Result<Output> {
        self.say("attest", id, &["--item", item, "--note", note])
    }

    /// `rollout wait ID --for STATES`, to its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&self, id: &str, states: &str) -> anyhow::Result<Output> {
        self.cli(&["rollout", "wait", id, "--for", states, "--timeout", "120s"])
    }

    /// The id of the newest rollout.
    ///
    /// # Errors
    /// There is none.
    pub fn newest(&self) -> anyhow::Result<String> {
        Ok(text(&self.json(&["rollout", "list"])?, "/0/id")?.to_owned())
    }

    /// Status of the newest rollout.
    ///
    /// # Errors
    /// There is none.
    pub fn newest_status(&self) -> anyhow::Result<Value> {
        self.status(&self.newest()?)
    }

    /// Waits until `look` finds what it looks for in a rollout's status. A
    /// controller that is away just now is asked again.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_status<T>(&self, id: &str, what: &str, within: Duration, look: impl Fn(&Value) -> Option<T>) -> anyhow::Result<T> {
        let mut ended: Option<Instant> = None;
        wait_until(&format!("{what} in rollout {id}"), within, || {
            let output = self.cli(&["rollout", "status", id, "--output", "json"])?;
            if output.code != 0 {
                return Ok(Look::NotYet(output.to_string()));
            }
            let status = output.json()?;
            let found = look(&status);
            // From these nothing leads on by itself; reports may still come in.
            let over = ["refused", "rolled-back", "completed"].iter().any(|state| status["state"] == *state);
            let since = *ended.get_or_insert_with(Instant::now);
            if !over {
                ended = None;
            } else if found.is_none() && since.elapsed() > SETTLED_WITHIN {
                bail!("it has ended: {status:#}");
            }
            Ok(Look::from_option(found, || format!("{status:#}")))
        })
    }

    /// Waits until a rollout has the state `state`; its status then.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_state(&self, id: &str, state: &str, within: Duration) -> anyhow::Result<Value> {
        self.wait_status(id, &format!("the state is {state}"), within, |status| (status["state"] == state).then(|| status.clone()))
    }

    /// Waits until `host` has one of `states` in a rollout; its entry then.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_host(&self, id: &str, host: &str, states: &[&str], within: Duration) -> anyhow::Result<Value> {
        self.wait_status(id, &format!("{host} is {}", states.join(" or ")), within, |status| {
            let entry = host_entry(status, host)?;
            states.iter().any(|state| entry["state"] == *state).then(|| entry.clone())
        })
    }

    /// Waits until `count` hosts are online.
    ///
    /// # Errors
    /// They do not come.
    pub fn wait_online(&self, count: usize) -> anyhow::Result<()> {
        wait_until(&format!("{count} hosts are online"), READY_WITHIN, || {
            let output = self.cli(&["host", "list", "--output", "json"])?;
            if output.code != 0 {
                return Ok(Look::NotYet(output.to_string()));
            }
            let list = output.json()?;
            let online = list.as_array().map_or(0, |hosts| hosts.iter().filter(|host| host["state"] == "online").count());
            Ok(if online == count { Look::Done(()) } else { Look::NotYet(format!("{online} are")) })
        })
    }

    /// `host list`, by the controller's word.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn host_list(&self) -> anyhow::Result<Vec<Value>> {
        match self.json(&["host", "list"])? {
            Value::Array(hosts) => Ok(hosts),
            other => bail!("host list is no list: {other}"),
        }
    }

    /// What is observed of `component` on every host, by host name: what must be
    /// the same after a rollout was rolled back (executable, tree, release).
    ///
    /// # Errors
    /// The controller does not answer, or a host has no such component.
    pub fn observed(&self, component: &str) -> anyhow::Result<Vec<(String, Value)>> {
        let mut observed = Vec::new();
        for host in self.host_list()? {
            let name = text(&host, "/name")?.to_owned();
            let entry =
                host.pointer(&format!("/components/{component}")).with_context(|| format!("{name} has no {component}: {host:#}"))?;
            let facts = ["release", "running_sha256", "tree_sha256", "state"].map(|key| (key.to_owned(), entry[key].clone()));
            observed.push((name, Value::Object(facts.into_iter().collect())));
        }
        Ok(observed)
    }
}

impl Deref for Fleet {
    type Target = Operator;

    /// A fleet is asked through its first operator.
    fn deref(&self) -> &Operator {
        &self.operator
    }
}

impl Fleet {
    /// Imports `release` and puts it on all hosts at once, as a fleet's first
    /// release: it must work.
    ///
    /// # Errors
    /// It does not.
    pub fn ship(&self, release: &Release) -> anyhow::Result<()> {
        self.import(release)?;
        self.roll(&Plan::new(&release.id(), "big-bang").batch(&self.hosts.len().to_string()))?.expect_code(0)?;
        Ok(())
    }

    /// What the service on each host says when asked: its whole greeting.
    ///
    /// # Errors
    /// A service does not answer.
    pub fn greetings(&self) -> anyhow::Result<Vec<Answer>> {
        self.hosts.iter().map(|host| get(host.address(), "/", ANSWER_WITHIN).with_context(|| host.name.clone())).collect()
    }

    /// Checks that every service, asked itself, is of `version`.
    ///
    /// # Errors
    /// One is not.
    pub fn expect_version(&self, version: &str) -> anyhow::Result<()> {
        for (host, answer) in self.hosts.iter().zip(self.greetings()?) {
            let due = Answer { status: 200, body: format!("Welcome to shop {version}\n") };
            ensure!(answer == due, "{} answers {answer:?} where {version} is due", host.name);
        }
        Ok(())
    }

    /// Asks every service every `interval`, until told to stop.
    #[must_use]
    pub fn poll(&self, interval: Duration) -> Poller {
        let targets: Vec<_> = self.hosts.iter().map(|host| (host.name.clone(), host.address())).collect();
        Poller::start(&targets, interval)
    }
}

/// A command that runs in the background; killed when dropped.
#[derive(Debug)]
pub struct Background {
    child: Option<Child>,
    line: String,
}

impl Background {
    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn finish(mut self, within: Duration) -> anyhow::Result<Output> {
        let mut child = self.child.take().context("it was waited for already")?;
        let line = self.line.clone();
        let waited = wait_until(&format!("tidegate {line} ends"), within, || {
            Ok(Look::from_option(child.try_wait().context("asking after it")?, || "it runs".to_owned()))
        });
        if waited.is_err() {
            let _ = child.kill();
        }
        let output = child.wait_with_output().with_context(|| format!("running {line}"))?;
        let output = Output {
            command: format!("tidegate {line}"),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        waited.with_context(|| output.to_string())?;
        Ok(output)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The entry of `host` in a rollout's status.
#[must_use]
pub fn host_entry<'a>(status: &'a Value, host: &str) -> Option<&'a Value> {
    status["hosts"].as_array()?.iter().find(|entry| entry["host"] == host)
}

/// The string at a JSON pointer.
///
/// # Errors
/// There is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no string at {pointer} in {value:#}"))
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
