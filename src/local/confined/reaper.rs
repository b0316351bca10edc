//! A thread that reaps holder processes when they end.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::local::sys::{self, ExitPoller};

struct Reaper {
    poller: ExitPoller,
    /// The processes by the numbers of their pidfds.
    watched: Mutex<HashMap<RawFd, WatchedProcess>>,
}

struct WatchedProcess {
    pidfd: Arc<OwnedFd>,
    on_end: Box<dyn FnOnce() + Send>,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, HashMap<RawFd, WatchedProcess>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        sys::block_signals();
        loop {
            self.poller
                .wait()
                .into_iter()
                .for_each(|pidfd| self.reap(pidfd));
        }
    }

    fn reap(&self, pidfd: RawFd) {
        let ended = self.lock().remove(&pidfd);
        if let Some(ended) = ended {
            sys::reap(ended.pidfd.as_fd());
            (ended.on_end)();
        }
    }
}

/// Reaps the process when it ends, then runs the hook on the reaper's thread. If no thread or
/// descriptor is available, the hook does not run, and the next call to the sandbox notices its
/// end.
pub(super) fn on_end(pidfd: Arc<OwnedFd>, hook: impl FnOnce() + Send + 'static) {
    static REAPER: OnceLock<Option<&'static Reaper>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        let reaper: &'static Reaper = Box::leak(Box::new(Reaper {
            poller: ExitPoller::new().ok()?,
            watched: Mutex::default(),
        }));
        let thread = std::thread::Builder::new()
            .name("noxrunner-reaper".to_owned())
            .spawn(|| reaper.run());
        thread.ok().map(|_| reaper)
    });
    let Some(reaper) = reaper else { return };
    let mut watched = reaper.lock();
    if reaper.poller.add(pidfd.as_fd()).is_ok() {
        let on_end = Box::new(hook);
        watched.insert(pidfd.as_raw_fd(), WatchedProcess { pidfd, on_end });
    }
}
