//! `[routes.NAME]` of controller.toml, checked. Secrets are named, never held.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lettre::message::Mailbox;
use tidegate_rollout::process::Via;
use toml::{Table, Value};

use super::secret::SecretAt;
use crate::sources::{BadBase, Base};

const ROUTES_MAX: usize = 64;
const NAME_CHARS_MAX: usize = 64;
const RECIPIENTS_MAX: usize = 50;
const PAGERDUTY: &str = "https://events.pagerduty.com";
const SMTP_PORT: u16 = 25;
const SMTPS_PORT: u16 = 465;

/// The routes of controller.toml.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(BTreeMap<String, Channel>);

/// What a route speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Slack(Slack),
    Email(Box<Email>),
    Pagerduty(Pagerduty),
    Webhook(Webhook),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slack {
    /// The whole URL is the secret.
    pub(crate) url: SecretAt,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pagerduty {
    pub(crate) key: SecretAt,
    pub(crate) url: Base,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Webhook {
    pub(crate) url: UrlAt,
    pub(crate) secret: SecretAt,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UrlAt {
    Open(Target),
    Secret(SecretAt),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Email {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: MailTls,
    pub(crate) from: Mailbox,
    pub(crate) to: Vec<Mailbox>,
    pub(crate) login: Option<(String, SecretAt)>,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MailTls {
    /// From the first byte (`smtps://`).
    Wrapped,
    /// Asked for, and demanded.
    StartTls,
    /// None: loopback, or said so.
    Plain,
}

/// Where something is posted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) base: Base,
    /// With its query.
    pub(crate) path: String,
}

impl Target {
    /// https, or http on loopback.
    ///
    /// # Errors
    /// Why not, without the URL.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (place, query) = text.split_once('?').map_or((text, None), |(place, query)| (place, Some(query)));
        let base: Base = place.parse().map_err(|e: BadBase| format!("it is not a URL ({})", e.why))?;
        if !base.https && !base.is_loopback() {
            return Err("over http everybody on the way reads it: write https".into());
        }
        let path = if base.path.is_empty() { "/" } else { base.path.as_str() };
        let path = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        Ok(Self { base, path })
    }
}

impl Routes {
    /// Reads `[routes]`; files are relative to `dir`.
    ///
    /// # Errors
    /// One sentence: route and key, what is wrong, what to write. Never a value that
    /// may be a secret.
    pub fn parse(table: Table, dir: &Path) -> Result<Self, String> {
        if table.len() > ROUTES_MAX {
            return Err(format!("{} routes, at most {ROUTES_MAX} are taken", table.len()));
        }
        let mut all = BTreeMap::new();
        for (name, value) in table {
            let named =
                !name.is_empty() && name.len() <= NAME_CHARS_MAX && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
            if !named {
                return Err(format!("{name:?} is not a route's name: letters, digits, '-' and '_', at most {NAME_CHARS_MAX}"));
            }
            let Value::Table(keys) = value else { return Err(format!("{name}: write [routes.{name}] and via = \"slack\" below it")) };
            let channel = Keys { name: &name, keys, dir }.channel()?;
            all.insert(name, channel);
        }
        Ok(Self(all))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Channel> {
        self.0.get(name)
    }

    /// Names and kinds.
    #[must_use]
    pub fn known(&self) -> BTreeMap<String, Via> {
        let via = |channel: &Channel| match channel {
            Channel::Slack(_) => Via::Slack,
            Channel::Email(_) => Via::Email,
            Channel::Pagerduty(_) => Via::Pagerduty,
            Channel::Webhook(_) => Via::Webhook,
        };
        self.0.iter().map(|(name, channel)| (name.clone(), via(channel))).collect()
    }

    /// Routes and the files of their secrets that every user of the machine may
    /// read. Blocks.
    pub(crate) fn exposed(&self) -> Vec<(String, String)> {
        let secrets = |channel: &Channel| -> Vec<SecretAt> {
            match channel {
                Channel::Slack(slack) => vec![slack.url.clone()],
                Channel::Pagerduty(pagerduty) => vec![pagerduty.key.clone()],
                Channel::Email(email) => email.login.iter().map(|(_, at)| at.clone()).collect(),
                Channel::Webhook(webhook) => match &webhook.url {
                    UrlAt::Open(_) => vec![webhook.secret.clone()],
                    UrlAt::Secret(at) => vec![webhook.secret.clone(), at.clone()],
                },
            }
        };
        let of = |(name, channel): (&String, &Channel)| -> Vec<(String, String)> {
            secrets(channel).into_iter().filter(SecretAt::exposed).map(|at| (name.clone(), at.to_string())).collect()
        };
        self.0.iter().flat_map(of).collect()
    }
}

/// What is left to read of one route.
struct Keys<'a> {
    name: &'a str,
    keys: Table,
    dir: &'a Path,
}

impl Keys<'_> {
    fn channel(mut self) -> Result<Channel, String> {
        let via =
            self.text("via")?.ok_or_else(|| self.bad("via", "is missing: write \"slack\", \"email\", \"pagerduty\" or \"webhook\""))?;
        let via = via.parse::<Via>().map_err(|e| self.bad("via", &e))?;
        let channel = match via {
            Via::Slack => {
                self.inline("url", "its URL is a secret: write it into a file and name that with url_file, or a variable with url_env")?;
                Channel::Slack(Slack { url: self.secret("url")?, ca_file: self.file("ca_file")? })
            }
            Via::Pagerduty => {
                self.inline(
                    "routing_key",
                    "it is a secret: write it into a file and name that with routing_key_file, or a variable with routing_key_env",
                )?;
                let url = self.text("url")?.unwrap_or_else(|| PAGERDUTY.to_owned());
                let url = Target::parse(&url).map_err(|e| self.bad("url", &e))?;
                if url.path.contains('?') {
                    return Err(self.bad("url", "it has a query: write https://HOST"));
                }
                Channel::Pagerduty(Pagerduty { key: self.secret("routing_key")?, url: url.base, ca_file: self.file("ca_file")? })
            }
            Via::Webhook => {
                self.inline("secret", "write it into a file and name that with secret_file, or a variable with secret_env")?;
                let url = match self.text("url")? {
                    Some(_) if self.keys.contains_key("url_file") || self.keys.contains_key("url_env") => {
                        return Err(self.bad("url", "stands there beside url_file or url_env: write one of them"));
                    }
                    Some(url) => UrlAt::Open(Target::parse(&url).map_err(|e| self.bad("url", &e))?),
                    None => UrlAt::Secret(self.secret("url")?),
                };
                Channel::Webhook(Webhook { url, secret: self.secret("secret")?, ca_file: self.file("ca_file")? })
            }
            Via::Email => Channel::Email(Box::new(self.email()?)),
        };
        if let Some(key) = self.keys.keys().next() {
            let takes = match via {
                Via::Slack => "url_file or url_env, ca_file",
                Via::Pagerduty => "routing_key_file or routing_key_env, url, ca_file",
                Via::Webhook => "url, url_file or url_env, secret_file or secret_env, ca_file",
                Via::Email => "server, starttls, from, to, user, password_file or password_env, ca_file",
            };
            return Err(self.bad(key, &format!("no such key of a route via {}: it takes {takes}", via.word())));
        }
        Ok(channel)
    }

    fn email(&mut self) -> Result<Email, String> {
        const SERVER: &str = "write for example \"smtp://mail.example:587\" or \"smtps://mail.example\"";
        self.inline("password", "write it into a file and name that with password_file, or a variable with password_env")?;
        let server = self.text("server")?.ok_or_else(|| self.bad("server", &format!("is missing: {SERVER}")))?;
        let (wrapped, place) = match (server.strip_prefix("smtp://"), server.strip_prefix("smtps://")) {
            (Some(place), _) => (false, place),
            (_, Some(place)) => (true, place),
            _ => return Err(self.bad("server", &format!("begins with neither smtp:// nor smtps://: {SERVER}"))),
        };
        // Read like the place of a URL, which it is.
        let base: Base = format!("https://{place}").parse().map_err(|e: BadBase| self.bad("server", &format!("{}: {SERVER}", e.why)))?;
        if !base.path.is_empty() {
            return Err(self.bad("server", &format!("it has a path: {SERVER}")));
        }
        let named = place.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = match (named, wrapped) {
            (true, _) => base.port,
            (false, true) => SMTPS_PORT,
            (false, false) => SMTP_PORT,
        };
        let starttls = match self.keys.remove("starttls") {
            None => None,
            Some(Value::Boolean(_)) if wrapped => return Err(self.bad("starttls", "smtps:// has TLS from the first byte: remove it")),
            Some(Value::Boolean(yes)) => Some(yes),
            Some(_) => return Err(self.bad("starttls", "write true or false")),
        };
        let tls = match (wrapped, starttls.unwrap_or(!base.is_loopback())) {
            (true, _) => MailTls::Wrapped,
            (false, true) => MailTls::StartTls,
            (false, false) => MailTls::Plain,
        };
        let mailbox =
            |text: &str| -> Result<Mailbox, &'static str> { text.parse().map_err(|_| "is not an address: write \"name@example.com\"") };
        let from = self.text("from")?.ok_or_else(|| self.bad("from", "is missing: write \"tidegate@example.com\""))?;
        let from = mailbox(&from).map_err(|e| self.bad("from", e))?;
        let to = match self.keys.remove("to") {
            Some(Value::Array(all)) => all,
            Some(one @ Value::String(_)) => vec![one],
            Some(_) => return Err(self.bad("to", "write to = [\"name@example.com\"]")),
            None => Vec::new(),
        };
        if to.is_empty() || to.len() > RECIPIENTS_MAX {
            return Err(self.bad("to", &format!("1 to {RECIPIENTS_MAX} addresses are wanted: write to = [\"name@example.com\"]")));
        }
        let to: Result<Vec<Mailbox>, String> =
            to.iter().map(|value| value.as_str().ok_or("is a list of texts").and_then(mailbox).map_err(|e| self.bad("to", e))).collect();
        let user = self.text("user")?;
        let password = self.keys.contains_key("password_file") || self.keys.contains_key("password_env");
        let login = match (user, password) {
            (None, false) => None,
            (Some(user), true) => Some((user, self.secret("password")?)),
            (Some(_), false) => return Err(self.bad("user", "stands there without password_file or password_env")),
            (None, true) => return Err(self.bad("user", "is missing beside the password")),
        };
        if login.is_some() && tls == MailTls::Plain && !base.is_loopback() {
            return Err(self.bad("starttls", "without TLS everybody on the way reads the password: remove starttls = false"));
        }
        Ok(Email { host: base.host, port, tls, from, to: to?, login, ca_file: self.file("ca_file")? })
    }

    fn bad(&self, key: &str, what: &str) -> String {
        format!("{}.{key}: {what}", self.name)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.keys.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "a text is wanted, in quotes")),
        }
    }

    /// A secret that stands there itself is refused by name, and not repeated.
    fn inline(&self, key: &str, fix: &str) -> Result<(), String> {
        if self.keys.contains_key(key) { Err(self.bad(key, fix)) } else { Ok(()) }
    }

    fn file(&mut self, key: &str) -> Result<Option<PathBuf>, String> {
        Ok(self.text(key)?.map(|path| self.dir.join(path)))
    }

    fn secret(&mut self, what: &str) -> Result<SecretAt, String> {
        let (file, env) = (format!("{what}_file"), format!("{what}_env"));
        match (self.text(&file)?, self.text(&env)?) {
            (Some(path), None) => Ok(SecretAt::File(self.dir.join(path))),
            (None, Some(name)) if name.contains(['=', '\0', '$']) => Err(self.bad(&env, "write the variable's name")),
            (None, Some(name)) => Ok(SecretAt::Env(name)),
            (Some(_), Some(_)) => Err(self.bad(&file, &format!("stands there beside {env}: write one of them"))),
            (None, None) => Err(self.bad(&file, &format!("is missing: name the file with it, or with {env} a variable"))),
        }
    }
}
