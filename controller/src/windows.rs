//! Deployment windows and hours of contacts in their time zones.
//!
//! Owns: what `days`, `start_time`, `length_minutes` and `time_zone` come out as in
//! instants, daylight saving included. Must not: read a clock, or decide what a
//! closed window means.
//!
//! A window opens at its start on the clock of its zone and stays open for
//! `length_minutes` that really pass. A start that the clock jumps over opens when
//! the jump is over; one that comes twice opens at the first. Without `start_time`
//! it is the whole calendar day. Windows that touch are one.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp as Instant, ToSpan, Zoned};
use tidegate_protocol::Timestamp;
use tidegate_rollout::process::{ClockTime, ContactSpec, Day, Fit, Hours, Opening, WindowSpec};

/// Days looked ahead for openings, and back for the beginning of one that goes on.
const DAYS_MAX: i64 = 400;
/// A window lasts a week at most; twice that, and the edge.
const DAYS_BACK: i64 = 24;
/// Far enough that nothing waits for it: 9999-12-31, UTC.
const NEVER: Timestamp = Timestamp(253_402_207_200_000);
const ALWAYS: &str = "always open";
/// Looks at a contact's hours between two instants, at most.
const LOOKS_MAX: usize = 4_096;
/// Further than that two names are not near.
const NEAR_EDITS_MAX: usize = 3;

/// Every zone is one, every window can open.
///
/// # Errors
/// One sentence: the key, what is wrong, and what may be meant.
pub fn check(windows: &[WindowSpec], contacts: &[ContactSpec]) -> Result<(), String> {
    let named =
        windows.iter().map(|w| ("window.time_zone", &w.time_zone)).chain(contacts.iter().map(|c| ("contact.time_zone", &c.time_zone)));
    for (key, zone) in named {
        if let Some(name) = zone {
            zone_of(Some(name)).map_err(|why| format!("{key}: {why}"))?;
        }
    }
    Ok(())
}

/// The next openings that have not ended at `from`, in order of time; the first is
/// the open one, if one is. At most `count`, and none that begins over a year later.
#[must_use]
pub fn openings(windows: &[WindowSpec], from: Timestamp, count: usize) -> Vec<Opening> {
    if let Some(open) = windows.iter().find(|w| is_endless(w)) {
        let fit = open.fit.unwrap_or(Fit::All);
        return vec![Opening { opens: Timestamp(0), closes: NEVER, text: ALWAYS.into(), fit, overrun: open.overrun }];
    }
    let (mut back, mut ahead) = (DAYS_BACK, DAYS_BACK);
    loop {
        let (spans, first, last) = spans(windows, from, back, ahead);
        let merged = merge(spans);
        // One that reaches over the edge is not whole yet.
        let begins_before = merged.first().is_some_and(|s| s.opens <= first && s.closes > from);
        if begins_before && back < DAYS_MAX {
            back = DAYS_MAX;
            continue;
        }
        let left: Vec<&Span> = merged.iter().filter(|s| from < s.closes).collect();
        let whole = left.iter().filter(|s| s.closes < last).count();
        if whole < count && ahead < DAYS_MAX {
            ahead = (ahead * 4).min(DAYS_MAX);
            continue;
        }
        let known = |span: &Span| Span {
            opens: if span.opens <= first { Timestamp(0) } else { span.opens },
            closes: if span.closes >= last { NEVER } else { span.closes },
            ..span.clone()
        };
        return left.into_iter().filter_map(|s| Some(opening(windows.get(s.of)?, &known(s)))).take(count).collect();
    }
}

/// Whether somebody is there at every minute of `[from, to)`. `zone` is that of
/// contacts without one; UTC without either.
///
/// # Errors
/// One sentence: when they are not there.
pub fn contacts_cover(contact: &ContactSpec, zone: Option<&str>, from: Timestamp, to: Timestamp) -> Result<(), String> {
    cover(&[contact], zone, from, to)
}

/// The same of several contacts who stand in for each other.
///
/// # Errors
/// One sentence: when nobody is there.
pub fn cover(contacts: &[&ContactSpec], zone: Option<&str>, from: Timestamp, to: Timestamp) -> Result<(), String> {
    let known: Result<Vec<(TimeZone, Hours)>, String> =
        contacts.iter().map(|c| Ok((zone_of(c.time_zone.as_deref().or(zone))?, c.available))).collect();
    let known = known?;
    let mut at = from;
    for _ in 0..LOOKS_MAX {
        if at >= to {
            return Ok(());
        }
        match known.iter().filter_map(|(tz, hours)| there_until(tz, *hours, at)).max() {
            Some(until) if until > at => at = until,
            _ => {
                let names: Vec<&str> = contacts.iter().map(|c| c.name.as_str()).collect();
                let tz = known.first().map_or(TimeZone::UTC, |(tz, _)| tz.clone());
                let hours: Vec<String> = contacts.iter().map(|c| c.available.to_string()).collect();
                return Err(format!("{} ({}) is not there at {}", names.join(", "), hours.join(", "), local(&zoned(at, &tz))));
            }
        }
    }
    Err("the time to be covered is too long".into())
}

