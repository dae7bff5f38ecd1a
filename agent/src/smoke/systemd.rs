//! The unit is active and was restarted at most so often since the swap.

use super::{Attempt, Beside};

pub(super) async fn attempt(beside: &Beside<'_>, max_restarts: u32) -> Result<String, Attempt> {
    let status = beside.services.try_status(beside.installed).await.map_err(|e| Attempt::Fail(e.message))?;
    let restarts = status.restarts;
    if restarts > max_restarts {
        // The count only rises.
        return Err(Attempt::Never(format!("the unit was restarted {restarts} times, at most {max_restarts} wanted")));
    }
    if !status.active {
        return Err(Attempt::Fail("the unit is not active".to_owned()));
    }
    Ok(format!("active, restarted {restarts} times"))
}
