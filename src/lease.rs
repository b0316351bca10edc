//! A sandbox that lives as long as somebody uses it, and is deleted then.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::{Renewal, Sandbox, third};
use crate::spec::SandboxSpec;

/// How long a leased sandbox outlives a process that was killed, if the spec does not say otherwise.
///
/// ```
/// assert_eq!(noxrunner::DEFAULT_LEASE_TTL.as_secs(), 60);
/// ```
pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(60);

/// A sandbox of one's own: made under a fresh id, kept alive, and deleted when this is dropped.
///
/// Made by [`Client::lease`]; used as a [`Sandbox`]. A thread starts the sandbox's TTL again every third
/// of it, so that work of any length is done with a short TTL: a process that is killed, and so can't
/// delete anything, leaves the sandbox for one TTL at most.
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// let lease = client.lease()?;
/// let same = client.sandbox(lease.id())?;
/// lease.write("in.txt", "3\n1\n2\n")?;
/// assert_eq!(lease.exec(["sort", "in.txt"])?.stdout(), "1\n2\n3\n");
/// drop(lease);
/// assert!(same.touch().unwrap_err().is_not_found());
/// # Ok::<_, noxrunner::Error>(())
/// ```
///
/// # How it ends
///
/// - A drop, also by a panic, sends one delete. It takes as long as such a call may take, and longer by
///   a touch that is under way. A failure is logged; [`close`](Lease::close) returns it.
/// - [`keep`](Lease::keep) leaves the sandbox to its TTL.
/// - `std::process::exit` drops nothing: that is like being killed.
#[must_use = "the sandbox is deleted when this is dropped"]
pub struct Lease {
    sandbox: Sandbox,
    heart: Option<Heart>,
    /// Whether there may be a sandbox to delete.
    armed: bool,
}

/// What keeps the sandbox alive.
struct Heart {
    stop: Cancel,
    lost: Arc<OnceLock<Error>>,
    thread: JoinHandle<()>,
}

impl Client {
    /// Makes a sandbox for as long as the [`Lease`] lives, with the defaults of the backend and
    /// [`DEFAULT_LEASE_TTL`].
    ///
    /// # Errors
    ///
    /// As [`create`](Client::create), and [`Io`](ErrorKind::Io) where no thread can be started. A sandbox
    /// that may have been made all the same is deleted.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let lease = client.lease()?;
    /// assert_eq!(lease.exec(["echo", "hi"])?.stdout(), "hi\n");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn lease(&self) -> Result<Lease> {
        self.lease_with(SandboxSpec::new())
    }

    /// Makes a sandbox of this kind for as long as the [`Lease`] lives. Without a
    /// [TTL](SandboxSpec::ttl) of its own it has [`DEFAULT_LEASE_TTL`].
    ///
    /// # Errors
    ///
    /// As [`lease`](Client::lease).
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use noxrunner::SandboxSpec;
    ///
    /// let lease = client.lease_with(SandboxSpec::new().memory("128Mi"))?;
    /// assert!(lease.exec(["true"])?.success());
    /// lease.close()?;
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn lease_with(&self, spec: SandboxSpec) -> Result<Lease> {
        let spec = spec.or_ttl(DEFAULT_LEASE_TTL);
        let id = format!("lease-{:016x}", crate::os::random::random_u64());
        // Before the request: one whose answer is lost may have made the sandbox.
        let mut lease = Lease {
            sandbox: self.sandbox(&id)?,
            heart: None,
            armed: true,
        };
        match self.create(&id, spec) {
            Ok(sandbox) => lease.sandbox = sandbox,
            Err(e) => {
                lease.armed = !matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Connect);
                return Err(e);
            }
        }
        lease.heart = Some(Heart::start(&lease.sandbox)?);
        Ok(lease)
    }
}

