//! A real mail server for tests: aiosmtpd on a port of loopback.
//!
//! Owns: starting it, what it answers, and what it received, parsed by Python's
//! own `email` package. Must not: know anything of what Tidegate writes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::ports::free_port;
use crate::process::Process;
use crate::tools::python;
use crate::wait::{Look, wait_until};

const READY_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// RFC 5321: longest line with its end.
const LINE_BYTES_MAX: usize = 998;
const SERVER: &str = include_str!("smtp.py");

/// One mail.
#[derive(Clone, Debug, Deserialize)]
pub struct Mail {
    /// When it came, Unix seconds.
    pub at: f64,
    /// What was said to it: `250 OK`.
    pub answer: String,
    /// The envelope's sender.
    pub mail_from: String,
    /// The envelope's recipients.
    pub rcpt_tos: Vec<String>,
    /// Decoded, names in lower case; of one that is there twice the last.
    pub headers: BTreeMap<String, String>,
    /// What Python's parser found wrong.
    pub defects: Vec<String>,
    /// The text part, decoded.
    pub text: String,
    longest_line: usize,
    bare_newline: bool,
}

impl Mail {
    /// A header, decoded; empty if it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// It was taken.
    #[must_use]
    pub fn taken(&self) -> bool {
        self.answer.starts_with("250")
    }

    /// What any mail must be.
    ///
    /// # Errors
    /// It is not.
    pub fn expect_valid(&self) -> anyhow::Result<()> {
        ensure!(self.defects.is_empty(), "defects {:?} of {self:?}", self.defects);
        for name in ["from", "to", "subject", "date", "message-id"] {
            ensure!(!self.header(name).is_empty(), "no {name} in {self:?}");
        }
        ensure!(self.header("message-id").starts_with('<'), "{:?}", self.header("message-id"));
        ensure!(self.longest_line <= LINE_BYTES_MAX && !self.bare_newline, "lines that SMTP does not allow: {self:?}");
        Ok(())
    }
}

/// A running mail server; killed when dropped.
#[derive(Debug)]
pub struct MailServer {
    /// Where it listens.
    pub port: u16,
    dir: PathBuf,
    process: Option<Process>,
}

impl MailServer {
    /// Starts it with its files in `dir`; none, said on stderr, without aiosmtpd.
    ///
    /// # Errors
    /// It does not start, or it is missing and required.
    pub fn start(dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some(python) = python("aiosmtpd", "python3-aiosmtpd")? else { return Ok(None) };
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        fs::write(dir.join("smtp.py"), SERVER).context("writing smtp.py")?;
        let port = free_port()?;
        let mut command = Command::new(python);
        command.arg(dir.join("smtp.py")).arg(dir).arg(port.to_string()).current_dir(dir).env("PYTHONDONTWRITEBYTECODE", "1");
        let log = dir.join("log");
        let mut process = Process::start("aiosmtpd", command, &log)?;
        wait_until("the mail server greets", READY_WITHIN, || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}; its log:\n{}", crate::fleet::tail(&log));
            }
            let greeted = greeting(port);
            Ok(match greeted {
                Ok(text) if text.starts_with("220 ") => Look::Done(()),
                other => Look::NotYet(format!("{other:?}")),
            })
        })?;
        Ok(Some(Self { port, dir: dir.to_owned(), process: Some(process) }))
    }

    /// From now on every mail is answered so: `451 4.3.0 later`; none takes all.
    ///
    /// # Errors
    /// The disk says no.
    pub fn answer(&self, answer: Option<&str>) -> anyhow::Result<()> {
        let file = self.dir.join("answer");
        match answer {
            Some(text) => {
                let half = self.dir.join("answer.half");
                fs::write(&half, text).and_then(|()| fs::rename(&half, &file)).context("the mail server's answer")
            }
            None => fs::remove_file(&file).context("the mail server's answer"),
        }
    }

    /// Everything so far, in order.
    ///
    /// # Errors
    /// The disk says no.
    pub fn mails(&self) -> anyhow::Result<Vec<Mail>> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.dir)
            .with_context(|| format!("reading {}", self.dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        files.sort();
        let read = |path: &PathBuf| -> anyhow::Result<Mail> {
            let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("what aiosmtpd wrote to {}", path.display()))
        };
        files.iter().map(read).collect()
    }

    /// Waits for a mail that `is` picks.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&self, what: &str, within: Duration, is: impl Fn(&Mail) -> bool) -> anyhow::Result<Mail> {
        wait_until(what, within, || {
            let mails = self.mails()?;
            let subjects = || format!("{:?}", mails.iter().map(|mail| mail.header("subject")).collect::<Vec<_>>());
            Ok(Look::from_option(mails.iter().find(|mail| is(mail)).cloned(), subjects))
        })
    }

    /// SIGKILL: nobody takes mail any more.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("it does not run")?.kill()
    }
}

fn greeting(port: u16) -> anyhow::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN).context("connecting")?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).context("a read timeout")?;
    let mut line = [0_u8; 64];
    let length = stream.read(&mut line).context("its greeting")?;
    Ok(String::from_utf8_lossy(line.get(..length).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn it_keeps_what_it_takes_and_refuses_as_told() {
        let dir = tempfile::tempdir().unwrap();
        let Some(server) = MailServer::start(&dir.path().join("mail")).unwrap() else { return };
        let send = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
            let mail = "From: a@example.com\r\nTo: b@example.com\r\nSubject: =?utf-8?q?gr=C3=BCn?=\r\nDate: Tue, 24 Nov 2026 01:02:03 +0000\r\nMessage-ID: <1@x>\r\n\r\nhello\r\n.\r\n";
            let talk = format!("EHLO me\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n{mail}QUIT\r\n");
            // One step after the other: the server does not offer pipelining of DATA.
            for step in talk.split_inclusive("\r\n") {
                stream.write_all(step.as_bytes()).unwrap();
            }
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        };
        assert!(send().contains("250 OK"));
        let mail = server.wait("a mail", READY_WITHIN, Mail::taken).unwrap();
        assert_eq!((mail.header("subject"), mail.text.trim()), ("grün", "hello"));
        assert_eq!(mail.rcpt_tos, ["b@example.com"]);
        mail.expect_valid().unwrap();
        server.answer(Some("451 4.3.0 later")).unwrap();
        assert!(send().contains("451 4.3.0 later"));
        assert_eq!(server.mails().unwrap().iter().filter(|mail| mail.taken()).count(), 1);
    }
}
