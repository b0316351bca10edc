//! Checks that nothing is left when all TTLs have expired.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::run::{Soak, use_once};
use crate::samples::Usage;
use crate::support::processes::with_any_argument;

/// Maximum time until containers, idle connections and threads have ended. A server drops connections to
/// agents, on its next call, after 60 s without a use.
const PATIENCE: Duration = Duration::from_secs(90);

/// Time without calls after which the next call closes idle connections to an engine.
const SILENCE: Duration = Duration::from_secs(20);

/// Checks the server, while it still runs.
pub(crate) fn check_server(soak: &Soak<'_>, before: Usage) {
    let mut pause = Duration::ZERO;
    let is_idle = || {
        std::thread::sleep(pause);
        pause = SILENCE;
        use_once(soak);
        let now = Usage::after_calls(soak.server.pid());
        let same = now.descriptors <= before.descriptors && now.threads <= before.threads;
        (!same).then(|| {
            let open = descriptors(soak.server.pid()).join(", ");
            format!("{before:?} before, {now:?} after: {open}")
        })
    };
    report(soak, "descriptors or threads of the server", is_idle);
    report(soak, "containers or pods", || {
        let existing = soak.backend.existing();
        if existing.is_empty() {
            return None;
        }
        // Pods that have ended are kept for a minute. The next create deletes them.
        use_once(soak);
        Some(existing.join(", "))
    });
    report(soak, "processes of sandboxes", || {
        let mut left = with_any_argument(|argument| soak.is_marker(argument));
        left.extend(soak.samples.left());
        (!left.is_empty()).then(|| format!("{left:?}"))
    });
    report(soak, "files", || {
        let mut left = files(&soak.server.disk());
        left.extend(files(&soak.backend.socket_dir(soak.server.dir())));
        left.extend(files(&soak.client_home()));
        // Locks, and the key of a Kubernetes backend.
        left.retain(|path| !path.ends_with("/lock"));
        (!left.is_empty()).then(|| left.join(", "))
    });
}

/// Checks the machine, when the server has ended.
pub(crate) fn check_machine(soak: &Soak<'_>) {
    let dir = soak.server.dir().to_str().unwrap();
    report(soak, "mounts", || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(dir)).collect();
        (!left.is_empty()).then(|| left.join("\n"))
    });
}

/// Waits until nothing is left, and reports what is.
fn report(soak: &Soak<'_>, what: &str, mut left: impl FnMut() -> Option<String>) {
    let end = Instant::now() + PATIENCE + soak.backend.unacknowledged();
    while let Some(found) = left() {
        if Instant::now() > end {
            soak.ledger.broken("left", &format!("{what}: {found}"));
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    soak.ledger.count(&format!("nothing left: {what}"));
}

/// Returns what the descriptors of a process refer to.
fn descriptors(pid: u32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let targets = open.into_iter().flatten().flatten();
    let targets = targets.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.map(|target| target.display().to_string()).collect()
}

/// Returns the paths of all files below a directory.
fn files(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(files(&path));
        } else {
            all.push(path.display().to_string());
        }
    }
    all
}
