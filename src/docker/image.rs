//! Names of images, and pulling them.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::engine::{Engine, encoded};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::http::RestStream;

/// Maximum time without progress of a pull. A registry may take a while before the first byte of a layer.
const STALL: Duration = Duration::from_secs(120);

/// Maximum length of a line of a pull's progress.
const MAX_LINE: u64 = 1 << 20;

/// When the image of a new sandbox is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pull {
    /// If the engine does not have it.
    #[default]
    Missing,
    /// For every new sandbox, so that a tag leads to its newest image.
    Always,
    /// Never: an image that the engine does not have is an error.
    Never,
}

/// Progress of pulling an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    image: String,
    received: u64,
    total: u64,
}

impl PullProgress {
    /// Returns the name of the image.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Returns the number of bytes that have been downloaded.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the size of all layers known so far, in bytes. It grows while the pull begins, and is 0 if the
    /// engine does not report sizes, as Podman 4.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// The name of an image.
pub(super) struct Image<'a> {
    name: &'a str,
    /// A tag or a digest.
    tag: &'a str,
}

impl<'a> Image<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Image<'a>> {
        let is_odd = |c: char| c.is_control() || c.is_whitespace();
        if text.is_empty() || text.len() > 4096 || text.chars().any(is_odd) {
            let shown = one_line(text);
            return Err(Error::invalid(format!(
                "image {shown:?} is not the name of an image"
            )));
        }
        // A digest follows an "@" and contains a colon.
        if let Some((name, digest)) = text.split_once('@') {
            return Ok(Image { name, tag: digest });
        }
        let name_start = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[name_start..].rfind(':') {
            Some(colon) => (&text[..name_start + colon], &text[name_start + colon + 1..]),
            // Without a tag, Docker would pull all of them.
            None => (text, "latest"),
        };
        Ok(Image { name, tag })
    }

    /// Returns the registry's host and port.
    pub(super) fn registry(&self) -> &'a str {
        match self.name.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
            _ => "docker.io",
        }
    }

    pub(super) fn is_on_docker_hub(&self) -> bool {
        matches!(
            self.registry(),
            "docker.io" | "index.docker.io" | "registry-1.docker.io"
        )
    }
}

/// Is called with the progress of pulls.
pub(super) type OnPull = dyn Fn(&PullProgress) + Send + Sync;

/// Pulls an image. `auth` is the header with the credentials.
pub(super) fn pull(
    engine: &Engine,
    text: &str,
    auth: Option<String>,
    timeout: Duration,
    on_progress: Option<&OnPull>,
) -> Result<()> {
    let image = Image::parse(text)?;
    let query = format!(
        "fromImage={}&tag={}",
        encoded(image.name),
        encoded(image.tag)
    );
    let auth = auth.map(|auth| ("X-Registry-Auth".to_owned(), auth));
    let (rest, prefix) = engine.with_headers(auth.into_iter().collect())?;
    let path = format!("{prefix}/images/create?{query}");
    log::info!("{}: pulling {}", engine.name(), one_line(text));
    let deadline = Instant::now() + timeout;
    let stream = rest.stream("POST", &path, STALL.min(timeout), None);
    let stream = stream.map_err(|e| cannot_pull(text, e.kind(), &format!("{e:#}")))?;
    let left = deadline.saturating_duration_since(Instant::now());
    follow(stream.within(left), text, on_progress)
}

fn cannot_pull(image: &str, kind: ErrorKind, why: &str) -> Error {
    let image = one_line(image);
    Error::new(
        kind,
        format!("cannot pull image {image:?}: {}", one_line(why)),
    )
}

/// A line of a pull's progress. An error arrives as a line too, after the status 200.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Line {
    id: String,
    status: String,
    #[serde(rename = "progressDetail")]
    detail: Detail,
    error: Option<String>,
    /// The text of an error status.
    message: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Detail {
    current: u64,
    total: u64,
}

/// Reads a pull's progress until it ends.
fn follow(stream: RestStream, image: &str, on_progress: Option<&OnPull>) -> Result<()> {
    let is_success = (200..300).contains(&stream.status);
    let mut reader = BufReader::new(stream);
    let mut layers = Layers::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let read = read.map_err(|e| match e.kind() {
            std::io::ErrorKind::TimedOut => cannot_pull(image, ErrorKind::Timeout, "timed out"),
            _ => cannot_pull(image, ErrorKind::Connect, &e.to_string()),
        })?;
        if read == 0 && is_success {
            return Ok(());
        }
        let parsed: Line = serde_json::from_slice(&line).unwrap_or_default();
        if let Some(error) = parsed.error.as_ref().or(parsed.message.as_ref()) {
            return Err(cannot_pull(image, ErrorKind::InvalidInput, error));
        }
        if !is_success {
            let text = String::from_utf8_lossy(&line);
            return Err(cannot_pull(image, ErrorKind::Status, &text));
        }
        if let (true, Some(on_progress)) = (layers.record(&parsed), on_progress) {
            on_progress(&layers.progress(image));
        }
    }
}

