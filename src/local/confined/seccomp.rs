//! The system calls that a sandbox may make, as a program for the kernel's filter.
//!
//! A list of what is forbidden: what leaves the sandbox, changes the machine, or opens large and
//! seldom needed parts of the kernel. The filter can't look behind pointers, so a call whose
//! flags are in memory is refused as a whole.

use std::collections::BTreeMap;

use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, ENOSYS, EPERM};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS};

/// What depends on the sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Its processes, network and IPC are its own. Where they are not, sockets can only be had in
    /// pairs, and nothing is shared or changed by a name or number that others have as well.
    pub(crate) own_namespaces: bool,
    /// Files in memory that no limit of the workspace counts.
    pub(crate) memfd: bool,
    /// The choice of CPUs. False where that choice is the limit.
    pub(crate) affinity: bool,
}

// From linux/audit.h. Another architecture needs its number here, and a look at the order of the
// arguments of clone and the byte order.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCH: u32 = 0xc000_00f3;

/// Where `struct seccomp_data` keeps what is compared.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// On x86_64 the calls of the x32 kind begin here, elsewhere there is nothing. -1 is above it.
const X32: u32 = 0x4000_0000;

const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// For unshare only: in the flags of clone this bit belongs to the signal.
const NEW_TIME: u32 = 0x80;

/// Calls that libc doesn't name for every target. Since Linux 5.1 a new call has one number
/// everywhere.
mod number {
    pub(super) const IO_URING_SETUP: u32 = 425;
    pub(super) const IO_URING_ENTER: u32 = 426;
    pub(super) const IO_URING_REGISTER: u32 = 427;
    pub(super) const OPEN_TREE: u32 = 428;
    pub(super) const MOVE_MOUNT: u32 = 429;
    pub(super) const FSOPEN: u32 = 430;
    pub(super) const FSCONFIG: u32 = 431;
    pub(super) const FSMOUNT: u32 = 432;
    pub(super) const FSPICK: u32 = 433;
    pub(super) const PIDFD_OPEN: u32 = 434;
    pub(super) const CLONE3: u32 = 435;
    pub(super) const PIDFD_GETFD: u32 = 438;
    pub(super) const PROCESS_MADVISE: u32 = 440;
    pub(super) const MOUNT_SETATTR: u32 = 442;
    pub(super) const QUOTACTL_FD: u32 = 443;
    pub(super) const MEMFD_SECRET: u32 = 447;
    pub(super) const PROCESS_MRELEASE: u32 = 448;
    pub(super) const LSM_SET_SELF_ATTR: u32 = 460;
    pub(super) const OPEN_TREE_ATTR: u32 = 467;

    #[cfg(target_arch = "x86_64")]
    pub(super) const KEXEC_FILE_LOAD: u32 = 320;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const KEXEC_FILE_LOAD: u32 = 294;
}

/// Never allowed, by libc's names.
const FORBIDDEN: &[libc::c_long] = &[
    // What is mounted where, and which namespaces this is.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    // Files by handle pass by every directory's rights.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Other processes, and the sandbox's own holder.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Large, privileged in spirit, and the home of many kernel bugs. Keyrings aren't in a namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // The machine as a whole.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
];

/// Never allowed, by number.
const FORBIDDEN_NEWER: &[u32] = &[
    // Work for the kernel that no filter sees.
    number::IO_URING_SETUP,
    number::IO_URING_ENTER,
    number::IO_URING_REGISTER,
    number::OPEN_TREE,
    number::OPEN_TREE_ATTR,
    number::MOVE_MOUNT,
    number::FSOPEN,
    number::FSCONFIG,
    number::FSMOUNT,
    number::FSPICK,
    number::MOUNT_SETATTR,
    number::PIDFD_GETFD,
    number::PROCESS_MADVISE,
    number::PROCESS_MRELEASE,
    number::QUOTACTL_FD,
    number::LSM_SET_SELF_ATTR,
    number::KEXEC_FILE_LOAD,
];

/// The filter as the bytes of an array of `struct sock_filter`.
pub(crate) fn program(options: &Options) -> Vec<u8> {
    let mut code = load(ARCH_AT);
    code.extend(one_of(
        &[ARCH],
        answer(SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_AT),
    ));
    code.extend(tree(&spans(&rules(options))));
    code.iter().flat_map(Instruction::bytes).collect()
}

