//! `[routes]` as written by people.

use super::*;

fn parse(toml: &str) -> Result<Routes, String> {
    Routes::parse(toml.parse().unwrap(), Path::new("/etc/tidegate"))
}

#[test]
fn every_kind_reads() {
    let routes = parse(
        "[team]\nvia = \"slack\"\nurl_file = \"slack-url\"\n\
         [stakeholders]\nvia = \"email\"\nserver = \"smtp://mail.example:587\"\nfrom = \"Tidegate <t@example.com>\"\nto = [\"a@example.com\", \"B <b@example.com>\"]\nuser = \"t\"\npassword_env = \"MAIL_PASSWORD\"\n\
         [local]\nvia = \"email\"\nserver = \"smtp://127.0.0.1\"\nfrom = \"t@example.com\"\nto = \"a@example.com\"\n\
         [wrapped]\nvia = \"email\"\nserver = \"smtps://mail.example\"\nfrom = \"t@example.com\"\nto = [\"a@example.com\"]\nca_file = \"ca.pem\"\n\
         [on-call]\nvia = \"pagerduty\"\nrouting_key_env = \"PD_KEY\"\n\
         [hook]\nvia = \"webhook\"\nurl = \"https://hook.example/in?x=1\"\nsecret_file = \"/abs/hmac\"\n",
    )
    .unwrap();
    let known: Vec<(String, Via)> = routes.known().into_iter().collect();
    let wanted = [
        ("hook", Via::Webhook),
        ("local", Via::Email),
        ("on-call", Via::Pagerduty),
        ("stakeholders", Via::Email),
        ("team", Via::Slack),
        ("wrapped", Via::Email),
    ];
    assert_eq!(known, wanted.map(|(name, via)| (name.to_owned(), via)));
    let mail = |name: &str| match routes.get(name) {
        Some(Channel::Email(email)) => email.clone(),
        other => panic!("{other:?}"),
    };
    let ends = |name: &str| (mail(name).port, mail(name).tls);
    assert_eq!(ends("stakeholders"), (587, config::MailTls::StartTls));
    assert_eq!(ends("local"), (25, config::MailTls::Plain));
    assert_eq!(ends("wrapped"), (465, config::MailTls::Wrapped));
    assert_eq!(mail("wrapped").ca_file.as_deref(), Some(Path::new("/etc/tidegate/ca.pem")));
    let Some(Channel::Slack(slack)) = routes.get("team") else { panic!() };
    assert_eq!(slack.url.to_string(), "/etc/tidegate/slack-url");
    let Some(Channel::Pagerduty(pager)) = routes.get("on-call") else { panic!() };
    assert_eq!((pager.url.to_string().as_str(), pager.key.to_string().as_str()), ("https://events.pagerduty.com", "$PD_KEY"));
    assert_eq!(parse(""), Ok(Routes::default()));
}

