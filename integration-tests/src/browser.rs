//! A real browser looks at documents, and a stock parser reads the reports.
//!
//! Owns: opening a file in headless Chromium, what it complains of, whom it calls,
//! the page that it prints (measured by poppler), what it shows; JUnit through
//! `junitparser`. Must not: judge what a document says.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::output::Output;
use crate::tools::{find, python};

const WITHIN: Duration = Duration::from_secs(60);
/// Whom Chromium calls by itself, whatever it shows. They get no answer.
const OWN_CALLS: &[&str] = &["clients2.google.com", "update.googleapis.com", "accounts.google.com", "optimizationguide-pa.googleapis.com"];
/// A4 in points, as printers take it.
const A4: (f64, f64) = (595.28, 841.89);

/// The browser and what measures its pages.
#[derive(Debug)]
pub struct Browser {
    chromium: PathBuf,
    pdfinfo: PathBuf,
}

/// What one document did in a browser.
#[derive(Debug)]
pub struct Shown {
    /// Lines of the console: `console.log`, errors, refused requests.
    pub console: Vec<String>,
    /// Addresses that it asked for, beside itself.
    pub asked: Vec<String>,
    /// The document as the browser has it after all scripts ran.
    pub dom: String,
    /// Printed pages.
    pub pages: u32,
    /// Width and height of a page, points.
    pub page: (f64, f64),
    /// A picture of its beginning, PNG.
    pub picture: Vec<u8>,
}

impl Browser {
    /// Chromium and poppler's pdfinfo; none, said on stderr, if one is missing.
    ///
    /// # Errors
    /// One is missing, and required.
    pub fn find() -> anyhow::Result<Option<Self>> {
        let (Some(chromium), Some(pdfinfo)) = (find("chromium", "chromium")?, find("pdfinfo", "poppler-utils")?) else { return Ok(None) };
        Ok(Some(Self { chromium, pdfinfo }))
    }

    /// Opens a file; `dir` is for the browser's own files.
    ///
    /// # Errors
    /// The browser does not run.
    pub fn open(&self, file: &Path, dir: &Path) -> anyhow::Result<Shown> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let proxy = Proxy::start()?;
        let (pdf, picture) = (dir.join("page.pdf"), dir.join("page.png"));
        let mut command = Command::new(&self.chromium);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--no-pdf-header-footer"]);
        command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
        // Everything that is not this file goes to the proxy, loopback too.
        command.arg(format!("--proxy-server=127.0.0.1:{}", proxy.port)).arg("--proxy-bypass-list=<-loopback>");
        command.arg(format!("--print-to-pdf={}", pdf.display())).arg(format!("--screenshot={}", picture.display()));
        command.args(["--window-size=1000,1400", "--dump-dom"]).arg(format!("file://{}", file.display()));
        command.env("HOME", dir).current_dir(dir);
        let output = Output::of(command, WITHIN)?.expect_code(0)?;
        let console = output.stderr.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
        let mut info = Command::new(&self.pdfinfo);
        info.arg(&pdf);
        let info = Output::of(info, WITHIN)?.expect_code(0)?;
        let line = |name: &str| {
            info.stdout.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).with_context(|| format!("no {name} in {info}"))
        };
        let mut size = line("Page size:")?.split(" x ");
        let mut number = || -> anyhow::Result<f64> {
            let word = size.next().and_then(|part| part.split_whitespace().next()).context("a page without size")?;
            word.parse().with_context(|| format!("{word:?} is no number"))
        };
        let page = (number()?, number()?);
        let pages = line("Pages:")?.parse().context("the number of pages")?;
        let picture = fs::read(&picture).context("the picture")?;
        Ok(Shown { console, asked: proxy.finish(), dom: output.stdout, pages, page, picture })
    }
}

impl Shown {
    /// What every document must do: no errors, nobody called, pages of A4 (or A4
    /// across), something to see.
    ///
    /// # Errors
    /// It does not.
    pub fn expect_proper(&self) -> anyhow::Result<()> {
        ensure!(self.console.is_empty(), "the console says {:#?}", self.console);
        ensure!(self.asked.is_empty(), "it asks for {:#?}", self.asked);
        let near = |a: f64, b: f64| (a - b).abs() < 1.5;
        let (width, height) = self.page;
        let a4 = near(width, A4.0) && near(height, A4.1) || near(width, A4.1) && near(height, A4.0);
        ensure!(a4 && self.pages >= 1, "{} pages of {:?} points are not A4", self.pages, self.page);
        ensure!(self.picture.starts_with(b"\x89PNG"), "no picture");
        // A white page of this size compresses to far less.
        ensure!(self.picture.len() > 15_000, "a picture of {} bytes shows nothing", self.picture.len());
        Ok(())
    }
}

