//! The supervisor: one process per command. It starts the command, reaps its descendants, and
//! replies with its exit status.
//!
//! The supervisor shares the memory of the holder, because a fork of the holder would take a
//! quarter of the time of starting a small program. So code that runs in it must not allocate and
//! must not call functions of the C library that set `errno`. It uses memory that was prepared
//! before.
#![expect(
    unsafe_code,
    reason = "a process that shares memory needs raw system calls"
)]

use std::arch::asm;
use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use crate::protocol::{CommandUsage, ExceededLimit, ExecFds, HolderReply, Payload, StartStage};
use crate::sys::c::{
    self, EACCES, ENOENT, ENOTDIR, ETXTBSY, RLIMIT_NPROC, SIGCHLD, SIGKILL, check, number,
};

/// A running supervisor. It must be dropped only after its process was reaped, because the process
/// reads the shared state.
pub(crate) struct Supervisor {
    pub(crate) pid: u32,
    shared: NonNull<SharedState>,
}

/// State that the holder, the supervisor and the new command share. Only the atomics change.
struct SharedState {
    workdir: CString,
    /// Candidate paths of the program. The first that exists is executed.
    programs: Vec<CString>,
    /// The strings that `args` and `env` point to.
    _texts: Vec<CString>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    max_processes: u64,
    /// Stdin, stdout and stderr.
    streams: [c_int; 3],
    connection: c_int,
    /// One of the states below. The first process that leaves [`RUNNING`] decides.
    state: AtomicI32,
    /// The stage in which the start of the command failed, or 0.
    failed_at: AtomicI32,
    errno: AtomicI32,
    /// The limit that has killed a process of the command: one of the values below, or 0.
    exceeded: AtomicI32,
    stack: Vec<u128>,
    command_stack: Vec<u128>,
}

/// Error of a fork beyond the process limit.
const EAGAIN: i32 = 11;

const RUNNING: i32 = 0;
/// The command has ended, and the supervisor replies.
const REPLIED: i32 = 1;
/// The holder kills the command because of its timeout.
const TIMED_OUT: i32 = 2;
/// The holder kills the command because the caller has cancelled it.
const CANCELLED: i32 = 3;

const MEMORY: i32 = 1;
const STORAGE: i32 = 2;

const FAILED_IN_WORKDIR: i32 = 1;
const FAILED_IN_EXEC: i32 = 2;

const CLONE_VM: c_int = 0x100;
const CLONE_VFORK: c_int = 0x4000;

/// Starts a supervisor for a command. It replies on the connection. The error is the reply.
pub(crate) fn start(
    payload: &Payload,
    max_processes: u64,
    stdin: BorrowedFd<'_>,
    fds: &ExecFds,
    connection: BorrowedFd<'_>,
) -> Result<Supervisor, HolderReply> {
    let streams = [stdin, fds.stdout.as_fd(), fds.stderr.as_fd()].map(|fd| fd.as_raw_fd());
    let shared = prepare(payload, max_processes, streams, connection.as_raw_fd())
        .ok_or(HolderReply::NotStarted(StartStage::Fork, 0))?;
    if shared.programs.is_empty() {
        return Err(HolderReply::NotStarted(StartStage::Lookup, ENOENT));
    }
    let shared = NonNull::from(Box::leak(Box::new(shared)));
    // SAFETY: `supervise` runs on its own stack. The pointer is the end of that stack and aligned
    // to 16 bytes. Drop of Supervisor frees the shared state after the end of the process.
    let pid = unsafe {
        let top = top_of(&raw const (*shared.as_ptr()).stack);
        c::clone(supervise, top, CLONE_VM | SIGCHLD, shared.as_ptr().cast())
    };
    match check(pid) {
        Ok(pid) => Ok(Supervisor {
            pid: pid.unsigned_abs(),
            shared,
        }),
        Err(e) => {
            // SAFETY: the pointer comes from the Box above, and no process uses it.
            drop(unsafe { Box::from_raw(shared.as_ptr()) });
            Err(HolderReply::NotStarted(
                StartStage::Fork,
                e.raw_os_error().unwrap_or(0),
            ))
        }
    }
}

