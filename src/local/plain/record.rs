//! The record of a sandbox: a JSON file beside its files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::process_marks::random_token;
use crate::local::millis::{millis, since_epoch};
use crate::local::state_dir::RECORD;
use crate::session_id::SessionId;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlainRecord {
    id: String,
    pub(super) ttl_millis: u64,
    expires_unix_millis: u64,
    /// Marks the sandbox's processes.
    pub(super) token: String,
}

impl PlainRecord {
    /// Creates a record that has expired, until it is [renewed](PlainRecord::renew).
    pub(super) fn new(id: &SessionId) -> PlainRecord {
        PlainRecord {
            id: id.as_str().to_owned(),
            ttl_millis: 0,
            expires_unix_millis: 0,
            token: random_token(),
        }
    }

    /// Restarts the TTL and returns when it expires.
    pub(super) fn renew(&mut self) -> SystemTime {
        let end = since_epoch() + Duration::from_millis(self.ttl_millis);
        self.expires_unix_millis = millis(end);
        UNIX_EPOCH + end
    }

    pub(super) fn is_expired(&self) -> bool {
        millis(since_epoch()) >= self.expires_unix_millis
    }

    /// Replaces the record atomically, so that readers see either the old or the new one.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("sandbox.json.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(new, dir.join(RECORD))
    }
}