impl Lease {
    /// Why the sandbox is no longer there, if so: it was deleted or has expired, or could not be reached
    /// for a whole TTL. Noticed by the next touch, within a third of the TTL.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// use std::time::Duration;
    ///
    /// let lease = client.lease_with(noxrunner::SandboxSpec::new().ttl(Duration::from_secs(1)))?;
    /// assert!(lease.lost().is_none());
    /// client.sandbox(lease.id())?.delete()?;
    /// std::thread::sleep(Duration::from_secs(2));
    /// assert!(lease.lost().unwrap().is_not_found());
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    #[must_use]
    pub fn lost(&self) -> Option<&Error> {
        self.heart.as_ref()?.lost.get()
    }

    /// Deletes the sandbox now. That it was gone already is no error: see [`lost`](Lease::lost).
    ///
    /// # Errors
    ///
    /// As [`Sandbox::delete`]. The sandbox then lives for its TTL.
    ///
    /// # Example
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let lease = client.lease()?;
    /// let same = client.sandbox(lease.id())?;
    /// lease.close()?;
    /// assert!(!same.delete()?, "there is none any more");
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    /// Leaves the sandbox to whoever has its id. It lives for its TTL, and longer if it is touched.
    ///
    /// ```
    /// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
    /// let sandbox = client.lease()?.keep();
    /// sandbox.touch()?;
    /// assert!(sandbox.delete()?);
    /// # Ok::<_, noxrunner::Error>(())
    /// ```
    pub fn keep(mut self) -> Sandbox {
        self.armed = false;
        self.sandbox.clone()
    }

    fn end(&mut self) -> Result<()> {
        // It may be about to make the sandbox anew: see `Renewal`.
        if let Some(heart) = self.heart.take() {
            heart.stop();
        }
        match std::mem::take(&mut self.armed) {
            true => self.sandbox.delete().map(drop),
            false => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            log::warn!("{e}");
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

impl Heart {
    fn start(sandbox: &Sandbox) -> Result<Heart> {
        let (stop, lost) = (Cancel::new(), Arc::new(OnceLock::new()));
        let beat = {
            let (sandbox, stop, lost) = (sandbox.clone(), stop.clone(), Arc::clone(&lost));
            move || drop(keep_alive(&sandbox, &stop).map_err(|e| lost.set(e)))
        };
        let thread = std::thread::Builder::new().name("noxrunner-lease".to_owned());
        let thread = thread
            .spawn(beat)
            .map_err(|e| Error::io("cannot start the lease's thread", e))?;
        Ok(Heart { stop, lost, thread })
    }

    fn stop(self) {
        self.stop.cancel();
        // It has nothing to say but what `lost` knows.
        let _ = self.thread.join();
    }
}

/// Starts the TTL again and again until it is stopped; the error is why that has no use any more.
fn keep_alive(sandbox: &Sandbox, stop: &Cancel) -> Result<()> {
    let ttl = sandbox.time_to_live().unwrap_or(DEFAULT_LEASE_TTL);
    let mut renewal = Renewal::default();
    // Now the sandbox is certainly there: this shows whether the backend has a touch. It may not be
    // ready yet, so nothing else is said by it.
    let _ = renewal.renew(sandbox);
    let mut renewed = Instant::now();
    let mut pause = third(ttl);
    while stop.sleep(shortened(pause)) {
        let asked = Instant::now();
        match renewal.renew(sandbox) {
            Ok(()) => {
                renewed = asked;
                pause = third(ttl);
            }
            Err(e) if e.is_not_found() || renewed.elapsed() >= ttl => return Err(e),
            Err(e) => {
                log::warn!("{e}");
                // There are some tries before the time is over.
                pause = third(ttl) / 4;
            }
        }
    }
    Ok(())
}

/// By up to a tenth at random, so that many leases do not ask at once.
fn shortened(pause: Duration) -> Duration {
    pause - pause / 10 * (crate::os::random::random_u64() % 1024) as u32 / 1024
}
