//! A connection is accepted.

use super::{Attempt, Beside, connect, is_loopback};
use crate::context::Context;

/// Reads `HOST:PORT` and asks local policy.
pub(super) fn allowed(ctx: &Context, address: &str) -> Result<(String, u16), String> {
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = split.filter(|(host, _)| !host.is_empty()) else {
        return Err(format!("{address:?} is not HOST:PORT"));
    };
    let listed = ctx.policy.urls.iter().filter_map(|url| url.strip_prefix("tcp://")).any(|l| l.eq_ignore_ascii_case(address));
    if is_loopback(host) || listed {
        Ok((host.to_owned(), port))
    } else {
        Err(format!(
            "{address} is not on this host: add \"tcp://{address}\" to urls in [policy] of agent.toml to let smoke tests connect to it"
        ))
    }
}

pub(super) async fn attempt(beside: &Beside<'_>, address: &str) -> Result<String, Attempt> {
    let address = beside.expand(address)?;
    let (host, port) = allowed(beside.ctx, &address).map_err(Attempt::Never)?;
    match connect(&host, port).await {
        Ok(_) => Ok(format!("connected to {address}")),
        Err(error) => Err(Attempt::Fail(format!("cannot connect to {address}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, scratch};

    #[test]
    fn only_loopback_and_listed_addresses() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.policy.urls = vec!["tcp://db:5432".into(), "http://web:80".into()];
        for good in ["127.0.0.1:1", "[::1]:1", "localhost:1", "db:5432"] {
            assert!(allowed(&ctx, good).is_ok(), "{good}");
        }
        for bad in ["db:5433", "web:80", "10.0.0.1:1", "127.0.0.1", ":80", "127.0.0.1:99999"] {
            assert!(allowed(&ctx, bad).is_err(), "{bad}");
        }
    }
}
