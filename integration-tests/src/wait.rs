//! The one place that sleeps: polling until a state is reached.
//!
//! Level-triggered on purpose: a state that was reached before anybody looked
//! counts, so no test depends on who was faster.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const STEP: Duration = Duration::from_millis(40);

/// What one look found.
#[derive(Debug)]
pub enum Look<T> {
    /// It is so.
    Done(T),
    /// Not yet; the text says what is so instead, for the error.
    NotYet(String),
}

impl<T> Look<T> {
    /// [`Look::Done`] if there is a value.
    pub fn from_option(value: Option<T>, otherwise: impl FnOnce() -> String) -> Self {
        value.map_or_else(|| Self::NotYet(otherwise()), Self::Done)
    }
}

/// Looks until `look` says [`Look::Done`], at most `timeout` long.
///
/// # Errors
/// `look`'s own at once; or, after `timeout`, `what` with what was so last.
pub fn wait_until<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> anyhow::Result<Look<T>>) -> anyhow::Result<T> {
    let end = Instant::now() + timeout;
    loop {
        match look().with_context(|| format!("waiting until {what}"))? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(last) if Instant::now() >= end => bail!("waited {timeout:?} in vain until {what}; last: {last}"),
            Look::NotYet(_) => thread::sleep(STEP),
        }
    }
}

/// [`wait_until`] for a plain condition.
///
/// # Errors
/// As [`wait_until`].
pub fn wait_for(what: &str, timeout: Duration, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_until(what, timeout, || Ok(if is_so()? { Look::Done(()) } else { Look::NotYet("not so".to_owned()) }))
}

/// Holds a state for `length` while `check` must stay true: for "nothing
/// happens", which no state can show.
///
/// # Errors
/// `check`'s own, at once.
pub fn hold(length: Duration, mut check: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let end = Instant::now() + length;
    while Instant::now() < end {
        check()?;
        thread::sleep(STEP);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_never_comes_is_an_error_that_says_what_was_so() {
        let error = wait_until::<()>("pigs fly", Duration::ZERO, || Ok(Look::NotYet("they walk".to_owned()))).unwrap_err();
        assert!(error.to_string().contains("pigs fly") && error.to_string().contains("they walk"), "{error}");
        let mut looks = 0;
        let found = wait_until("third time", Duration::from_secs(5), || {
            looks += 1;
            Ok(Look::from_option((looks == 3).then_some(looks), String::new))
        });
        assert_eq!(found.unwrap(), 3);
    }
}
