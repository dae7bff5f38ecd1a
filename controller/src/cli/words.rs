//! Words of the process on the command line: closed lists that TAB completes, and
//! points in time.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tidegate_protocol::Timestamp;
use tidegate_rollout::process::{Override, Role, SignRole};

/// `tech-lead`, `security`, …
pub(super) fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.iter().map(|r| r.word())).try_map(|word| word.parse::<Role>())
}

/// Who may go past a window or a freeze.
pub(super) fn overriding_role() -> impl TypedValueParser<Value = Role> {
    // Both take the same roles; one list serves either.
    let roles = Override::Window.roles().iter().filter(|r| Override::Freeze.roles().contains(r));
    PossibleValuesParser::new(roles.map(|r| r.word())).try_map(|word| word.parse::<Role>())
}

/// `lead`, `ops-lead`; `operations` means the latter.
pub(super) fn sign_role() -> impl TypedValueParser<Value = SignRole> {
    let (lead, ops) = (SignRole::Lead.word(), SignRole::OpsLead.word());
    let words = [PossibleValue::new(lead), PossibleValue::new(ops).alias("operations")];
    PossibleValuesParser::new(words).map(move |word| if word == lead { SignRole::Lead } else { SignRole::OpsLead })
}

/// `window`, `freeze`.
pub(super) fn overridden() -> impl TypedValueParser<Value = Override> {
    let (window, freeze) = (Override::Window.word(), Override::Freeze.word());
    PossibleValuesParser::new([window, freeze]).map(move |word| if word == window { Override::Window } else { Override::Freeze })
}

/// A point in time, for clap. Without its zone it would mean another hour to
/// whoever reads the freeze elsewhere, so the zone is asked for.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let parsed = text.parse::<jiff::Timestamp>().or_else(|_| text.parse::<jiff::Zoned>().map(|z| z.timestamp()));
    let at = parsed.map_err(|_| {
        "write a date, a time and its zone: 2026-12-24T18:00Z, 2026-12-24T18:00+01:00 or 2026-12-24T18:00[Europe/Berlin]".to_owned()
    })?;
    u64::try_from(at.as_millisecond()).map(Timestamp).map_err(|_| "a time before 1970".into())
}

/// Text that says something, for clap.
pub(super) fn said(text: &str) -> Result<String, String> {
    const TEXT_BYTES_MAX: usize = 4 * 1024;
    let text = text.trim();
    if text.is_empty() {
        return Err("say it in a few words".into());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("{} bytes; at most {TEXT_BYTES_MAX} are taken", text.len()));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_needs_its_zone() {
        let at = Timestamp(1_798_131_600_000);
        for text in ["2026-12-24T17:00Z", "2026-12-24T18:00+01:00", "2026-12-24T18:00:00[Europe/Berlin]", "2026-12-24 18:00:00+01:00"] {
            assert_eq!(time(text), Ok(at), "{text}");
        }
        for text in ["", "2026-12-24", "2026-12-24T18:00", "18:00", "tomorrow", "1969-12-24T18:00Z"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
