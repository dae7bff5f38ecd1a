//! A program of the release exits 0.

use std::time::Duration;

use super::{Attempt, Beside};
use crate::error::chain;
use crate::exec::{self, ExecError, Mode};

pub(super) async fn attempt(beside: &Beside<'_>, run: &[String], timeout: Duration) -> Result<String, Attempt> {
    let name = run.join(" ");
    match exec::run(beside.ctx, beside.installed, run, Mode::Confined, timeout).await {
        Ok(ran) if ran.success => Ok(format!("{name} → {}", ran.end)),
        Ok(ran) if ran.output.is_empty() => Err(Attempt::Fail(format!("{name} → {}, exit code 0 wanted", ran.end))),
        Ok(ran) => Err(Attempt::Fail(format!("{name} → {}, exit code 0 wanted; it said: {}", ran.end, ran.output))),
        Err(error @ (ExecError::Timeout { .. } | ExecError::Wait { .. } | ExecError::Spawn { .. })) => {
            Err(Attempt::Fail(format!("{name}: {}", chain(&error))))
        }
        Err(error) => Err(Attempt::Never(format!("{name}: {}", chain(&error)))),
    }
}
