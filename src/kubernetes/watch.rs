//! Following the changes of a pod.

use std::io::{BufReader, Read as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::api::Api;
use super::pod::Pod;
use super::status;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::http::RestStream;

/// Maximum time of one request.
const REQUEST: Duration = Duration::from_secs(30);

/// Pause before the API server is asked again after a failure.
const PAUSE: Duration = Duration::from_millis(300);

/// Maximum size of the events of one request, in bytes.
const MAX_EVENTS: u64 = 64 << 20;

/// Maximum number of changes that wait for the caller.
const MAX_CHANGES: usize = 16;

/// Follows a pod on a thread, which ends with this value.
pub(super) struct PodWatch {
    changes: Receiver<Change>,
    cancel: Cancel,
}

/// A change of a pod.
pub(super) enum Change {
    Pod(Box<Pod>),
    Gone,
    /// The API server does not allow to watch it.
    Failed(Error),
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// The next step after the events of one request.
enum Next {
    /// Some changes may be lost.
    Get,
    /// The caller needs no more events.
    Stop,
}

impl PodWatch {
    /// Follows a pod from the version that the caller knows until `end`.
    pub(super) fn start(api: &Arc<Api>, pod: &Pod, end: Instant) -> Result<PodWatch> {
        let (sender, changes) = sync_channel(MAX_CHANGES);
        let cancel = Cancel::new();
        let follower = Follower {
            api: Arc::clone(api),
            name: pod.metadata.name.clone(),
            end,
            cancel: cancel.clone(),
            sender,
        };
        let version = pod.metadata.resource_version.clone();
        thread::Builder::new()
            .name("noxrunner-watch".into())
            .spawn(move || follower.run(version))
            .map_err(|e| Error::io("cannot start a thread", e))?;
        Ok(PodWatch { changes, cancel })
    }

    /// Waits for a change at most this long.
    pub(super) fn next(&self, wait: Duration) -> Option<Change> {
        match self.changes.recv_timeout(wait) {
            Ok(change) => Some(change),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                // The deadline has passed.
                thread::sleep(wait);
                None
            }
        }
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Follower {
    api: Arc<Api>,
    name: String,
    end: Instant,
    cancel: Cancel,
    sender: SyncSender<Change>,
}

impl Follower {
    fn run(self, version: String) {
        let mut version = Some(version);
        while !self.cancel.is_cancelled() && Instant::now() < self.end {
            let from = match version.take() {
                Some(version) => version,
                None => match self.get() {
                    Ok(Some(version)) => version,
                    Ok(None) => return,
                    Err(e) if status::is_temporary(&e) => {
                        self.cancel.sleep(PAUSE);
                        continue;
                    }
                    Err(e) => return self.send(Change::Failed(e)),
                },
            };
            let limit = REQUEST.min(self.end.saturating_duration_since(Instant::now()));
            match self.api.watch(&self.name, &from, limit, &self.cancel) {
                Ok(stream) => match self.read(stream) {
                    Next::Get => {}
                    Next::Stop => return,
                },
                Err(e) if status::is_temporary(&e) => drop(self.cancel.sleep(PAUSE)),
                Err(e) => return self.send(Change::Failed(e)),
            }
        }
    }

    /// Asks for the current state, and returns its version.
    fn get(&self) -> Result<Option<String>> {
        let Some(pod) = self.api.get(&self.name, self.end)? else {
            self.send(Change::Gone);
            return Ok(None);
        };
        let version = pod.metadata.resource_version.clone();
        self.send(Change::Pod(Box::new(pod)));
        Ok(Some(version))
    }

    /// Passes on the events of a request.
    fn read(&self, stream: RestStream) -> Next {
        let stream = BufReader::new(stream.take(MAX_EVENTS));
        let events = serde_json::Deserializer::from_reader(stream).into_iter::<Event>();
        for event in events.map_while(std::result::Result::ok) {
            let pod = serde_json::from_value::<Pod>(event.object);
            match (event.kind.as_str(), pod) {
                ("ADDED" | "MODIFIED", Ok(pod)) => self.send(Change::Pod(Box::new(pod))),
                ("DELETED", _) => {
                    self.send(Change::Gone);
                    return Next::Stop;
                }
                // The version is too old, or the event is of a newer protocol.
                _ => return Next::Get,
            }
        }
        Next::Get
    }

    fn send(&self, change: Change) {
        // Fails only if the caller has given up.
        let _ = self.sender.send(change);
    }
}
