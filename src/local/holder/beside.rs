//! One process per command, its supervisor: it starts the command, takes in all that descends from
//! it, and tells how it ended. It shares the memory of the sandbox's first process, as a fork of
//! that would cost a quarter of starting a small program. So the code that runs in it keeps to
//! rules: prepared memory only, nothing that allocates, nothing of the C library that sets `errno`.
#![expect(
    unsafe_code,
    reason = "a process in the memory of another one can't be had otherwise"
)]

use std::arch::asm;
use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use crate::c::{self, number};
use crate::protocol::{Answer, Payload, Stage};
use crate::sys::{SIGKILL, check};

/// A running supervisor and what it was given. To be dropped only after that process was taken in.
pub(crate) struct Supervisor {
    pub(crate) process: u32,
    given: NonNull<Given>,
}

/// Read by three processes at once; only the atomics change.
struct Given {
    workdir: CString,
    /// Where the program may be; the first that is there is taken.
    programs: Vec<CString>,
    /// The pointers are to these.
    _texts: Vec<CString>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    rlimits: Vec<(u32, u64)>,
    /// Stdin, stdout and stderr.
    streams: [c_int; 3],
    connection: c_int,
    /// One of the states below, which the first to leave [`RUNNING`] decides.
    state: AtomicI32,
    /// Where the command failed before it was one: 0, or the stage, then the errno.
    failed_at: AtomicI32,
    errno: AtomicI32,
    stack: Vec<u128>,
    stack_of_command: Vec<u128>,
}

const RUNNING: i32 = 0;
/// It ended by itself, and the answer is given.
const ANSWERED: i32 = 1;
/// It is being ended as its time is over, or as nobody wants it any more.
const TIMED_OUT: i32 = 2;
const UNWANTED: i32 = 3;

const FAILED_IN_WORKDIR: i32 = 1;
const FAILED_IN_EXEC: i32 = 2;

const SIGCHLD: c_int = 17;
const CLONE_VM: c_int = 0x100;
const CLONE_VFORK: c_int = 0x4000;

/// What a command is started with, by descriptors of this process.
pub(crate) struct Streams<'a> {
    pub(crate) null: BorrowedFd<'a>,
    pub(crate) out: BorrowedFd<'a>,
    pub(crate) err: BorrowedFd<'a>,
    /// Where the answer goes.
    pub(crate) connection: BorrowedFd<'a>,
}

/// Starts a supervisor for this command. An error is the answer.
pub(crate) fn start(
    payload: &Payload,
    rlimits: &[(u32, u64)],
    streams: &Streams<'_>,
) -> Result<Supervisor, Answer> {
    let given = prepare(payload, rlimits, streams).ok_or(Answer::NotStarted(Stage::Fork, 0))?;
    if given.programs.is_empty() {
        return Err(Answer::NotStarted(Stage::Lookup, crate::sys::ENOENT));
    }
    let given = NonNull::from(Box::leak(Box::new(given)));
    // SAFETY: `supervise` runs on a stack of its own, which ends where the pointer says and is
    // aligned to 16 bytes. What it is given is freed by the drop of Supervisor, after its end.
    let pid = unsafe {
        let top = top_of(&raw const (*given.as_ptr()).stack);
        c::clone(supervise, top, CLONE_VM | SIGCHLD, given.as_ptr().cast())
    };
    match check(pid) {
        Ok(pid) => Ok(Supervisor {
            process: pid.unsigned_abs(),
            given,
        }),
        Err(e) => {
            // SAFETY: made by Box above, and nobody else has it.
            drop(unsafe { Box::from_raw(given.as_ptr()) });
            Err(Answer::NotStarted(
                Stage::Fork,
                e.raw_os_error().unwrap_or(0),
            ))
        }
    }
}

