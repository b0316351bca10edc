//! Progress bars of transfers.

use std::io::{self, IsTerminal, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use noxrunner::{
    Backend, Chunk, Client, Command, Output, PullProgress, Result, SandboxInfo, SandboxSpec,
    SessionId, Upload, UploadProgress,
};

/// A bar is shown only after this time.
const SHOW_AFTER: Duration = Duration::from_millis(300);

/// Adds progress bars to a client, if stderr is a terminal.
pub(crate) fn with_progress(client: Client, json: bool) -> Client {
    if is_shown(json) {
        Client::with_backend(WithProgress(Arc::clone(client.backend())))
    } else {
        client
    }
}

fn is_shown(json: bool) -> bool {
    let is_dumb = || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    !json && io::stderr().is_terminal() && !is_dumb()
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

    fn exec_live(
        &self,
        id: &SessionId,
        command: &Command,
        sink: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<Output> {
        self.0.exec_live(id, command, sink)
    }

    fn streams_stdin(&self) -> bool {
        self.0.streams_stdin()
    }

    fn upload(&self, id: &SessionId, dest: &str, archive: Upload<'_>) -> Result<()> {
        let bar = SlowBar::new();
        let mut show = |progress: UploadProgress| bar.show(progress.sent(), progress.total());
        self.0.upload(id, dest, archive.on_progress(&mut show))
    }

    fn download(&self, id: &SessionId, src: &str) -> Result<Box<dyn Read + Send>> {
        let archive = self.0.download(id, src)?;
        Ok(Box::new(ProgressReader {
            reader: archive,
            received: 0,
            bar: SlowBar::new(),
        }))
    }

    fn delete(&self, id: &SessionId) -> Result<bool> {
        self.0.delete(id)
    }
}

/// Returns a function that shows the progress of pulling an image, if stderr is a terminal.
pub(crate) fn of_pull(json: bool) -> impl Fn(&PullProgress) + Send + Sync + 'static {
    let bar: Mutex<Option<SlowBar>> = Mutex::new(None);
    let is_shown = is_shown(json);
    move |progress| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_shown || progress.received() >= progress.total() {
            // The bar disappears when it is complete.
            *bar = None;
        } else {
            let bar = bar.get_or_insert_with(SlowBar::new);
            bar.show(progress.received(), Some(progress.total()));
        }
    }
}

/// A progress bar that appears if a transfer is slow, and disappears when it is dropped.
struct SlowBar {
    bar: ProgressBar,
    started: Instant,
}

impl SlowBar {
    fn new() -> SlowBar {
        SlowBar {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            started: Instant::now(),
        }
    }

    /// Shows the number of transferred bytes.
    fn show(&self, bytes: u64, total: Option<u64>) {
        if self.bar.is_hidden() && self.started.elapsed() > SHOW_AFTER {
            let template = match total {
                Some(_) => "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
                None => "{spinner} {bytes}, {bytes_per_sec}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        // A pull learns the sizes of the layers one by one.
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(bytes);
    }
}

impl Drop for SlowBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A reader with a progress bar.
struct ProgressReader<R> {
    reader: R,
    received: u64,
    bar: SlowBar,
}

impl<R: Read> Read for ProgressReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buf)?;
        self.received += count as u64;
        self.bar.show(self.received, None);
        Ok(count)
    }
}
