//! What the first process of a sandbox does: it takes requests, starts a supervisor for each
//! command, takes in what has lost its parent, and ends when it is time.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::beside::{self, Streams, Supervisor};
use crate::confine;
use crate::protocol::{Answer, MAX_MESSAGE, Payload, Request, Stage};
use crate::setup::Sandbox;
use crate::sys::{self, Child, Ended};
use crate::watch::{self, Held};

/// How long a command and all that it has started may take to be gone after they were killed. If
/// they are not, their supervisor was stopped by one of them, and all of the sandbox has to go.
const GRACE: Duration = Duration::from_millis(250);

/// How often to look for what was started while its parent was killed.
const KILL_TICK: Duration = Duration::from_millis(2);

/// How long a new connection may stay without its request.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// How often files on disk are counted: where much was written meanwhile, and in any case.
const COUNT_PAUSE: Duration = Duration::from_millis(500);
const COUNT_AGAIN: Duration = Duration::from_secs(10);

/// A command that has not ended.
struct Running {
    supervisor: Supervisor,
    /// None when the answer was given.
    connection: Option<OwnedFd>,
    deadline: Instant,
    /// Since when it is being ended.
    ending: Option<Instant>,
    timed_out: bool,
}

/// Where news can come from.
#[derive(PartialEq)]
enum Source {
    Signals,
    Host,
    Control,
    Listener,
    /// By their places in the lists.
    Waiting(usize),
    Running(usize),
}

struct Server {
    sandbox: Sandbox,
    running: Vec<Running>,
    /// Connections whose request has not come yet, and until when it may.
    waiting: Vec<(OwnedFd, Instant)>,
    /// When to look at the memory next; None while there are no other processes.
    next_look: Option<Instant>,
    cpus: u64,
    disk: Option<Disk>,
}

/// Files on a disk that others use as well.
struct Disk {
    limit: u64,
    /// Bytes, when they were last counted. How much less it is by now is how much more they can be.
    free: u64,
    counted: Instant,
    /// The process that counts them.
    counter: Option<u32>,
}

/// Serves until the sandbox is to end. All its processes are killed by the kernel when this one
/// ends.
pub(crate) fn run(control: &OwnedFd, sandbox: Sandbox) {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let disk = sandbox.setup.watched_storage.map(|limit| Disk {
        limit,
        free: free_space(&sandbox),
        counted: Instant::now(),
        counter: None,
    });
    let mut server = Server {
        sandbox,
        disk,
        running: Vec::new(),
        waiting: Vec::new(),
        next_look: None,
        cpus,
    };
    let mut buffer = vec![0; MAX_MESSAGE];
    while server
        .step(control, &mut buffer)
        .is_ok_and(|goes_on| goes_on)
    {}
}

impl Disk {
    /// A child has ended. If it has counted too much, or was kept from it, nobody may write more.
    fn over(&mut self, process: u32, ended: Ended) {
        if self.counter == Some(process) {
            self.counter = None;
            if ended != Ended::Exited(0) {
                watch::kill_everything();
            }
        }
    }
}

fn free_space(sandbox: &Sandbox) -> u64 {
    confine::space(sandbox.data.as_fd()).map_or(u64::MAX, |space| space.free)
}

impl Running {
    /// Ends it when it is time to, or when nobody wants it any more.
    fn check(&mut self, now: Instant, unwanted: bool) {
        if self.ending.is_none() && (unwanted || now >= self.deadline) {
            if self.supervisor.expect_end(!unwanted) {
                self.timed_out = !unwanted;
                self.ending = Some(now);
            } else {
                self.connection = None;
            }
        }
        match self.ending {
            Some(since) if now < since + GRACE => {
                match watch::descendants(self.supervisor.process) {
                    Ok(found) => found.into_iter().for_each(sys::kill_process),
                    // Without /proc they can't be told from others.
                    Err(_) => watch::kill_everything(),
                }
            }
            Some(_) => watch::kill_everything(),
            // Answered, and then stopped by what is left of the command.
            None if now >= self.deadline + GRACE => watch::kill_everything(),
            None => {}
        }
    }

    /// Its supervisor has ended.
    fn over(self, ended: Ended) {
        // Killed by what it should have ended: nobody else would end that.
        if ended != Ended::Exited(0) {
            watch::kill_everything();
            let answer = match self.timed_out {
                true => Answer::TimedOut,
                false => Answer::Signaled(sys::SIGKILL),
            };
            if let Some(connection) = self.connection {
                let _ = sys::send(connection.as_fd(), &answer.encode(), None);
            }
        }
    }
}

