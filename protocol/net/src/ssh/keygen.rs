//! Signing with the stock `ssh-keygen`.
//!
//! Owns: the process, the files it needs, and its end. Must not: use a shell, or
//! ask for secrets: they go from the person to ssh-keygen, past this program.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::SIGNATURE_BYTES_MAX;
use super::sign::SignError;

/// With a person at the terminal: to find the passphrase, or the security key.
const ATTENDED: Duration = Duration::from_secs(300);
/// Without: for an agent, or a touch.
const UNATTENDED: Duration = Duration::from_secs(60);
/// How often the process is looked at; a person does not notice, a machine does not care.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What is kept of its error messages.
const SAID_BYTES_MAX: usize = 4096;

/// Runs `ssh-keygen -Y sign`. The message goes through a private file, because standard input is where it may ask.
pub(super) fn sign(key: &Path, namespace: &str, message: &[u8]) -> Result<String, SignError> {
    let scratch = Scratch::create()?;
    let message_file = scratch.write("message", message)?;
    let said_file = scratch.path("stderr");
    let attended = io::stdin().is_terminal();

    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(&message_file).stdout(Stdio::null());
    if attended {
        // "Confirm user presence" is said on stderr.
        command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
    } else {
        // ssh-keygen would ask on /dev/tty, or on a display, whatever standard input is. This makes it ask a program
        // that never answers; the display is for versions before 8.4, which want one before they ask a program.
        command.env("SSH_ASKPASS", "false").env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", "none");
        command.stdin(Stdio::null()).stderr(scratch.create_file("stderr")?);
    }
    let child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SignError::NoSshKeygen { path: key.into() },
        _ => SignError::Run { source },
    })?;
    let limit = if attended { ATTENDED } else { UNATTENDED };
    let status = wait(child, limit)
        .map_err(|source| SignError::Run { source })?
        .ok_or_else(|| SignError::TimedOut { path: key.into(), seconds: limit.as_secs() })?;
    if !status.success() {
        let said = if attended {
            format!("see above ({status})")
        } else {
            let said = said(&said_file, status);
            format!("{said}; nobody is asked without a terminal: add the key to ssh-agent with ssh-add, or run this in a terminal")
        };
        return Err(SignError::Refused { path: key.into(), said });
    }
    let signature = scratch.path("message.sig");
    // One byte more than a signature may have: the caller's check refuses it by its length.
    read_text(&signature, SIGNATURE_BYTES_MAX + 1).map_err(|source| SignError::Scratch { path: signature, source })
}

/// None if the time is over; the process is then ended and gone.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// ssh-keygen's words in one line, printable; its status if it said nothing.
fn said(file: &Path, status: ExitStatus) -> String {
    let text = read_text(file, SAID_BYTES_MAX).unwrap_or_default();
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return format!("it said nothing ({status})");
    }
    lines.join("; ").chars().filter(|c| !c.is_control()).collect()
}

fn read_text(path: &Path, bytes_max: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A directory that only its owner may enter, removed with all that is in it.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn create() -> Result<Self, SignError> {
        let mut random = [0; 16];
        let filled = getrandom::fill(&mut random).map_err(io::Error::from);
        let dir = std::env::temp_dir().join(format!("tidegate-sign-{:032x}", u128::from_le_bytes(random)));
        // Not recursive: a directory that somebody else put there is an error.
        let made = filled.and_then(|()| DirBuilder::new().mode(0o700).create(&dir));
        made.map_err(|source| SignError::Scratch { path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn create_file(&self, name: &str) -> Result<File, SignError> {
        let path = self.path(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        opened.map_err(|source| SignError::Scratch { path, source })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, SignError> {
        let path = self.path(name);
        self.create_file(name)?.write_all(bytes).map_err(|source| SignError::Scratch { path: path.clone(), source })?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: what stays is private, and a message is no secret.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_hangs_is_ended() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(wait(child, Duration::from_millis(30)).unwrap().is_none());
        let child = Command::new("true").spawn().unwrap();
        assert!(wait(child, Duration::from_secs(60)).unwrap().unwrap().success());
    }

    #[test]
    fn scratch_is_private_and_leaves_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = Scratch::create().unwrap();
        let dir = scratch.dir.clone();
        let file = scratch.write("message", b"m").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600));
        assert!(scratch.create_file("message").is_err(), "nothing that is there is taken over");
        drop(scratch);
        assert!(!dir.exists());
    }
}
