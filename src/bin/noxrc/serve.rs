//! `serve`: NoxRunner v1 for others.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use noxrunner::server::{Server, ServerBuilder};
use noxrunner::{Error, ErrorKind, Result};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::{Args, Serve};
use crate::connect::{file_failed, local, remote};
use crate::say::{self, Say};

pub(crate) fn serve(args: &Args, serve: &Serve, say: &Say) -> Result<()> {
    say::show_log();
    log::set_max_level(match args.verbose {
        true => log::LevelFilter::Debug,
        false => log::LevelFilter::Info,
    });
    let mut builder = match &serve.gateway {
        Some(url) => Server::builder(remote(args, url)?),
        None => Server::builder(local(args).build()?),
    };
    builder = builder.max_calls(serve.max_calls);
    for addr in &serve.listen {
        builder = builder.tcp(addr);
    }
    match &serve.unix {
        Some(path) => builder = builder.unix(path),
        None if serve.listen.is_empty() => {
            builder = builder.tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        }
        None => {}
    }
    let (builder, made) = with_auth(builder, args, serve)?;
    let server = builder.bind()?;
    tell(&server, serve, made, say);
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot watch signals: {e}")))?;
    let stopper = server.stopper();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopper.stop();
        }
        // Whoever can't wait.
        if signals.forever().next().is_some() {
            std::process::exit(130);
        }
    });
    server.run()?;
    say.success("Stopped");
    Ok(())
}

/// Says whether the token is one that nobody knows yet.
fn with_auth(builder: ServerBuilder, args: &Args, serve: &Serve) -> Result<(ServerBuilder, bool)> {
    if serve.no_auth {
        let others = serve.listen.iter().find(|addr| !addr.ip().is_loopback());
        if let (Some(addr), false) = (others, serve.force) {
            let text = format!(
                "with no token everybody who reaches {addr} could run commands: leave --no-auth out, listen at a loopback address, or add --force"
            );
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        let builder = match serve.force {
            true => builder.no_auth_anywhere(),
            false => builder.no_auth(),
        };
        return Ok((builder, false));
    }
    if let Some(path) = &serve.token_file {
        let text = fs::read_to_string(path).map_err(|e| file_failed("--token-file", path, e))?;
        return Ok((builder.token(text.trim()), false));
    }
    // A gateway's token is the other server's.
    match (args.token(), &serve.gateway) {
        (Some(token), None) => Ok((builder.token(token), false)),
        _ => Ok((builder, true)),
    }
}

fn tell(server: &Server, serve: &Serve, made: bool, say: &Say) {
    let url = server.local_addr().map(|addr| format!("http://{addr}"));
    for place in url
        .iter()
        .cloned()
        .chain(serve.unix.as_ref().map(|p| p.display().to_string()))
    {
        say.success(&format!("Serving NoxRunner v1 at {place}"));
    }
    let token = server.token().filter(|_| made);
    if let Some(token) = token {
        say.info(&format!(
            "It wants the token of this run: export NOXRUNNER_TOKEN={token}"
        ));
    }
    if server.token().is_none() {
        say.warning("Whoever reaches it can run commands: it wants no token (--no-auth)");
    }
    say.value(&json!({"url": url, "unix": serve.unix, "token": token}));
}
