//! Watching a rollout to its end, over lost connections.
//!
//! The controller may be restarting: the command reconnects for a bounded time
//! and goes on after the last event it saw, before it says that it no longer
//! watches. The rollout never depends on it.

use std::time::Duration;

use serde_json::Value;
use tidegate_protocol::{Millis, RolloutId};
use tidegate_rollout::RolloutState;
use tidegate_rollout::status::StatusDoc;
use tokio::time::{Instant, sleep, timeout_at};

use super::call::{Link, Trouble};
use super::exit::Exit;
use super::live::Live;
use super::output::{Format, read};
use super::{Context, checklist, render};
use crate::operator::client::Part;
use crate::operator::doc::EventDoc;
use crate::operator::msg::{ErrorCode, ErrorDoc, Request, Until};

/// How long a lost controller is looked for.
const RECONNECT_FOR: Duration = Duration::from_secs(30);
/// A contact that held this long was a contact.
const STEADY_CONTACT: Duration = Duration::from_secs(5);
/// How often the time that is left is drawn anew.
const REDRAW: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// What to follow.
pub(super) struct Follow {
    pub(super) id: RolloutId,
    pub(super) until_watching: bool,
    /// Watches on while people are waited for before the start: somebody sits here.
    pub(super) patient: bool,
}

/// How a followed rollout ended for this command, with its last status.
struct Ended {
    exit: Exit,
    status: String,
}

/// What was heard so far, over all connections.
#[derive(Default)]
struct Heard {
    /// Of the newest event.
    seq: u64,
    /// A drill was passed.
    drilled: bool,
    /// What people were told to give.
    missing: Vec<String>,
}

/// Follows a rollout and prints how it ended.
pub(super) async fn follow(context: &Context, what: Follow, link: Option<Link>) -> Result<Exit, ErrorDoc> {
    let mut live = Live::new(context.output);
    let ended = tokio::select! {
        ended = watch(context, &what, link, &mut live) => ended,
        () = interrupted() => Err(detached(&what.id, "interrupted")),
    };
    live.clear();
    let ended = ended?;
    // ndjson is the events; their last one says how it ended.
    if context.output.format != Format::Ndjson {
        context.output.document(&ended.status, |doc: &StatusDoc, color| render::status(doc, color))?;
    }
    Ok(ended.exit)
}

/// Looks for a lost controller, within bounds.
struct Patience {
    /// Of the present search.
    deadline: Option<Instant>,
    pause: Duration,
    /// Before the first contact nothing is retried.
    met: bool,
    /// Begin of the present contact.
    contact: Option<Instant>,
}

impl Patience {
    fn new(met: bool) -> Self {
        Self { deadline: None, pause: RETRY_FIRST, met, contact: met.then(Instant::now) }
    }

    /// The controller is there.
    fn met(&mut self) {
        self.met = true;
        self.contact.get_or_insert_with(Instant::now);
    }

    /// Waits before the next attempt, or says that there is none.
    async fn lost(&mut self, id: &RolloutId, trouble: Trouble, say: impl FnOnce(&str)) -> Result<(), ErrorDoc> {
        if !trouble.is_lost() || !self.met {
            return Err(trouble.into());
        }
        let why = ErrorDoc::from(trouble);
        let now = Instant::now();
        // Contacts that break at once do not make the search endless.
        if self.contact.take().is_some_and(|since| now - since > STEADY_CONTACT) {
            (self.deadline, self.pause) = (None, RETRY_FIRST);
        }
        match self.deadline {
            None => {
                self.deadline = Some(now + RECONNECT_FOR);
                say(&format!("{}; looking for the controller for {} s", why.message, RECONNECT_FOR.as_secs()));
            }
            Some(deadline) if now >= deadline => return Err(detached(id, &why.message)),
            Some(_) => {}
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_LAST);
        Ok(())
    }
}

async fn watch(context: &Context, what: &Follow, mut link: Option<Link>, live: &mut Live) -> Result<Ended, ErrorDoc> {
    let mut patience = Patience::new(link.is_some());
    let mut heard = Heard::default();
    loop {
        let attempt = async {
            let link = match link.take() {
                Some(link) => link,
                None => Link::open(context).await?,
            };
            once(context, &link, what, &mut heard, live, &mut patience).await
        };
        match attempt.await {
            Ok(ended) => return Ok(ended),
            Err(trouble) => patience.lost(&what.id, trouble, |text| live.say(text)).await?,
        }
    }
}

