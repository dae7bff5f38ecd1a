//! The service's own Prometheus endpoint, read at each interval; observers of one
//! URL share what was read.

use std::time::Duration;

use tidegate_protocol::metric::{Reading, ScrapeRead};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::bench::{Bench, NOT_INSTALLED};
use super::board::Teller;
use super::gather::{Gather, gather};
use super::rebase::Rebase;
use super::subject::Subject;
use crate::context::Installed;
use crate::error::chain;
use crate::smoke::http::{Body, Got, get};

/// Longest wait for an answer.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Largest answer, bytes.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
const ACCEPT: &str = "text/plain;version=0.0.4";

pub(super) async fn run(mut bench: Bench, url: String, reads: Vec<(Teller, ScrapeRead)>) {
    if !bench.ready().await {
        return;
    }
    let mut rebases: Vec<Rebase> = reads.iter().map(|_| Rebase::default()).collect();
    let mut ticks = interval(bench.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = bench.changed() => {
                let subject = bench.now();
                if bench.another(&subject) {
                    rebases.iter_mut().for_each(Rebase::another);
                    ticks.reset_immediately();
                }
                continue;
            }
        }
        let subject = bench.now();
        if bench.another(&subject) {
            rebases.iter_mut().for_each(Rebase::another);
        }
        let mut outcome = scrape(&bench, &subject, &url, &reads).await;
        // The last one is not asked for by anybody: since when the page counts.
        let page_ms = outcome.pop().and_then(Result::ok).and_then(began_ms);
        let ended = bench.ended(&subject);
        for (((teller, _), rebase), reading) in reads.iter().zip(&mut rebases).zip(outcome) {
            let reading = match reading {
                // What was read of a process that is gone may be of the next one.
                Ok(raw) if !ended => Ok(rebase.take(raw, page_ms, bench.since_process())),
                other => other,
            };
            match reading {
                // It may be of the next process, of which nothing is known yet.
                Ok(_) if ended => {}
                Ok(reading) => teller.tell(bench.since_process(), reading, None),
                Err(why) => teller.failed(bench.since_process(), &why),
            }
        }
    }
}

/// When the process behind a page began, Unix milliseconds.
fn began_ms(reading: Reading) -> Option<u64> {
    match reading {
        Reading::Gauge(seconds) if seconds.get() > 0.0 => Some((seconds.get() * 1_000.0) as u64),
        _ => None,
    }
}

/// One look: a reading or a sentence for each of them, and one more for the page's
/// own age.
async fn scrape(bench: &Bench, subject: &Subject, url: &str, reads: &[(Teller, ScrapeRead)]) -> Vec<Result<Reading, String>> {
    let all = |why: &str| reads.iter().map(|_| Err(why.to_owned())).chain([Err(String::new())]).collect();
    let Some(installed) = subject.installed.as_deref() else { return all(NOT_INSTALLED) };
    let (url, target) = match bench.target(Some(installed), url) {
        Ok(found) => found,
        Err(why) => return all(&why),
    };
    let limit = bench.every.min(TIMEOUT_MAX);
    let got = match timeout(limit, get(&target, Some(ACCEPT), Body::Keep(BODY_BYTES_MAX))).await {
        Ok(Ok(got)) => got,
        Ok(Err(error)) => return all(&format!("GET {url} → {}", chain(&error))),
        Err(_) => return all(&format!("GET {url} → nothing whole within {} ms", limit.as_millis())),
    };
    let Got { status, body, cut } = got;
    if status != 200 {
        return all(&format!("GET {url} → {status}, 200 wanted"));
    }
    if cut {
        return all(&format!("GET {url} → more than {BODY_BYTES_MAX} bytes"));
    }
    let age = ScrapeRead::Gauge { series: "process_start_time_seconds".to_owned() };
    let wanted = reads.iter().map(|(_, read)| read).chain([&age]);
    let gathers = wanted.map(|read| expanded(bench, installed, read)).collect::<Vec<_>>();
    // Megabytes of text take their time.
    let gathered = tokio::task::spawn_blocking(move || gather(&String::from_utf8_lossy(&body), &gathers)).await;
    let gathered = gathered.unwrap_or_default();
    gathered.into_iter().map(|reading| reading.map_err(|why| format!("GET {url}: {why}"))).collect()
}

fn expanded(bench: &Bench, installed: &Installed, read: &ScrapeRead) -> Result<Gather, String> {
    let expand = |text: &String| bench.expand(installed, text);
    let read = match read {
        ScrapeRead::Ratio { bad, total } => ScrapeRead::Ratio { bad: expand(bad)?, total: expand(total)? },
        ScrapeRead::Histogram { name } => ScrapeRead::Histogram { name: expand(name)? },
        ScrapeRead::Counter { series } => ScrapeRead::Counter { series: expand(series)? },
        ScrapeRead::Gauge { series } => ScrapeRead::Gauge { series: expand(series)? },
    };
    Gather::new(&read).map_err(|e| e.to_string())
}