impl Supervisor {
    /// Marks the command as killed for this reason. The supervisor then replies after all processes
    /// of the command have ended; the caller must kill them. Returns false if the command has
    /// already ended.
    pub(crate) fn expect_end(&self, timed_out: bool) -> bool {
        let state = if timed_out { TIMED_OUT } else { CANCELLED };
        // SAFETY: the state exists until the drop.
        let shared = unsafe { self.shared.as_ref() };
        let changed = shared
            .state
            .compare_exchange(RUNNING, state, SeqCst, SeqCst);
        changed.is_ok()
    }

    /// Marks the command as one that has exceeded a limit.
    pub(crate) fn set_exceeded(&self, limit: ExceededLimit) {
        // SAFETY: the state exists until the drop.
        let shared = unsafe { self.shared.as_ref() };
        let value = match limit {
            ExceededLimit::Memory => MEMORY,
            ExceededLimit::Storage => STORAGE,
        };
        shared.exceeded.store(value, SeqCst);
    }

    pub(crate) fn exceeded(&self) -> Option<ExceededLimit> {
        // SAFETY: the state exists until the drop.
        unsafe { self.shared.as_ref() }.exceeded()
    }
}

impl SharedState {
    fn exceeded(&self) -> Option<ExceededLimit> {
        match self.exceeded.load(SeqCst) {
            MEMORY => Some(ExceededLimit::Memory),
            STORAGE => Some(ExceededLimit::Storage),
            _ => None,
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // SAFETY: the pointer comes from the Box in `start`, and the other processes have ended.
        drop(unsafe { Box::from_raw(self.shared.as_ptr()) });
    }
}

/// Prepares the state. Returns `None` for a payload that the library never sends.
fn prepare(
    payload: &Payload,
    max_processes: u64,
    streams: [c_int; 3],
    connection: c_int,
) -> Option<SharedState> {
    const STACK: usize = 16 * 1024 / size_of::<u128>();
    let texts = |list: &[String]| {
        let texts = list.iter().map(|text| CString::new(text.as_str()).ok());
        texts.collect::<Option<Vec<CString>>>()
    };
    let pointers = |list: &[CString]| {
        let mut pointers: Vec<*const c_char> = list.iter().map(|text| text.as_ptr()).collect();
        pointers.push(null());
        pointers
    };
    let name = payload.args.first()?;
    let programs = if name.contains('/') {
        // Relative to the working directory.
        vec![name.clone()]
    } else {
        let in_dir = |dir: &String| format!("{dir}/{name}");
        payload.path.iter().map(in_dir).collect()
    };
    let args = texts(&payload.args)?;
    let env = texts(&payload.env)?;
    Some(SharedState {
        workdir: CString::new(payload.workdir.as_str()).ok()?,
        programs: texts(&programs)?,
        args: pointers(&args),
        env: pointers(&env),
        _texts: args.into_iter().chain(env).collect(),
        max_processes,
        streams,
        connection,
        state: AtomicI32::new(RUNNING),
        failed_at: AtomicI32::new(0),
        errno: AtomicI32::new(0),
        exceeded: AtomicI32::new(0),
        stack: Vec::with_capacity(STACK),
        command_stack: Vec::with_capacity(STACK),
    })
}

/// Returns the initial stack pointer of a stack that grows down.
///
/// # Safety
///
/// The pointer must be valid.
unsafe fn top_of(stack: *const Vec<u128>) -> *mut c_void {
    // SAFETY: the result is the end of the vector's allocation.
    unsafe { (*stack).as_ptr().add((*stack).capacity()).cast_mut().cast() }
}

/// Main function of the supervisor. Exit code 0 means that it has replied.
extern "C" fn supervise(shared: *mut c_void) -> c_int {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    const MSG_NOSIGNAL: usize = 0x4000;
    let argument = shared;
    // SAFETY: `start` passed a valid `SharedState`, which exists until this process has ended.
    let shared = unsafe { &*argument.cast::<SharedState>() };
    // SAFETY: `become_command` runs on its own stack. CLONE_VFORK suspends this process until the
    // command has been executed or has failed.
    let main = unsafe {
        raw_syscall(number::PRCTL, [PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0]);
        let top = top_of(&raw const shared.command_stack);
        let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
        c::clone(become_command, top, flags, argument)
    };
    // The pipes then close when the command ends, which wakes the caller a little before the reply.
    for stream in &shared.streams[1..] {
        // SAFETY: this process has its own table of descriptors, and nothing in it uses these.
        unsafe { raw_syscall(number::CLOSE, [*stream as usize, 0, 0, 0, 0]) };
    }
    let errno = shared.errno.load(SeqCst);
    let mut usage = CommandUsage::default();
    let reply = match shared.failed_at.load(SeqCst) {
        // EAGAIN: the process limit is reached, or memory is short.
        _ if main < 0 => HolderReply::NotStarted(StartStage::Fork, EAGAIN),
        FAILED_IN_WORKDIR => HolderReply::NotStarted(StartStage::Workdir, errno),
        FAILED_IN_EXEC => HolderReply::NotStarted(StartStage::Exec, errno),
        _ => wait_for(main, &shared.state, &mut usage),
    };
    usage.exceeded = shared.exceeded();
    let bytes = reply.encode(&usage);
    let message = [
        shared.connection as usize,
        bytes.as_ptr() as usize,
        bytes.len(),
        MSG_NOSIGNAL,
        0,
    ];
    // SAFETY: the message has the given length. The call fails if the caller has given up.
    unsafe {
        raw_syscall(number::SENDTO, message);
        // The kernel lets the sender of a message run on. Without a yield the caller would wait for the end
        // of this process.
        raw_syscall(number::SCHED_YIELD, [0; 5]);
    }
    0
}

/// Reaps children until the command has ended, or if the holder kills it, until none is left.
fn wait_for(main: c_int, state: &AtomicI32, usage: &mut CommandUsage) -> HolderReply {
    let mut reply = HolderReply::Signaled(SIGKILL);
    loop {
        let mut status: c_int = 0;
        let mut rusage = ResourceUsage::default();
        let (status_address, rusage_address) =
            ((&raw mut status) as usize, (&raw mut rusage) as usize);
        let arguments = [usize::MAX, status_address, 0, rusage_address, 0];
        // SAFETY: both have room for their result.
        let child = unsafe { raw_syscall(number::WAIT4, arguments) };
        if is_stopped(status) && child > 0 {
            release(child, status);
            continue;
        }
        if child > 0 {
            usage.cpu_micros += rusage.cpu_micros();
            usage.peak_memory = usage.peak_memory.max(rusage.peak_memory());
        }
        if child == main as isize {
            reply = match status & 0x7f {
                0 => HolderReply::Exited((status >> 8) & 0xff),
                signal => HolderReply::Signaled(signal),
            };
            let ended = state.compare_exchange(RUNNING, REPLIED, SeqCst, SeqCst);
            if ended.is_ok() {
                return reply;
            }
        } else if child < 0 {
            return match state.load(SeqCst) {
                TIMED_OUT => HolderReply::TimedOut,
                _ => reply,
            };
        }
    }
}

/// `struct rusage` of a 64-bit system.
#[repr(C)]
#[derive(Default)]
struct ResourceUsage {
    /// Seconds and microseconds.
    user: [u64; 2],
    system: [u64; 2],
    max_rss_kib: u64,
    rest: [u64; 13],
}

impl ResourceUsage {
    fn cpu_micros(&self) -> u64 {
        let [user, system] = [self.user, self.system].map(|[s, micros]| s * 1_000_000 + micros);
        user + system
    }

