//! Tokens and headers, from the command line, files and the environment.

use std::env::VarError;
use std::fs;
use std::path::Path;

use noxrunner::{Error, ErrorKind, Result};

use crate::args::Args;
use crate::file_error::file_error;
use crate::parse::header;

/// Headers for every request, one `Name: value` per line.
const HEADERS_VARIABLE: &str = "NOXRUNNER_HEADERS";

/// The hint for a request without valid credentials.
pub(crate) const HINT: &str = "Set the server's token with NOXRUNNER_TOKEN or --token-file, or its header with \
     NOXRUNNER_HEADERS or --header-file";

/// Returns the token for the server, if there is one.
pub(crate) fn token(args: &Args) -> Result<Option<String>> {
    match &args.backend.token_file {
        Some(path) => read_token(path).map(Some),
        None => Ok(args.backend.token().map(str::to_owned)),
    }
}

pub(crate) fn read_token(path: &Path) -> Result<String> {
    Ok(read(path, "--token-file")?.trim().to_owned())
}

/// Returns the headers for every request. A name in `--header` replaces those of the same name in
/// `--header-file`, and they those in the environment.
pub(crate) fn headers(args: &Args) -> Result<Vec<(String, String)>> {
    let mut headers = match std::env::var(HEADERS_VARIABLE) {
        Ok(lines) => parse_lines(&lines, HEADERS_VARIABLE)?,
        Err(VarError::NotPresent) => Vec::new(),
        Err(VarError::NotUnicode(_)) => {
            let message = format!("{HEADERS_VARIABLE} is not UTF-8");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
    };
    if let Some(path) = &args.backend.header_file {
        let lines = read(path, "--header-file")?;
        replace(
            &mut headers,
            parse_lines(&lines, &path.display().to_string())?,
        );
    }
    replace(&mut headers, args.backend.headers.clone());
    Ok(headers)
}

fn read(path: &Path, option: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|e| file_error(&format!("cannot read {option}"), path, e))
}

/// Parses one header per line. Empty lines, and lines that begin with `#`, are ignored.
fn parse_lines(lines: &str, origin: &str) -> Result<Vec<(String, String)>> {
    let lines = lines.lines().map(str::trim).zip(1..);
    let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let parse = |(line, number)| {
        // The line may be a secret, so the error does not show it.
        header(line).map_err(|why| {
            let message = format!("line {number} of {origin} {why}");
            Error::new(ErrorKind::InvalidInput, message)
        })
    };
    lines.map(parse).collect()
}

fn replace(headers: &mut Vec<(String, String)>, newer: Vec<(String, String)>) {
    let is_newer = |name: &str| newer.iter().any(|(new, _)| new.eq_ignore_ascii_case(name));
    headers.retain(|(name, _)| !is_newer(name));
    headers.extend(newer);
}
