//! Uploads and downloads.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::body::{self, BUFFERED_PIECES, BodyEnd, UploadReader};
use super::budget;
use super::reply::{ErrorReply, Reply};
use super::service::{Service, check_content_type, content_length, join};
use crate::backend::wire::ARCHIVE;
use crate::error::Error;
use crate::sandbox_path::SandboxPath;
use crate::session_id::SessionId;
use crate::upload::Upload;

/// Content types of an upload.
const ARCHIVE_TYPES: [&str; 4] = [
    ARCHIVE,
    "application/gzip",
    "application/x-gzip",
    "application/octet-stream",
];

impl Service {
    pub(super) async fn upload(
        &self,
        id: SessionId,
        dest: String,
        headers: &HeaderMap,
        body: &mut Option<Incoming>,
    ) -> Result<Reply, ErrorReply> {
        check_content_type(headers, &ARCHIVE_TYPES)?;
        let dest = SandboxPath::new("dest", dest)?.as_text()?.to_owned();
        let length = content_length(headers);
        if length.is_some_and(|length| length > self.max_upload) {
            return Err(ErrorReply::too_large());
        }
        let (pieces, received) = mpsc::channel(BUFFERED_PIECES);
        let permit = self.call_permit()?;
        let memory = self.budget.reserve(budget::TRANSFER)?;
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            let _held = (permit, memory);
            let mut reader = UploadReader::new(received);
            backend.upload(&id, &dest, Upload::from_reader(&mut reader, length))?;
            reader
                .finish()
                .map_err(|e| Error::io("cannot read the body", e))
        });
        let end = match body.as_mut() {
            Some(body) => body::receive(body, &pieces, self.body_idle, self.max_upload).await,
            None => BodyEnd::Broken,
        };
        drop(pieces);
        let result = join(task.await);
        match end {
            BodyEnd::Complete | BodyEnd::NotRead => result?,
            BodyEnd::TooLarge | BodyEnd::NoMemory(_) => return Err(end.into()),
            BodyEnd::Stalled | BodyEnd::Broken => {
                *body = None;
                return Err(end.into());
            }
        }
        Ok(Reply::Empty(StatusCode::OK))
    }

    pub(super) async fn download(&self, id: SessionId, src: String) -> Result<Reply, ErrorReply> {
        let src = SandboxPath::new("src", src)?.as_text()?.to_owned();
        let (pieces, received) = mpsc::channel(BUFFERED_PIECES);
        let (started, starts) = oneshot::channel();
        let permit = self.call_permit()?;
        let memory = self.budget.reserve(budget::TRANSFER)?;
        let backend = Arc::clone(&self.backend);
        let task = spawn_blocking(move || {
            let _permit = permit;
            let archive = backend.download(&id, &src)?;
            if started.send(()).is_ok() {
                body::send_archive(archive, &pieces);
            }
            Ok(())
        });
        if starts.await.is_ok() {
            return Ok(Reply::Archive(received, memory));
        }
        join(task.await)?;
        let text = "the download did not start";
        Err(ErrorReply::new(StatusCode::INTERNAL_SERVER_ERROR, text))
    }
}
