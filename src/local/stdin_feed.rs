//! Standard input that is streamed to a command.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use crate::error::Error;
use crate::stdin::StdinReader;

/// A thread that fills the stdin pipe of a command.
///
/// It is not waited for, because it may be blocked in a read that never ends. It ends with the input, or
/// with its first write after all reading ends of the pipe are closed.
pub(super) struct StdinFeed {
    /// Readable after the thread has ended, or if the input cannot be read.
    ended: UnixStream,
    failure: Receiver<io::Error>,
}

impl StdinFeed {
    /// Starts to fill a pipe.
    pub(super) fn start(mut reader: StdinReader, pipe: OwnedFd) -> io::Result<StdinFeed> {
        let (ended, theirs) = UnixStream::pair()?;
        let (sender, failure) = sync_channel(1);
        let mut pipe = File::from(pipe);
        let feed = move || {
            if let Err(e) = copy(&mut *reader, &mut pipe) {
                // Both fail if the command has ended.
                let _ = sender.send(e);
                let _ = (&theirs).write_all(&[0]);
                // Keeps the pipe open until the command has been killed. It would take the end of the pipe
                // for the end of the input.
                let _ = (&theirs).read(&mut [0]);
            }
        };
        let builder = thread::Builder::new().name("noxrunner-stdin".to_owned());
        builder.spawn(feed)?;
        Ok(StdinFeed { ended, failure })
    }

    /// Returns a descriptor that is readable at the end of the input, or if the input cannot be read.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Returns why the input cannot be read, or `None` at its end.
    pub(super) fn failure(&self) -> Option<Error> {
        let e = self.failure.try_recv().ok()?;
        Some(Error::from_io(e).unwrap_or_else(|e| Error::io("cannot read stdin", e)))
    }
}

/// Copies the input until its end, or until nothing reads it any more. Fails if it cannot be read.
fn copy(reader: &mut dyn Read, pipe: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                if pipe.write_all(&buffer[..count]).is_err() {
                    return Ok(());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
