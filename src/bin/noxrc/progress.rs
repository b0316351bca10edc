//! Progress bars of transfers.

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use noxrunner::{
    Backend, Client, Command, Output, Result, SandboxInfo, SandboxSpec, SessionId, Upload,
};

/// A bar is shown only after this time.
const SHOW_AFTER: Duration = Duration::from_millis(300);

/// Adds progress bars to a client, if stderr is a terminal.
pub(crate) fn with_progress(client: Client, json: bool) -> Client {
    let terminal =
        io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|t| t != "dumb");
    if terminal && !json {
        Client::with_backend(WithProgress(Arc::clone(client.backend())))
    } else {
        client
    }
}

/// A backend that shows the progress of uploads and downloads.
struct WithProgress(Arc<dyn Backend>);

impl Backend for WithProgress {
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
        let mut reader = ProgressReader::new(archive, length);
        self.0
            .upload(id, dest, Upload::from_reader(&mut reader, length))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let archive = self.0.download(id, src)?;
        Ok(Box::new(ProgressReader::new(archive, None)))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.0.delete(id)
    }
}

/// A reader with a progress bar, which disappears when the reader is dropped.
struct ProgressReader<R> {
    reader: R,
    bar: ProgressBar,
    started: Instant,
}

impl<R> ProgressReader<R> {
    fn new(reader: R, length: Option<u64>) -> ProgressReader<R> {
        let template = match length {
            Some(_) => "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            None => "{spinner} {bytes}, {bytes_per_sec}",
        };
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        ProgressReader {
            reader,
            bar,
            started: Instant::now(),
        }
    }
}

impl<R: Read> Read for ProgressReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buf)?;
        if self.bar.is_hidden() && self.started.elapsed() > SHOW_AFTER {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(count as u64);
        Ok(count)
    }
}

impl<R> Drop for ProgressReader<R> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
