//! What a test sets while the service runs: how many requests fail, how long
//! each takes, what it writes to its log.
//!
//! Owns the control file and the knobs. Must not answer requests. Lines of
//! `key = value`:
//!
//! - `error_rate`: percent of requests that fail, evenly spread: at 0.5 each 200th
//! - `latency_ms`: of every answer
//! - `panic = 1`: says so on stderr, once
//! - `log`: a text for stderr, once
//! - `[VERSION]`: the lines below are for the release of that version only
//!
//! A file that is not there sets nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

/// Between two looks at the control file.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const MILLION: u64 = 1_000_000;

/// What can be set in the configuration, and later in the control file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Failing requests in a million.
    pub(crate) errors_ppm: u64,
    pub(crate) latency: Duration,
}

impl Settings {
    /// Takes a line in; false if the key is none of these.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> anyhow::Result<bool> {
        match key {
            "error_rate" => self.errors_ppm = ppm(value)?,
            "latency_ms" => {
                let ms: f64 = value.parse().context("latency_ms")?;
                self.latency = Duration::try_from_secs_f64(ms / 1000.0).context("latency_ms")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn ppm(percent: &str) -> anyhow::Result<u64> {
    let percent: f64 = percent.parse().context("error_rate")?;
    if !(0.0..=100.0).contains(&percent) {
        bail!("error_rate is 0 to 100 percent, not {percent}");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
    Ok((percent * 10_000.0).round() as u64)
}

/// What the control file says to one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Orders {
    settings: Settings,
    panic: bool,
    log: Option<String>,
}

impl Orders {
    fn parse(text: &str, version: &str, base: Settings) -> anyhow::Result<Self> {
        let mut orders = Self { settings: base, ..Self::default() };
        let mut mine = true;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                mine = section == version;
                continue;
            }
            let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
                bail!("{line:?} is neither key = value nor [VERSION]");
            };
            // Read for all, so that a mistake is seen whoever it is for.
            let mut one = orders.clone();
            match key {
                "panic" => one.panic = value != "0",
                "log" => one.log = Some(value.to_owned()),
                _ if one.settings.set(key, value)? => {}
                _ => bail!("unknown key {key:?}"),
            }
            if mine {
                orders = one;
            }
        }
        Ok(orders)
    }
}

/// The settings in force, and whose turn it is to fail.
#[derive(Clone, Debug)]
pub(crate) struct Knobs(Arc<Mutex<Dial>>);

#[derive(Debug)]
struct Dial {
    settings: Settings,
    due: u64,
}

impl Knobs {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(Arc::new(Mutex::new(Dial { settings, due: 0 })))
    }

    /// How the next request shall go: whether it fails, and after which time it
    /// is answered.
    pub(crate) fn next(&self) -> (bool, Duration) {
        let mut dial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dial.due += dial.settings.errors_ppm;
        let fails = dial.due >= MILLION;
        if fails {
            dial.due -= MILLION;
        }
        (fails, dial.settings.latency)
    }

    fn turn(&self, settings: Settings) {
        let mut dial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if dial.settings != settings {
            *dial = Dial { settings, due: 0 };
        }
    }
}

/// Does what the control file says, for as long as the service runs. A line that
/// is none is said on stderr and changes nothing.
pub(crate) async fn follow(file: PathBuf, version: String, base: Settings, knobs: Knobs) {
    let mut last = Orders { settings: base, ..Orders::default() };
    let mut complained = String::new();
    loop {
        match read(&file).and_then(|text| Orders::parse(&text, &version, base)) {
            Ok(orders) => {
                knobs.turn(orders.settings);
                if orders.panic && !last.panic {
                    eprintln!("panic: shop {version} lost its nerve");
                }
                if let Some(text) = orders.log.as_ref().filter(|text| last.log.as_ref() != Some(*text)) {
                    eprintln!("{text}");
                }
                last = orders;
            }
            Err(error) => {
                let text = format!("{}: {error:#}", file.display());
                if complained != text {
                    eprintln!("control: {text}");
                    complained = text;
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

// A few bytes, by rename: the runtime has nothing else to do meanwhile.
fn read(file: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.context("reading it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_for_its_version_only() {
        let text = "latency_ms = 20\n[2.0.0]\nerror_rate = 0.5\nlatency_ms = 50\nlog = a = b\n[3.0.0]\npanic = 1\n";
        let of = |version| Orders::parse(text, version, Settings::default()).unwrap();
        assert_eq!(of("1.0.0").settings, Settings { errors_ppm: 0, latency: Duration::from_millis(20) });
        assert_eq!(of("2.0.0").settings, Settings { errors_ppm: 5_000, latency: Duration::from_millis(50) });
        assert_eq!(of("2.0.0").log.as_deref(), Some("a = b"));
        assert!(of("3.0.0").panic && !of("2.0.0").panic);
        for bad in ["error_rate = 101", "latency_ms = -1", "speed = 3", "[2.0.0]\nword"] {
            assert!(Orders::parse(bad, "1.0.0", Settings::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn failures_are_spread_evenly() {
        let knobs = Knobs::new(Settings { errors_ppm: ppm("0.5").unwrap(), latency: Duration::ZERO });
        let failed: Vec<usize> = (1..=1000).filter(|_| knobs.next().0).collect();
        assert_eq!(failed, [200, 400, 600, 800, 1000]);
    }
}
