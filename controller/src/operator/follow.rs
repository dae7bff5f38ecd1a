//! Streams of a rollout's events, and waiting for its states.
//!
//! Events come from the journal, so a follower sees each one once and in order,
//! however slow it is; the core only says that there are more.

use serde_json::Value;
use tidegate_net::FrameSender;
use tidegate_protocol::limits::OPERATOR_FRAME_BYTES_MAX;
use tidegate_protocol::{Millis, RolloutId, Timestamp};
use tidegate_rollout::RolloutState;
use tidegate_rollout::record::WaveState;
use tidegate_rollout::status::{StatusDoc, describe};
use tokio::time::{Duration, Instant, timeout_at};

use super::doc::{EventDoc, SCHEMA, rfc3339};
use super::msg::{EXIT_DETACHED, EXIT_PERSON, ErrorCode, ErrorDoc, Frame, Request, Until, exit_of};
use super::server::{Ended, Operators};
use crate::core::{Followed, Tick, json, no_rollout};
use crate::store::EventRow;

/// All events so far.
pub(super) async fn events(ctx: &Operators, send: &mut FrameSender, id: RolloutId) -> Result<(), Ended> {
    let followed = follow(ctx, &id).await?;
    let seq = followed.ticks.borrow().seq;
    stream(ctx, send, &id, followed.first_seq.saturating_sub(1), seq).await?;
    end(send, 0).await
}

/// Events as they happen, until the end.
pub(super) async fn watch(ctx: &Operators, send: &mut FrameSender, id: RolloutId, after: u64, stop_at_person: bool) -> Result<(), Ended> {
    let mut followed = follow(ctx, &id).await?;
    document(ctx, send, &id).await?;
    let mut after = after.max(followed.first_seq.saturating_sub(1));
    loop {
        let tick = *followed.ticks.borrow_and_update();
        after = stream(ctx, send, &id, after, tick.seq).await?.max(after);
        if let Some(exit) = ended(tick, stop_at_person && waits_for_person(ctx, &id, tick).await?) {
            document(ctx, send, &id).await?;
            return end(send, exit).await;
        }
        changed(&mut followed).await?;
    }
}

/// Until one of the states, or until none of them can come.
pub(super) async fn wait(
    ctx: &Operators,
    send: &mut FrameSender,
    id: RolloutId,
    until: &[Until],
    within: Option<Millis>,
) -> Result<(), Ended> {
    let mut followed = follow(ctx, &id).await?;
    // A year bounds every duration that a command line can ask for.
    let deadline = Instant::now() + Duration::from_millis(within.unwrap_or(Millis::from_secs(366 * 86_400)).0);
    loop {
        let tick = *followed.ticks.borrow_and_update();
        let exit = match reached(ctx, &id, tick, until).await? {
            Some(true) => Some(0),
            _ => ended(tick, false),
        };
        if let Some(exit) = exit {
            // Without a state of its own to wait for, the end itself is what counts.
            let exit = if until.is_empty() { exit_of(tick.state) } else { exit };
            document(ctx, send, &id).await?;
            return end(send, exit).await;
        }
        match timeout_at(deadline, changed(&mut followed)).await {
            Ok(changed) => changed?,
            Err(_) => {
                document(ctx, send, &id).await?;
                return end(send, EXIT_DETACHED).await;
            }
        }
    }
}

/// The exit code of a command that follows, once it has nothing more to follow.
fn ended(tick: Tick, person: bool) -> Option<u8> {
    if tick.state.is_terminal() { Some(exit_of(tick.state)) } else { person.then_some(EXIT_PERSON) }
}

/// Nothing goes on without a person. A rollout that is paused because a metrics
/// server does not answer goes on by itself.
async fn waits_for_person(ctx: &Operators, id: &RolloutId, tick: Tick) -> Result<bool, Ended> {
    if !matches!(tick.state, RolloutState::Paused | RolloutState::AwaitingApproval) {
        return Ok(false);
    }
    Ok(read_status(ctx, id).await?.waiting_for.as_deref() == Some("person"))
}

