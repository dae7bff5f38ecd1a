//! The keys of plan.toml that are about people and time: approvals, windows,
//! contacts, notifications, the change request and its risks.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Span;

macro_rules! choice {
    ($(#[$doc:meta])* $type:ident, $kind:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $type { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $type {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As it is written.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let known: Vec<&str> = Self::ALL.iter().map(|v| v.word()).collect();
                Self::ALL
                    .iter()
                    .copied()
                    .find(|v| v.word() == text)
                    .ok_or_else(|| format!("{text:?} is not a {}: {}", $kind, known.join(", ")))
            }
        }
    };
}

choice! {
    /// Who approves.
    Role, "role" {
        /// The technical lead.
        TechLead = "tech-lead",
        /// Security.
        Security = "security",
        /// Operations.
        Operations = "operations",
        /// The product owner, if applicable.
        ProductOwner = "product-owner",
        /// The change advisory board.
        Cab = "cab",
    }
}

choice! {
    /// Whom to call.
    ContactRole, "role of a contact" {
        /// Leads the deployment.
        Lead = "lead",
        /// Is on call.
        OnCall = "on-call",
        /// Is called when the others do not answer.
        Escalation = "escalation",
    }
}

choice! {
    /// What is told.
    Topic, "topic" {
        /// The rollout began.
        Started = "started",
        /// A stage passed.
        Stage = "stage",
        /// It ended well.
        Completed = "completed",
        /// Something went wrong.
        Issue = "issue",
        /// It waits for a person.
        Paused = "paused",
        /// It goes back, or went back.
        Rollback = "rollback",
    }
}

choice! {
    /// By what.
    Via, "channel" {
        /// An incoming webhook of Slack.
        Slack = "slack",
        /// SMTP.
        Email = "email",
        /// Events API v2.
        Pagerduty = "pagerduty",
        /// JSON over HTTP, signed.
        Webhook = "webhook",
    }
}

choice! {
    /// What a change is.
    ChangeType, "type of change" {
        /// Approved once and for all, as a template.
        Standard = "standard",
        /// With the change advisory board.
        Normal = "normal",
        /// One approver; crosses windows and freezes; reviewed afterwards.
        Emergency = "emergency",
    }
}

choice! {
    /// How risky it is.
    Level, "risk level" {
        /// Low.
        Low = "low",
        /// Medium.
        Medium = "medium",
        /// High: two approvers.
        High = "high",
    }
}

choice! {
    /// Likelihood or impact.
    Grade, "grade" {
        /// Low.
        L = "L",
        /// Medium.
        M = "M",
        /// High.
        H = "H",
    }
}

choice! {
    /// A day of the week, in the window's zone.
    Day, "day" {
        /// Monday.
        Mon = "Mon",
        /// Tuesday.
        Tue = "Tue",
        /// Wednesday.
        Wed = "Wed",
        /// Thursday.
        Thu = "Thu",
        /// Friday.
        Fri = "Fri",
        /// Saturday.
        Sat = "Sat",
        /// Sunday.
        Sun = "Sun",
    }
}

choice! {
    /// What must fit into what is left of a window.
    Fit, "fit" {
        /// All stages, the swaps and the way back.
        All = "all",
        /// The next stage and the way back.
        Stage = "stage",
    }
}

/// A time of the day: `"22:00"`. Minutes since midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClockTime(pub u16);

impl FromStr for ClockTime {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a time of the day: write for example \"22:00\"");
        let (hours, minutes) = text.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2).ok_or_else(bad)?;
        let number = |part: &str, below: u16| part.parse::<u16>().ok().filter(|n| *n < below && part.bytes().all(|c| c.is_ascii_digit()));
        let (hours, minutes) = number(hours, 24).zip(number(minutes, 60)).ok_or_else(bad)?;
        Ok(Self(hours * 60 + minutes))
    }
}

impl fmt::Display for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// When somebody is there: `"22:00-06:00"`, `"always"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hours {
    /// Round the clock.
    Always,
    /// From, to; over midnight when `to` is not after `from`.
    Daily(ClockTime, ClockTime),
}

impl FromStr for Hours {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text, "always" | "24/7") {
            return Ok(Self::Always);
        }
        let (from, to) =
            text.split_once('-').ok_or_else(|| format!("{text:?} is not a time: write for example \"22:00-06:00\", or \"always\""))?;
        let (from, to): (ClockTime, ClockTime) = (from.trim().parse()?, to.trim().parse()?);
        Ok(if from == to { Self::Always } else { Self::Daily(from, to) })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Daily(from, to) => write!(f, "{from}-{to}"),
        }
    }
}

macro_rules! as_text {
    ($($type:ty),+) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.to_string())
            }
        }
    )+ };
}
as_text!(ClockTime, Hours);

/// `[[approval]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalSpec {
    /// Whose.
    pub role: Role,
    /// Given, or said to be not applicable with a reason.
    #[serde(default)]
    pub optional: bool,
}

/// `[[window]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    /// Empty: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// None: the whole day.
    pub start_time: Option<ClockTime>,
    /// From `start_time`; 1 to 10080. Needed with it.
    pub length_minutes: Option<u32>,
    /// IANA name; UTC without one.
    pub time_zone: Option<String>,
    /// What must fit (default: all).
    pub fit: Option<Fit>,
    /// Past its end the rollout goes on.
    #[serde(default)]
    pub overrun: bool,
}

