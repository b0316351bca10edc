//! A backend that forwards all calls, except that a test can change exec.

use std::io::Read;

use noxrunner::{Backend, Command, Output, Result, SandboxInfo, SandboxSpec, SessionId, Upload};

pub(crate) struct ExecOverride<B, F> {
    pub(crate) backend: B,
    pub(crate) exec: F,
}

impl<B: Backend, F> Backend for ExecOverride<B, F>
where
    F: Fn(&B, &SessionId, &Command) -> Result<Output> + Send + Sync,
{
    fn health(&self) -> Result<()> {
        self.backend.health()
    }
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        self.backend.create(id, spec)
    }
    fn touch(&self, id: &SessionId) -> Result<()> {
        self.backend.touch(id)
    }
    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        (self.exec)(&self.backend, id, command)
    }
    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        self.backend.upload(id, dest, archive)
    }
    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        self.backend.download(id, src)
    }
    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.backend.delete(id)
    }
}
