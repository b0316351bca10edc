//! `doctor`: what works here.

use std::time::Instant;

use noxrunner::{Client, ErrorKind, Isolation, LocalBackend, Result, SandboxSpec};
use serde_json::{Value, json};

use crate::args::Args;
use crate::connect::remote;
use crate::say::Say;

pub(crate) fn doctor(args: &Args, say: &Say) -> Result<()> {
    let server = if args.local || args.base_url.is_empty() {
        Value::Null
    } else {
        server(args, say)?
    };
    let tiers = [Isolation::Namespaces, Isolation::Landlock].map(|tier| isolation(tier, say));
    say.value(&json!({"server": server, "isolation": tiers}));
    Ok(())
}

fn server(args: &Args, say: &Say) -> Result<Value> {
    let url = &args.base_url;
    let client = Client::from(remote(args, url)?);
    let started = Instant::now();
    if let Err(e) = client.health() {
        say.failure(&format!("The server at {url} does not answer: {e}"));
        say.info("Start one with `noxrc serve`, name another one with --base-url, or use --local");
        return Ok(json!({"url": url, "reachable": false, "error": e.to_string()}));
    }
    let first = started.elapsed();
    let again = Instant::now();
    let _ = client.health();
    let millis = again.elapsed().as_secs_f64() * 1000.0;
    say.success(&format!(
        "The server at {url} is healthy: connected and answered in {:.1} ms, then in {millis:.1} ms",
        first.as_secs_f64() * 1000.0
    ));
    let accepted = token_is_accepted(&client);
    match &accepted {
        Ok(()) => say.success("It accepts the token, or wants none"),
        Err(e) => {
            say.failure(&format!("It refuses the token: {e}"));
            say.info("Give the server's token with --token or NOXRUNNER_TOKEN");
        }
    }
    Ok(json!({"url": url, "reachable": true, "millis": millis, "authorized": accepted.is_ok()}))
}

/// Asks for a sandbox that nobody has.
fn token_is_accepted(client: &Client) -> Result<()> {
    let id = format!("doctor-{}", std::process::id());
    match client.sandbox(id)?.touch() {
        Err(e) if e.kind() == ErrorKind::Unauthorized => Err(e),
        _ => Ok(()),
    }
}

fn isolation(tier: Isolation, say: &Say) -> Value {
    let name = tier.to_string();
    let built = LocalBackend::builder().isolation(tier).build();
    let found = built.and_then(|backend| {
        let missing = backend.missing()?;
        let limits = backend.limits(&SandboxSpec::new().cpu("1"))?;
        Ok((missing, limits))
    });
    match found {
        Ok((missing, limits)) => {
            let enforced = format!(
                "memory {}, CPU {}",
                limits.memory().enforced(),
                limits.cpu_millis().enforced()
            );
            say.success(&format!(
                "Sandboxes of this machine: {name} works; limits: {enforced}"
            ));
            if !missing.is_empty() {
                say.warning(&format!("They are made without: {}", missing.join(", ")));
            }
            json!({
                "tier": name, "works": true, "missing": missing,
                "memory": limits.memory().enforced(),
                "cpu": limits.cpu_millis().enforced(),
            })
        }
        Err(e) => {
            say.failure(&format!(
                "Sandboxes of this machine: {name} does not work: {e:#}"
            ));
            json!({"tier": name, "works": false, "error": format!("{e:#}")})
        }
    }
}