    fn peak_memory(&self) -> u64 {
        self.max_rss_kib * 1024
    }
}

/// Returns true for the status of a child that has not ended, but waits for its tracer.
fn is_stopped(status: c_int) -> bool {
    status & 0xff == 0x7f
}

/// Stops tracing a child that has made its parent its tracer with `PTRACE_TRACEME`. Passes on the signal
/// that has stopped it.
fn release(child: isize, status: c_int) {
    const PTRACE_DETACH: usize = 17;
    const SIGTRAP: usize = 5;
    let signal = match (status >> 8) as usize & 0xff {
        // Sent to a traced process when it executes a program.
        SIGTRAP => 0,
        signal => signal,
    };
    let arguments = [PTRACE_DETACH, child as usize, 0, signal, 0];
    // SAFETY: all arguments are numbers.
    unsafe { raw_syscall(number::PTRACE, arguments) };
}

/// Main function of the supervisor's child: becomes the command, in its own session, with its
/// streams and no other descriptors.
extern "C" fn become_command(shared: *mut c_void) -> c_int {
    // SAFETY: as in `supervise`.
    let shared = unsafe { &*shared.cast::<SharedState>() };
    let (stage, result) = match enter_workdir(shared) {
        Ok(()) => (FAILED_IN_EXEC, execute(shared)),
        Err(result) => (FAILED_IN_WORKDIR, result),
    };
    shared.errno.store(-(result as i32), SeqCst);
    shared.failed_at.store(stage, SeqCst);
    127
}

/// Replaces the session and the descriptors, and changes to the working directory.
fn enter_workdir(shared: &SharedState) -> Result<(), isize> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: the arguments are numbers, and a text that ends with NUL.
    let moved = unsafe {
        raw_syscall(number::SETSID, [0; 5]);
        for (to, from) in shared.streams.iter().enumerate() {
            raw_syscall(number::DUP3, [*from as usize, to, 0, 0, 0]);
        }
        let all = [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0];
        raw_syscall(number::CLOSE_RANGE, all);
        let workdir = shared.workdir.as_ptr() as usize;
        raw_syscall(number::CHDIR, [workdir, 0, 0, 0, 0])
    };
    if moved < 0 { Err(moved) } else { Ok(()) }
}

