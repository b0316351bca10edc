//! Creating the client that the arguments ask for.

use std::fs;
use std::time::Duration;

use noxrunner::{
    Client, DockerBackend, DockerBackendBuilder, Error, ErrorKind, HttpBackend, HttpBackendBuilder,
    Isolation, KubernetesBackendBuilder, LocalBackend, LocalBackendBuilder, Result,
};

use crate::args::Args;
use crate::backend_args::BackendKind;
use crate::credentials;
use crate::file_error::file_error;
use crate::progress;

/// Default timeout of the calls that `serve` makes to another server or a cluster. It is shorter than the 30 s of most
/// clients, so that they receive the error of the server before they time out.
pub(crate) const SERVE_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn client(args: &Args) -> Result<Client> {
    let client = match args.backend.kind() {
        BackendKind::Kubernetes => {
            check_no_local_options(args)?;
            Client::with_backend(kubernetes(args)?.build()?)
        }
        BackendKind::Server => {
            check_no_local_options(args)?;
            Client::from(remote(args)?)
        }
        BackendKind::Local => {
            let builder = local(args, args.backend.isolation.into());
            Client::with_backend(builder.persistent(true).build()?)
        }
        BackendKind::Docker => {
            let builder = docker(args)?.on_pull_progress(progress::of_pull(args.json));
            Client::with_backend(builder.build()?)
        }
    };
    Ok(progress::with_progress(client, args.json))
}

pub(crate) fn local(args: &Args, isolation: Isolation) -> LocalBackendBuilder {
    let builder = LocalBackend::builder().isolation(isolation);
    let paths = args.backend.read_only.iter();
    paths
        .fold(builder, LocalBackendBuilder::read_only)
        .network(args.backend.network)
}

pub(crate) fn docker(args: &Args) -> Result<DockerBackendBuilder> {
    let mut builder = DockerBackend::builder();
    if let Some(Some(socket)) = &args.backend.docker {
        builder = builder.socket(socket);
    }
    if let Some(agent) = &args.backend.agent {
        builder = builder.agent(agent);
    }
    if let Some(runtime) = &args.backend.runtime {
        builder = builder.runtime(runtime);
    }
    if let Some(timeout) = args.backend.timeout {
        builder = builder.create_timeout(timeout);
    }
    for path in &args.backend.read_only {
        let path = std::path::absolute(path).map_err(|e| file_error("cannot use --ro", path, e))?;
        let path = path
            .to_str()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the path of --ro is not UTF-8"))?;
        builder = builder.mount(path, path, true);
    }
    if args.backend.network {
        builder = builder.network("bridge");
    }
    Ok(builder.loopback_port(args.backend.docker_port))
}

pub(crate) fn kubernetes(args: &Args) -> Result<KubernetesBackendBuilder> {
    args.backend.kubernetes.builder(args.backend.timeout)
}

/// Refuses options of local sandboxes if a server is used, which would ignore them.
pub(crate) fn check_no_local_options(args: &Args) -> Result<()> {
    if args.backend.network || !args.backend.read_only.is_empty() {
        let text = "--ro and --network are for local sandboxes and containers only: add --local or --docker";
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(())
}

pub(crate) fn remote(args: &Args) -> Result<HttpBackend> {
    let builder = http(args, &args.backend.base_url, credentials::token(args)?)?;
    builder.build()
}

/// Creates the backend of `serve --gateway`, where `--token-file` has the token of the gateway itself.
pub(crate) fn gateway(args: &Args, url: &str) -> Result<HttpBackend> {
    let builder = http(args, url, args.backend.token().map(str::to_owned))?;
    let timeout = args.backend.timeout.unwrap_or(SERVE_TIMEOUT);
    builder.timeout(timeout).build()
}

fn http(args: &Args, url: &str, token: Option<String>) -> Result<HttpBackendBuilder> {
    let mut builder = HttpBackend::builder(url);
    if let Some(timeout) = args.backend.timeout {
        builder = builder.timeout(timeout);
    }
    if let Some(token) = token {
        builder = builder.token(token);
    }
    for (name, value) in credentials::headers(args)? {
        builder = builder.header(name, value);
    }
    if let Some(path) = &args.backend.ca {
        let pem = fs::read(path).map_err(|e| file_error("cannot read --ca", path, e))?;
        builder = builder.ca_pem(pem);
    }
    Ok(builder)
}
