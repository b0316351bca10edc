//! Finding the socket of the engine.

use std::env;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result, one_line};

/// Returns the sockets that may be the engine's, the best one first: the one that `given` or the
/// environment names, else that of the current Docker context, else all usual ones that exist.
///
/// # Errors
///
/// If the setting does not name a Unix socket, or if no socket exists.
pub(super) fn sockets(given: Option<&str>) -> Result<Vec<PathBuf>> {
    if let Some(given) = given {
        return socket_path("the engine's socket", given).map(|path| vec![path]);
    }
    if let Some(host) = variable("DOCKER_HOST") {
        return socket_path("DOCKER_HOST", &host).map(|path| vec![path]);
    }
    if let Some(path) = of_context()? {
        return Ok(vec![path]);
    }
    let usual = usual_sockets();
    let is_socket = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let found: Vec<PathBuf> = usual
        .iter()
        .filter(|path| is_socket(path))
        .cloned()
        .collect();
    if found.is_empty() {
        let tried: Vec<_> = usual
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(Error::invalid(format!(
            "no container engine found: there is no socket at {}; start Docker, or Podman with `systemctl --user start podman.socket`, or set DOCKER_HOST",
            tried.join(", ")
        )));
    }
    Ok(found)
}

/// Returns the directory with the user's Docker configuration.
pub(super) fn config_dir() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    variable("DOCKER_CONFIG").map(PathBuf::from).or_else(home)
}

/// Reads a JSON file, if it exists.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format_args!("cannot read {}", path.display()), e)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        // The text of the error may quote a password.
        let (line, column) = (e.line(), e.column());
        Error::invalid(format!(
            "{}: invalid JSON at line {line}, column {column}",
            path.display()
        ))
    })
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Parses `unix:///PATH` or `/PATH`.
fn socket_path(origin: &str, text: &str) -> Result<PathBuf> {
    let text = text.trim();
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    let shown = one_line(text);
    let advice = if text.starts_with("ssh://") {
        "; forward the socket with `ssh -L /tmp/docker.sock:/var/run/docker.sock HOST` on a machine with the same files"
    } else {
        ""
    };
    Err(Error::invalid(format!(
        "{origin} {shown:?}: only Unix sockets are supported, as in unix:///var/run/docker.sock{advice}"
    )))
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "currentContext")]
    current_context: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContextMeta {
    name: String,
    endpoints: Endpoints,
}

#[derive(Deserialize)]
struct Endpoints {
    docker: Option<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    host: Option<String>,
}

/// Returns the socket of the current context of the Docker command, unless it is the default one.
fn of_context() -> Result<Option<PathBuf>> {
    let Some(dir) = config_dir() else {
        return Ok(None);
    };
    let name = match variable("DOCKER_CONTEXT") {
        Some(name) => Some(name),
        None => {
            read_json::<Config>(&dir.join("config.json"))?.and_then(|config| config.current_context)
        }
    };
    match name {
        Some(name) if !name.is_empty() && name != "default" => {
            socket_of_context(&dir, &name).map(Some)
        }
        _ => Ok(None),
    }
}

/// Contexts are in directories named by a hash, so this looks at each.
fn socket_of_context(dir: &Path, name: &str) -> Result<PathBuf> {
    let metas = fs::read_dir(dir.join("contexts/meta"))
        .into_iter()
        .flatten();
    for entry in metas.flatten() {
        let meta: Option<ContextMeta> = read_json(&entry.path().join("meta.json"))?;
        let Some(meta) = meta.filter(|meta| meta.name == name) else {
            continue;
        };
        let host = meta.endpoints.docker.and_then(|docker| docker.host);
        let origin = format!("Docker context {name:?}");
        return socket_path(&origin, &host.unwrap_or_default());
    }
    Err(Error::invalid(format!(
        "Docker context {name:?} does not exist in {}",
        dir.display()
    )))
}

/// Returns where Docker and Podman put their sockets.
fn usual_sockets() -> Vec<PathBuf> {
    let mut sockets = vec![PathBuf::from("/var/run/docker.sock")];
    if let Some(dir) = env::var_os("XDG_RUNTIME_DIR") {
        let dir = Path::new(&dir);
        sockets.extend([dir.join("docker.sock"), dir.join("podman/podman.sock")]);
    }
    sockets.push(PathBuf::from("/run/podman/podman.sock"));
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_sockets_are_accepted() {
        for text in [
            "unix:///run/docker.sock",
            "/run/docker.sock",
            " /run/docker.sock\n",
        ] {
            let path = socket_path("DOCKER_HOST", text).unwrap();
            assert_eq!(path, Path::new("/run/docker.sock"));
        }
        for text in [
            "tcp://10.0.0.1:2375",
            "ssh://me@host",
            "docker.sock",
            "unix://run/x",
        ] {
            let error = socket_path("DOCKER_HOST", text).unwrap_err().to_string();
            assert!(error.starts_with("DOCKER_HOST"), "{error}");
            assert!(
                error.contains(text) && error.contains("unix:///"),
                "{error}"
            );
        }
    }

    #[test]
    fn contexts_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let meta = dir.path().join("contexts/meta/0123");
        fs::create_dir_all(&meta).unwrap();
        let json = r#"{"Name":"mine","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///run/x.sock","SkipTLSVerify":false}}}"#;
        fs::write(meta.join("meta.json"), json).unwrap();
        let socket = socket_of_context(dir.path(), "mine").unwrap();
        assert_eq!(socket, Path::new("/run/x.sock"));
        let error = socket_of_context(dir.path(), "other")
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"other\" does not exist"), "{error}");
        fs::write(meta.join("meta.json"), json.replace("unix://", "tcp://h")).unwrap();
        let error = socket_of_context(dir.path(), "mine")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Docker context \"mine\" \"tcp://h/run/x.sock\""),
            "{error}"
        );
    }

    #[test]
    fn damaged_files_are_reported_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "{\"auths\": s3cret}").unwrap();
        let error = read_json::<Config>(&path).err().unwrap();
        assert!(!format!("{error:#}").contains("s3cret"), "{error:#}");
        assert!(
            read_json::<Config>(&dir.path().join("none"))
                .unwrap()
                .is_none()
        );
    }
}
