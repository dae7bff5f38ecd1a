//! Logs to stderr: plain for the journal, with times elsewhere.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Which lines are shown; the syntax of `RUST_LOG`, default `info`.
pub const VARIABLE: &str = "TIDEGATE_LOG";

/// Begins to log. A second call changes nothing.
pub fn begin() {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).with_env_var(VARIABLE).from_env_lossy();
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).with_target(false);
    // The journal has its own times.
    let begun = if std::env::var_os("JOURNAL_STREAM").is_some() { logs.without_time().try_init() } else { logs.try_init() };
    drop(begun);
}