/// The payload that did not fit into a message.
fn read_payload(file: &OwnedFd) -> Option<Payload> {
    let mut bytes = Vec::new();
    let mut file = File::from(file.try_clone().ok()?);
    file.read_to_end(&mut bytes).ok()?;
    Payload::decode(&bytes)
}

impl Server {
    /// Waits for news and sees to it. False at the end.
    fn step(&mut self, control: &OwnedFd, buffer: &mut [u8]) -> io::Result<bool> {
        let sources = self.sources(control);
        let fds: Vec<BorrowedFd<'_>> = sources.iter().map(|(_, fd)| *fd).collect();
        let ready = sys::wait_readable(&fds, self.time_left())?;
        let news = sources.into_iter().zip(ready).filter(|(_, ready)| *ready);
        let news: Vec<Source> = news.map(|((source, _), _)| source).collect();

        let now = Instant::now();
        if now >= self.sandbox.expires {
            return Ok(false);
        }
        for (at, running) in self.running.iter_mut().enumerate() {
            running.check(now, news.contains(&Source::Running(at)));
        }
        // From the last one on: taking one out leaves the places of those before it.
        for source in news.into_iter().rev() {
            match source {
                Source::Host => return Ok(false),
                Source::Waiting(at) => {
                    let (connection, _) = self.waiting.swap_remove(at);
                    if let Ok(Some((length, fds))) = sys::receive(connection.as_fd(), buffer, false)
                    {
                        self.take_request(connection, &buffer[..length], fds);
                    }
                }
                Source::Listener => {
                    let listener = self.sandbox.listener.as_ref();
                    if let Some(Ok(connection)) = listener.map(|l| sys::accept(l.as_fd())) {
                        self.waiting.push((connection, now + REQUEST_WAIT));
                    }
                }
                Source::Control => match sys::receive(control.as_fd(), buffer, false)? {
                    // The other end is closed.
                    Some((0, _)) => return Ok(false),
                    Some((length, mut fds)) if !fds.is_empty() => {
                        let connection = fds.remove(0);
                        self.take_request(connection, &buffer[..length], fds);
                    }
                    _ => {}
                },
                Source::Signals => {
                    sys::clear_signals(self.sandbox.signals.as_fd());
                    self.take_children();
                }
                Source::Running(_) => {}
            }
        }
        self.waiting.retain(|(_, until)| *until > now);
        if self.next_look.is_some_and(|at| at <= now) {
            self.look_at_disk(now);
            self.look_at_memory();
        }
        Ok(true)
    }

