//! Progress of a watched rollout: what is open now, per wave and host, drawn on a
//! terminal or written as plain lines.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidegate_protocol::{ComponentName, HostName};
use tidegate_rollout::record::TargetState;
use tidegate_rollout::status::{ObservationDoc, StatusDoc};

use super::gates;
use super::output::{Format, Output};
use super::render;
use super::table::clean;
use crate::operator::doc::EventDoc;

/// A rollout as the events tell it. Pure.
#[derive(Clone, Debug, Default)]
pub struct Model {
    head: String,
    state: String,
    step: String,
    waves: BTreeMap<usize, String>,
    hosts: BTreeMap<(HostName, ComponentName), (usize, TargetState)>,
    observation: Option<ObservationDoc>,
    /// What the open gate said last: its verdict and what decides.
    gate: Option<String>,
}

/// Kinds of events that a person would want to read again.
const LASTING: [&str; 20] = [
    "state",
    "said",
    "returned",
    "healed",
    "started",
    "gate",
    "tripped",
    "investigation",
    "attested",
    "alert",
    "drilled",
    "approved",
    "overridden",
    "freeze",
    "began",
    "task-ordered",
    "task-ended",
    "stopping",
    "noted",
    "closed",
];
/// Hosts named in one line.
const NAMED_MAX: usize = 6;
/// States in which an open gate is worth a line.
const OBSERVED: [&str; 4] = ["running", "baking", "watching", "paused"];

/// The verdict and what decides it, as the status has it.
fn standing(doc: &StatusDoc, open: &ObservationDoc) -> Option<String> {
    let of_gate = || doc.gates.iter().filter(|g| g.wave == open.wave && g.stage == open.stage && !g.advisory);
    let worst = ["fail", "error", "inconclusive", "pass"].into_iter().find(|word| of_gate().any(|g| g.verdict == *word))?;
    let decisive: Vec<&str> = of_gate().filter(|g| g.verdict == worst && worst != "pass").map(|g| g.reason.as_str()).collect();
    Some(if decisive.is_empty() { worst.to_owned() } else { format!("{worst}: {}", decisive.join("; ")) })
}

/// The same, as the journal has it.
fn judged(event: &EventDoc) -> Option<String> {
    let verdict = event.record.get("verdict")?.as_str()?;
    let word = |j: &serde_json::Value, key: &str| j.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let all = event.record.get("judgements").and_then(|j| j.as_array()).map(Vec::as_slice).unwrap_or_default();
    let decisive: Vec<String> =
        all.iter().filter(|j| verdict != "pass" && word(j, "verdict") == verdict).map(|j| word(j, "reason")).collect();
    Some(if decisive.is_empty() { verdict.to_owned() } else { format!("{verdict}: {}", decisive.join("; ")) })
}

impl Model {
    /// From where the rollout stands.
    #[must_use]
    pub fn new(doc: &StatusDoc) -> Self {
        Self {
            head: format!("{} ({})", doc.release, doc.strategy.word()),
            state: doc.state.word().into(),
            step: String::new(),
            waves: doc.waves.iter().map(|w| (w.index, w.name.clone())).collect(),
            hosts: doc.hosts.iter().filter_map(|h| Some(((h.host.clone(), h.component.clone()), (h.wave?, h.state)))).collect(),
            observation: doc.observation.clone(),
            gate: doc.observation.as_ref().and_then(|open| standing(doc, open)),
        }
    }

    /// What is observed, as a newer status says; how far hosts are stays with the
    /// events, which may be behind it.
    pub fn observe(&mut self, doc: &StatusDoc) {
        self.observation.clone_from(&doc.observation);
        self.gate = doc.observation.as_ref().and_then(|open| standing(doc, open));
    }

    /// Takes in one event; those that say nothing about progress change nothing.
    pub fn apply(&mut self, event: &EventDoc) {
        let word = |key: &str| event.record.get(key).and_then(|v| v.as_str());
        match event.kind.as_str() {
            "state" => self.state = word("to").unwrap_or_default().into(),
            "step" => self.step = word("step").unwrap_or_default().into(),
            "judged" => self.gate = judged(event),
            "host" => self.host(event, word("to").and_then(|w| w.parse().ok())),
            // The machine's own rule: an order is the state until the host says more.
            "ordered" => self.host(
                event,
                match (word("intent"), word("phase")) {
                    (Some("back"), _) => Some(TargetState::Reverting),
                    (Some("forward"), Some("stage")) => Some(TargetState::Staging),
                    (Some("forward"), Some("swap")) => Some(TargetState::Swapping),
                    _ => None,
                },
            ),
            _ => {}
        }
    }

    fn host(&mut self, event: &EventDoc, to: Option<TargetState>) {
        let key = event.host.clone().zip(event.component.as_deref().and_then(|c| c.parse().ok()));
        if let (Some(host), Some(to)) = (key.and_then(|k| self.hosts.get_mut(&k)), to) {
            host.1 = to;
        }
    }

    /// What the whole rollout does.
    #[must_use]
    pub fn head(&self) -> String {
        let count = |states: &[TargetState]| self.hosts.values().filter(|(_, s)| states.contains(s)).count();
        let total = self.hosts.len();
        let detail = match (self.step.as_str(), self.state.as_str()) {
            ("preflight", "running") => "preflight".to_string(),
            ("staging", "running") => format!("staged {}/{total}", total - count(&[TargetState::Pending, TargetState::Staging])),
            (_, "rolling-back") => {
                format!("back {}, on the way back {}", count(&[TargetState::Reverted]), count(&[TargetState::Reverting]))
            }
            _ => format!("confirmed {}/{total}", count(&[TargetState::Confirmed])),
        };
        clean(&format!("{}: {}, {detail}", self.head, self.state), 160)
    }

