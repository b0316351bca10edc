//! The event loop of the holder: takes requests, starts and ends commands, enforces limits.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::disk_watch::DiskWatch;
use crate::encoding::Encoding;
use crate::memory_watch::MemoryWatch;
use crate::processes::kill_everything;
use crate::protocol::{
    CommandUsage, ExceededLimit, ExecFds, HolderReply, HolderRequest, MAX_MESSAGE, Payload,
    StartStage,
};
use crate::running_command::RunningCommand;
use crate::setup::PreparedSandbox;
use crate::supervisor::{self, Supervisor};
use crate::sys::messages::{self, EMFILE};
use crate::sys::process::{
    Child, IDLE_WAIT, WaitStatus, accept, clear_signals, kill_process, take_child, wait_readable,
};

/// Maximum time between a new connection and its request.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// Sources of events.
#[derive(PartialEq)]
enum EventSource {
    Signals,
    /// The process that the sandbox ends with.
    Host,
    Control,
    Listener,
    /// The files on disk have been counted.
    FilesCounted,
    /// Index of a pending connection.
    Pending(usize),
    /// Index of a running command.
    Running(usize),
}

/// A connection whose request has not arrived yet.
struct PendingConnection {
    connection: OwnedFd,
    until: Instant,
}

struct EventLoop {
    sandbox: PreparedSandbox,
    running: Vec<RunningCommand>,
    pending: Vec<PendingConnection>,
    /// Time of the next check of the limits, while there are other processes.
    next_check: Option<Instant>,
    /// False while this is the only process.
    has_children: bool,
    memory: Option<MemoryWatch>,
    disk: Option<DiskWatch>,
    /// Connections that wait for a count of the files.
    count_requests: Vec<OwnedFd>,
}

/// Serves until the sandbox ends. The kernel or the guardian kills the remaining processes when this
/// process ends.
pub(crate) fn run(control: &OwnedFd, sandbox: PreparedSandbox) {
    let setup = &sandbox.setup;
    let memory = setup.watched_memory;
    let memory = memory.map(|limit| MemoryWatch::new(limit, setup.cpu_count));
    let disk = setup.watched_storage;
    let disk = disk.map(|limit| DiskWatch::new(limit, &sandbox.data));
    let mut event_loop = EventLoop {
        sandbox,
        memory,
        disk,
        count_requests: Vec::new(),
        running: Vec::new(),
        pending: Vec::new(),
        next_check: None,
        has_children: false,
    };
    let mut buffer = vec![0; MAX_MESSAGE];
    while let Ok(true) = event_loop.step(control, &mut buffer) {}
    // Supervisors run in memory of this process, and a new one may not have started its command yet.
    std::mem::forget(event_loop);
}

impl EventLoop {
    /// Waits for events and handles them. Returns false when the sandbox ends.
    fn step(&mut self, control: &OwnedFd, buffer: &mut [u8]) -> io::Result<bool> {
        let ready = self.wait(control)?;
        let now = Instant::now();
        if now >= self.sandbox.expires {
            return Ok(false);
        }
        for (index, running) in self.running.iter_mut().enumerate() {
            // A message or the end of the connection cancels the command.
            running.check(now, ready.contains(&EventSource::Running(index)));
        }
        // In reverse order, so that a removed element does not change the indices of the others.
        for source in ready.into_iter().rev() {
            match source {
                EventSource::Host => return Ok(false),
                EventSource::Control => self.receive_from_control(control, buffer)?,
                EventSource::Pending(index) => self.receive_pending(index, buffer),
                EventSource::Listener => self.accept(now),
                EventSource::Signals => {
                    clear_signals(self.sandbox.signals.as_fd());
                    self.take_children();
                }
                EventSource::FilesCounted => self.files_counted(),
                EventSource::Running(_) => {}
            }
        }
        self.pending.retain(|pending| pending.until > now);
        if self.has_children && self.next_check.is_some_and(|at| at <= now) {
            self.check_limits();
        }
        Ok(true)
    }

    /// Waits until a source is readable or a time has come. Returns the readable sources.
    fn wait(&self, control: &OwnedFd) -> io::Result<Vec<EventSource>> {
        let sources = self.sources(control);
        let fds: Vec<BorrowedFd<'_>> = sources.iter().map(|(_, fd)| *fd).collect();
        let ready = wait_readable(&fds, self.time_left())?;
        let ready = sources.into_iter().zip(ready).filter(|(_, ready)| *ready);
        Ok(ready.map(|((source, _), _)| source).collect())
    }

