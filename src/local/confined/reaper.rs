//! Takes in sandboxes that have ended, as their parent has to.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::sys::{self, Endings};

/// The one thread, and what it waits for.
struct Reaper {
    endings: Endings,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    next: u64,
    by_number: HashMap<u64, Process>,
}

struct Process {
    pidfd: Arc<OwnedFd>,
    on_end: Box<dyn FnOnce() + Send>,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        sys::block_signals();
        loop {
            for number in self.endings.wait() {
                let ended = self.lock().by_number.remove(&number);
                if let Some(ended) = ended {
                    sys::reap(ended.pidfd.as_fd());
                    (ended.on_end)();
                }
            }
        }
    }
}

/// Runs the hook, on another thread, when the process has ended and was taken in. Without a thread
/// or a descriptor to spare that has to wait for the next call that finds it ended.
pub(super) fn on_end(pidfd: Arc<OwnedFd>, hook: impl FnOnce() + Send + 'static) {
    static REAPER: OnceLock<Option<&'static Reaper>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        let reaper: &'static Reaper = Box::leak(Box::new(Reaper {
            endings: Endings::new().ok()?,
            watched: Mutex::default(),
        }));
        let thread = std::thread::Builder::new()
            .name("noxrunner-reaper".to_owned())
            .spawn(|| reaper.run());
        thread.ok().map(|_| reaper)
    });
    let Some(reaper) = reaper else { return };
    let mut watched = reaper.lock();
    watched.next += 1;
    let number = watched.next;
    if reaper.endings.add(pidfd.as_fd(), number).is_ok() {
        let on_end = Box::new(hook);
        watched.by_number.insert(number, Process { pidfd, on_end });
    }
}