/// Maximum number of layers whose progress is reported. Images have at most 127.
const MAX_LAYERS: usize = 1000;

/// Maximum length of a layer's id, in bytes.
const MAX_LAYER_ID: usize = 128;

/// The layers of an image, with their downloaded and whole sizes.
#[derive(Default)]
struct Layers(Vec<(String, u64, u64)>);

impl Layers {
    /// Records the progress of a layer. Returns true if it has changed.
    fn record(&mut self, line: &Line) -> bool {
        let is_complete = matches!(&*line.status, "Download complete" | "Pull complete");
        if line.status != "Downloading" && !is_complete {
            return false;
        }
        let at = self.0.iter().position(|(id, ..)| *id == line.id);
        let at = match at {
            Some(at) => at,
            None if self.0.len() == MAX_LAYERS || line.id.len() > MAX_LAYER_ID => return false,
            None => {
                self.0.push((line.id.clone(), 0, 0));
                self.0.len() - 1
            }
        };
        let (_, received, total) = &mut self.0[at];
        if is_complete {
            *received = *total;
        } else {
            (*received, *total) = (line.detail.current, line.detail.total);
        }
        true
    }

    fn progress(&self, image: &str) -> PullProgress {
        let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
        PullProgress {
            image: image.to_owned(),
            received: sum(&mut self.0.iter().map(|layer| layer.1)),
            total: sum(&mut self.0.iter().map(|layer| layer.2)),
        }
    }
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (image, received, total) = (&self.image, self.received, self.total);
        write!(f, "{image}: {received} of {total} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_any_layers_is_limited() {
        let line = |id: String| Line {
            status: "Downloading".to_owned(),
            id,
            detail: Detail {
                current: 1,
                total: u64::MAX,
            },
            ..Line::default()
        };
        let mut layers = Layers::default();
        for n in 0..2 * MAX_LAYERS {
            layers.record(&line(n.to_string()));
        }
        let progress = layers.progress("app");
        assert_eq!((progress.received, progress.total), (1000, u64::MAX));
        assert!(!Layers::default().record(&line("x".repeat(MAX_LAYER_ID + 1))));
    }

    #[test]
    fn names_have_registry_and_tag() {
        for (text, name, tag, registry) in [
            ("python", "python", "latest", "docker.io"),
            ("python:3.12", "python", "3.12", "docker.io"),
            ("team/app:1", "team/app", "1", "docker.io"),
            ("localhost/app", "localhost/app", "latest", "localhost"),
            (
                "127.0.0.1:5000/app",
                "127.0.0.1:5000/app",
                "latest",
                "127.0.0.1:5000",
            ),
            (
                "r.example.com/a/b:x",
                "r.example.com/a/b",
                "x",
                "r.example.com",
            ),
            ("python@sha256:ab", "python", "sha256:ab", "docker.io"),
        ] {
            let image = Image::parse(text).unwrap();
            assert_eq!(
                (image.name, image.tag, image.registry()),
                (name, tag, registry)
            );
        }
        for text in ["", "a b", "a\nb"] {
            assert!(Image::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn progress_is_the_sum_of_the_layers() {
        let mut layers = Layers::default();
        let mut record = |json: &str| {
            let changed = layers.record(&serde_json::from_str(json).unwrap());
            changed.then(|| {
                let progress = layers.progress("app");
                (progress.received(), progress.total())
            })
        };
        assert_eq!(record(r#"{"status":"Pulling from app","id":"1"}"#), None);
        let line = r#"{"status":"Downloading","progressDetail":{"current":10,"total":100},"progress":"[>","id":"a"}"#;
        assert_eq!(record(line), Some((10, 100)));
        let line = r#"{"status":"Downloading","progressDetail":{"current":5,"total":50},"id":"b"}"#;
        assert_eq!(record(line), Some((15, 150)));
        let line = r#"{"status":"Download complete","progressDetail":{},"id":"a"}"#;
        assert_eq!(record(line), Some((105, 150)));
    }
}
