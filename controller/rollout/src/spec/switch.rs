//! Blue-green in plan.toml: how traffic moves, and what must hold then.
//!
//! Must not: know hosts or sides; the plan resolves them.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Span, SpecError};

/// A command: a list, or one string that is split at spaces.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Command {
    /// `"lb-switch ${side}"`.
    Line(String),
    /// `["bin/switch", "${side}"]`.
    List(Vec<String>),
}

impl Command {
    /// Program and arguments.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Line(line) => line.split_whitespace().map(ToString::to_string).collect(),
            Self::List(list) => list.clone(),
        }
    }
}

/// `switch`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchSpec {
    /// Moves the traffic: a name of `[commands]` or a file of the release. Gets the
    /// side as `${side}`; where neither mentions it, as its last argument.
    pub run: Command,
    /// What must hold then.
    pub verify: Option<VerifySpec>,
}

impl SwitchSpec {
    pub(super) fn check(&self, bad: &impl Fn(&str, &str) -> Result<(), SpecError>) -> Result<(), SpecError> {
        if self.run.argv().is_empty() {
            return bad("switch.run", "a name of the hosts' [commands] or a file of the release is wanted, and its arguments");
        }
        match &self.verify {
            None => Ok(()),
            Some(VerifySpec::Smoke(id)) if id.trim().is_empty() => bad("switch.verify", "the id of a smoke test is wanted"),
            Some(VerifySpec::Smoke(_)) => Ok(()),
            Some(VerifySpec::Check(check)) => {
                if [check.http.is_some(), check.tcp.is_some(), check.exec.is_some()].iter().filter(|given| **given).count() != 1 {
                    return bad("switch.verify", "write exactly one of http, tcp and exec");
                }
                if check.timeout.is_some_and(|t| t.0.0 == 0) {
                    return bad("switch.verify.timeout", "more than 0s is wanted");
                }
                Ok(())
            }
        }
    }
}

/// `switch.verify`: one check, as in a smoke test, or the id of a smoke test.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum VerifySpec {
    /// The id of one of the component's smoke tests.
    Smoke(String),
    /// A check of its own.
    Check(alloc::boxed::Box<VerifyCheck>),
}

/// A check of its own; exactly one of `http`, `tcp`, `exec`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyCheck {
    /// `{ url, status, body }`.
    pub http: Option<HttpCheck>,
    /// `{ address }`.
    pub tcp: Option<TcpCheck>,
    /// `{ run }`.
    pub exec: Option<ExecCheck>,
    /// Of one attempt (default 5s).
    pub timeout: Option<Span>,
    /// Attempts go on this long (default 10s).
    pub retry_for: Option<Span>,
}

/// `http = { … }`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// What is called.
    pub url: String,
    /// The status wanted (default 200).
    pub status: Option<u16>,
    /// A text the body must contain.
    pub body: Option<String>,
}

/// `tcp = { … }`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {
    /// `HOST:PORT`.
    pub address: String,
}

/// `exec = { … }`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExecCheck {
    /// Exit 0 passes.
    pub run: Command,
}

/// Who moves the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchMode {
    /// `rollout promote`.
    Manual,
    /// The gate on the idle sides.
    #[default]
    #[serde(alias = "automatic")]
    Auto,
}
