//! Credentials of registries, from the user's Docker configuration.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use serde_json::json;

use super::image::Image;
use super::locate::{config_dir, read_json};
use crate::error::{Error, Result, one_line};

/// Timeout of a credential helper. Some ask the user, or renew a login over the network.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// The name of Docker Hub in the configuration.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// User name of a helper's answer whose secret is an identity token.
const IS_TOKEN: &str = "<token>";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
struct AuthEntry {
    /// `user:password` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Returns the header `X-Registry-Auth` for pulling an image, or `None` without credentials.
pub(super) fn registry_auth(image: &Image) -> Result<Option<String>> {
    let Some(dir) = config_dir() else {
        return Ok(None);
    };
    of_config(&dir, image)
}

fn of_config(dir: &Path, image: &Image) -> Result<Option<String>> {
    let config: Config = read_json(&dir.join("config.json"))?.unwrap_or_default();
    let server = if image.is_on_docker_hub() {
        DOCKER_HUB
    } else {
        image.registry()
    };
    let helper = config
        .cred_helpers
        .get(server)
        .or(config.creds_store.as_ref());
    let entry = match helper {
        Some(helper) => ask_helper(helper, server)?,
        None => None,
    };
    let entry = entry.or_else(|| {
        let mut entries = config.auths.into_iter();
        let found = entries.find(|(name, _)| name == server || host(name) == server);
        found.map(|(_, entry)| entry)
    });
    entry.map(|entry| header(entry, server)).transpose()
}

/// Returns the host of a name in the configuration, which may be a URL.
fn host(name: &str) -> &str {
    let name = name
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    name.split_once('/').map_or(name, |(host, _)| host)
}

fn header(entry: AuthEntry, server: &str) -> Result<String> {
    let json = if let Some(token) = entry.identitytoken.filter(|token| !token.is_empty()) {
        json!({"identitytoken": token, "serveraddress": server})
    } else {
        let (user, password) = match entry.auth.filter(|auth| !auth.is_empty()) {
            Some(auth) => decode_pair(&auth, server)?,
            None => (
                entry.username.unwrap_or_default(),
                entry.password.unwrap_or_default(),
            ),
        };
        json!({"username": user, "password": password, "serveraddress": server})
    };
    Ok(URL_SAFE.encode(json.to_string()))
}

fn decode_pair(auth: &str, server: &str) -> Result<(String, String)> {
    let invalid = || {
        Error::invalid(format!(
            "the Docker configuration has invalid credentials for {server:?}: log in again with `docker login`"
        ))
    };
    let bytes = STANDARD.decode(auth).map_err(|_| invalid())?;
    let pair = String::from_utf8(bytes).map_err(|_| invalid())?;
    let (user, password) = pair.split_once(':').ok_or_else(invalid)?;
    let password = password.trim_end_matches('\0');
    Ok((user.to_owned(), password.to_owned()))
}

/// Runs `docker-credential-HELPER get`. Returns `None` if it has no credentials for the server.
fn ask_helper(helper: &str, server: &str) -> Result<Option<AuthEntry>> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: &str| {
        let why = one_line(why);
        Error::invalid(format!(
            "cannot get the credentials for {server:?} from {program}: {why}"
        ))
    };
    let child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let child = child.map_err(|e| failed(&e.to_string()))?;
    let (is_success, output) = finish(child, server).map_err(|e| failed(&e.to_string()))?;
    if !is_success {
        if output.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(&output));
    }
    // The text of the error might quote the secret.
    let answer: HelperAnswer =
        serde_json::from_str(&output).map_err(|_| failed("unexpected answer"))?;
    Ok(Some(if answer.username == IS_TOKEN {
        AuthEntry {
            identitytoken: Some(answer.secret),
            ..AuthEntry::default()
        }
    } else {
        AuthEntry {
            username: Some(answer.username),
            password: Some(answer.secret),
            ..AuthEntry::default()
        }
    }))
}

/// Sends the server's name to a helper, and returns whether it succeeded and its output.
fn finish(mut child: Child, server: &str) -> io::Result<(bool, String)> {
    /// Maximum size of an answer, in bytes.
    const MAX_ANSWER: u64 = 1 << 20;
    let deadline = Instant::now() + HELPER_TIMEOUT;
    if let Some(mut stdin) = child.stdin.take() {
        // The helper may end before it has read this.
        let _ = stdin.write_all(server.as_bytes());
    }
    let stdout = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = String::new();
        let read = stdout.map(|stdout| stdout.take(MAX_ANSWER).read_to_string(&mut output));
        // Fails only if the caller has given up.
        let _ = sender.send(read.transpose().map(|_| output));
    });
    let output = receiver.recv_timeout(HELPER_TIMEOUT);
    while output.is_ok() && Instant::now() < deadline {
        if let (Some(status), Ok(output)) = (child.try_wait()?, &output) {
            let output = output
                .as_ref()
                .map_err(|e| io::Error::new(e.kind(), e.to_string()));
            return Ok((status.success(), output?.clone()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    let seconds = HELPER_TIMEOUT.as_secs();
    let text = format!("timed out after {seconds} s");
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(config: &str, image: &str) -> Option<serde_json::Value> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let header = of_config(dir.path(), &Image::parse(image).unwrap()).unwrap()?;
        Some(serde_json::from_slice(&URL_SAFE.decode(header).unwrap()).unwrap())
    }

    #[test]
    fn credentials_belong_to_a_registry() {
        let pair = STANDARD.encode("me:s3:cret");
        let config = format!(
            r#"{{"auths": {{"r.example.com:5000": {{"auth": "{pair}"}},
                "https://t.example.com/v1/": {{"identitytoken": "abc"}},
                "https://index.docker.io/v1/": {{"username": "hub", "password": "p"}}}}}}"#
        );
        let found = auth(&config, "r.example.com:5000/team/app:1").unwrap();
        assert_eq!(
            found,
            json!({"username": "me", "password": "s3:cret", "serveraddress": "r.example.com:5000"})
        );
        let found = auth(&config, "t.example.com/app").unwrap();
        assert_eq!(found["identitytoken"], "abc");
        let found = auth(&config, "python:3.12").unwrap();
        assert_eq!(found["username"], "hub");
        assert_eq!(auth(&config, "other.example.com/app"), None);
        assert_eq!(auth("{}", "python:3.12"), None);
    }

    #[test]
    fn damaged_credentials_are_not_shown() {
        let config = r#"{"auths": {"r.example.com": {"auth": "c2VjcmV0"}}}"#;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let image = Image::parse("r.example.com/app").unwrap();
        let error = format!("{:#}", of_config(dir.path(), &image).unwrap_err());
        assert!(error.contains("docker login"), "{error}");
        assert!(
            !error.contains("secret") && !error.contains("c2Vj"),
            "{error}"
        );
    }

    #[test]
    fn missing_helper_is_named() {
        let config = r#"{"credsStore": "nosuchhelper-nx"}"#;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let image = Image::parse("python").unwrap();
        let error = of_config(dir.path(), &image).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("docker-credential-nosuchhelper-nx"),
            "{error}"
        );
    }
}
