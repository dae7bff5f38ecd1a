//! What is done again and again beside the service: its smoke tests, and commands
//! that print a number.

use std::time::Duration;

use tidegate_protocol::limits::MESSAGE_BYTES_MAX;
use tidegate_protocol::metric::{Number, Reading};
use tidegate_protocol::release::Argv;
use tokio::time::{MissedTickBehavior, interval};

use super::bench::{Bench, NOT_INSTALLED};
use super::board::Teller;
use crate::context::{Context, Installed};
use crate::error::chain;
use crate::exec::{self, Mode};
use crate::smoke;

/// Shortest time between two rounds of smoke tests.
const ROUND_MIN: Duration = Duration::from_secs(5);
/// Longest time a command may take.
const EXEC_MAX: Duration = Duration::from_secs(10);
/// Kept of a command's last line.
const LINE_BYTES_MAX: usize = MESSAGE_BYTES_MAX;

/// The component's critical smoke tests, again: rounds with a failed one, of all.
pub(super) async fn smoke(mut bench: Bench, teller: Teller) {
    if !bench.ready().await {
        return;
    }
    let mut ticks = interval(bench.every.max(ROUND_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut bad, mut total, mut note) = (0, 0, None::<String>);
    let mut subject = bench.now();
    bench.another(&subject);
    loop {
        tokio::select! {
            () = bench.changed() => {}
            _ = ticks.tick() => {
                match &subject.installed {
                    None => teller.failed(bench.since(), NOT_INSTALLED),
                    // A host in mid-swap has its own tests.
                    Some(_) if subject.moving => {}
                    Some(installed) => {
                        // A swap that begins meanwhile ends the round.
                        let round = tokio::select! {
                            round = smoke::again(&bench.ctx, &bench.services, installed) => Some(round),
                            () = stirred(&mut bench.subject) => None,
                        };
                        match round {
                            Some(Ok(0)) => teller.failed(bench.since(), "the component has no critical smoke test that can be repeated"),
                            Some(round) => {
                                total += 1;
                                if let Err(failed) = round {
                                    (bad, note) = (bad + 1, Some(failed));
                                }
                                teller.tell(bench.since(), Reading::Ratio { bad, total }, note.as_deref());
                            }
                            None => {}
                        }
                    }
                }
            }
        }
        let (was_moving, was_there) = (subject.moving, subject.installed.is_some());
        subject = bench.now();
        if bench.another(&subject) {
            (bad, total, note) = (0, 0, None);
        }
        if (was_moving && !subject.moving) || was_there != subject.installed.is_some() {
            ticks.reset_immediately();
        }
    }
}

/// Another process, or a swap under way: what runs is not judged any more.
async fn stirred(subject: &mut tokio::sync::watch::Receiver<super::subject::Subject>) {
    let before = subject.borrow().process;
    // The change itself is left for whoever asked.
    let mut listen = subject.clone();
    let moved = listen.wait_for(|now| now.moving || (now.process.is_some() && now.process != before)).await.is_ok();
    if !moved {
        std::future::pending::<()>().await;
    }
}

/// A command whose last line is the value.
pub(super) async fn exec(mut bench: Bench, run: Argv, teller: Teller) {
    if !bench.ready().await {
        return;
    }
    let mut ticks = interval(bench.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let subject = bench.now();
        bench.another(&subject);
        let value = match &subject.installed {
            Some(installed) => value(&bench.ctx, installed, &run, bench.every.min(EXEC_MAX)).await,
            None => Err(NOT_INSTALLED.to_owned()),
        };
        match value {
            Ok(value) => teller.tell(bench.since(), Reading::Gauge(value), None),
            Err(why) => teller.failed(bench.since(), &why),
        }
    }
}

/// Runs it as a smoke test is run.
async fn value(ctx: &Context, installed: &Installed, run: &[String], limit: Duration) -> Result<Number, String> {
    let name = run.join(" ");
    let fail = |why: String| format!("{name}: {why}");
    let program = exec::resolve(ctx, installed, run).map_err(|e| fail(chain(&e)))?;
    let user = exec::confined_user(ctx).map_err(|e| fail(chain(&e)))?;
    let mut last = LastLine::default();
    let ran = exec::run_program(&program, &installed.dir, Mode::Confined, user, limit, &mut |bytes| last.take(bytes)).await;
    let ran = ran.map_err(|e| fail(chain(&e)))?;
    if !ran.success {
        let said = if ran.output.is_empty() { String::new() } else { format!("; it said: {}", ran.output) };
        return Err(fail(format!("{}, exit code 0 wanted{said}", ran.end)));
    }
    let line = last.end();
    let number = line.parse().ok().and_then(Number::new);
    number.ok_or_else(|| fail(format!("its last line is {line:?}, a finite number is wanted")))
}

/// The last line with anything in it.
#[derive(Default)]
struct LastLine {
    done: Vec<u8>,
    line: Vec<u8>,
}

impl LastLine {
    fn take(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if *byte == b'\n' {
                self.close();
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(*byte);
            }
        }
        true
    }

    fn close(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.trim_ascii().is_empty() {
            self.done = line;
        }
    }

    fn end(mut self) -> String {
        self.close();
        String::from_utf8_lossy(self.done.trim_ascii()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use tidegate_protocol::release::Service;

    #[tokio::test]
    async fn the_last_line_of_output_is_the_value() {
        let dir = scratch();
        let ctx = context(dir.path());
        let cases = [
            ("echo 7; echo; echo ' 12.5 '; echo", Some(12.5), ""),
            ("printf %s -3e2", Some(-300.0), ""),
            ("echo 3 apples", None, "\"3 apples\""),
            ("echo 'x | 5'", None, "\"x | 5\""),
            ("echo NaN", None, "\"NaN\""),
            ("echo inf", None, "\"inf\""),
            ("true", None, "\"\""),
            ("echo 5; echo why >&2; exit 4", None, "exit code 4"),
            ("sleep 60", None, "longer than"),
        ];
        for (text, wanted, word) in cases {
            let text = format!("#!/bin/sh\n{text}\n");
            let it = installed(dir.path(), "1", &[("bin/t", text.as_bytes())], Service::Systemd("x.service".into()));
            let value = value(&ctx, &it, &["bin/t".into()], Duration::from_millis(500)).await;
            assert_eq!(value.as_ref().ok().map(|n| n.get()), wanted, "{text}: {value:?}");
            assert!(value.err().unwrap_or_default().contains(word), "{text}");
            std::fs::remove_file(it.dir.join("bin/t")).unwrap();
        }
        let it = installed(dir.path(), "2", &[], Service::Systemd("x.service".into()));
        let error = value(&ctx, &it, &["/bin/echo".into(), "5".into()], Duration::from_secs(5)).await.unwrap_err();
        assert!(error.contains("neither a file of the release"), "{error}");
    }
}
