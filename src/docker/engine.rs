//! The calls of the Engine API, which Docker and Podman have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::container::{Container, DIR_LABEL, ID_LABEL};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::{RestBody, RestClient, RestResponse, RestSettings};

/// Timeout of calls that neither create nor start a container.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time between the creation and the start of a container by its creator.
pub(super) const MAX_UNSTARTED: Duration = Duration::from_secs(60);

/// Newest version of the API that this was written for, as the minor number of 1.x.
const NEWEST: u32 = 47;

/// Oldest version of the API that has everything that is used here.
const OLDEST: u32 = 40;

/// A container engine: Docker or Podman.
pub(super) struct Engine {
    rest: RestClient,
    socket: PathBuf,
    /// The prefix of all paths, such as `/v1.41`.
    prefix: String,
    /// Name and version, such as `Docker 28.0.1`.
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: String,
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: Option<String>,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

/// The result of creating a container.
pub(super) enum Created {
    /// With its id.
    Container(String),
    /// Another container has the name.
    NameTaken,
    /// The engine does not have the image.
    NoImage,
}

/// The container of a sandbox, in a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: String,
    state: String,
    /// In seconds since 1970.
    created: u64,
    labels: Option<BTreeMap<String, String>>,
}

impl Listed {
    /// Returns the directory of the sandbox on the host.
    pub(super) fn dir(&self) -> Option<PathBuf> {
        self.labels.as_ref()?.get(DIR_LABEL).map(PathBuf::from)
    }

    /// Returns true for a container that does not run, because its creator was killed before it started or
    /// removed it.
    pub(super) fn is_abandoned(&self, now: SystemTime) -> bool {
        let runs = matches!(&*self.state, "running" | "paused" | "removing" | "stopping");
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        !runs && now.as_secs().saturating_sub(self.created) > MAX_UNSTARTED.as_secs()
    }
}

#[derive(Deserialize)]
struct EventLine {
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

impl Engine {
    /// Connects to an engine and agrees on a version of the API.
    pub(super) fn connect(socket: &Path) -> Result<Engine> {
        let rest = client(socket, Vec::new())?;
        let response = rest.send("GET", "/version", RestBody::None, TIMEOUT);
        let response = response
            .map_err(|e| e.context(|| format!("container engine at {}", socket.display())))?;
        let version: Version = response.json().map_err(|e| {
            let text = format!(
                "{} is not the socket of a container engine",
                socket.display()
            );
            Error::new(ErrorKind::Protocol, text).with_source(e)
        })?;
        let is_podman = version.components.iter().any(|c| c.name.contains("Podman"));
        let product = if is_podman { "Podman" } else { "Docker" };
        let name = format!("{product} {}", one_line(&version.version));
        let minor = agree(&version).ok_or_else(|| {
            let supported = one_line(&version.api_version);
            let text = format!(
                "{name} has version {supported} of the Engine API, 1.{OLDEST} or later is needed"
            );
            Error::new(ErrorKind::Unsupported, text)
        })?;
        Ok(Engine {
            rest,
            socket: socket.to_owned(),
            prefix: format!("/v1.{minor}"),
            name,
        })
    }

    /// Returns the engine's name and version.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns a client that sends more headers, and the prefix of paths.
    pub(super) fn with_headers(
        &self,
        headers: Vec<(String, String)>,
    ) -> Result<(RestClient, &str)> {
        Ok((client(&self.socket, headers)?, &self.prefix))
    }

    fn send(
        &self,
        method: &'static str,
        path: &str,
        body: RestBody,
        timeout: Duration,
    ) -> Result<RestResponse> {
        let path = format!("{}{path}", self.prefix);
        self.rest.send(method, &path, body, timeout)
    }

    pub(super) fn ping(&self) -> Result<()> {
        let failed = |e: Error| {
            let text = format!("{} does not answer", self.name);
            Error::new(ErrorKind::NotReady, text).with_source(e)
        };
        let response = self.rest.send("GET", "/_ping", RestBody::None, TIMEOUT);
        let response = response.map_err(failed)?;
        if response.is_success() {
            return Ok(());
        }
        Err(failed(refusal("ping", &response)))
    }

