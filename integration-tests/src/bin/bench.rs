//! `cargo run --release -p tidegate-integration-tests --bin bench [-- NAME…] [--runs N]`:
//! the benchmarks, or those named. See BENCHMARKS.md.

use std::process::ExitCode;

use anyhow::{Context, bail};
use tidegate_integration_tests::bench::{Settings, names, run};

const RUNS: usize = 5;

fn help() {
    println!("bench [NAME\u{2026}] [--runs N]   (N is {RUNS} unless said)\n");
    for (name, title) in names() {
        println!("    {name:<10}{title}");
    }
}

/// None: only help was wanted.
fn arguments(mut words: impl Iterator<Item = String>) -> anyhow::Result<Option<(Vec<String>, Settings)>> {
    let (mut wanted, mut runs) = (Vec::new(), RUNS);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--runs" => {
                let count = words.next().context("--runs needs a number")?;
                runs = count.parse().ok().filter(|runs| *runs > 0).with_context(|| format!("--runs {count}: a number from 1 is wanted"))?;
            }
            option if option.starts_with('-') => bail!("there is no option {option}; see --help"),
            name => wanted.push(name.to_owned()),
        }
    }
    Ok(Some((wanted, Settings { runs })))
}

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("bench: this is a debug build; its figures mean nothing (cargo run --release \u{2026})");
    }
    let done = arguments(std::env::args().skip(1)).and_then(|arguments| match arguments {
        Some((wanted, settings)) => run(&wanted, settings),
        None => {
            help();
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> anyhow::Result<Option<(Vec<String>, Settings)>> {
        arguments(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn names_and_runs_are_read() {
        let (wanted, settings) = parse(&["idle", "--runs", "3", "stage"]).unwrap().unwrap();
        assert_eq!((wanted.join(" ").as_str(), settings.runs), ("idle stage", 3));
        assert!(parse(&["--help"]).unwrap().is_none());
        for wrong in [&["--runs"][..], &["--runs", "0"], &["--fast"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
