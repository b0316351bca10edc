//! The client that was asked for.

use std::fs;

use noxrunner::{Client, Error, ErrorKind, HttpBackend, LocalBackend, Result};

use crate::args::Args;
use crate::progress;

pub(crate) fn client(args: &Args) -> Result<Client> {
    // As the Python command has it: an empty URL is this machine.
    let client = match args.local || args.base_url.is_empty() {
        true => Client::with_backend(local(args).persistent(true).build()?),
        false => Client::from(remote(args, &args.base_url)?),
    };
    Ok(progress::shown(client, args.json))
}

pub(crate) fn local(args: &Args) -> noxrunner::LocalBackendBuilder {
    LocalBackend::builder().isolation(args.isolation.into())
}

pub(crate) fn remote(args: &Args, url: &str) -> Result<HttpBackend> {
    let mut builder = HttpBackend::builder(url).timeout(args.timeout);
    if let Some(token) = args.token() {
        builder = builder.token(token);
    }
    for (name, value) in &args.headers {
        builder = builder.header(name, value);
    }
    if let Some(path) = &args.ca {
        let pem = fs::read(path).map_err(|e| file_failed("--ca", path, e))?;
        builder = builder.ca_pem(pem);
    }
    builder.build()
}

pub(crate) fn file_failed(what: &str, path: &std::path::Path, e: std::io::Error) -> Error {
    let text = format!("{what} {}: {e}", path.display());
    Error::new(ErrorKind::Io, text).with_source(e)
}