    pub(super) fn create(&self, name: &str, config: &Value, timeout: Duration) -> Result<Created> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            id: String,
            warnings: Option<Vec<String>>,
        }
        let path = format!("/containers/create?name={name}");
        let response = self.send("POST", &path, RestBody::json(config)?, timeout)?;
        if response.is_success() {
            let answer: Answer = response.json()?;
            for warning in answer.warnings.iter().flatten() {
                log::warn!("{}: container {name}: {}", self.name, one_line(warning));
            }
            return Ok(Created::Container(answer.id));
        }
        let message = message(&response);
        match response.status {
            409 => Ok(Created::NameTaken),
            // Podman.
            500 if message.contains("already in use") => Ok(Created::NameTaken),
            404 if message.to_lowercase().contains("image") => Ok(Created::NoImage),
            _ => Err(refusal("create the container", &response)),
        }
    }

    /// Starts a container. Does nothing if it runs already.
    pub(super) fn start(&self, id: &str, timeout: Duration) -> Result<()> {
        let path = format!("/containers/{id}/start");
        let response = self.send("POST", &path, RestBody::None, timeout)?;
        if response.is_success() || response.status == 304 {
            return Ok(());
        }
        Err(refusal("start the container", &response))
    }

    /// Returns what the engine says about a container, or `None` if it does not exist.
    pub(super) fn inspect(&self, name: &str) -> Result<Option<Container>> {
        let path = format!("/containers/{name}/json");
        let response = self.send("GET", &path, RestBody::None, TIMEOUT)?;
        match response.status {
            404 => Ok(None),
            // Podman, while it removes the container.
            500 if message(&response).contains("no such container") => Ok(None),
            200 => response.json().map(Some),
            _ => Err(refusal("inspect the container", &response)),
        }
    }

    /// Kills a container and removes it with its anonymous volumes, and waits until that is done.
    pub(super) fn remove(&self, id: &str, by: Instant) -> Result<()> {
        // Podman gives a container that was not killed 10 s to stop. One that has ended cannot be killed.
        let kill = format!("/containers/{id}/kill?signal=KILL");
        self.send("POST", &kill, RestBody::None, TIMEOUT)?;
        let remove = format!("/containers/{id}?force=true&v=true");
        loop {
            let response = self.send("DELETE", &remove, RestBody::None, TIMEOUT)?;
            let is_gone = match response.status {
                404 => true,
                // The engine removes it already, because of AutoRemove.
                409 | 500 => self.inspect(id)?.is_none(),
                _ => response.is_success(),
            };
            if is_gone {
                return Ok(());
            }
            if Instant::now() > by {
                return Err(refusal("remove the container", &response));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Unpacks a tar archive in the root directory of a container.
    pub(super) fn put_archive(&self, id: &str, archive: Vec<u8>, timeout: Duration) -> Result<()> {
        let path = format!("/containers/{id}/archive?path=%2F");
        let body = RestBody::Archive(archive);
        let response = self.send("PUT", &path, body, timeout)?;
        if response.is_success() {
            return Ok(());
        }
        Err(refusal("copy files into the container", &response))
    }

    /// Returns what a container has written. With a number of lines, Podman 4.3 loses parts of lines.
    pub(super) fn logs(&self, id: &str) -> Result<String> {
        let path = format!("/containers/{id}/logs?stdout=true&stderr=true");
        let response = self.send("GET", &path, RestBody::None, TIMEOUT)?;
        if !response.is_success() {
            return Err(refusal("read the log of the container", &response));
        }
        Ok(String::from_utf8_lossy(&without_frames(&response.body)).into_owned())
    }

    /// Returns the containers of all sandboxes, of any user.
    pub(super) fn sandboxes(&self) -> Result<Vec<Listed>> {
        let filters = encoded(&json!({"label": [ID_LABEL]}).to_string());
        let path = format!("/containers/json?all=true&filters={filters}");
        let response = self.send("GET", &path, RestBody::None, TIMEOUT)?;
        if response.is_success() {
            return response.json();
        }
        Err(refusal("list containers", &response))
    }

    /// Describes the end of a container that was removed, from the engine's recent events. Returns `None` if
    /// these do not have it.
    pub(super) fn recorded_end(&self, id: &str) -> Option<String> {
        let filters = json!({"container": [id], "event": ["oom", "die"]}).to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() + 1;
        let path = format!(
            "/events?since=0&until={now}&stream=false&filters={}",
            encoded(&filters)
        );
        let response = self.send("GET", &path, RestBody::None, TIMEOUT).ok()?;
        let lines = String::from_utf8_lossy(&response.body).into_owned();
        let events: Vec<EventLine> = lines
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let code = events
            .iter()
            .rev()
            .find_map(|event| event.actor.attributes.get("exitCode"));
        let mut text = format!("container removed, exit code {}", one_line(code?));
        if events.iter().any(|event| event.action == "oom") {
            text.push_str(", OOMKilled");
        }
        Some(text)
    }
}

fn client(socket: &Path, headers: Vec<(String, String)>) -> Result<RestClient> {
    let path = socket.to_str().map(encode_path);
    let path = path.ok_or_else(|| {
        let shown = socket.display();
        Error::invalid(format!("the engine's socket {shown} is not UTF-8"))
    })?;
    RestClient::new(RestSettings {
        base_url: format!("unix://{path}"),
        headers,
        ..RestSettings::default()
    })
}

/// Encodes a path for a URL of the form `unix:///PATH`.
pub(super) fn encode_path(path: &str) -> String {
    path.replace('%', "%25")
}

/// Encodes the value of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Returns the minor number of the version to use.
fn agree(version: &Version) -> Option<u32> {
    let minor = |text: &str| text.strip_prefix("1.")?.parse::<u32>().ok();
    let newest = minor(&version.api_version)?.min(NEWEST);
    let oldest = version.min_api_version.as_deref().and_then(minor);
    // An engine that no longer has our newest version may still answer in the same way.
    Some(newest.max(oldest.unwrap_or(0))).filter(|minor| *minor >= OLDEST)
}

/// Returns the text of an error response.
fn message(response: &RestResponse) -> String {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let message: Result<Message> = response.json();
    let text = message.map_or_else(
        |_| String::from_utf8_lossy(&response.body).into_owned(),
        |answer| answer.message,
    );
    one_line(&text)
}

/// Removes the headers of frames: the number of the stream, three zeros, and the length in four bytes.
fn without_frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    while let [_, 0, 0, 0, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (frame, next) = rest.split_at(length.min(rest.len()));
        text.extend_from_slice(frame);
        bytes = next;
    }
    text
}

/// Creates the error for a refused call, with the engine's own words.
pub(super) fn refusal(operation: &str, response: &RestResponse) -> Error {
    let status = response.status;
    let kind = match status {
        400 => ErrorKind::InvalidInput,
        _ => ErrorKind::Status,
    };
    let text = format!(
        "cannot {operation}: the engine answered {status}: {}",
        message(response)
    );
    Error::new(kind, text)
        .with_status(status)
        .with_body(&response.body)
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("name", &self.name)
            .field("socket", &self.socket)
            .field("version", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_containers_are_old_and_do_not_run() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000);
        for (state, created, is_abandoned) in [
            ("created", 9000, true),
            ("exited", 9000, true),
            ("created", 9950, false),
            ("running", 9000, false),
            ("created", 20_000, false),
        ] {
            let json = format!(
                r#"{{"Id": "x", "State": "{state}", "Created": {created}, "Labels": null}}"#
            );
            let listed: Listed = serde_json::from_str(&json).unwrap();
            assert_eq!(listed.is_abandoned(now), is_abandoned, "{listed:?}");
        }
    }

    #[test]
    fn versions_are_agreed_on() {
        let agreed = |newest: &str, oldest: Option<&str>| {
            agree(&Version {
                version: String::new(),
                api_version: newest.to_owned(),
                min_api_version: oldest.map(str::to_owned),
                components: Vec::new(),
            })
        };
        assert_eq!(agreed("1.41", Some("1.12")), Some(41));
        assert_eq!(agreed("1.52", Some("1.44")), Some(NEWEST));
        assert_eq!(agreed("1.60", Some("1.50")), Some(50));
        assert_eq!(agreed("1.39", None), None);
        assert_eq!(agreed("2.0", None), None);
    }

    #[test]
    fn frames_are_removed() {
        let log = b"\x02\0\0\0\0\0\0\x03abc\x01\0\0\0\0\0\0\x05de";
        assert_eq!(without_frames(log), b"abcde");
    }
}