impl Supervisor {
    /// From now on the command counts as ended for this reason, and is over when nothing is left of
    /// it. Killing it is left to the caller. False where it has just ended by itself.
    pub(crate) fn expect_end(&self, timed_out: bool) -> bool {
        let state = if timed_out { TIMED_OUT } else { UNWANTED };
        // SAFETY: lives until the drop.
        let given = unsafe { self.given.as_ref() };
        let changed = given.state.compare_exchange(RUNNING, state, SeqCst, SeqCst);
        changed.is_ok()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // SAFETY: made by Box in `start`; the only other process that read it has ended.
        drop(unsafe { Box::from_raw(self.given.as_ptr()) });
    }
}

/// None for what the library never sends.
fn prepare(payload: &Payload, rlimits: &[(u32, u64)], streams: &Streams<'_>) -> Option<Given> {
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
    let programs = match name.contains('/') {
        // Relative to the working directory.
        true => vec![name.clone()],
        false => {
            let in_dir = |dir: &String| format!("{dir}/{name}");
            payload.path.iter().map(in_dir).collect()
        }
    };
    let args = texts(&payload.args)?;
    let env = texts(&payload.env)?;
    Some(Given {
        workdir: CString::new(payload.workdir.as_str()).ok()?,
        programs: texts(&programs)?,
        args: pointers(&args),
        env: pointers(&env),
        _texts: args.into_iter().chain(env).collect(),
        rlimits: rlimits.to_vec(),
        streams: [streams.null, streams.out, streams.err].map(|fd| fd.as_raw_fd()),
        connection: streams.connection.as_raw_fd(),
        state: AtomicI32::new(RUNNING),
        failed_at: AtomicI32::new(0),
        errno: AtomicI32::new(0),
        stack: Vec::with_capacity(STACK),
        stack_of_command: Vec::with_capacity(STACK),
    })
}

/// # Safety
///
/// The vector must be there.
unsafe fn top_of(stack: *const Vec<u128>) -> *mut c_void {
    // SAFETY: the end of the vector's own memory.
    unsafe { (*stack).as_ptr().add((*stack).capacity()).cast_mut().cast() }
}

/// The supervisor. Its end with code 0 says that it has answered.
extern "C" fn supervise(given: *mut c_void) -> c_int {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    const MSG_NOSIGNAL: usize = 0x4000;
    // SAFETY: `start` gave a valid `Given`, which stays until this process has ended.
    let shared = unsafe { &*given.cast::<Given>() };
    // SAFETY: numbers only; `become_command` runs on a stack of its own, as above, and by
    // CLONE_VFORK this process stands still until the program runs or the attempt is over.
    let main = unsafe {
        call(number::PRCTL, [PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0]);
        let top = top_of(&raw const shared.stack_of_command);
        c::clone(become_command, top, CLONE_VM | CLONE_VFORK | SIGCHLD, given)
    };
    let errno = shared.errno.load(SeqCst);
    let answer = match shared.failed_at.load(SeqCst) {
        // Too many processes, or no memory for one more; both are told this way.
        _ if main < 0 => Answer::NotStarted(Stage::Fork, 11),
        FAILED_IN_WORKDIR => Answer::NotStarted(Stage::Workdir, errno),
        FAILED_IN_EXEC => Answer::NotStarted(Stage::Exec, errno),
        _ => wait_for(main, &shared.state),
    };
    let bytes = answer.encode();
    let message = [
        shared.connection as usize,
        bytes.as_ptr() as usize,
        bytes.len(),
        MSG_NOSIGNAL,
        0,
    ];
    // SAFETY: the message is as long as it is said to be. Whoever does not listen any more knows
    // how it ended.
    unsafe { call(number::SENDTO, message) };
    0
}