/// Maximum number of attempts to execute a program that another process has open for writing. A process
/// that was forked during an upload has it open until it executes its own program. The pauses add up to
/// one second.
const BUSY_ATTEMPTS: usize = 100;

/// Sets the process limit, unblocks all signals, and executes the first program that exists. Returns only
/// if it fails.
fn execute(shared: &SharedState) -> isize {
    const SIG_SETMASK: usize = 2;
    let limits = [shared.max_processes; 2];
    let none = 0_u64;
    let (limits, mask) = ((&raw const limits) as usize, (&raw const none) as usize);
    let size = size_of_val(&none);
    // SAFETY: the limits are the soft and the hard one, and the mask has the given size.
    unsafe {
        let resource = RLIMIT_NPROC as usize;
        raw_syscall(number::PRLIMIT64, [0, resource, limits, 0, 0]);
        raw_syscall(number::RT_SIGPROCMASK, [SIG_SETMASK, mask, 0, size, 0]);
    }
    let (args, env) = (shared.args.as_ptr() as usize, shared.env.as_ptr() as usize);
    let mut result = 0;
    let mut denied = 0;
    for program in &shared.programs {
        let program = program.as_ptr() as usize;
        for _ in 0..BUSY_ATTEMPTS {
            // SAFETY: the shared state owns texts that end with NUL, and lists of them that end with null.
            result = unsafe { raw_syscall(number::EXECVE, [program, args, env, 0, 0]) };
            if -(result as i32) != ETXTBSY {
                break;
            }
            let pause = [0_i64, 10_000_000];
            // SAFETY: the array contains the seconds and the nanoseconds.
            unsafe { raw_syscall(number::NANOSLEEP, [pause.as_ptr() as usize, 0, 0, 0, 0]) };
        }
        match -(result as i32) {
            ENOENT | ENOTDIR => {}
            EACCES => denied = result,
            _ => return result,
        }
    }
    if denied < 0 { denied } else { result }
}

/// Makes a system call without the C library, which would write `errno` in the memory of the holder. A
/// negative result is an errno.
///
/// # Safety
///
/// The same as for the system call.
unsafe fn raw_syscall(number: c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the kernel takes the number and the arguments in these registers. It changes only the
    // register of the result and those marked as overwritten. The sixth argument is 0.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, in("r8") e, in("r9") 0, lateout("rcx") _, lateout("r11") _);
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b,
            in("x2") c, in("x3") d, in("x4") e, in("x5") 0);
        #[cfg(target_arch = "riscv64")]
        asm!("ecall", in("a7") number, inlateout("a0") a as isize => result, in("a1") b,
            in("a2") c, in("a3") d, in("a4") e, in("a5") 0);
    }
    result
}