/// What each call that isn't simply allowed gets.
fn rules(options: &Options) -> BTreeMap<u32, Code> {
    let mut rules = BTreeMap::new();
    let old = FORBIDDEN.iter().map(|number| *number as u32);
    for number in old.chain(FORBIDDEN_NEWER.iter().copied()) {
        rules.insert(number, errno(EPERM));
    }
    // The C libraries know this answer, and go on with clone, whose flags can be seen.
    rules.insert(number::CLONE3, errno(ENOSYS));
    let mut named = |number: libc::c_long, code| rules.insert(number as u32, code);
    named(libc::SYS_clone, without_bits(0, NEW_NAMESPACE));
    named(libc::SYS_unshare, without_bits(0, NEW_NAMESPACE | NEW_TIME));
    // Linux itself, and the question which it is. Others weaken the layout of the memory.
    named(libc::SYS_personality, only(0, &[0, !0]));
    let devices = [libc::S_IFCHR, libc::S_IFBLK];
    #[cfg(target_arch = "x86_64")]
    named(libc::SYS_mknod, except(1, libc::S_IFMT, &devices));
    named(libc::SYS_mknodat, except(2, libc::S_IFMT, &devices));
    // Typing into a terminal, the console's clipboard, and loading line disciplines.
    let requests = [
        libc::TIOCSTI as u32,
        libc::TIOCLINUX as u32,
        libc::TIOCSETD as u32,
    ];
    named(libc::SYS_ioctl, except(1, !0, &requests));
    // Limits of other processes, the holder's among them.
    named(libc::SYS_prlimit64, only(0, &[0]));
    named(libc::SYS_socket, usual_sockets());
    named(libc::SYS_socketpair, only(0, &[AF_UNIX as u32]));
    if !options.own_namespaces {
        rules.extend(shared_with_others());
    }
    if !options.memfd {
        rules.insert(libc::SYS_memfd_create as u32, errno(ENOSYS));
        rules.insert(number::MEMFD_SECRET, errno(ENOSYS));
    }
    if !options.affinity {
        rules.insert(libc::SYS_sched_setaffinity as u32, errno(EPERM));
    }
    // Before Linux 5.4 these ran as x32 calls, ptrace and kexec_load among them, without the bit.
    if cfg!(target_arch = "x86_64") {
        rules.extend((512..=547).map(|number| (number, errno(ENOSYS))));
    }
    rules
}

/// The families that programs use; of netlink the part that lists the network's interfaces.
fn usual_sockets() -> Code {
    let usual = [AF_UNIX as u32, AF_INET as u32, AF_INET6 as u32];
    let mut code = load_argument(0);
    let netlink = only(2, &[libc::NETLINK_ROUTE as u32]);
    code.extend(one_of(
        &[AF_NETLINK as u32],
        one_of(&usual, errno(EPERM), allow()),
        netlink,
    ));
    code
}

/// What reaches others where the network, the processes and the IPC are the machine's.
fn shared_with_others() -> Vec<(u32, Code)> {
    let mut rules = vec![(number::PIDFD_OPEN, errno(EPERM))];
    for number in [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_setpriority,
        libc::SYS_ioprio_set,
    ] {
        rules.push((number as u32, errno(EPERM)));
    }
    // One of a pair of datagram sockets can send to any name.
    let nameless = [libc::SOCK_DGRAM as u32, libc::SOCK_RAW as u32];
    let mut pair = load_argument(0);
    pair.extend(one_of(
        &[AF_UNIX as u32],
        errno(EPERM),
        except(1, 0xf, &nameless),
    ));
    rules.push((libc::SYS_socketpair as u32, pair));
    for number in [
        libc::SYS_shmget,
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_semget,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_semctl,
        libc::SYS_msgget,
        libc::SYS_msgsnd,
        libc::SYS_msgrcv,
        libc::SYS_msgctl,
        libc::SYS_mq_open,
        libc::SYS_mq_unlink,
    ] {
        rules.push((number as u32, errno(ENOSYS)));
    }
    for number in [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
    ] {
        rules.push((number as u32, only(0, &[0])));
    }
    rules
}