/// Takes in children until the command has ended; and if it is being ended, until none is left.
fn wait_for(main: c_int, state: &AtomicI32) -> Answer {
    let mut answer = Answer::Signaled(SIGKILL);
    loop {
        let mut status: c_int = 0;
        // SAFETY: status has room for the answer.
        let child = unsafe {
            call(
                number::WAIT4,
                [usize::MAX, (&raw mut status) as usize, 0, 0, 0],
            )
        };
        if child == main as isize {
            answer = match status & 0x7f {
                0 => Answer::Exited((status >> 8) & 0xff),
                signal => Answer::Signaled(signal),
            };
            let ended = state.compare_exchange(RUNNING, ANSWERED, SeqCst, SeqCst);
            if ended.is_ok() {
                return answer;
            }
        } else if child < 0 {
            return match state.load(SeqCst) {
                TIMED_OUT => Answer::TimedOut,
                _ => answer,
            };
        }
    }
}

/// Runs in the child of the supervisor, and becomes the command: with its streams and no other
/// descriptor, in a session of its own.
extern "C" fn become_command(given: *mut c_void) -> c_int {
    const SIG_SETMASK: usize = 2;
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: as in `supervise`.
    let given = unsafe { &*given.cast::<Given>() };
    let failed = |stage, result: isize| {
        given.errno.store(-(result as i32), SeqCst);
        given.failed_at.store(stage, SeqCst);
        127
    };
    // SAFETY: numbers, and pointers to what `given` owns: texts that end with NUL, lists of them
    // that end with null, and numbers of the sizes that the calls read.
    unsafe {
        call(number::SETSID, [0; 5]);
        for (to, from) in given.streams.iter().enumerate() {
            call(number::DUP3, [*from as usize, to, 0, 0, 0]);
        }
        call(
            number::CLOSE_RANGE,
            [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0],
        );
        let moved = call(number::CHDIR, [given.workdir.as_ptr() as usize, 0, 0, 0, 0]);
        if moved < 0 {
            return failed(FAILED_IN_WORKDIR, moved);
        }
        for (resource, value) in &given.rlimits {
            limit(*resource as usize, *value);
        }
        let none = 0_u64;
        let set = [
            SIG_SETMASK,
            (&raw const none) as usize,
            0,
            size_of_val(&none),
            0,
        ];
        call(number::RT_SIGPROCMASK, set);
        let mut result = 0;
        let mut denied = 0;
        for program in &given.programs {
            let program = program.as_ptr() as usize;
            let (args, env) = (given.args.as_ptr() as usize, given.env.as_ptr() as usize);
            result = call(number::EXECVE, [program, args, env, 0, 0]);
            match -(result as i32) {
                crate::sys::ENOENT | crate::sys::ENOTDIR => {}
                crate::sys::EACCES => denied = result,
                _ => return failed(FAILED_IN_EXEC, result),
            }
        }
        failed(FAILED_IN_EXEC, if denied < 0 { denied } else { result })
    }
}

/// Sets a limit, or as much of it as the present one leaves.
///
/// # Safety
///
/// To be called by the child that becomes a command.
unsafe fn limit(resource: usize, value: u64) {
    let mut present = [u64::MAX; 2];
    // SAFETY: both have room for the two numbers of a limit.
    unsafe {
        call(
            number::PRLIMIT64,
            [0, resource, 0, (&raw mut present) as usize, 0],
        );
        let both = [value.min(present[1]); 2];
        call(
            number::PRLIMIT64,
            [0, resource, (&raw const both) as usize, 0, 0],
        );
    }
}

/// One system call, without the C library: that would leave the error in memory that the first
/// process uses as well. A negative answer is an errno.
///
/// # Safety
///
/// As for the system call.
unsafe fn call(number: c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let answer: isize;
    // SAFETY: the kernel's own convention: the number and arguments in these registers, which, but
    // for the answer and those named as lost, it leaves alone. The sixth argument is 0.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", inlateout("rax") number as isize => answer, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, in("r8") e, in("r9") 0, lateout("rcx") _, lateout("r11") _);
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => answer, in("x1") b,
            in("x2") c, in("x3") d, in("x4") e, in("x5") 0);
        #[cfg(target_arch = "riscv64")]
        asm!("ecall", in("a7") number, inlateout("a0") a as isize => answer, in("a1") b,
            in("a2") c, in("a3") d, in("a4") e, in("a5") 0);
    }
    answer
}
