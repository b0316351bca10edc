//! `doctor`.

use std::time::{Duration, Instant};

use noxrunner::{Backend as _, Client, DockerBackend, ErrorKind, Isolation, Result, SandboxSpec};
use serde_json::{Value, json};

use crate::args::Args;
use crate::backend_args::BackendKind;
use crate::client::{docker, kubernetes, local, remote};
use crate::console::Console;
use crate::credentials;

/// Timeout of the question to a cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn doctor(args: &Args, console: &Console) -> Result<()> {
    let server = match args.backend.kind() {
        BackendKind::Server => check_server(args, console)?,
        _ => Value::Null,
    };
    let tiers = [Isolation::Namespaces, Isolation::Landlock];
    let isolation = tiers.map(|tier| check_isolation(args, tier, console));
    warn_about_options(args, console);
    let containers = check_containers(args, console)?;
    let cluster = check_cluster(args, console)?;
    console.value(&json!({
        "server": server, "isolation": isolation, "containers": containers, "kubernetes": cluster,
    }));
    Ok(())
}

fn check_server(args: &Args, console: &Console) -> Result<Value> {
    let url = &args.backend.base_url;
    let client = Client::from(remote(args)?);
    let started = Instant::now();
    if let Err(e) = client.health() {
        console.failure(&format!("The server at {url} does not respond: {e:#}"));
        console.info("Start a server with `noxrc serve`, set --base-url, or use --local");
        return Ok(json!({"url": url, "reachable": false, "error": format!("{e:#}")}));
    }
    let first = started.elapsed().as_secs_f64() * 1000.0;
    let started = Instant::now();
    let _ = client.health();
    let millis = started.elapsed().as_secs_f64() * 1000.0;
    console.success(&format!(
        "The server at {url} is healthy: connected and responded in {first:.1} ms, then in {millis:.1} ms"
    ));
    let accepted = check_token(&client);
    match &accepted {
        Ok(()) => console.success("The server accepts the token, or needs none"),
        Err(e) => {
            console.failure(&format!("The server refuses the token: {e:#}"));
            console.info(credentials::HINT);
        }
    }
    Ok(json!({"url": url, "reachable": true, "millis": millis, "authorized": accepted.is_ok()}))
}

/// Touches a sandbox that does not exist, to see whether the server accepts the token.
fn check_token(client: &Client) -> Result<()> {
    let id = format!("doctor-{}", std::process::id());
    match client.sandbox(id)?.touch() {
        Err(e) if e.kind() == ErrorKind::Unauthorized => Err(e),
        _ => Ok(()),
    }
}

/// Says what the options for local sandboxes weaken.
fn warn_about_options(args: &Args, console: &Console) {
    for path in &args.backend.read_only {
        console.warning(&format!(
            "--ro {}: commands can read it, and connect to the sockets below it",
            path.display()
        ));
    }
    if args.backend.network {
        console.warning(
            "--network: commands reach the internet, the local network and this machine's localhost; before Linux 6.12 also its abstract Unix sockets",
        );
    }
}

/// Checks the container engine of `--docker`, or all that are found.
fn check_containers(args: &Args, console: &Console) -> Result<Value> {
    let sockets = match &args.backend.docker {
        Some(Some(socket)) => vec![socket.clone()],
        _ => match DockerBackend::sockets() {
            Ok(sockets) => sockets
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            Err(e) => {
                console.info(&format!("Containers: {e:#}"));
                Vec::new()
            }
        },
    };
    let checks = sockets
        .iter()
        .map(|socket| check_engine(args, socket, console));
    checks.collect::<Result<Vec<Value>>>().map(Value::from)
}

fn check_engine(args: &Args, socket: &str, console: &Console) -> Result<Value> {
    Ok(match docker(args)?.socket(socket).build() {
        Ok(backend) => {
            let engine = backend.engine();
            console.success(&format!("Containers: {engine} at {socket} works"));
            json!({"socket": socket, "engine": engine, "works": true})
        }
        Err(e) => {
            console.failure(&format!("Containers: {socket} cannot be used: {e:#}"));
            json!({"socket": socket, "works": false, "error": format!("{e:#}")})
        }
    })
}

/// Checks the cluster of `--kubernetes`, or that of `kubectl` or of this pod if there is one.
fn check_cluster(args: &Args, console: &Console) -> Result<Value> {
    // Sends nothing to agents, so that neither their image nor the key matters.
    let builder = kubernetes(args)?
        .agent_image("none")
        .key([0; 32].map(|_: u8| b'0'));
    let backend = match builder.timeout(CLUSTER_TIMEOUT).build() {
        Ok(backend) => backend,
        Err(e) => {
            console.info(&format!("Kubernetes: {e:#}"));
            return Ok(Value::Null);
        }
    };
    let (server, namespace) = (backend.server(), backend.namespace());
    let shown = format!("the cluster at {server}, namespace {namespace},");
    let error = backend.health().err();
    match &error {
        None => console.success(&format!("Kubernetes: {shown} lets this user list pods")),
        Some(e) => console.failure(&format!("Kubernetes: {shown} cannot be used: {e:#}")),
    }
    let error = error.map(|e| format!("{e:#}"));
    Ok(json!({"server": server, "namespace": namespace, "works": error.is_none(), "error": error}))
}

fn check_isolation(args: &Args, tier: Isolation, console: &Console) -> Value {
    let name = tier.to_string();
    let built = local(args, tier).build();
    let checked = built.and_then(|backend| {
        let missing = backend.missing()?;
        let limits = backend.limits(&SandboxSpec::new().cpu("1"))?;
        Ok((missing, limits))
    });
    let (missing, limits) = match checked {
        Ok(checked) => checked,
        Err(e) => {
            console.failure(&format!("Local sandboxes: {name} does not work: {e:#}"));
            return json!({"tier": name, "works": false, "error": format!("{e:#}")});
        }
    };
    let memory = limits.memory().enforced();
    let cpu = limits.cpu_millis().enforced();
    console.success(&format!(
        "Local sandboxes: {name} works; limits: memory {memory}, CPU {cpu}"
    ));
    if !missing.is_empty() {
        console.warning(&format!("Not available: {}", missing.join(", ")));
    }
    json!({"tier": name, "works": true, "missing": missing, "memory": memory, "cpu": cpu})
}
