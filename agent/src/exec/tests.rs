//! Small scripts, run as releases' commands are.

use super::*;
use crate::context::tests::{context, installed, scratch};
use tidegate_protocol::release::Service;

fn script(dir: &Path, text: &str) -> Installed {
    let text = format!("#!/bin/sh\n{text}\n");
    installed(dir, "1", &[("bin/t", text.as_bytes())], Service::Systemd("x.service".into()))
}

async fn run_it(installed: &Installed, dir: &Path, timeout_ms: u64) -> Result<Ran, ExecError> {
    run(&context(dir), installed, &["bin/t".into(), "a b".into()], Mode::Confined, Duration::from_millis(timeout_ms)).await
}

#[tokio::test]
async fn output_and_exit_code_come_back_and_the_environment_is_clean() {
    let dir = scratch();
    let it = script(dir.path(), "echo \"$# $1 ${HOME-none} $(pwd)\"; echo oops >&2; id -u; exit 3");
    let ran = run_it(&it, dir.path(), 10_000).await.unwrap();
    assert!(!ran.success);
    assert_eq!(ran.end, "exit code 3");
    assert!(ran.stdout.starts_with(&format!("1 a b none {} | ", it.dir.display())), "{}", ran.stdout);
    assert!(ran.output.contains("oops") && !ran.stdout.contains("oops"));
    assert_eq!(ran.stderr_line, "oops");
    assert!(ran.stdout.ends_with(&format!(" | {}", ran.stdout_line)), "{} is the last line of {}", ran.stdout_line, ran.stdout);
    assert!(!ran.stdout.ends_with("| 0"), "ran as root: {}", ran.stdout);
}

#[tokio::test]
async fn a_timeout_kills_grandchildren_too() {
    let dir = scratch();
    let it = script(dir.path(), "sleep 600 & echo $!; wait");
    let error = run_it(&it, dir.path(), 300).await.unwrap_err();
    let ExecError::Timeout { output, .. } = error else { panic!("{error}") };
    gone(output.parse().unwrap()).await;
}

#[tokio::test]
async fn a_grandchild_that_holds_the_pipes_neither_delays_nor_survives_the_end() {
    let dir = scratch();
    let it = script(dir.path(), "sleep 600 & echo $!");
    let ran = run_it(&it, dir.path(), 60_000).await.unwrap();
    assert!(ran.success);
    gone(ran.stdout.parse().unwrap()).await;
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let dir = scratch();
    let pid_file = dir.path().join("pid");
    std::fs::write(&pid_file, "").unwrap();
    std::fs::set_permissions(&pid_file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let it = script(dir.path(), &format!("sleep 600 & echo $! > {}; wait", pid_file.display()));
    let (base, running) = (dir.path().to_owned(), it.clone());
    let task = tokio::spawn(async move { run_it(&running, &base, 60_000).await });
    let pid = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Ok(pid) = std::fs::read_to_string(&pid_file).unwrap().trim().parse::<u32>() {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let pid = pid.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    gone(pid).await;
}

#[tokio::test]
async fn endless_output_is_cut() {
    let dir = scratch();
    let it =
        script(dir.path(), "i=0; while [ $i -lt 5000 ]; do echo 'a line of some length that is repeated'; i=$((i+1)); done; echo last");
    let ran = run_it(&it, dir.path(), 30_000).await.unwrap();
    assert!(ran.output.len() <= OUTPUT_BYTES_MAX && ran.output.ends_with("| last"), "{}", ran.output);
}

#[test]
fn only_files_of_the_tree_and_names_of_the_host_run() {
    let dir = scratch();
    let mut ctx = context(dir.path());
    ctx.policy.commands.insert("lb".into(), vec!["/usr/sbin/lb".into(), "--local".into()]);
    ctx.policy.commands.insert("bad".into(), vec!["lb".into()]);
    let mut it = script(dir.path(), "true");
    let resolved = |it: &Installed, word: &str| resolve(&ctx, it, &[word.to_owned(), "${var.port}".into()]);
    assert_eq!(resolved(&it, "bin/t").unwrap(), Program { path: it.dir.join("bin/t"), args: vec!["8081".into()] });
    assert_eq!(resolved(&it, "lb").unwrap(), Program { path: "/usr/sbin/lb".into(), args: vec!["--local".into(), "8081".into()] });
    for word in ["/bin/sh", "sh", "../../bin/sh", "bin/../bin/t", "/usr/sbin/lb", ""] {
        assert!(matches!(resolved(&it, word), Err(ExecError::NotAllowed { .. })), "{word}");
    }
    assert!(matches!(resolved(&it, "bad"), Err(ExecError::BadCommand { .. })));
    it.component.files[0].mode = 0o444;
    assert!(matches!(resolved(&it, "bin/t"), Err(ExecError::NotExecutable { .. })));
}

#[test]
fn users_are_found_by_name_and_number() {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nrun:x:970:971::/:/bin/false\n";
    assert_eq!(find_user(passwd, "run"), Some((970, 971)));
    assert_eq!(find_user(passwd, "970"), Some((970, 971)));
    assert_eq!(find_user(passwd, "ru"), None);
}

/// Its parent is gone, so it may stay a zombie for as long as PID 1 likes.
async fn gone(pid: u32) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while Process::find(pid).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("process {pid} still runs"));
}