/// Over one connection.
async fn once(
    context: &Context,
    link: &Link,
    what: &Follow,
    heard: &mut Heard,
    live: &mut Live,
    patience: &mut Patience,
) -> Result<Ended, Trouble> {
    let mut answers =
        link.stream(context, &Request::RolloutWatch { id: what.id.clone(), after_seq: heard.seq, stop_at_person: false }).await?;
    let mut last = None;
    loop {
        let frame = tokio::select! {
            frame = answers.next() => frame?,
            () = sleep(REDRAW) => {
                live.tick();
                continue;
            }
        };
        patience.met();
        match frame {
            Part::Document(json) => {
                let doc: StatusDoc = read(&json)?;
                live.status(&doc);
                tell_missing(&doc, what, heard, live);
                if let Some(exit) = early(&doc, what) {
                    return Ok(Ended { exit, status: json });
                }
                last = Some(json);
            }
            Part::Event(json) => {
                let event: EventDoc = read(&json)?;
                heard.seq = heard.seq.max(event.seq);
                heard.drilled |= event.kind == "drilled" && event.record.get("passed").and_then(Value::as_bool) == Some(true);
                if context.output.format == Format::Ndjson {
                    context.output.line(&json)?;
                }
                live.event(&event);
                // Events may be of long ago: the status now decides.
                if may_end(&event) {
                    let json = link.ask(context, Request::RolloutStatus { id: what.id.clone() }).await?;
                    let doc: StatusDoc = read(&json)?;
                    live.observe(&doc);
                    tell_missing(&doc, what, heard, live);
                    if let Some(exit) = early(&doc, what) {
                        return Ok(Ended { exit, status: json });
                    }
                }
            }
            Part::End(exit) => {
                let Some(status) = last else {
                    return Err(Trouble::Lost(ErrorDoc::new(ErrorCode::Unavailable, "the controller ended the watch without a status")));
                };
                // A drill that is back where it began did what it should.
                let exit = if heard.drilled && Exit::from(exit) == Exit::RolledBack { Exit::Done } else { Exit::from(exit) };
                return Ok(Ended { exit, status });
            }
        }
    }
}

/// When the command ends though the rollout does not. A rollout that a person paused
/// is still watched: whoever paused it resumes it. One that waits for a person by
/// itself waits for somebody who does not know yet; one that waits for a metrics
/// server goes on by itself.
fn early(doc: &StatusDoc, what: &Follow) -> Option<Exit> {
    match doc.state {
        RolloutState::Watching if what.until_watching => Some(Exit::Done),
        RolloutState::AwaitingApproval if what.patient => None,
        _ if doc.waiting_for.as_deref() == Some("person") && doc.paused_by.is_none() => Some(Exit::Person),
        _ => None,
    }
}

/// Says what is to be given before it begins, whenever that changed. Who does not
/// watch on finds it in the status at the end, except in ndjson.
fn tell_missing(doc: &StatusDoc, what: &Follow, heard: &mut Heard, live: &Live) {
    let missing = checklist::missing(doc);
    if missing == heard.missing || !(what.patient || live.format() == Format::Ndjson) {
        return;
    }
    missing.iter().filter(|line| !heard.missing.contains(line)).for_each(|line| live.say(&format!("missing: {line}")));
    heard.missing = missing;
}

/// Whether the status may be such after it.
fn may_end(event: &EventDoc) -> bool {
    let state = || event.record.get("to").and_then(|t| t.as_str()).and_then(|t| t.parse().ok());
    match event.kind.as_str() {
        "state" => {
            matches!(state(), Some(RolloutState::AwaitingApproval | RolloutState::Paused | RolloutState::Baking | RolloutState::Watching))
        }
        // A source in error for too long, an inconclusive gate at its end.
        "gate" => true,
        // One thing less is missing, or another one.
        "approved" | "attested" | "overridden" | "readiness" => true,
        _ => false,
    }
}

/// Waits for one of some states.
pub(super) async fn wait(context: &Context, id: &RolloutId, until: Vec<Until>, timeout: Option<Millis>) -> Result<Exit, ErrorDoc> {
    let deadline = timeout.map(|t| Instant::now() + Duration::from_millis(t.0));
    let waited = async {
        let mut patience = Patience::new(false);
        loop {
            let attempt = async {
                let link = Link::open(context).await?;
                patience.met();
                wait_once(context, &link, id, &until, deadline).await
            };
            match attempt.await {
                Ok(ended) => return Ok(ended),
                Err(trouble) => patience.lost(id, trouble, |text| context.output.note(text)).await?,
            }
        }
    };
    let timed_out = || detached(id, &format!("not there after {}", timeout.unwrap_or_default()));
    let waited = async {
        match deadline {
            // The controller counts too; it is asked to answer first.
            Some(deadline) => timeout_at(deadline + Duration::from_secs(2), waited).await.unwrap_or_else(|_| Err(timed_out())),
            None => waited.await,
        }
    };
    let ended = tokio::select! {
        ended = waited => ended?,
        () = interrupted() => return Err(detached(id, "interrupted")),
    };
    if ended.exit == Exit::Detached {
        let doc: StatusDoc = read(&ended.status)?;
        return Err(timed_out().cause(format!("it is {}: {}", doc.state, doc.reason)));
    }
    context.output.document(&ended.status, |doc: &StatusDoc, color| render::state_line(doc, color))?;
    Ok(ended.exit)
}

async fn wait_once(context: &Context, link: &Link, id: &RolloutId, until: &[Until], deadline: Option<Instant>) -> Result<Ended, Trouble> {
    let left = deadline.map(|d| Millis(u64::try_from(d.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX)));
    let mut answers = link.stream(context, &Request::RolloutWait { id: id.clone(), until: until.to_vec(), timeout: left }).await?;
    let mut status = None;
    loop {
        match answers.next().await? {
            Part::Document(json) => status = Some(json),
            Part::Event(_) => {}
            Part::End(exit) => {
                let Some(status) = status else {
                    return Err(Trouble::Lost(ErrorDoc::new(ErrorCode::Unavailable, "the controller ended the wait without a status")));
                };
                return Ok(Ended { exit: Exit::from(exit), status });
            }
        }
    }
}

/// The rollout goes on without us.
fn detached(id: &RolloutId, why: &str) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Detached, format!("rollout {id} goes on; this command no longer watches it"))
        .cause(why)
        .fix(format!("go on with `tidegate rollout watch {id}`"))
}

/// Ctrl-C, or a polite request to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        // Without handlers the signals end the process themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}
