//! What a seed stands for: a fleet, its releases, a plan and what goes wrong.
//!
//! Owns: drawing all of it from the seed before the first event. Must not: know
//! how anything is carried out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use tidegate_protocol::release::{FileEntry, Proof, Runbook, Service};
use tidegate_protocol::{Component, ComponentName, Digest, HostName, Release, ReleaseId, ReleaseRef};
use tidegate_rollout::{FleetHost, Spec, Verb};

use super::rng::Rng;

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, and the release is good.
    Calm,
    /// Nothing but the release itself.
    BadRelease,
    /// Only the controller is away at times, always shorter than a lease.
    ControllerOnly,
    /// Anything.
    Chaos,
}

/// What is wrong with a release on some host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Its smoke tests fail.
    Smoke,
    /// It does not start.
    Start,
    /// Its `check` command fails.
    Check,
    /// Its bytes are not what the manifest says.
    Verify,
    /// It cuts the host's network while it runs.
    Network,
}

/// A release, and on which hosts it is bad.
#[derive(Clone, Debug)]
pub struct SimRelease {
    /// As orders name it.
    pub reference: ReleaseRef,
    /// Its manifest.
    pub manifest: Release,
    /// By host index.
    pub bad: BTreeMap<usize, Bad>,
}

/// Something that goes wrong at a time of its own.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// kill -9 of the agent.
    AgentKill(usize),
    /// Power off and on.
    Reboot(usize),
    /// Messages from the host are lost for so long.
    CutUp(usize, u64),
    /// Messages to the host are lost for so long.
    CutDown(usize, u64),
    /// Both.
    Cut(usize, u64),
    /// The agent stands still for so long (a paused machine).
    Hang(usize, u64),
    /// Nothing can be written for so long.
    DiskFull(usize, u64),
    /// kill -9 of the controller, back after so long.
    ControllerCrash(u64),
    /// A person's word.
    Said(Verb),
}

/// Chances per thousand, while faults last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    /// At each of the agent's durable or effective steps: the agent dies.
    pub agent_crash: u64,
    /// The same: the host loses power.
    pub reboot: u64,
    /// At each of the controller's appends: it dies.
    pub controller_crash: u64,
    /// A ledger write fails.
    pub persist_fail: u64,
    /// An operation fails for no lasting reason.
    pub op_fail: u64,
    /// An operation takes very long.
    pub op_slow: u64,
    /// A message is lost, though its session lives.
    pub loss: u64,
    /// A message comes twice.
    pub duplicate: u64,
}

/// One rollout, with what goes wrong meanwhile.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Index into [`World::releases`].
    pub release: usize,
    /// plan.toml.
    pub plan: String,
    /// Since the start of the rollout, milliseconds.
    pub faults: Vec<(u64, Fault)>,
    /// Faults and odds end here.
    pub faults_end: u64,
    /// What a person does about a rollout that waits for one.
    pub on_pause: OnPause,
}

/// What a person does about a paused rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPause {
    /// Resume, and roll back when that does not help.
    Resume,
    /// Roll back.
    Rollback,
    /// Halt.
    Halt,
    /// Nothing.
    Nothing,
}

/// Everything that a seed fixes before the first event.
#[derive(Clone, Debug)]
pub struct World {
    /// It all follows from this.
    pub seed: u64,
    /// How much goes wrong.
    pub kind: Kind,
    /// The hosts.
    pub hosts: Vec<HostName>,
    /// Which host has the second component too.
    pub second: Vec<bool>,
    /// In order of deployment.
    pub components: Vec<ComponentName>,
    /// Oldest first.
    pub releases: Vec<SimRelease>,
    /// What runs at first; none = first install.
    pub installed: Option<usize>,
    /// One rollout after the other.
    pub phases: Vec<Phase>,
    /// While faults last.
    pub odds: Odds,
    /// Messages may overtake each other and outlive their session.
    pub raw: bool,
    /// The longest way of a message.
    pub delay: u64,
    /// The agent's driver hears while it waits for the disk.
    pub hears_while_saving: bool,
}