async fn reached(ctx: &Operators, id: &RolloutId, tick: Tick, until: &[Until]) -> Result<Option<bool>, Ended> {
    if until.iter().any(|u| matches!(u, Until::State(state) if *state == tick.state)) {
        return Ok(Some(true));
    }
    let waves: Vec<usize> = until.iter().filter_map(|u| if let Until::Wave(n) = u { Some(*n as usize) } else { None }).collect();
    if waves.is_empty() {
        return Ok(None);
    }
    let status = read_status(ctx, id).await?;
    if let Some(n) = waves.iter().find(|n| !status.waves.iter().any(|w| w.index == **n)) {
        return Err(ErrorDoc::new(ErrorCode::Usage, format!("rollout {id} has no wave {n}; it has {}", status.waves.len())).into());
    }
    let passed = |w: &tidegate_rollout::status::WaveDoc| matches!(w.state, WaveState::Passed | WaveState::Overridden);
    Ok(Some(status.waves.iter().any(|w| waves.contains(&w.index) && passed(w))))
}

async fn follow(ctx: &Operators, id: &RolloutId) -> Result<Followed, Ended> {
    Ok(ctx.core.follow(id.clone()).await?.ok_or_else(|| no_rollout(id))?)
}

async fn changed(followed: &mut Followed) -> Result<(), Ended> {
    // The sender goes when the core ends, or when a refused id was used again.
    followed
        .ticks
        .changed()
        .await
        .map_err(|_| ErrorDoc::new(ErrorCode::Detached, "the controller is stopping; the rollout goes on when it is back").into())
}

/// Sends the events in `(after, upto]`; returns the last one's number, or `after`.
async fn stream(ctx: &Operators, send: &mut FrameSender, id: &RolloutId, mut after: u64, upto: u64) -> Result<u64, Ended> {
    while after < upto {
        let page = ctx.store.events(id.clone(), after).await?;
        let Some(last) = page.last().map(|row| row.seq) else { break };
        for row in page {
            send.send(&Frame::Event(event(id, &row)?), OPERATOR_FRAME_BYTES_MAX).await?;
        }
        after = last;
    }
    Ok(after)
}

async fn status(ctx: &Operators, id: &RolloutId) -> Result<String, Ended> {
    Ok(ctx.core.ask("", Request::RolloutStatus { id: id.clone() }, None).await??)
}

async fn read_status(ctx: &Operators, id: &RolloutId) -> Result<StatusDoc, Ended> {
    let text = status(ctx, id).await?;
    Ok(serde_json::from_str(&text).map_err(|e| ErrorDoc::new(ErrorCode::Internal, "the status does not read").cause(e.to_string()))?)
}

async fn document(ctx: &Operators, send: &mut FrameSender, id: &RolloutId) -> Result<(), Ended> {
    let status = status(ctx, id).await?;
    Ok(send.send(&Frame::Document(status), OPERATOR_FRAME_BYTES_MAX).await?)
}

async fn end(send: &mut FrameSender, exit: u8) -> Result<(), Ended> {
    Ok(send.send(&Frame::End { exit }, OPERATOR_FRAME_BYTES_MAX).await?)
}

/// One line of a rollout's history.
fn event(id: &RolloutId, row: &EventRow) -> Result<String, ErrorDoc> {
    let (host, component, message) = describe(&row.record);
    let mut record: Value = serde_json::from_str(&row.body).unwrap_or_default();
    if let Some(fields) = record.as_object_mut() {
        // As large as the fleet, and `status` has what matters of them.
        fields.remove("plan");
        fields.remove("from");
        // The journal keeps milliseconds; documents say times one way only.
        if let Some(at) = fields.get_mut("seen").and_then(|s| s.get_mut("main_pid_started_at"))
            && let Some(ms) = at.as_u64()
        {
            *at = rfc3339(Timestamp(ms)).into();
        }
    }
    let kind = record.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    json(&EventDoc {
        schema: SCHEMA,
        seq: row.seq,
        at: rfc3339(row.at),
        rollout: id.clone(),
        kind,
        host,
        component: component.map(|c| c.to_string()),
        message,
        record,
    })
}
