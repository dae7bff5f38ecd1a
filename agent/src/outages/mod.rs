//! Times at which a component gave no good answer, measured by calling it as its
//! own smoke tests do.
//!
//! Owns when something is called and what counts. Must not: judge a release, or
//! touch a service. It begins as soon as the controller says so, which is before a
//! swap; what was measured is lost with the agent, and a new observation begins.

mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_protocol::limits::COMPONENTS_MAX;
use tidegate_protocol::report::bounded;
use tidegate_protocol::{ComponentName, Outages, Side};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use self::tally::{Flights, Tally};
use crate::context::Installed;
use crate::host::Host;
use crate::service::unix_ms;
use crate::slot::Slot;
use crate::smoke::{self, Call};

/// Between two probes.
const EVERY: Duration = Duration::from_millis(500);
/// A probe that takes longer is a bad one; its test may allow less.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Which side of a component serves; none for a component without sides.
pub type ActiveSide = dyn Fn(&ComponentName) -> Option<Side> + Send + Sync;

/// What all observers write on.
#[derive(Default)]
struct Board {
    known: Mutex<BTreeMap<ComponentName, Outages>>,
    news: Notify,
}

impl Board {
    fn all(&self) -> Vec<Outages> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Something about a component that is still observed.
    fn tell(&self, component: &ComponentName, change: impl FnOnce(&mut Outages)) {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get_mut(component) {
            change(known);
            self.news.notify_one();
        }
    }

    /// True if it was not there.
    fn begin(&self, component: &ComponentName) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = !known.contains_key(component);
        if fresh {
            let none = Outages { component: component.clone(), probe: String::new(), since_unix_ms: unix_ms(), intervals: Vec::new() };
            known.insert(component.clone(), none);
        }
        fresh
    }

    fn retain(&self, wanted: &BTreeSet<ComponentName>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|component, _| wanted.contains(component));
    }
}

/// Ends its observer with itself.
struct Leash(JoinHandle<()>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Observes what the newest list names, until dropped. Nothing is told before the
/// first list.
pub async fn run(
    host: Arc<Host>,
    active: Arc<ActiveSide>,
    mut wanted: watch::Receiver<Option<Vec<ComponentName>>>,
    told: watch::Sender<Option<Arc<Vec<Outages>>>>,
) {
    let board = Arc::new(Board::default());
    let mut observers: BTreeMap<ComponentName, Leash> = BTreeMap::new();
    wanted.mark_changed();
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    // The agent ends; whoever ends it drops this.
                    return std::future::pending().await;
                }
                let Some(names) = wanted.borrow_and_update().clone() else { continue };
                let names: BTreeSet<ComponentName> = names.into_iter().take(COMPONENTS_MAX).collect();
                observers.retain(|component, _| names.contains(component));
                board.retain(&names);
                for component in names {
                    if board.begin(&component) {
                        let observer = Observer::new(host.clone(), active.clone(), component.clone(), board.clone());
                        observers.insert(component, Leash(tokio::spawn(observer.run())));
                    }
                }
            }
            () = board.news.notified() => {}
        }
        let now = board.all();
        told.send_if_modified(|last| {
            let news = last.as_deref() != Some(&now);
            if news {
                *last = Some(Arc::new(now));
            }
            news
        });
    }
}

/// What is called, and as what it runs.
struct Target {
    call: Call,
    installed: Arc<Installed>,
}

struct Observer {
    host: Arc<Host>,
    active: Arc<ActiveSide>,
    component: ComponentName,
    board: Arc<Board>,
    /// What serves now.
    serving: Option<Arc<Installed>>,
    /// Kept when a newer release has nothing to call.
    target: Option<Arc<Target>>,
    tally: Tally,
    waiting: Flights,
    flights: JoinSet<(u64, bool)>,
}

