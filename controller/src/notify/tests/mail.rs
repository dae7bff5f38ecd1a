//! Mail to a server of a few lines that remembers the conversation.

use tokio::io::{AsyncBufReadExt, BufReader};

use super::super::{config::Email, email};
use super::*;

/// Speaks SMTP; `refuse`: the answer to this command instead of a good one.
async fn server(refuse: Option<(&'static str, &'static str)>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let said = heard.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (read, mut write) = tcp.into_split();
            let mut lines = BufReader::new(read).lines();
            let _ = write.write_all(b"220 mail.example ESMTP\r\n").await;
            let mut data = false;
            while let Ok(Some(line)) = lines.next_line().await {
                said.lock().unwrap().push(line.clone());
                let answer = match (data, line.as_str(), refuse) {
                    (true, ".", _) => {
                        data = false;
                        "250 queued"
                    }
                    (true, ..) => continue,
                    (_, command, Some((begins, answer))) if command.starts_with(begins) => answer,
                    (_, command, _) if command.starts_with("EHLO") => "250-mail.example\r\n250 AUTH PLAIN",
                    (_, "DATA", _) => {
                        data = true;
                        "354 go on"
                    }
                    (_, "QUIT", _) => "221 bye",
                    (_, command, _) if command.starts_with("AUTH") => "235 welcome",
                    _ => "250 ok",
                };
                let _ = write.write_all(format!("{answer}\r\n").as_bytes()).await;
            }
        }
    });
    (port, heard)
}

fn route(port: u16, more: &str) -> String {
    format!(
        "[mail]\nvia = \"email\"\nserver = \"smtp://127.0.0.1:{port}\"\nfrom = \"Tidegate <tidegate@example.com>\"\nto = [\"a@example.com\", \"b@example.com\"]\n{more}"
    )
}

fn email_of(toml: &str) -> Email {
    match Routes::parse(toml.parse().unwrap(), Path::new("/")).unwrap().get("mail") {
        Some(Channel::Email(email)) => (**email).clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_mail_arrives_with_its_headers() {
    let dir = tempfile::tempdir().unwrap();
    let password = secret_file(dir.path(), "p", "geheim-password");
    let (port, heard) = server(None).await;
    let mail = notifier(&route(port, &format!("user = \"t\"\npassword_file = {password:?}\n")));
    assert_eq!(mail.send("mail", &notice("issue-1")).await, Sent::Taken);
    let heard = heard.lock().unwrap().clone();
    let has = |line: &str| assert!(heard.iter().any(|l| l == line), "{line:?} is not in {heard:#?}");
    has("MAIL FROM:<tidegate@example.com>");
    has("RCPT TO:<a@example.com>");
    has("RCPT TO:<b@example.com>");
    has("Subject: [tidegate] shop@2.1.0 to production: host web-3 failed");
    has("Auto-Submitted: auto-generated");
    has("Date: Fri, 15 Jan 2027 08:00:00 +0000");
    has("Content-Type: text/plain; charset=utf-8");
    assert!(heard.iter().any(|l| l.starts_with("AUTH PLAIN")), "{heard:#?}");
    assert!(heard.iter().any(|l| l.starts_with("Event: issue-1")), "{heard:#?}");
}

#[tokio::test]
async fn answers_of_a_mail_server_mean_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let password = secret_file(dir.path(), "p", "geheim-password");
    for (refuse, dead) in [
        (("RCPT", "550 no such user"), true),
        (("MAIL", "451 try later"), false),
        (("AUTH", "535 bad credentials geheim-password"), true),
        (("EHLO", "421 busy"), false),
    ] {
        let (port, _) = server(Some(refuse)).await;
        let mail = notifier(&route(port, &format!("user = \"t\"\npassword_file = {password:?}\n")));
        let sent = mail.send("mail", &notice("issue-1")).await;
        let text = format!("{sent:?}");
        assert_eq!(matches!(sent, Sent::Dead(_)), dead, "{text}");
        assert!(!text.contains("geheim") && (dead || matches!(sent, Sent::Later { .. })), "{text}");
        assert!(text.contains(&refuse.1[..3]), "{text}");
    }
    // TLS that was asked for and is not offered: nothing is sent without it.
    let (port, heard) = server(None).await;
    let sent = notifier(&route(port, "starttls = true\n")).send("mail", &notice("issue-1")).await;
    assert!(!matches!(sent, Sent::Taken), "{sent:?}");
    assert!(!heard.lock().unwrap().iter().any(|l| l.starts_with("MAIL")));
}

#[test]
fn mails_of_a_rollout_are_one_thread_and_a_repeated_one_is_the_same() {
    let email = email_of(&route(25, ""));
    let text = |notice: &Notice| String::from_utf8(email::message(&email, "mail", notice).unwrap().formatted()).unwrap();
    let header = |text: &str, name: &str| text.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let (first, second) = (text(&notice("started")), text(&notice("issue-1")));
    let root = header(&first, "Message-ID").unwrap();
    assert!(root.starts_with("<tidegate.") && root.ends_with("@example.com>"), "{root}");
    assert_eq!(header(&first, "In-Reply-To"), None);
    assert_eq!(header(&second, "In-Reply-To").as_ref(), Some(&root));
    assert_eq!(header(&second, "References").as_ref(), Some(&root));
    assert_ne!(header(&second, "Message-ID").as_ref(), Some(&root));
    assert_eq!(second, text(&notice("issue-1")));
    let again = Notice { since: Timestamp(9), ..notice("started") };
    assert_ne!(header(&text(&again), "Message-ID"), Some(root));
}

#[test]
fn nobody_writes_headers_through_a_notice() {
    let email = email_of(&route(25, ""));
    let evil = "x\r\nBcc: evil@example.com\r\n\r\nbody\n.\nfoo ä";
    let notice = Notice { title: evil.into(), text: evil.into(), environment: Some(evil.into()), key: evil.into(), ..notice("k") };
    let message = email::message(&email, "mail", &notice).unwrap();
    let text = String::from_utf8(message.formatted()).unwrap();
    let head = text.split("\r\n\r\n").next().unwrap();
    assert!(!head.lines().any(|l| l.to_lowercase().starts_with("bcc")), "{head}");
    assert_eq!(message.envelope().to().len(), 2);
    let long = email::message(&email, "mail", &monster()).unwrap().formatted();
    assert!(long.split(|b| *b == b'\n').all(|line| line.len() <= 1_000));
}
