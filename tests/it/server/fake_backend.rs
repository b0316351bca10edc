//! A backend whose behaviour depends on the session id.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use noxrunner::server::{Server, ServerBuilder};
use noxrunner::{
    Backend, Command, Error, ErrorKind, Output, SandboxInfo, SandboxSpec, SessionId, Upload,
};

#[derive(Default)]
pub(super) struct FakeBackend {
    pub(super) running: AtomicUsize,
    pub(super) cancelled: Arc<AtomicBool>,
    /// Set when an endless download has ended.
    pub(super) endless_ended: Arc<AtomicBool>,
}

struct Endless(Arc<AtomicBool>);

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the disk is gone"))
    }
}

impl Backend for FakeBackend {
    fn health(&self) -> noxrunner::Result<()> {
        Ok(())
    }
    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> noxrunner::Result<SandboxInfo> {
        assert_ne!(id.as_str(), "panic", "as scripted");
        let ignored = spec.get_image().map(str::to_owned);
        let info = SandboxInfo::new("pod", "2026-01-02T12:34:56Z");
        Ok(info.with_ignored(ignored.into_iter().collect()))
    }
    fn touch(&self, id: &SessionId) -> noxrunner::Result<()> {
        let kind = match id.as_str() {
            "missing" => ErrorKind::NotFound,
            "not-ready" => ErrorKind::NotReady,
            "unknown" => ErrorKind::OutcomeUnknown,
            "late" => ErrorKind::Timeout,
            "disk" => ErrorKind::Io,
            "cannot" => ErrorKind::Unsupported,
            _ => return Ok(()),
        };
        Err(Error::new(kind, "as scripted"))
    }
    fn exec(&self, _: &SessionId, command: &Command) -> noxrunner::Result<Output> {
        let cancel = command.get_cancel().unwrap().clone();
        self.running.fetch_add(1, Ordering::SeqCst);
        let end = Instant::now() + command.get_timeout();
        while Instant::now() < end && !cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.cancelled
            .fetch_or(cancel.is_cancelled(), Ordering::SeqCst);
        Ok(
            Output::new(3, "o\n", vec![b'e', 0xff], Duration::from_millis(7))
                .with_timed_out(true)
                .with_truncated(false),
        )
    }
    fn upload(&self, id: &SessionId, _: &str, mut archive: Upload<'_>) -> noxrunner::Result<()> {
        if id.as_str() == "refuses" {
            return Err(Error::new(ErrorKind::Archive, "not this one"));
        }
        let read = std::io::copy(&mut archive, &mut std::io::sink());
        read.map(drop)
            .map_err(|e| Error::new(ErrorKind::Archive, format!("{e:#}")))
    }
    fn download(&self, id: &SessionId, _: &str) -> noxrunner::Result<Box<dyn Read + Send>> {
        match id.as_str() {
            "endless" => Ok(Box::new(Endless(Arc::clone(&self.endless_ended)))),
            "broken" => Ok(Box::new((&b"half"[..]).chain(Broken))),
            _ => Err(Error::new(ErrorKind::NotFound, "no such path")),
        }
    }
    fn delete(&self, id: &SessionId) -> noxrunner::Result<bool> {
        Ok(id.as_str() != "missing")
    }
}

pub(super) fn fake_server() -> (ServerBuilder, Arc<FakeBackend>) {
    let fake = Arc::new(FakeBackend::default());
    let builder = Server::builder(Arc::clone(&fake));
    (builder.tcp("127.0.0.1:0").token("secret"), fake)
}