/// The zone of that name; UTC without one.
///
/// # Errors
/// One sentence, with a near miss if there is one.
pub fn zone_of(name: Option<&str>) -> Result<TimeZone, String> {
    let Some(name) = name else { return Ok(TimeZone::UTC) };
    TimeZone::get(name).map_err(|_| {
        let near = jiff::tz::db().available().map(|n| n.as_str().to_owned()).filter_map(|known| Some((edits(name, &known)?, known))).min();
        let hint =
            near.map_or_else(|| "write for example \"Europe/Berlin\" or \"UTC\"".to_owned(), |(_, known)| format!("is {known:?} meant?"));
        format!("{name:?} is no time zone of the IANA database; {hint}")
    })
}

/// How many letters two names differ by, if few; a bare city is near its zone.
fn edits(a: &str, b: &str) -> Option<usize> {
    let (a, b) = (a.to_ascii_lowercase().replace(' ', "_"), b.to_ascii_lowercase());
    if b.rsplit('/').next() == Some(a.as_str()) {
        return Some(0);
    }
    if a.len().abs_diff(b.len()) > NEAR_EDITS_MAX {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let best = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            (diagonal, left) = (*cell, best);
            *cell = best;
        }
    }
    row.last().copied().filter(|n| *n <= NEAR_EDITS_MAX)
}

/// One time at which a window is open.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    opens: Timestamp,
    closes: Timestamp,
    /// Place of the window that began it.
    of: usize,
    fit: Fit,
    overrun: bool,
    note: Option<String>,
}

/// Every span that begins within so many days of `from`; and the edges.
fn spans(windows: &[WindowSpec], from: Timestamp, back: i64, ahead: i64) -> (Vec<Span>, Timestamp, Timestamp) {
    let mut all = Vec::new();
    for (of, window) in windows.iter().enumerate() {
        // A zone that is none was refused when the plan was read.
        let Ok(tz) = zone_of(window.time_zone.as_deref()) else { continue };
        let today = zoned(from, &tz).date();
        for offset in -back..=ahead {
            let Ok(date) = today.checked_add(offset.days()) else { continue };
            if window.days.is_empty() || window.days.iter().any(|d| weekday(*d) == date.weekday()) {
                all.extend(span(window, of, &tz, date));
            }
        }
    }
    let edge = |days: i64| Timestamp(from.0.saturating_add_signed(days * 86_400_000));
    // Whatever the zone: what touches a span that begins after the first or ends
    // before the last of these was found.
    (all, edge(10 - back), edge(ahead - 2))
}

fn span(window: &WindowSpec, of: usize, tz: &TimeZone, date: Date) -> Option<Span> {
    let (opens, note) = start(tz, date, window.start_time)?;
    let closes = match window.length_minutes {
        Some(minutes) if window.start_time.is_some() => opens.checked_add(SignedDuration::from_mins(i64::from(minutes))).ok()?,
        _ => start(tz, date.tomorrow().ok()?, None)?.0,
    };
    let (opens, closes) = (stamp(opens)?, stamp(closes)?);
    // A calendar day that a zone skipped is none.
    (opens < closes).then_some(Span { opens, closes, of, fit: window.fit.unwrap_or(Fit::All), overrun: window.overrun, note })
}

/// The instant at which the clock of a zone shows a time of a day, and what is odd
/// about it.
fn start(tz: &TimeZone, date: Date, at: Option<ClockTime>) -> Option<(Instant, Option<String>)> {
    let minutes = at.map_or(0, |t| t.0);
    let time = Time::new(i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?, 0, 0).ok()?;
    let wanted = date.to_datetime(time);
    let ambiguous = tz.to_ambiguous_timestamp(wanted);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { offset } => Some((offset.to_timestamp(wanted).ok()?, None)),
        AmbiguousOffset::Gap { before, after } => {
            // With the offset of after the jump this is an instant before it.
            let earlier = after.to_timestamp(wanted).ok()?;
            let jump = tz.following(earlier).next().map_or_else(|| before.to_timestamp(wanted).ok(), |t| Some(t.timestamp()))?;
            let shown = jump.to_zoned(tz.clone());
            let zone = tz.to_offset_info(earlier).abbreviation().to_owned();
            // Midnight of a whole day is nobody's word.
            let note = at.map(|_| format!("{} {zone} does not exist: opens {}", wanted.strftime("%a %Y-%m-%d %H:%M"), clock(&shown)));
            Some((jump, note))
        }
        AmbiguousOffset::Fold { before, .. } => {
            let first = before.to_timestamp(wanted).ok()?;
            let shown = first.to_zoned(tz.clone());
            let note = at.map(|_| format!("{} comes twice: opens at the first, {}", wanted.strftime("%a %Y-%m-%d %H:%M"), clock(&shown)));
            Some((first, note))
        }
    }
}