/// The text as a name; the names here are constants that are ones.
pub fn name<T: FromStr>(text: &str) -> T {
    match text.parse() {
        Ok(name) => name,
        Err(_) => panic!("{text:?} is not a name"),
    }
}

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let rng = &mut rng;
        let kind = match seed % 8 {
            0 => Kind::Calm,
            1 => Kind::BadRelease,
            2 => Kind::ControllerOnly,
            _ => Kind::Chaos,
        };
        let count = rng.pick(&[1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8]);
        let hosts: Vec<HostName> = (1..=count).map(|n| name(&format!("web-{n}"))).collect();
        let components: Vec<ComponentName> = if rng.chance(300) { vec![name("api"), name("web")] } else { vec![name("api")] };
        let mut second: Vec<bool> = hosts.iter().map(|_| rng.chance(700)).collect();
        second[0] = true;
        // With the same executable only the age of a process tells two releases apart.
        let shared_executable = rng.chance(250);
        let mut releases: Vec<SimRelease> = (1..=3).map(|version| release(version, &components, shared_executable)).collect();
        let installed = rng.chance(750).then_some(0);
        let two = rng.chance(250);
        let last = if two { 2 } else { 1 };
        if kind == Kind::BadRelease || (kind == Kind::Chaos && rng.chance(400)) {
            let bad = rng.pick(&[Bad::Smoke, Bad::Smoke, Bad::Start, Bad::Check, Bad::Verify, Bad::Network]);
            let everywhere = rng.chance(500);
            let one = rng.index(count);
            releases[last].bad = (0..count).filter(|h| everywhere || *h == one).map(|h| (h, bad)).collect();
        }
        if kind == Kind::Chaos && rng.chance(150) {
            // The old release is sick on one host already.
            releases[0].bad.insert(rng.index(count), Bad::Smoke);
        }
        let odds = if kind == Kind::Chaos { odds(rng) } else { Odds::default() };
        let phases = (1..=last).map(|release| phase(rng, kind, &hosts, &components, release)).collect();
        Self {
            seed,
            kind,
            hosts,
            second,
            components,
            releases,
            installed,
            phases,
            odds,
            raw: kind == Kind::Chaos && rng.chance(300),
            delay: rng.pick(&[5, 20, 100, 400]),
            hears_while_saving: rng.chance(500),
        }
    }

    /// The release of that reference.
    #[must_use]
    pub fn release(&self, reference: &ReleaseRef) -> Option<&SimRelease> {
        self.releases.iter().find(|r| &r.reference == reference)
    }

    /// What is wrong with it there.
    #[must_use]
    pub fn bad(&self, host: usize, reference: &ReleaseRef) -> Option<Bad> {
        self.release(reference).and_then(|r| r.bad.get(&host)).copied()
    }

    /// Digest of the executable and of the tree.
    #[must_use]
    pub fn digests(&self, component: usize, reference: &ReleaseRef) -> Option<(Digest, Digest)> {
        let component = self.release(reference)?.manifest.components.get(component)?;
        Some((component.files.first()?.digest, component.tree_digest()))
    }

    /// Whether the host has it.
    #[must_use]
    pub fn has(&self, host: usize, component: usize) -> bool {
        component == 0 || self.second[host]
    }

    /// A host for plans, without its components.
    #[must_use]
    pub fn fleet_host(&self, host: usize) -> FleetHost {
        let mut labels = BTreeMap::from([("role".to_string(), "shop".to_string())]);
        if self.second[host] {
            labels.insert("web".to_string(), "yes".to_string());
        }
        FleetHost { name: self.hosts[host].clone(), labels, drained: false, unusable: None, components: BTreeMap::new() }
    }

    /// plan.toml, read.
    #[must_use]
    pub fn spec(&self, phase: usize) -> Spec {
        match Spec::parse(&self.phases[phase].plan, "plan.toml") {
            Ok(spec) => spec,
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }
}

fn release(version: usize, components: &[ComponentName], shared_executable: bool) -> SimRelease {
    let component = |component: &ComponentName| {
        let program = if shared_executable { format!("{component}") } else { format!("{component} {version}") };
        let file = |path: &str, text: &str, mode| FileEntry { path: name(path), digest: Digest::of(text.as_bytes()), size: 1, mode };
        Component {
            name: component.clone(),
            files: vec![file("bin/run", &program, 0o555), file("etc/conf", &format!("{component} {version}"), 0o444)],
            links: BTreeMap::new(),
            service: Service::Systemd(format!("{component}.service")),
            proof: Proof::Executable,
            check: None,
            before: None,
            after: None,
            arch: None,
            keep: 2,
            smoke: Vec::new(),
        }
    };
    let id: ReleaseId = name(&format!("shop@{version}.0.0"));
    let manifest = Release {
        schema: 1,
        name: id.name.clone(),
        version: id.version.clone(),
        notes: None,
        known_issues: None,
        runbook: Runbook::default(),
        expires: None,
        floor: None,
        tasks: Vec::new(),
        components: components.iter().map(component).collect(),
    };
    SimRelease { reference: ReleaseRef { manifest: Digest::of(id.to_string().as_bytes()), id }, manifest, bad: BTreeMap::new() }
}

fn odds(rng: &mut Rng) -> Odds {
    // Each kind of trouble is off in most seeds, or nothing would ever get far.
    let mut some = |per_mille: u64, values: &[u64]| if rng.chance(per_mille) { rng.pick(values) } else { 0 };
    Odds {
        agent_crash: some(400, &[3, 15, 50]),
        reboot: some(300, &[3, 10, 30]),
        controller_crash: some(400, &[5, 30, 100]),
        persist_fail: some(200, &[10, 60, 300]),
        op_fail: some(250, &[10, 40, 120]),
        op_slow: some(150, &[10, 60]),
        loss: some(250, &[20, 150]),
        duplicate: some(250, &[50, 300]),
    }
}

