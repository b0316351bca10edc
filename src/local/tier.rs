//! The interface of the isolation tiers.

use super::files::SandboxFiles;
use super::limits::Limits;
use crate::backend::Sink;
use crate::command::Command;
use crate::error::Result;
use crate::output::Output;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};
use crate::upload::Upload;

/// An isolation tier. [`LocalBackend`](super::backend::LocalBackend) validates the arguments.
pub(super) trait SandboxTier: Send + Sync {
    fn health(&self) -> Result<()>;
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo>;
    fn touch(&self, id: &SessionId) -> Result<()>;
    /// Runs a command. Its output goes to `sink` while it runs, if there is one. Text about the command
    /// is in the streams of the returned output.
    fn exec<'a>(
        &self,
        id: &SessionId,
        command: &Command,
        sink: Option<&'a mut Sink<'a>>,
    ) -> Result<Output>;
    fn files(&self, id: &SessionId) -> Result<SandboxFiles>;
    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        self.files(id)?.upload(dest, archive)
    }
    fn delete(&self, id: &SessionId) -> Result<bool>;
    fn limits(&self, spec: &SandboxSpec) -> Result<Limits>;
    /// Returns the optional kernel features that sandboxes lack here.
    fn missing(&self) -> Result<Vec<&'static str>>;
}
