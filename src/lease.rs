//! Leases: sandboxes that are kept alive while they are in use, and deleted afterwards.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::os::random::random_u64;
use crate::sandbox::Sandbox;
use crate::sandbox::renewal::{Renewal, renewal_interval};
use crate::script::Script;
use crate::spec::SandboxSpec;

/// TTL of a leased sandbox whose spec does not set one: 60 s. This is how long it outlives a process
/// that was killed.
pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(60);

/// Timeout of the commands that set and check the mark.
const MARK_TIMEOUT: Duration = Duration::from_secs(10);

/// Marks a sandbox in two places, because a command may clean up one of them.
const MARK: Script = Script {
    feature: "a lease",
    source: r#"
mkdir -p .noxrunner && : >.noxrunner/lease
: >"${TMPDIR:-/tmp}/.noxrunner-lease"
"#,
    failures: &[],
};

/// Checks the marks.
const CHECK_MARK: Script = Script {
    feature: "a lease",
    source: r#"
[ -e .noxrunner/lease ] || [ -e "${TMPDIR:-/tmp}/.noxrunner-lease" ] || exit 44
"#,
    failures: &[(
        44,
        ErrorKind::NotFound,
        "the sandbox was lost, and the server has created an empty one in its place",
    )],
};

/// A sandbox with a fresh id that is kept alive by a heartbeat, and deleted when the lease is dropped.
///
/// [`Client::lease`] creates a lease, which dereferences to a [`Sandbox`]. A thread renews the TTL three
/// times before it expires, so that work of any length needs only a short TTL. If the process is killed
/// and cannot delete the sandbox, the sandbox expires after one TTL.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// let lease = client.lease()?;
/// let same = client.sandbox(lease.id())?;
/// lease.write("in.txt", "3\n1\n2\n")?;
/// assert_eq!(lease.run(["sort", "in.txt"])?.stdout(), "1\n2\n3\n");
/// drop(lease);
/// assert!(same.touch().unwrap_err().is_not_found());
/// # Ok::<_, noxrunner::Error>(())
/// ```
///
/// # End of a lease
///
/// - Dropping it, also by a panic, sends one delete. That takes as long as such a call may take, plus a
///   call of the heartbeat that is in progress. A failure is logged; [`close`](Lease::close) returns it.
/// - [`keep`](Lease::keep) leaves the sandbox to its TTL.
/// - `std::process::exit` drops nothing, so it is like being killed.
#[must_use = "dropping the lease deletes the sandbox"]
pub struct Lease {
    sandbox: Sandbox,
    heartbeat: Option<Heartbeat>,
    /// There may be a sandbox to delete.
    delete_on_drop: bool,
}

/// The thread that keeps the sandbox alive.
struct Heartbeat {
    stop: Cancel,
    lost: Arc<OnceLock<Error>>,
    thread: JoinHandle<()>,
}

impl Client {
    /// Creates a sandbox for as long as the [`Lease`] lives, with the backend's defaults and a TTL of
    /// [`DEFAULT_LEASE_TTL`].
    ///
    /// # Errors
    ///
    /// The same as for [`create`](Client::create), and [`Io`](ErrorKind::Io) if the thread cannot be
    /// started. A sandbox that may have been created is deleted.
    pub fn lease(&self) -> Result<Lease> {
        self.lease_with(SandboxSpec::new())
    }

    /// Creates a sandbox from a spec for as long as the [`Lease`] lives. If the spec has no
    /// [TTL](SandboxSpec::ttl), it is [`DEFAULT_LEASE_TTL`].
    ///
    /// # Errors
    ///
    /// The same as for [`lease`](Client::lease).
    pub fn lease_with(&self, spec: SandboxSpec) -> Result<Lease> {
        let spec = spec.or_ttl(DEFAULT_LEASE_TTL);
        let id = format!("lease-{:016x}", random_u64());
        // Before the request, because a request without a response may have created the sandbox.
        let mut lease = Lease {
            sandbox: self.sandbox(&id)?,
            heartbeat: None,
            delete_on_drop: true,
        };
        match self.create(&id, spec) {
            Ok(sandbox) => lease.sandbox = sandbox,
            Err(e) => {
                let not_created = matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Connect);
                lease.delete_on_drop = !not_created;
                return Err(e);
            }
        }
        lease.heartbeat = Some(Heartbeat::start(&lease.sandbox)?);
        Ok(lease)
    }
}

