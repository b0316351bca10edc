//! `serve`.

use std::net::{Ipv4Addr, SocketAddr};

use noxrunner::server::{Server, ServerBuilder, Stopper};
use noxrunner::{DockerBackendBuilder, Error, ErrorKind, KubernetesBackendBuilder, Result};
use serde_json::json;

use crate::allocator::return_large_blocks;
use crate::args::{Args, MaximaArgs, ServeArgs};
use crate::backend_args::BackendKind;
use crate::client::{SERVE_TIMEOUT, check_no_local_options, docker, gateway, kubernetes, local};
use crate::console::{self, Console};
use crate::credentials;
use crate::exit_code::INTERRUPTED;
use crate::interrupt::termination_signals;

pub(crate) fn serve(args: &Args, serve: &ServeArgs, console: &Console) -> Result<()> {
    console::log_to_stderr(if args.verbose {
        log::LevelFilter::Debug
    } else {
        log::LevelFilter::Info
    });
    return_large_blocks();
    let builder = serve
        .allow_image
        .iter()
        .fold(builder(args, serve)?, ServerBuilder::allow_image);
    let builder = builder
        .max_calls(serve.max_calls)
        .memory_budget(serve.memory_budget);
    let builder = limit(listen(builder, serve), &serve.maxima);
    let (builder, token_is_new) = authenticate(builder, args, serve)?;
    let server = builder.bind()?;
    announce(&server, serve, token_is_new, console);
    stop_on_signal(server.stopper())?;
    server.run()?;
    console.success("Stopped");
    Ok(())
}

/// Chooses the backend.
fn builder(args: &Args, serve: &ServeArgs) -> Result<ServerBuilder> {
    let kind = args.backend.kind();
    let has_images = matches!(kind, BackendKind::Docker | BackendKind::Kubernetes);
    if !has_images && (serve.image.is_some() || !serve.allow_image.is_empty()) {
        let message =
            "--image and --allow-image are for containers only: add --docker or --kubernetes";
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    match (&serve.gateway, kind) {
        (Some(_), BackendKind::Docker | BackendKind::Kubernetes) => {
            let message = "--gateway excludes --docker and --kubernetes";
            Err(Error::new(ErrorKind::InvalidInput, message))
        }
        (Some(url), BackendKind::Server | BackendKind::Local) => {
            check_no_local_options(args)?;
            Ok(Server::builder(gateway(args, url)?))
        }
        (None, BackendKind::Kubernetes) => {
            check_no_local_options(args)?;
            let mut backend = kubernetes(args)?;
            if args.backend.timeout.is_none() {
                backend = backend.timeout(SERVE_TIMEOUT);
            }
            let images = serve.image.iter();
            let backend = images.fold(backend, KubernetesBackendBuilder::image);
            Ok(Server::builder(backend.build()?))
        }
        (None, BackendKind::Docker) => {
            let backend = docker(args)?;
            let images = serve.image.iter();
            Ok(Server::builder(
                images.fold(backend, DockerBackendBuilder::image).build()?,
            ))
        }
        (None, BackendKind::Server | BackendKind::Local) => {
            let backend = local(args, args.backend.isolation.into());
            let backend = backend.delegated_cgroup(serve.delegated_cgroup);
            Ok(Server::builder(backend.build()?))
        }
    }
}

fn listen(mut builder: ServerBuilder, serve: &ServeArgs) -> ServerBuilder {
    for addr in &serve.listen {
        builder = builder.tcp(addr);
    }
    match &serve.unix {
        Some(path) => builder.unix(path),
        None if serve.listen.is_empty() => {
            builder.tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))
        }
        None => builder,
    }
}

fn limit(mut builder: ServerBuilder, maxima: &MaximaArgs) -> ServerBuilder {
    if let Some(ttl) = maxima.max_ttl {
        builder = builder.max_ttl(ttl);
    }
    if let Some(memory) = &maxima.max_mem {
        builder = builder.max_memory(memory);
    }
    if let Some(storage) = &maxima.max_storage {
        builder = builder.max_storage(storage);
    }
    if let Some(cpu) = &maxima.max_cpu {
        builder = builder.max_cpu(cpu);
    }
    match maxima.max_sandboxes {
        Some(count) => builder.max_sandboxes(count),
        None => builder,
    }
}

/// Stops the server on the first signal, and ends the process on the second one.
fn stop_on_signal(stopper: Stopper) -> Result<()> {
    let mut signals = termination_signals()?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopper.stop();
        }
        if signals.forever().next().is_some() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    });
    Ok(())
}

/// Configures authentication. Returns true if the server creates a new token.
fn authenticate(
    builder: ServerBuilder,
    args: &Args,
    serve: &ServeArgs,
) -> Result<(ServerBuilder, bool)> {
    if serve.no_auth && args.backend.token_file.is_some() {
        let message = "--no-auth and --token-file exclude each other";
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    if serve.no_auth {
        return Ok((without_auth(builder, serve)?, false));
    }
    if let Some(path) = &args.backend.token_file {
        return Ok((builder.token(credentials::read_token(path)?), false));
    }
    // With --gateway, --token is the other server's token.
    match (args.backend.token(), &serve.gateway) {
        (Some(token), None) => Ok((builder.token(token), false)),
        _ => Ok((builder, true)),
    }
}

fn without_auth(builder: ServerBuilder, serve: &ServeArgs) -> Result<ServerBuilder> {
    if serve.force {
        return Ok(builder.no_auth_anywhere());
    }
    if let Some(addr) = serve.listen.iter().find(|addr| !addr.ip().is_loopback()) {
        let message = format!(
            "--no-auth would let anyone who can connect to {addr} run commands: remove it, listen on a loopback address, or add --force"
        );
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(builder.no_auth())
}

fn announce(server: &Server, serve: &ServeArgs, token_is_new: bool, console: &Console) {
    let url = server.local_addr().map(|addr| format!("http://{addr}"));
    let unix = serve.unix.as_ref().map(|path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        format!("unix://{}", path.display())
    });
    for address in url.iter().chain(&unix) {
        console.success(&format!("Serving NoxRunner v1 at {address}"));
    }
    let token = server.token().filter(|_| token_is_new);
    if let Some(token) = token {
        console.info(&format!(
            "Clients need the token of this run: export NOXRUNNER_TOKEN={token}"
        ));
    }
    if server.token().is_none() {
        console.warning(
            "Authentication is disabled (--no-auth): anyone who can connect can run commands",
        );
    }
    console.value(&json!({"url": url, "unix": serve.unix, "token": token}));
}