/// Spans that touch become one, as strict as the strictest; past its end goes on
/// what the last of them lets go on.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|s| (s.opens, s.closes, s.of));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut().filter(|last| span.opens <= last.closes) {
            None => merged.push(span),
            Some(last) => {
                if span.closes > last.closes {
                    (last.closes, last.overrun) = (span.closes, span.overrun);
                } else if span.closes == last.closes {
                    last.overrun &= span.overrun;
                }
                if span.fit == Fit::All {
                    last.fit = Fit::All;
                }
                last.note = last.note.take().or(span.note);
            }
        }
    }
    merged
}

fn is_endless(window: &WindowSpec) -> bool {
    let every_day = window.days.is_empty() || Day::ALL.iter().all(|day| window.days.contains(day));
    every_day && window.start_time.is_none()
}

fn opening(window: &WindowSpec, span: &Span) -> Opening {
    let tz = zone_of(window.time_zone.as_deref()).unwrap_or(TimeZone::UTC);
    let (opens, closes) = (zoned(span.opens, &tz), zoned(span.closes, &tz));
    let mut text = match (span.opens.0, span.closes) {
        (0, NEVER) => ALWAYS.to_owned(),
        (_, NEVER) => format!("{} – without end", local(&opens)),
        (0, _) => format!("until {}", local(&closes)),
        _ => format!("{} – {}", local(&opens), local(&closes)),
    };
    let whole = span.opens.0 > 0 && span.closes < NEVER;
    if tz != TimeZone::UTC && whole {
        let name = window.time_zone.as_deref().unwrap_or("UTC");
        let utc = |at| zoned(at, &TimeZone::UTC).strftime("%Y-%m-%d %H:%M UTC").to_string();
        text = format!("{text} ({name}); {} – {}", utc(span.opens), utc(span.closes));
    }
    if let Some(note) = span.note.as_ref().filter(|_| whole) {
        text = format!("{text}; {note}");
    }
    if opens.offset() != closes.offset() && whole {
        let minutes = span.closes.since(span.opens).0 / 60_000;
        text = format!("{text}; the clock changes meanwhile: {}h{:02} pass", minutes / 60, minutes % 60);
    }
    Opening { opens: span.opens, closes: span.closes, text, fit: span.fit, overrun: span.overrun }
}

/// Until when, without a break, the clock of a zone shows a time within the hours;
/// none if it does not at `at`.
fn there_until(tz: &TimeZone, hours: Hours, at: Timestamp) -> Option<Timestamp> {
    let Hours::Daily(from, to) = hours else { return Some(NEVER) };
    let now = zoned(at, tz);
    let second = |t: ClockTime| i64::from(t.0) * 60;
    let shown = i64::from(now.hour()) * 3_600 + i64::from(now.minute()) * 60 + i64::from(now.second());
    let (from, to) = (second(from), second(to));
    let left = if from < to {
        (from <= shown && shown < to).then(|| to - shown)?
    } else if shown >= from {
        86_400 - shown + to
    } else {
        (shown < to).then(|| to - shown)?
    };
    // Whole seconds of the clock; what is below one belongs to it.
    let base = Timestamp(at.0 / 1_000 * 1_000);
    let end = Timestamp(base.0.saturating_add(u64::try_from(left).ok()?.saturating_mul(1_000)));
    // Where the clock is set meanwhile, it is read again.
    let set = tz.following(now.timestamp()).next().and_then(|t| stamp(t.timestamp()));
    Some(set.map_or(end, |set| end.min(set)))
}

const fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

fn zoned(at: Timestamp, tz: &TimeZone) -> Zoned {
    let instant = i64::try_from(at.0).ok().and_then(|ms| Instant::from_millisecond(ms).ok()).unwrap_or(Instant::MAX);
    instant.to_zoned(tz.clone())
}

fn stamp(at: Instant) -> Option<Timestamp> {
    u64::try_from(at.as_millisecond()).ok().map(Timestamp)
}

fn local(at: &Zoned) -> String {
    at.strftime("%a %Y-%m-%d %H:%M %Z").to_string()
}

fn clock(at: &Zoned) -> String {
    at.strftime("%H:%M %Z").to_string()
}

#[cfg(test)]
mod tests;