impl Lease {
    /// Returns the reason if the sandbox was lost: it was deleted, has expired, or could not be
    /// reached for a whole TTL. The heartbeat notices this within a third of the TTL. Some servers create a
    /// sandbox that does not exist. There, a file in the sandbox shows that it was replaced, which needs `sh`
    /// in the sandbox.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use std::time::Duration;
    ///
    /// let lease = client.lease_with(noxrunner::SandboxSpec::new().ttl(Duration::from_secs(1)))?;
    /// assert!(lease.lost().is_none());
    /// client.sandbox(lease.id())?.delete()?;
    /// while lease.lost().is_none() {
    ///     std::thread::sleep(Duration::from_millis(100));
    /// }
    /// assert!(lease.lost().unwrap().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn lost(&self) -> Option<&Error> {
        self.heartbeat.as_ref()?.lost.get()
    }

    /// Deletes the sandbox now. A sandbox that was already gone is not an error; see
    /// [`lost`](Lease::lost).
    ///
    /// # Errors
    ///
    /// The same as for [`Sandbox::delete`]. The sandbox then expires after its TTL.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    /// Ends the lease without deleting the sandbox, which then expires after its TTL unless it is
    /// touched.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.lease()?.keep();
    /// sandbox.touch()?;
    /// assert!(sandbox.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn keep(mut self) -> Sandbox {
        self.delete_on_drop = false;
        self.sandbox.clone()
    }

    fn end(&mut self) -> Result<()> {
        // First, because the heartbeat may be creating the sandbox again: see `Renewal`.
        if let Some(heartbeat) = self.heartbeat.take() {
            heartbeat.stop();
        }
        if std::mem::take(&mut self.delete_on_drop) {
            self.sandbox.delete()?;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            log::warn!("{e:#}");
        }
    }
}

impl Deref for Lease {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("sandbox", &self.sandbox)
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}

impl Heartbeat {
    fn start(sandbox: &Sandbox) -> Result<Heartbeat> {
        let (stop, lost) = (Cancel::new(), Arc::new(OnceLock::new()));
        let run = {
            let (sandbox, stop, lost) = (sandbox.clone(), stop.clone(), Arc::clone(&lost));
            move || drop(keep_alive(&sandbox, &stop).map_err(|e| lost.set(e)))
        };
        let thread = std::thread::Builder::new().name("noxrunner-lease".to_owned());
        let thread = thread
            .spawn(run)
            .map_err(|e| Error::io("cannot start the thread of a lease", e))?;
        Ok(Heartbeat { stop, lost, thread })
    }

    fn stop(self) {
        self.stop.cancel();
        // The thread returns nothing, and its error is in `lost`.
        let _ = self.thread.join();
    }
}

/// Renews the TTL until stopped. Fails if the sandbox is lost.
fn keep_alive(sandbox: &Sandbox, stop: &Cancel) -> Result<()> {
    let ttl = sandbox.ttl().unwrap_or(DEFAULT_LEASE_TTL);
    let mut renewal = Renewal::default();
    // The sandbox certainly exists now, so this finds out whether the backend implements touch. The
    // sandbox may not be ready, so errors are ignored.
    let _ = renewal.renew(sandbox);
    let mut is_marked = mark(sandbox, stop);
    let mut renewed = Instant::now();
    let mut pause = renewal_interval(ttl);
    while stop.sleep(with_jitter(pause)) {
        let started = Instant::now();
        match renewal.renew(sandbox) {
            Ok(()) => {
                renewed = started;
                pause = renewal_interval(ttl);
                if is_marked {
                    check_mark(sandbox, stop)?;
                } else {
                    is_marked = mark(sandbox, stop);
                }
            }
            Err(e) if e.is_not_found() || renewed.elapsed() >= ttl => return Err(e),
            Err(e) => {
                log::warn!("{e:#}");
                // Leaves time for several attempts before the TTL expires, or for two if the server asks for
                // longer pauses.
                let interval = renewal_interval(ttl);
                pause = e.retry_after().unwrap_or_default();
                pause = pause.clamp(interval / 4, interval);
            }
        }
    }
    Ok(())
}

/// Marks the sandbox, so that a server that creates a lost sandbox again is noticed. Returns false if that
/// was not possible.
fn mark(sandbox: &Sandbox, stop: &Cancel) -> bool {
    run_marking(&MARK, sandbox, stop).is_ok()
}

/// Fails if the mark is gone. Says nothing of other failures, because the sandbox may have too many
/// processes, for example.
fn check_mark(sandbox: &Sandbox, stop: &Cancel) -> Result<()> {
    match run_marking(&CHECK_MARK, sandbox, stop) {
        Err(e) if e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

fn run_marking(script: &Script, sandbox: &Sandbox, stop: &Cancel) -> Result<()> {
    let command = script.command(&[]).timeout(MARK_TIMEOUT).cancel_on(stop);
    sandbox.context("renew", || script.run(sandbox, &command, "").map(drop))
}

/// Shortens a pause by up to a tenth at random, so that many leases do not send at the same time.
fn with_jitter(pause: Duration) -> Duration {
    pause - pause / 10 * (random_u64() % 1024) as u32 / 1024
}