/// Takes what a browser asks for and answers nothing.
#[derive(Debug)]
struct Proxy {
    port: u16,
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::ports::free_port()?)).context("a port for the proxy")?;
        let port = listener.local_addr().context("its address")?.port();
        let (stop, asked): (Arc<AtomicBool>, Arc<Mutex<Vec<String>>>) = (Arc::default(), Arc::default());
        let (stopped, list) = (Arc::clone(&stop), Arc::clone(&asked));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let mut bytes = [0_u8; 1024];
                let length = stream.read(&mut bytes).unwrap_or_default();
                let head = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
                let line = head.lines().next().unwrap_or_default().to_owned();
                let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                if !line.is_empty() && !OWN_CALLS.iter().any(|own| line.contains(own)) {
                    list.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        Ok(Self { port, stop, asked, thread: Some(thread) })
    }

    fn finish(mut self) -> Vec<String> {
        self.end();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

const JUNIT: &str = r#"
import json, sys
from junitparser import JUnitXml, TestSuite, Failure, Error, Skipped
xml = JUnitXml.fromfile(sys.argv[1])
suites = [xml] if isinstance(xml, TestSuite) else list(xml)
kind = lambda case: [type(result).__name__.lower() for result in (case.result if isinstance(case.result, list) else [case.result] if case.result else [])]
print(json.dumps([{
    "name": suite.name, "tests": suite.tests, "failures": suite.failures, "errors": suite.errors, "skipped": suite.skipped,
    "properties": {p.name: p.value for p in suite.properties()},
    "cases": [{"name": case.name, "classname": case.classname, "time": case.time, "results": kind(case)} for case in suite],
} for suite in suites]))
"#;

/// Test suites of a JUnit file as `junitparser` reads them; none, said on stderr,
/// without it. A list of `{name, tests, failures, errors, skipped, properties,
/// cases: [{name, classname, time, results}]}`.
///
/// # Errors
/// It cannot read the file, or it is missing and required.
pub fn junit(file: &Path) -> anyhow::Result<Option<Vec<Value>>> {
    let Some(python) = python("junitparser", "python3-junitparser")? else { return Ok(None) };
    let mut command = Command::new(python);
    command.args(["-c", JUNIT]).arg(file);
    match Output::of(command, WITHIN)?.expect_code(0)?.json()? {
        Value::Array(suites) => Ok(Some(suites)),
        other => anyhow::bail!("no list: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_notices_errors_calls_and_paper() {
        let Some(browser) = Browser::find().unwrap() else { return };
        let dir = tempfile::tempdir().unwrap();
        let text: String =
            (0..60).map(|n| format!("<p>Line {n} of a page that has something to see, and goes on with more words</p>")).collect();
        let page = |name: &str, head: &str| {
            let file = dir.path().join(name);
            fs::write(
                &file,
                format!("<!doctype html><html><head><meta charset=utf-8><title>t</title>{head}</head><body>{text}</body></html>"),
            )
            .unwrap();
            browser.open(&file, &dir.path().join(format!("{name}.browser"))).unwrap()
        };
        page("good.html", "<style>@page{size:A4}</style><script>document.title = 'ran'</script>").expect_proper().unwrap();
        let bad =
            page("bad.html", "<style>@page{size:100mm 100mm}</style><script>nothing()</script><img src='http://outside.invalid/x.png'>");
        assert!(bad.console.iter().any(|line| line.contains("nothing is not defined")), "{:?}", bad.console);
        assert!(bad.asked.iter().any(|line| line.contains("/x.png")), "{:?}", bad.asked);
        assert!((bad.page.0 - 283.46).abs() < 1.5, "{:?}", bad.page);
    }

    #[test]
    fn the_stock_parser_reads_a_report() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("junit.xml");
        fs::write(
            &file,
            r#"<testsuites><testsuite name="h1" tests="2" failures="1" errors="0" skipped="0"><properties><property name="stage" value="1"/></properties>
               <testcase name="a" classname="c" time="0.5"/><testcase name="b" classname="c"><failure message="m">x</failure></testcase></testsuite></testsuites>"#,
        )
        .unwrap();
        let Some(suites) = junit(&file).unwrap() else { return };
        assert_eq!(suites[0]["cases"][1]["results"], serde_json::json!(["failure"]));
        assert_eq!((&suites[0]["tests"], &suites[0]["properties"]["stage"]), (&serde_json::json!(2), &serde_json::json!("1")));
    }
}