impl Observer {
    fn new(host: Arc<Host>, active: Arc<ActiveSide>, component: ComponentName, board: Arc<Board>) -> Self {
        Self {
            host,
            active,
            component,
            board,
            serving: None,
            target: None,
            tally: Tally::default(),
            waiting: Flights::default(),
            flights: JoinSet::new(),
        }
    }

    async fn run(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut looked = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    looked |= self.look(!looked).await;
                    self.call();
                }
                Some(ended) = self.flights.join_next() => {
                    let Ok((number, good)) = ended else {
                        // Nobody knows which one broke down; those after it must not wait for it.
                        self.waiting.clear();
                        continue;
                    };
                    let known = self.waiting.end(number, good);
                    let changes = known.into_iter().filter(|(at, good)| self.tally.took(*at, *good)).count();
                    if changes > 0 {
                        self.tell();
                    }
                }
            }
        }
    }

    /// What serves now, and what of it is called. At the `first` look what is there
    /// is expected to answer; what comes later, once it has. False if it could not be
    /// looked at.
    async fn look(&mut self, first: bool) -> bool {
        let side = (self.active)(&self.component);
        let slot = Slot { component: self.component.clone(), side };
        let (trees, last) = (self.host.trees.clone(), self.serving.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let dir = trees.current_dir(&slot)?;
            let same = last.filter(|last| dir.as_ref() == Some(&last.dir) && last.side == slot.side);
            match same {
                Some(same) => Ok(Some(same)),
                None if dir.is_none() => Ok(None),
                None => trees.read_current(&slot).map(|found| found.map(Arc::new)),
            }
        });
        // A link that cannot be read is the report's to complain about; what was called goes on.
        let Ok(Ok(serving)) = looked.await else { return false };
        if serving == self.serving {
            return true;
        }
        self.serving = serving;
        let Some(serving) = &self.serving else {
            self.target = None;
            self.flights = JoinSet::new();
            self.waiting.clear();
            if self.tally.absent(unix_ms()) {
                self.tell();
            }
            return true;
        };
        self.tally.armed |= first;
        if let Some(call) = smoke::call(&self.host.ctx, serving) {
            self.target = Some(Arc::new(Target { call, installed: serving.clone() }));
            self.tell();
        }
        true
    }

    /// Begins a probe. There are never more than fit between two and their limit.
    fn call(&mut self) {
        let Some(target) = self.target.clone() else { return };
        let number = self.waiting.begin(unix_ms());
        let host = self.host.clone();
        self.flights.spawn(async move {
            let good = smoke::answers(&host.ctx, &host.services, &target.installed, &target.call, PROBE_MAX).await;
            (number, good)
        });
    }

    fn tell(&self) {
        let probe = self.target.as_ref().map(|target| bounded(&target.call.what));
        self.board.tell(&self.component, |known| {
            if let Some(probe) = probe {
                known.probe = probe;
            }
            known.intervals.clone_from(&self.tally.intervals);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use crate::host::tests::host;
    use tidegate_protocol::Outage;
    use tidegate_protocol::codec::encode;
    use tidegate_protocol::limits::{CONTROL_FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, OUTAGES_MAX};
    use tidegate_protocol::message::ToController;
    use tidegate_protocol::release::{Service, Smoke, SmokeCheck, Suite};
    use tidegate_protocol::{Millis, Target as Release};

    fn smoke(suite: Suite, check: SmokeCheck) -> Smoke {
        let (timeout, retry_for) = (Millis::from_secs(1), Millis(0));
        Smoke { id: "SMK-001".into(), name: "it answers".into(), suite, check, timeout, retry_for }
    }

    fn http(url: &str) -> SmokeCheck {
        SmokeCheck::Http { url: url.into(), status: 200, body: None }
    }

    /// Lays a release without files out, and points the slot's link at it.
    fn serve(host: &Host, version: &str, side: Option<Side>, tests: Vec<Smoke>) {
        let root = scratch();
        let mut it = installed(root.path(), version, &[], Service::Systemd("api.service".into()));
        it.component.smoke = tests;
        let slot = Slot { component: it.component.name.clone(), side };
        host.trees.lay_out(&host.store, &it.release, &it.component, side, &|| true).unwrap();
        host.trees.flip(&slot, &Release::Release(it.release)).unwrap();
    }

    fn probe(observer: &Observer) -> Option<String> {
        observer.target.as_ref().map(|target| target.call.what.clone())
    }

    #[tokio::test]
    async fn the_active_side_is_called_at_its_own_address() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.vars.extend([("port_blue".to_owned(), "81".to_owned()), ("port_green".to_owned(), "82".to_owned())]);
        let host = host(ctx);
        let tests = vec![smoke(Suite::Critical, http("http://127.0.0.1:${var.port}/${side}"))];
        serve(&host, "1.0.0", Some(Side::Blue), tests.clone());
        serve(&host, "2.0.0", Some(Side::Green), tests);
        let active = Arc::new(Mutex::new(None));
        let of = active.clone();
        let mut observer =
            Observer::new(host, Arc::new(move |_: &ComponentName| *of.lock().unwrap()), "api".parse().unwrap(), Arc::default());
        assert!(observer.look(true).await);
        assert_eq!((probe(&observer), observer.tally.armed), (None, false), "no side serves yet");
        for (side, url) in [(Side::Blue, "http://127.0.0.1:81/blue"), (Side::Green, "http://127.0.0.1:82/green")] {
            *active.lock().unwrap() = Some(side);
            observer.look(false).await;
            assert_eq!(probe(&observer).as_deref(), Some(url));
        }
    }

    #[tokio::test]
    async fn what_serves_is_called_and_what_was_called_stays_when_there_is_nothing_new() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.policy.urls = vec!["http://front:80/".into()];
        let host = host(ctx);
        let tcp = |port| smoke(Suite::Critical, SmokeCheck::Tcp { address: format!("127.0.0.1:{port}") });
        let away = smoke(Suite::Critical, http("http://elsewhere/"));
        serve(&host, "1.0.0", None, vec![away.clone(), tcp(1), tcp(2), smoke(Suite::Integration, http("http://front/"))]);
        let active: Arc<ActiveSide> = Arc::new(|_| None);
        let mut observer = Observer::new(host.clone(), active, "api".parse().unwrap(), Arc::default());
        assert!(observer.look(true).await);
        assert!(observer.tally.armed, "what is there from the beginning is to answer");
        assert_eq!(probe(&observer).as_deref(), Some("tcp://127.0.0.1:1"), "local policy does not allow the first one");
        serve(&host, "2.0.0", None, vec![tcp(3), smoke(Suite::Critical, http("http://front/"))]);
        observer.look(false).await;
        assert_eq!(probe(&observer).as_deref(), Some("http://front/"));
        serve(&host, "3.0.0", None, vec![away]);
        observer.look(false).await;
        assert_eq!(probe(&observer).as_deref(), Some("http://front/"));
        // Taken back to nothing: nothing is called, and nothing is missed.
        observer.tally.took(1, false);
        host.trees.flip(&Slot::plain("api".parse().unwrap()), &Release::Absent).unwrap();
        observer.look(false).await;
        assert_eq!((probe(&observer), observer.tally.armed), (None, false));
        assert!(observer.tally.intervals[0].to_unix_ms > 0);
    }

    #[test]
    fn the_most_that_can_be_told_fits_a_frame() {
        let one = |i: usize| Outages {
            component: format!("c{i:0>62}").parse().unwrap(),
            probe: "x".repeat(MESSAGE_BYTES_MAX),
            since_unix_ms: 1 << 42,
            intervals: vec![Outage { from_unix_ms: 1 << 42, to_unix_ms: 1 << 42 }; OUTAGES_MAX],
        };
        encode(&ToController::Outages((0..COMPONENTS_MAX).map(one).collect()), CONTROL_FRAME_BYTES_MAX).unwrap();
    }
}