    fn sources<'a>(&'a self, control: &'a OwnedFd) -> Vec<(Source, BorrowedFd<'a>)> {
        let sandbox = &self.sandbox;
        let mut sources = vec![(Source::Signals, sandbox.signals.as_fd())];
        // Untied, the one who started it is soon gone, and its socket is of no use.
        if let Some(host) = &sandbox.host {
            sources.extend([
                (Source::Host, host.as_fd()),
                (Source::Control, control.as_fd()),
            ]);
        }
        if let Some(listener) = &sandbox.listener {
            sources.push((Source::Listener, listener.as_fd()));
        }
        for (at, (connection, _)) in self.waiting.iter().enumerate() {
            sources.push((Source::Waiting(at), connection.as_fd()));
        }
        for (at, running) in self.running.iter().enumerate() {
            if let Some(connection) = &running.connection {
                sources.push((Source::Running(at), connection.as_fd()));
            }
        }
        sources
    }

    fn time_left(&self) -> Duration {
        let now = Instant::now();
        let ends = self.running.iter().map(|running| match running.ending {
            Some(_) => now + KILL_TICK,
            None if running.connection.is_none() => running.deadline + GRACE,
            None => running.deadline,
        });
        let requests = self.waiting.iter().map(|(_, until)| *until);
        let next = ends
            .chain(requests)
            .chain(self.next_look)
            .chain([self.sandbox.expires])
            .min();
        next.map_or(crate::LONG, |next| next.saturating_duration_since(now))
    }

    fn take_children(&mut self) {
        loop {
            match sys::take_child() {
                Child::Ended(process, ended) => {
                    if let Some(disk) = &mut self.disk {
                        disk.over(process, ended);
                    }
                    let is_it = |running: &Running| running.supervisor.process == process;
                    if let Some(at) = self.running.iter().position(is_it) {
                        self.running.swap_remove(at).over(ended);
                    }
                }
                Child::Running => return,
                Child::NoneLeft => {
                    self.next_look = None;
                    return;
                }
            }
        }
    }

    /// What can't be read gets no answer, but the end of its connection.
    fn take_request(&mut self, connection: OwnedFd, message: &[u8], fds: Vec<OwnedFd>) {
        let answer = |answer: Answer, fd: Option<BorrowedFd<'_>>| {
            // Whoever does not listen any more does not need it.
            let _ = sys::send(connection.as_fd(), &answer.encode(), fd);
        };
        match Request::decode(message) {
            Some(Request::Exec { millis, payload }) => {
                match self.start(&connection, payload, &fds) {
                    Ok(supervisor) => {
                        self.running.push(Running {
                            supervisor,
                            connection: Some(connection),
                            deadline: Instant::now() + Duration::from_millis(millis),
                            ending: None,
                            timed_out: false,
                        });
                        self.expect_use();
                    }
                    Err(failed) => answer(failed, None),
                }
            }
            Some(Request::Root) => answer(Answer::Done, Some(self.sandbox.data.as_fd())),
            Some(Request::Touch(millis)) => {
                let setup = &mut self.sandbox.setup;
                setup.ttl_millis = millis.unwrap_or(setup.ttl_millis);
                self.sandbox.expires = Instant::now() + Duration::from_millis(setup.ttl_millis);
                answer(Answer::Done, None);
            }
            None => {}
        }
    }

    fn start(
        &self,
        connection: &OwnedFd,
        payload: Option<Payload>,
        fds: &[OwnedFd],
    ) -> Result<Supervisor, Answer> {
        let unreadable = Answer::NotStarted(Stage::Fork, 0);
        let [out, err, file @ ..] = fds else {
            return Err(unreadable);
        };
        let payload = payload.or_else(|| read_payload(file.first()?));
        let streams = Streams {
            null: self.sandbox.null.as_fd(),
            out: out.as_fd(),
            err: err.as_fd(),
            connection: connection.as_fd(),
        };
        let payload = payload.ok_or(unreadable)?;
        beside::start(&payload, &self.sandbox.setup.rlimits, &streams)
    }

    /// Somebody may take memory from now on.
    fn expect_use(&mut self) {
        if let (Some(limit), None) = (self.sandbox.setup.watched_memory, self.next_look) {
            self.look_after(limit);
        }
    }

    /// As soon as the rest could be taken if every CPU took memory as fast as it can.
    fn look_after(&mut self, rest: u64) {
        const PER_CPU_AND_MILLI: u64 = 4_000_000;
        let millis = rest / (PER_CPU_AND_MILLI * self.cpus);
        let pause = Duration::from_millis(millis.clamp(10, 250));
        self.next_look = Some(Instant::now() + pause);
    }

    fn look_at_disk(&mut self, now: Instant) {
        let Some(disk) = &mut self.disk else { return };
        let free = free_space(&self.sandbox);
        let due = now >= disk.counted + COUNT_AGAIN || disk.free.saturating_sub(free) > disk.limit;
        // Once a second at most: it takes its time where there are many.
        if disk.counter.is_some() || !due || now < disk.counted + COUNT_PAUSE {
            return;
        }
        match sys::fork() {
            Ok(None) => {
                let fits = watch::files_fit(&["workspace", "tmp"], disk.limit);
                sys::exit(if fits { 0 } else { 1 });
            }
            Ok(counter) => {
                disk.counter = counter;
                disk.free = free;
                disk.counted = now;
            }
            // Too many processes: again at the next look.
            Err(_) => {}
        }
    }

    fn look_at_memory(&mut self) {
        let Some(limit) = self.sandbox.setup.watched_memory else {
            return;
        };
        let in_files = match self.sandbox.setup.on_disk {
            true => 0,
            false => confine::space(self.sandbox.data.as_fd()).map_or(0, |space| space.used),
        };
        // Without a namespace of its own, a sandbox can have none.
        let segments = match self.sandbox.setup.own_namespaces {
            true => watch::segments(),
            false => 0,
        };
        let files = in_files + segments;
        let held = Held::look(false);
        let rest = limit.saturating_sub(held.total(files));
        if rest == 0 {
            Held::look(true).shrink(files, limit);
        }
        self.look_after(rest);
    }
}