/// `[[contact]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactSpec {
    /// As what.
    pub role: ContactRole,
    /// Who.
    pub name: String,
    /// How.
    pub phone: String,
    /// When, in `time_zone`.
    pub available: Hours,
    /// IANA name; without one that of the first window, else UTC.
    pub time_zone: Option<String>,
}

/// `[[notify]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifySpec {
    /// What.
    pub on: Vec<Topic>,
    /// A route of controller.toml; for people the audience.
    pub to: String,
    /// Its kind.
    pub via: Via,
}

/// `[change]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeSpec {
    /// `CR-1042`.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ChangeType,
    /// How risky.
    pub risk: Level,
    /// One line.
    pub summary: String,
    /// Why it is needed; wanted for normal and emergency changes.
    pub justification: Option<String>,
    /// Declared; compared with what is measured.
    pub downtime: Option<Span>,
    /// Declared; compared with what is measured.
    pub rollback_time: Option<Span>,
}

/// `[[risk]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskSpec {
    /// What may happen.
    pub name: String,
    /// How likely.
    pub likelihood: Grade,
    /// How bad.
    pub impact: Grade,
    /// What is done about it; wanted when both are high.
    pub mitigation: Option<String>,
}

/// Most entries of each list here.
const ENTRIES_MAX: usize = 64;
/// Longest text of one value, bytes.
const TEXT_BYTES_MAX: usize = 4 * 1024;

impl super::Spec {
    /// What these keys must hold among themselves.
    pub(super) fn check_process(&self, bad: &dyn Fn(&str, &str) -> Result<(), super::SpecError>) -> Result<(), super::SpecError> {
        let lists = [
            ("approval", self.approval.len()),
            ("window", self.window.len()),
            ("contact", self.contact.len()),
            ("notify", self.notify.len()),
            ("risk", self.risk.len()),
            ("dashboards", self.dashboards.len()),
            ("attest", self.attest.len()),
        ];
        for (key, len) in lists {
            if len > ENTRIES_MAX {
                return bad(key, &format!("{len} entries, at most {ENTRIES_MAX} are taken"));
            }
        }
        for window in &self.window {
            match (window.start_time, window.length_minutes) {
                (Some(_), None) => return bad("window.length_minutes", "start_time needs it: write for example length_minutes = 360"),
                (None, Some(_)) => return bad("window.start_time", "length_minutes needs it; without both a window is the whole day"),
                (Some(_), Some(minutes)) if !(1..=10_080).contains(&minutes) => {
                    return bad("window.length_minutes", "from 1 minute to 10080 (a week) is wanted");
                }
                _ => {}
            }
        }
        for (i, approval) in self.approval.iter().enumerate() {
            if self.approval.iter().take(i).any(|a| a.role == approval.role) {
                return bad("approval", &format!("role {} stands there twice", approval.role));
            }
            if approval.optional && approval.role != Role::ProductOwner {
                return bad("approval.optional", "only the product owner's approval may be optional");
            }
        }
        if self.notify.iter().any(|n| n.on.is_empty()) {
            return bad("notify.on", "it names nothing to tell: write for example on = [\"issue\"]");
        }
        if let Some(change) = &self.change {
            if change.kind != ChangeType::Standard && change.justification.as_deref().unwrap_or_default().trim().is_empty() {
                return bad("change.justification", "normal and emergency changes say why they are needed");
            }
            if change.id.trim().is_empty() || change.summary.trim().is_empty() {
                return bad("change", "id and summary must not be empty");
            }
        }
        for risk in &self.risk {
            if risk.likelihood == Grade::H && risk.impact == Grade::H && risk.mitigation.as_deref().unwrap_or_default().trim().is_empty() {
                return bad("risk.mitigation", &format!("{:?} is likely and bad: say what is done about it", risk.name));
            }
        }
        let texts = self
            .contact
            .iter()
            .flat_map(|c| [c.name.as_str(), c.phone.as_str()])
            .chain(self.change.iter().flat_map(|c| [c.id.as_str(), c.summary.as_str(), c.justification.as_deref().unwrap_or_default()]))
            .chain(self.risk.iter().flat_map(|r| [r.name.as_str(), r.mitigation.as_deref().unwrap_or_default()]))
            .chain(self.dashboards.iter().map(String::as_str))
            .chain(self.lead.as_deref());
        for text in texts {
            if text.len() > TEXT_BYTES_MAX {
                return bad(
                    "contact, change, risk, dashboards, lead",
                    &format!("a text of {} bytes; at most {TEXT_BYTES_MAX}", text.len()),
                );
            }
        }
        if let Some(url) = self.dashboards.iter().find(|u| !u.starts_with("https://") && !u.starts_with("http://")) {
            return bad("dashboards", &format!("{url:?} is not an address that begins with https:// or http://"));
        }
        for item in &self.attest {
            if !crate::process::is_item_name(item) {
                return bad("attest", &format!("{item:?} is not a name: lower-case letters, digits and '-', at most 64"));
            }
        }
        Ok(())
    }
}