    fn sources<'a>(&'a self, control: &'a OwnedFd) -> Vec<(EventSource, BorrowedFd<'a>)> {
        let sandbox = &self.sandbox;
        let mut sources = vec![(EventSource::Signals, sandbox.signals.as_fd())];
        // The process that created a persistent sandbox does not send requests over the control
        // socket, and may end at any time.
        if let Some(host) = &sandbox.host {
            sources.extend([
                (EventSource::Host, host.as_fd()),
                (EventSource::Control, control.as_fd()),
            ]);
        }
        if let Some(listener) = &sandbox.listener {
            sources.push((EventSource::Listener, listener.as_fd()));
        }
        if let Some(fd) = self.disk.as_ref().and_then(DiskWatch::fd) {
            sources.push((EventSource::FilesCounted, fd));
        }
        for (index, pending) in self.pending.iter().enumerate() {
            sources.push((EventSource::Pending(index), pending.connection.as_fd()));
        }
        for (index, running) in self.running.iter().enumerate() {
            if let Some(connection) = &running.connection {
                sources.push((EventSource::Running(index), connection.as_fd()));
            }
        }
        sources
    }

    fn time_left(&self) -> Duration {
        let now = Instant::now();
        let commands = self.running.iter().filter_map(|r| r.next_check(now));
        let requests = self.pending.iter().map(|pending| pending.until);
        let next = commands
            .chain(requests)
            .chain(self.next_check.filter(|_| self.has_children))
            .chain([self.sandbox.expires])
            .min();
        next.map_or(IDLE_WAIT, |next| next.saturating_duration_since(now))
    }

    /// Receives a request with its connection. Fails if the library has closed the socket.
    fn receive_from_control(&mut self, control: &OwnedFd, buffer: &mut [u8]) -> io::Result<()> {
        match messages::receive(control.as_fd(), buffer) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, mut fds)) => {
                if !fds.is_empty() {
                    let connection = fds.remove(0);
                    self.handle_request(connection, &buffer[..length], fds);
                }
                Ok(())
            }
            // Without room for its descriptors a request is dropped, which closes its connection.
            Err(e) if e.raw_os_error() == Some(EMFILE) => Ok(()),
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                _ => Err(e),
            },
        }
    }

    fn receive_pending(&mut self, index: usize, buffer: &mut [u8]) {
        let connection = self.pending.swap_remove(index).connection;
        if let Ok((length, fds)) = messages::receive(connection.as_fd(), buffer) {
            self.handle_request(connection, &buffer[..length], fds);
        }
    }

    fn accept(&mut self, now: Instant) {
        let listener = self.sandbox.listener.as_ref();
        if let Some(Ok(connection)) = listener.map(|listener| accept(listener.as_fd())) {
            let until = now + REQUEST_WAIT;
            self.pending.push(PendingConnection { connection, until });
        }
    }

    /// Reaps children that have ended.
    fn take_children(&mut self) {
        loop {
            match take_child() {
                Child::Ended(pid, status) => self.child_ended(pid, status),
                Child::Running => return,
                Child::NoneLeft => {
                    self.has_children = false;
                    return;
                }
            }
        }
    }

    fn child_ended(&mut self, pid: u32, status: WaitStatus) {
        let is_supervisor = |running: &RunningCommand| running.supervisor.pid == pid;
        if let Some(index) = self.running.iter().position(is_supervisor) {
            self.running.swap_remove(index).supervisor_ended(status);
        }
    }

    /// Handles a request. Closes the connection of an invalid one.
    fn handle_request(&mut self, connection: OwnedFd, message: &[u8], fds: Vec<OwnedFd>) {
        let reply = |reply: HolderReply, fds: &[BorrowedFd<'_>]| {
            // The send fails if the caller has given up.
            let bytes = reply.encode(&CommandUsage::default());
            let _ = messages::send(connection.as_fd(), &bytes, fds);
        };
        match HolderRequest::decode(message) {
            Some(HolderRequest::Exec(millis, payload, has_stdin)) => {
                let fds = ExecFds::from_list(fds, has_stdin);
                match self.start(&connection, payload, fds) {
                    Ok(supervisor) => self.command_started(supervisor, connection, millis),
                    Err(failed) => reply(failed, &[]),
                }
            }
            Some(HolderRequest::Root) => reply(HolderReply::Done, &[self.sandbox.data.as_fd()]),
            Some(HolderRequest::Touch(millis)) => {
                let setup = &mut self.sandbox.setup;
                setup.ttl_millis = millis.unwrap_or(setup.ttl_millis);
                self.sandbox.expires = Instant::now() + Duration::from_millis(setup.ttl_millis);
                reply(HolderReply::Done, &[]);
            }
            Some(HolderRequest::StorageRoom) => match &mut self.disk {
                Some(disk) => {
                    disk.count(&self.sandbox.data, &supervisors(&self.running));
                    self.count_requests.push(connection);
                }
                None => reply(HolderReply::Done, &[]),
            },
            None => {}
        }
    }

    fn command_started(
        &mut self,
        supervisor: Supervisor,
        connection: OwnedFd,
        millis: Option<u64>,
    ) {
        let deadline = millis.map(|millis| Instant::now() + Duration::from_millis(millis));
        let command = RunningCommand::new(supervisor, connection, deadline);
        self.running.push(command);
        self.has_children = true;
        // Short commands are checked together, as if they were one.
        if self.next_check.is_none() {
            self.schedule_check();
        }
        if let Some(disk) = &mut self.disk {
            disk.count(&self.sandbox.data, &supervisors(&self.running));
        }
    }

    /// Starts a command. The error is the reply.
    fn start(
        &self,
        connection: &OwnedFd,
        payload: Option<Payload>,
        fds: Option<ExecFds>,
    ) -> Result<Supervisor, HolderReply> {
        let unreadable = HolderReply::NotStarted(StartStage::Fork, 0);
        let fds = fds.ok_or(unreadable)?;
        let payload = payload.or_else(|| read_payload(fds.payload.as_ref()?));
        let payload = payload.ok_or(unreadable)?;
        let max_processes = self.sandbox.setup.max_processes;
        let null = self.sandbox.null.as_fd();
        let stdin = fds.stdin.as_ref().map_or(null, AsFd::as_fd);
        supervisor::start(&payload, max_processes, stdin, &fds, connection.as_fd())
    }

    /// Checks the limits that no cgroup enforces.
    fn check_limits(&mut self) {
        if let Some(memory) = &mut self.memory {
            let killed = memory.check(&self.sandbox);
            self.kill(&killed, ExceededLimit::Memory);
        }
        if let Some(disk) = &mut self.disk {
            disk.check(&self.sandbox.data, &supervisors(&self.running));
        }
        self.schedule_check();
    }

    fn schedule_check(&mut self) {
        let memory = self.memory.as_ref().map(MemoryWatch::pause);
        let disk = self.disk.as_ref().map(DiskWatch::pause);
        let pause = memory.into_iter().chain(disk).min();
        self.next_check = pause.map(|pause| Instant::now() + pause);
    }

    /// Kills processes that exceed a limit.
    fn kill(&self, pids: &[u32], limit: ExceededLimit) {
        // Once they have ended, they no longer have a parent.
        for running in self.running.iter().filter(|_| !pids.is_empty()) {
            running.processes_killed(pids, limit);
        }
        pids.iter().copied().for_each(kill_process);
    }

    /// Takes a count of the files, and kills all processes if they exceed the limit.
    fn files_counted(&mut self) {
        let disk = self.disk.as_mut();
        let supervisors = supervisors(&self.running);
        let Some(counted) = disk.and_then(|disk| disk.take(&self.sandbox.data, &supervisors))
        else {
            return;
        };
        self.kill(&counted.concealing, ExceededLimit::Storage);
        if counted.exceeds {
            for running in &self.running {
                running.supervisor.set_exceeded(ExceededLimit::Storage);
            }
            kill_everything();
        }
        let reply = HolderReply::StorageRoom(counted.room).encode(&CommandUsage::default());
        for connection in self.count_requests.drain(..) {
            // The send fails if the caller has given up.
            let _ = messages::send(connection.as_fd(), &reply, &[]);
        }
    }
}

/// Returns the process ids of the supervisors.
fn supervisors(running: &[RunningCommand]) -> Vec<u32> {
    running
        .iter()
        .map(|running| running.supervisor.pid)
        .collect()
}

/// Reads a payload that did not fit into a message.
fn read_payload(file: &OwnedFd) -> Option<Payload> {
    let mut bytes = Vec::new();
    let mut file = File::from(file.try_clone().ok()?);
    file.read_to_end(&mut bytes).ok()?;
    Payload::decode(&bytes)
}
