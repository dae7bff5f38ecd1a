//! The timestamps of `valid-after` and `valid-before`.
//!
//! Only UTC: without the `Z` OpenSSH takes the time zone of the machine that
//! verifies, so one file would mean different things on controller and agents.

use std::fmt;

/// Seconds since 1970, UTC. Displayed as `2027-01-31 12:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seconds(pub(super) u64);

/// Why a text is no timestamp here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTime {
    /// No `Z` at the end: local time, of whichever machine.
    #[error("no time zone, so it would mean the local time of each machine: end it with a Z, for UTC")]
    NoZone,
    /// Neither of the two forms.
    #[error("not a time: write YYYYMMDDZ or YYYYMMDDHHMM[SS]Z, as in \"20270131Z\"")]
    Form,
    /// As the 30th of February, or before 1970.
    #[error("no such time in the calendar since 1970: check the month, the day and the hour")]
    Calendar,
}

pub(super) fn parse(text: &str) -> Result<Seconds, BadTime> {
    let zone = ["z", "utc"].into_iter().find_map(|zone| {
        let at = text.len().checked_sub(zone.len())?;
        text.get(at..)?.eq_ignore_ascii_case(zone).then_some(at)
    });
    let digits = text.get(..zone.unwrap_or(text.len())).unwrap_or_default();
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadTime::Form);
    }
    if zone.is_none() {
        return Err(BadTime::NoZone);
    }
    let number = |from: usize, to: usize| digits.get(from..to).map_or(Ok(0), str::parse::<u64>).map_err(|_| BadTime::Form);
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(8, 10)?, number(10, 12)?, number(12, 14)?);
    if year < 1970 || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 59 {
        return Err(BadTime::Calendar);
    }
    let days = (1970..year).map(days_in_year).sum::<u64>() + (1..month).map(|m| days_in(year, m)).sum::<u64>() + day - 1;
    Ok(Seconds(days * 86_400 + hour * 3600 + minute * 60 + second))
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

/// 0 for a month that does not exist.
const fn days_in(year: u64, month: u64) -> u64 {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 0,
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every value that is shown was parsed above, so the year has four digits and the loop is short.
        let (mut year, mut month, mut day) = (1970, 1, self.0 / 86_400);
        while year < 9999 && day >= days_in_year(year) {
            day -= days_in_year(year);
            year += 1;
        }
        while month < 12 && day >= days_in(year, month) {
            day -= days_in(year, month);
            month += 1;
        }
        let of_day = self.0 % 86_400;
        write!(f, "{year:04}-{month:02}-{:02} {:02}:{:02}:{:02}Z", day + 1, of_day / 3600, of_day / 60 % 60, of_day % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_in_utc() {
        for (text, seconds, shown) in [
            ("19700101Z", 0, "1970-01-01 00:00:00Z"),
            ("20000229Z", 951_782_400, "2000-02-29 00:00:00Z"),
            ("20270131z", 1_801_353_600, "2027-01-31 00:00:00Z"),
            ("202701311234UTC", 1_801_398_840, "2027-01-31 12:34:00Z"),
            ("20991231235959Z", 4_102_444_799, "2099-12-31 23:59:59Z"),
            ("99991231235959Z", 253_402_300_799, "9999-12-31 23:59:59Z"),
        ] {
            assert_eq!(parse(text), Ok(Seconds(seconds)), "{text}");
            assert_eq!(Seconds(seconds).to_string(), shown);
        }
    }

    #[test]
    fn everything_else_is_refused_by_its_cause() {
        for (text, error) in [
            ("20270131", BadTime::NoZone),
            ("202701311234", BadTime::NoZone),
            ("", BadTime::Form),
            ("Z", BadTime::Form),
            ("2027-01-31Z", BadTime::Form),
            ("2027013112Z", BadTime::Form),
            ("+0270131Z", BadTime::Form),
            ("20270131ZZ", BadTime::Form),
            ("2027013é", BadTime::Form),
            ("20270229Z", BadTime::Calendar),
            ("20271301Z", BadTime::Calendar),
            ("20270100Z", BadTime::Calendar),
            ("202701012400Z", BadTime::Calendar),
            ("19691231Z", BadTime::Calendar),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