#[test]
fn errors_name_the_key_and_the_fix_and_repeat_no_secret() {
    let mail = "[m]\nvia = \"email\"\nfrom = \"t@example.com\"\nto = [\"a@example.com\"]\n";
    for (toml, wanted) in [
        ("team = 1", "write [routes.team]"),
        ("[\"a b\"]\nvia = \"slack\"", "not a route's name"),
        ("[t]\nurl_file = \"x\"", "t.via: is missing"),
        ("[t]\nvia = \"fax\"", "t.via"),
        ("[t]\nvia = \"slack\"", "t.url_file: is missing"),
        ("[t]\nvia = \"slack\"\nurl = \"https://hooks.slack.com/GEHEIM\"", "t.url: its URL is a secret"),
        ("[t]\nvia = \"slack\"\nurl_file = \"a\"\nurl_env = \"B\"", "write one of them"),
        ("[t]\nvia = \"slack\"\nurl_file = 17", "in quotes"),
        ("[t]\nvia = \"slack\"\nurl_file = \"a\"\nchannel = \"GEHEIM\"", "t.channel: no such key of a route via slack: it takes url_file"),
        ("[t]\nvia = \"slack\"\nurl_env = \"A=GEHEIM\"", "write the variable's name"),
        ("[t]\nvia = \"pagerduty\"\nrouting_key = \"GEHEIM\"", "routing_key_file"),
        ("[t]\nvia = \"pagerduty\"\nrouting_key_file = \"a\"\nurl = \"http://pager.example\"", "t.url: over http"),
        ("[t]\nvia = \"webhook\"\nurl = \"http://hook.example/\"\nsecret_file = \"a\"", "t.url: over http"),
        ("[t]\nvia = \"webhook\"\nurl = \"https://hook.example/\"", "t.secret_file: is missing"),
        ("[t]\nvia = \"webhook\"\nurl = \"https://hook.example/\"\nsecret = \"GEHEIM\"", "secret_file"),
        ("[t]\nvia = \"webhook\"\nurl = \"https://u:GEHEIM@hook.example/\"\nsecret_file = \"a\"", "t.url"),
        ("[t]\nvia = \"webhook\"\nurl = \"https://hook.example/\"\nurl_file = \"a\"\nsecret_file = \"a\"", "write one of them"),
        (&format!("{mail}server = \"mail.example:25\""), "smtp://"),
        (mail, "m.server: is missing"),
        (&format!("{mail}server = \"smtp://mail.example/x\""), "path"),
        (&format!("{mail}server = \"smtp://mail.example\"\npassword = \"GEHEIM\"\nuser = \"u\""), "password_file"),
        (&format!("{mail}server = \"smtp://mail.example\"\nuser = \"u\""), "password_file"),
        (&format!("{mail}server = \"smtp://mail.example\"\npassword_file = \"p\""), "m.user"),
        (&format!("{mail}server = \"smtp://mail.example\"\nstarttls = false\nuser = \"u\"\npassword_file = \"p\""), "reads the password"),
        (&format!("{mail}server = \"smtps://mail.example\"\nstarttls = true"), "remove it"),
        (&mail.replace("t@example.com", "nobody").replace("[m]", "[m]\nserver = \"smtp://x\""), "m.from"),
        (&mail.replace("a@example.com", "a@x\\nBcc: b@x").replace("[m]", "[m]\nserver = \"smtp://x\""), "m.to"),
        (&mail.replace("[\"a@example.com\"]", "[]").replace("[m]", "[m]\nserver = \"smtp://x\""), "1 to 50"),
    ] {
        let error = parse(toml).unwrap_err();
        assert!(error.contains(wanted) && !error.contains("GEHEIM"), "{toml}: {error}");
    }
    let many: String = (0..65).map(|n| format!("[r{n}]\nvia = \"slack\"\nurl_file = \"x\"\n")).collect();
    assert!(parse(&many).unwrap_err().contains("at most 64"));
}

#[tokio::test]
async fn secrets_are_read_anew_trimmed_and_bounded() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let at = secret::SecretAt::File(path.clone());
    assert!(at.read().await.unwrap_err().contains("cannot be read"));
    for (text, wanted) in [("  a b \n", Ok("a b")), ("second\n", Ok("second")), (" \n", Err("empty")), ("a\nb", Err("more than one line"))]
    {
        std::fs::write(&path, text).unwrap();
        match (at.read().await, wanted) {
            (Ok(secret), Ok(wanted)) => assert_eq!(secret.expose(), wanted),
            (Err(error), Err(wanted)) => assert!(error.contains(wanted) && error.contains(path.to_str().unwrap()), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    std::fs::write(&path, vec![b'x'; 9_000]).unwrap();
    assert!(at.read().await.unwrap_err().contains("over 8192 bytes"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(at.read().await.unwrap_err().contains("not text"));
    assert!(secret::SecretAt::Env("TIDEGATE_NO_SUCH_VARIABLE".into()).read().await.unwrap_err().contains("TIDEGATE_NO_SUCH_VARIABLE"));
    // What every user of the machine may read is said by name.
    let routes = |path: &Path| parse(&format!("[team]\nvia = \"slack\"\nurl_file = {path:?}\n")).unwrap();
    for (mode, named) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(routes(&path).exposed().len(), named, "{mode:o}");
    }
}
