//! Progress bars of transfers, in a terminal.

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use noxrunner::{
    Backend, Client, Command, Output, Result, SandboxInfo, SandboxSpec, SessionId, Upload,
};

/// What is over sooner shows nothing.
const PATIENCE: Duration = Duration::from_millis(300);

/// A client that shows how far its transfers are, if somebody sees it.
pub(crate) fn shown(client: Client, json: bool) -> Client {
    let terminal =
        io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|t| t != "dumb");
    match terminal && !json {
        true => Client::with_backend(Metered(Arc::clone(client.backend()))),
        false => client,
    }
}

/// Hands everything on, and counts the bytes of archives.
struct Metered(Arc<dyn Backend>);

impl Backend for Metered {
    fn health(&self) -> Result<()> {
        self.0.health()
    }

    fn create(&self, id: &SessionId, spec: &SandboxSpec) -> Result<SandboxInfo> {
        self.0.create(id, spec)
    }

    fn touch(&self, id: &SessionId) -> Result<()> {
        self.0.touch(id)
    }

    fn exec(&self, id: &SessionId, command: &Command) -> Result<Output> {
        self.0.exec(id, command)
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let length = archive.content_length();
        let mut metered = Reader::new(archive, length);
        self.0
            .upload(id, dest, Upload::from_reader(&mut metered, length))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let archive = self.0.download(id, src)?;
        Ok(Box::new(Reader::new(archive, None)))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.0.delete(id)
    }
}

/// A reader with a bar, which goes when this is dropped.
struct Reader<R> {
    reader: R,
    bar: ProgressBar,
    started: Instant,
}

impl<R> Reader<R> {
    fn new(reader: R, length: Option<u64>) -> Reader<R> {
        let template = match length {
            Some(_) => "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            None => "{spinner} {bytes}, {bytes_per_sec}",
        };
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Reader {
            reader,
            bar,
            started: Instant::now(),
        }
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buf)?;
        if self.bar.is_hidden() && self.started.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(got as u64);
        Ok(got)
    }
}

impl<R> Drop for Reader<R> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