fn phase(rng: &mut Rng, kind: Kind, hosts: &[HostName], components: &[ComponentName], release: usize) -> Phase {
    let chaos = kind == Kind::Chaos;
    let faults_end = if kind == Kind::Calm || kind == Kind::BadRelease { 0 } else { rng.between(10, 150) * 1_000 };
    let mut faults = Vec::new();
    if chaos {
        for _ in 0..rng.pick(&[0, 1, 2, 4, 8]) {
            let at = rng.below(faults_end);
            let left = faults_end - at;
            let host = rng.index(hosts.len());
            let long = rng.pick(&[500, 3_000, 10_000, 20_000, 45_000, 90_000]).min(left);
            let fault = match rng.below(11) {
                0 | 1 => Fault::AgentKill(host),
                2 => Fault::Reboot(host),
                3 => Fault::CutUp(host, long),
                4 => Fault::CutDown(host, long),
                5 | 6 => Fault::Cut(host, long),
                7 => Fault::Hang(host, long),
                8 => Fault::DiskFull(host, long),
                _ => Fault::ControllerCrash(long),
            };
            faults.push((at, fault));
        }
        if rng.chance(150) {
            // A flapping link.
            let host = rng.index(hosts.len());
            let (on, off) = (rng.between(500, 9_000), rng.between(500, 12_000));
            let mut at = 0;
            while at + off < faults_end {
                faults.push((at, Fault::Cut(host, off)));
                at += on + off;
            }
        }
        if rng.chance(250) {
            for _ in 0..rng.between(1, 3) {
                let verb = rng.pick(&[Verb::Pause, Verb::Resume, Verb::Halt, Verb::Rollback, Verb::Pause]);
                faults.push((rng.below(25_000), Fault::Said(verb)));
            }
        }
    }
    if kind == Kind::ControllerOnly {
        let mut at = rng.between(100, 5_000);
        while at < faults_end {
            let away = rng.between(50, 9_000);
            faults.push((at, Fault::ControllerCrash(away)));
            // It hears of every host in between.
            at += away + rng.between(15_000, 25_000);
        }
    }
    // Said in this order even if two fall on one instant.
    faults.sort_by_key(|(at, _)| *at);
    Phase {
        release,
        plan: plan(rng, kind, hosts.len(), components, release),
        faults,
        faults_end,
        on_pause: rng.pick(&[OnPause::Resume, OnPause::Rollback, OnPause::Halt, OnPause::Nothing, OnPause::Nothing]),
    }
}

fn plan(rng: &mut Rng, kind: Kind, hosts: usize, components: &[ComponentName], release: usize) -> String {
    let mut text = format!("release = \"shop@{}.0.0\"\n", release + 1);
    let selectors: Vec<String> =
        components.iter().zip(["role=shop", "web=yes"]).map(|(component, selector)| format!("{component} = \"{selector}\"")).collect();
    let _ = writeln!(text, "hosts = {{ {} }}", selectors.join(", "));
    let amount = |rng: &mut Rng| rng.pick(&["1", "2", "3", "\"10%\"", "\"25%\"", "\"50%\"", "\"100%\""]);
    if rng.chance(250) {
        let _ = writeln!(text, "strategy = \"big-bang\"");
    } else {
        let _ = writeln!(text, "strategy = \"rolling\"\nbatch = {}", amount(rng));
    }
    let _ = writeln!(text, "on_unreachable = \"{}\"", rng.pick(&["fail", "fail", "wait", "skip"]));
    // A lease that the outages of `ControllerOnly` do not outlast.
    let patient = kind == Kind::ControllerOnly;
    let healthy = if patient { 120 } else { rng.pick(&[15, 30, 60]) };
    let confirm = if patient { 60 } else { rng.pick(&[5, 15, 40]) };
    let _ = writeln!(text, "[limits]\nhealthy_deadline = \"{healthy}s\"\nconfirm_within = \"{confirm}s\"");
    if rng.chance(300) {
        let _ = writeln!(text, "max_parallel = {}", amount(rng));
    }
    if rng.chance(400) {
        let _ = writeln!(text, "min_healthy = {}", rng.pick(&["0", "1", "2", "\"50%\"", "\"66%\"", "\"90%\""]));
    }
    if rng.chance(400) {
        let _ = writeln!(text, "max_failed_hosts = {}", rng.between(0, hosts as u64 / 2 + 1));
    }
    if rng.chance(300) {
        let _ = writeln!(text, "rollback_parallel = {}", amount(rng));
    }
    text
}