/// All numbers as spans with one answer each, by the number that they begin with.
fn spans(rules: &BTreeMap<u32, Code>) -> Vec<(u32, Code)> {
    let mut spans = vec![(0, allow())];
    let mut add = |start: u32, code: Code| {
        // A span of no numbers gives way.
        if spans.last().is_some_and(|(last, _)| *last == start) {
            spans.pop();
        }
        if spans.last().is_none_or(|(_, last)| *last != code) {
            spans.push((start, code));
        }
    };
    for (number, code) in rules {
        add(*number, code.clone());
        add(number + 1, allow());
    }
    add(X32, errno(ENOSYS));
    spans
}

/// Halves the spans until one is left, so that each call costs few steps.
fn tree(spans: &[(u32, Code)]) -> Code {
    let (low, high) = spans.split_at(spans.len() / 2);
    match (low, high) {
        ([], [(_, code)]) => code.clone(),
        (_, [(start, _), ..]) => at_least(*start, tree(low), tree(high)),
        (_, []) => allow(),
    }
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    operation: u16,
    /// Instructions to jump over, if the comparison holds and if not.
    yes: u8,
    no: u8,
    operand: u32,
}

impl Instruction {
    fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.operation.to_ne_bytes();
        let [c, d, e, f] = self.operand.to_ne_bytes();
        [a, b, self.yes, self.no, c, d, e, f]
    }
}

/// Instructions that stand by themselves: no jump leads out of them.
type Code = Vec<Instruction>;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

fn compare(operation: u32, operand: u32, yes: u8, no: u8) -> Instruction {
    let operation = operation as u16;
    Instruction {
        operation,
        yes,
        no,
        operand,
    }
}

fn simple(operation: u32, operand: u32) -> Instruction {
    compare(operation, operand, 0, 0)
}

fn answer(value: u32) -> Code {
    vec![simple(RETURN, value)]
}

fn allow() -> Code {
    answer(SECCOMP_RET_ALLOW)
}

fn errno(number: i32) -> Code {
    answer(SECCOMP_RET_ERRNO | number as u32)
}

fn load(offset: u32) -> Code {
    vec![simple(LOAD, offset)]
}

/// The low half, which is all that the kernel looks at where a call takes an int. It comes first
/// on all three architectures.
fn load_argument(index: u32) -> Code {
    load(ARGUMENTS_AT + 8 * index)
}

/// EPERM if the argument has one of these bits.
fn without_bits(index: u32, bits: u32) -> Code {
    let mut code = load_argument(index);
    code.push(compare(IF_BITS, bits, 0, 1));
    code.extend(errno(EPERM));
    code.extend(allow());
    code
}

/// EPERM if the argument is none of these values.
fn only(index: u32, values: &[u32]) -> Code {
    let mut code = load_argument(index);
    code.extend(one_of(values, errno(EPERM), allow()));
    code
}

/// EPERM if the argument, as far as the mask goes, is one of these values.
fn except(index: u32, mask: u32, values: &[u32]) -> Code {
    let mut code = load_argument(index);
    code.push(simple(AND, mask));
    code.extend(one_of(values, allow(), errno(EPERM)));
    code
}

/// `yes` if what is loaded is one of these values, else `no`, which must end in an answer.
fn one_of(values: &[u32], no: Code, yes: Code) -> Code {
    let mut code: Code = Vec::new();
    // From the end, as a jump's length is what comes after it.
    for value in values.iter().rev() {
        let over = no.len() + code.len();
        code.insert(0, compare(IF_EQUAL, *value, over as u8, 0));
    }
    code.extend(no);
    code.extend(yes);
    code
}

/// `yes` if what is loaded is at least this, else `no`, which must end in an answer.
fn at_least(start: u32, no: Code, yes: Code) -> Code {
    let mut code = match u8::try_from(no.len()) {
        Ok(over) => vec![compare(IF_AT_LEAST, start, over, 0)],
        // A comparison jumps over 255 instructions at most, a plain jump over any number.
        Err(_) => vec![
            compare(IF_AT_LEAST, start, 0, 1),
            simple(JUMP, no.len() as u32),
        ],
    };
    code.extend(no);
    code.extend(yes);
    code
}

#[cfg(test)]
mod tests;