    /// The open gate: `Canary (after wave 1), 4 min 10 s left: inconclusive: error_rate …`.
    #[must_use]
    pub fn gate(&self, now: Option<jiff::Timestamp>) -> Option<String> {
        let open = self.observation.as_ref().filter(|_| OBSERVED.contains(&self.state.as_str()))?;
        let said = self.gate.as_ref().map_or_else(String::new, |said| format!(": {said}"));
        Some(clean(&format!("{}{said}", gates::observation(open, now)), 240))
    }

    /// One line per open wave: `api 2/4  3/5  web-4 swapping, web-5 probation`.
    #[must_use]
    pub fn open_waves(&self) -> Vec<(usize, String)> {
        let mut out = Vec::new();
        for (index, name) in &self.waves {
            let hosts: Vec<(&HostName, TargetState)> =
                self.hosts.iter().filter(|(_, (w, _))| w == index).map(|((h, _), (_, s))| (h, *s)).collect();
            let flying: Vec<&(&HostName, TargetState)> = hosts.iter().filter(|(_, s)| s.in_flight()).collect();
            let done = hosts.iter().filter(|(_, s)| *s == TargetState::Confirmed).count();
            if flying.is_empty() {
                continue;
            }
            let mut named: Vec<String> = flying.iter().take(NAMED_MAX).map(|(host, state)| format!("{host} {state}")).collect();
            if flying.len() > NAMED_MAX {
                named.push(format!("and {} more", flying.len() - NAMED_MAX));
            }
            out.push((*index, clean(&format!("{name}  {done}/{}  {}", hosts.len(), named.join(", ")), 200)));
        }
        out
    }
}

/// Shows a [`Model`] while a command waits.
pub(super) struct Live {
    output: Output,
    model: Option<Model>,
    screen: Option<Screen>,
}

struct Screen {
    all: MultiProgress,
    head: ProgressBar,
    gate: Option<ProgressBar>,
    waves: BTreeMap<usize, ProgressBar>,
}

impl Live {
    pub(super) fn new(output: Output) -> Self {
        let screen = output.live.then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let head = spinner(&all);
            Screen { all, head, gate: None, waves: BTreeMap::new() }
        });
        Self { output, model: None, screen }
    }

    pub(super) const fn format(&self) -> Format {
        self.output.format
    }

    pub(super) fn status(&mut self, doc: &StatusDoc) {
        self.model = Some(Model::new(doc));
        self.draw();
    }

    /// A newer status while events still come.
    pub(super) fn observe(&mut self, doc: &StatusDoc) {
        if let Some(model) = &mut self.model {
            model.observe(doc);
        }
        self.draw();
    }

    /// Time passed: what is left of an observation is less.
    pub(super) fn tick(&mut self) {
        if self.model.as_ref().is_some_and(|m| m.gate(None).is_some()) {
            self.draw();
        }
    }

    pub(super) fn event(&mut self, event: &EventDoc) {
        if let Some(model) = &mut self.model {
            model.apply(event);
        }
        // On a terminal the lines below tell how far hosts are; above them stays
        // what a person would want to read again.
        let failed = event.record.get("failure").is_some_and(|f| !f.is_null());
        // Values of every interval are for `events` and `status`, not for a log of days.
        let lasting = failed || LASTING.contains(&event.kind.as_str());
        if if self.screen.is_some() { lasting } else { event.kind != "observed" } {
            self.say(&render::event_line(event));
        }
        self.draw();
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        match &self.screen {
            // A terminal that is gone does not stop a rollout.
            Some(screen) => drop(screen.all.println(clean(text, 600))),
            None => self.output.note(text),
        }
    }

    /// Takes the moving lines away.
    pub(super) fn clear(&mut self) {
        if let Some(screen) = self.screen.take() {
            let _ = screen.all.clear();
        }
    }

    fn draw(&mut self) {
        let (Some(screen), Some(model)) = (&mut self.screen, &self.model) else { return };
        screen.head.set_message(model.head());
        match (model.gate(Some(jiff::Timestamp::now())), &mut screen.gate) {
            (Some(line), Some(bar)) => bar.set_message(line),
            (Some(line), none) => {
                let bar = spinner(&screen.all);
                bar.set_message(line);
                *none = Some(bar);
            }
            (None, shown) => {
                if let Some(bar) = shown.take() {
                    bar.finish_and_clear();
                    screen.all.remove(&bar);
                }
            }
        }
        let open = model.open_waves();
        screen.waves.retain(|index, bar| {
            let keep = open.iter().any(|(i, _)| i == index);
            if !keep {
                bar.finish_and_clear();
                screen.all.remove(bar);
            }
            keep
        });
        for (index, line) in open {
            let bar = screen.waves.entry(index).or_insert_with(|| spinner(&screen.all));
            bar.set_message(line);
        }
    }
}

fn spinner(all: &MultiProgress) -> ProgressBar {
    let bar = all.add(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar of bytes on stderr, if it is a terminal.
pub(super) fn byte_bar(output: &Output, what: &'static str) -> ProgressBar {
    if !output.live {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}
