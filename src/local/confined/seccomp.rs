//! The seccomp filter of a sandbox, as a BPF program.
//!
//! The filter denies calls that leave the sandbox, change the host, or reach large and rarely needed
//! parts of the kernel. It cannot read memory, so a call whose flags are behind a pointer is denied
//! entirely.

use std::collections::BTreeMap;

use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, ENOSYS, EOPNOTSUPP, EPERM};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS};

/// Parts of the filter that depend on the sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// The sandbox has private namespaces for processes, network and IPC. Without them, the filter
    /// allows only connected pairs of sockets, and denies calls that reach other processes or
    /// shared objects.
    pub(crate) own_namespaces: bool,
    /// Without namespaces, allows sockets of the host's network. With namespaces, it makes no difference.
    pub(crate) network: bool,
    /// Allows files in memory (`memfd_create`). False without a cgroup: the storage limit does not count
    /// them, and the memory watcher counts them only while they are mapped.
    pub(crate) memory_files: bool,
    /// Allows changing the CPU affinity. False if the affinity enforces the CPU limit.
    pub(crate) affinity: bool,
}

// From linux/audit.h. To add an architecture, add its number, and check the byte order and the
// order of the arguments of clone.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCH: u32 = 0xc000_00f3;

/// Offsets of the fields in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// First number of the x32 calls of x86_64. Other architectures have no calls above it.
const X32: u32 = 0x4000_0000;

const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// For unshare only: in the flags of clone this bit is part of the signal number.
const NEW_TIME: u32 = 0x80;

/// Numbers of calls that libc does not define for every target. Calls added since Linux 5.1 have
/// the same number on all architectures.
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
    pub(super) const SETXATTRAT: u32 = 463;
    pub(super) const REMOVEXATTRAT: u32 = 466;
    pub(super) const OPEN_TREE_ATTR: u32 = 467;
    pub(super) const FILE_SETATTR: u32 = 469;

    #[cfg(target_arch = "x86_64")]
    pub(super) const KEXEC_FILE_LOAD: u32 = 320;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const KEXEC_FILE_LOAD: u32 = 294;
}

/// Calls that are always denied, by the names of libc.
const FORBIDDEN: &[libc::c_long] = &[
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    // Opening files by handle bypasses the permissions of directories.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Other processes. Debuggers do not need these calls.
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Large subsystems with many past vulnerabilities. Keyrings are not part of a namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // The whole machine.
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

/// Calls that are always denied, by number.
const FORBIDDEN_NEWER: &[u32] = &[
    // io_uring runs operations that the filter does not see.
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

/// Returns the filter as the bytes of an array of `struct sock_filter`.
pub(crate) fn program(options: &Options) -> Vec<u8> {
    let mut code = load(ARCH_AT);
    code.extend(one_of(
        &[ARCH],
        action(SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_AT),
    ));
    code.extend(search_tree(&spans(&rules(options))));
    code.iter().flat_map(Instruction::bytes).collect()
}

/// Returns the code for each call that is not always allowed.
fn rules(options: &Options) -> BTreeMap<u32, Code> {
    let mut rules = BTreeMap::new();
    let old = FORBIDDEN.iter().map(|number| *number as u32);
    for number in old.chain(FORBIDDEN_NEWER.iter().copied()) {
        rules.insert(number, errno(EPERM));
    }
    // On ENOSYS the C libraries fall back to clone, whose flags the filter can read.
    rules.insert(number::CLONE3, errno(ENOSYS));
    let mut add = |number: libc::c_long, code| rules.insert(number as u32, code);
    add(libc::SYS_clone, without_bits(0, NEW_NAMESPACE));
    add(libc::SYS_unshare, without_bits(0, NEW_NAMESPACE | NEW_TIME));
    // Allows the default personality and the query. Others can disable address space randomization.
    add(libc::SYS_personality, only(0, &[0, !0]));
    let devices = [libc::S_IFCHR, libc::S_IFBLK];
    #[cfg(target_arch = "x86_64")]
    add(libc::SYS_mknod, except(1, libc::S_IFMT, &devices));
    add(libc::SYS_mknodat, except(2, libc::S_IFMT, &devices));
    // Terminal input injection, the console's clipboard, and loading of line disciplines.
    let requests = [
        libc::TIOCSTI as u32,
        libc::TIOCLINUX as u32,
        libc::TIOCSETD as u32,
    ];
    add(libc::SYS_ioctl, except(1, !0, &requests));
    // Limits of other processes, including the holder.
    add(libc::SYS_prlimit64, only(0, &[0]));
    add(libc::SYS_socket, usual_sockets());
    add(libc::SYS_socketpair, only(0, &[AF_UNIX as u32]));
    if !options.own_namespaces {
        rules.extend(without_namespaces());
        if options.network {
            rules.insert(libc::SYS_socket as u32, network_sockets());
            // No socket of another family can be created.
            rules.remove(&(libc::SYS_connect as u32));
        }
    }
    if !options.memory_files {
        rules.insert(libc::SYS_memfd_create as u32, errno(ENOSYS));
    }
    rules.insert(number::MEMFD_SECRET, errno(ENOSYS));
    // Contexts for asynchronous I/O come from a pool of the whole machine.
    rules.insert(libc::SYS_io_setup as u32, errno(ENOSYS));
    // Huge pages come from a pool of the whole machine.
    rules.insert(
        libc::SYS_mmap as u32,
        without_bits(3, libc::MAP_HUGETLB as u32),
    );
    if !options.affinity {
        rules.insert(libc::SYS_sched_setaffinity as u32, errno(EPERM));
    }
    // Before Linux 5.4 these numbers ran x32 calls without the x32 bit, including ptrace and
    // kexec_load.
    if cfg!(target_arch = "x86_64") {
        rules.extend((512..=547).map(|number| (number, errno(ENOSYS))));
    }
    rules
}

/// The default protocol of a socket, ICMP, TCP, UDP and ICMPv6. Others, such as MPTCP, SCTP and UDP-Lite,
/// are rarely needed and less tested.
const INTERNET_PROTOCOLS: &[u32] = &[
    libc::IPPROTO_IP as u32,
    libc::IPPROTO_ICMP as u32,
    libc::IPPROTO_TCP as u32,
    libc::IPPROTO_UDP as u32,
    libc::IPPROTO_ICMPV6 as u32,
];

/// Allows the common socket families.
fn usual_sockets() -> Code {
    sockets_of(&[AF_UNIX as u32, AF_INET as u32, AF_INET6 as u32])
}

/// Allows the socket families of networks. Unix sockets could reach services of the host.
fn network_sockets() -> Code {
    sockets_of(&[AF_INET as u32, AF_INET6 as u32])
}

/// Allows these socket families, and of netlink only the protocol that lists network interfaces.
fn sockets_of(families: &[u32]) -> Code {
    let mut code = load_argument(0);
    let netlink = only(2, &[libc::NETLINK_ROUTE as u32]);
    let unix: Vec<u32> = families
        .iter()
        .copied()
        .filter(|f| *f == AF_UNIX as u32)
        .collect();
    let inet: Vec<u32> = families
        .iter()
        .copied()
        .filter(|f| *f != AF_UNIX as u32)
        .collect();
    let rest = one_of(&unix, errno(EPERM), allow());
    let rest = one_of(&inet, rest, only(2, INTERNET_PROTOCOLS));
    code.extend(one_of(&[AF_NETLINK as u32], rest, netlink));
    code
}

/// Returns rules for calls that reach other processes if the sandbox has no private namespaces.
fn without_namespaces() -> Vec<(u32, Code)> {
    let mut rules = vec![(number::PIDFD_OPEN, errno(EPERM))];
    for number in [
        // In a pid namespace these reach only the sandbox's own processes, without the holder and the
        // supervisors, which are not dumpable. A tracer cannot bypass the filter: since Linux 4.8 it
        // runs after the tracer has changed the call.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_setpriority,
        libc::SYS_ioprio_set,
    ] {
        rules.push((number as u32, errno(EPERM)));
    }
    rules.push((libc::SYS_socketpair as u32, stream_pairs()));
    rules.extend(attributes_of_files());
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

/// Returns rules for calls that Landlock does not restrict: they reveal accesses to this user's files, and
/// change their attributes. Programs fall back on `ENOSYS` and `EOPNOTSUPP`.
fn attributes_of_files() -> Vec<(u32, Code)> {
    let mut rules = Vec::new();
    for number in [
        #[cfg(target_arch = "x86_64")]
        libc::SYS_inotify_init,
        libc::SYS_inotify_init1,
    ] {
        rules.push((number as u32, errno(ENOSYS)));
    }
    for number in [
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
    ] {
        rules.push((number as u32, errno(EOPNOTSUPP)));
    }
    for number in [
        number::SETXATTRAT,
        number::REMOVEXATTRAT,
        number::FILE_SETATTR,
    ] {
        rules.push((number, errno(ENOSYS)));
    }
    rules
}

/// Allows pairs of stream sockets. A connected datagram socket can still send to any address.
fn stream_pairs() -> Code {
    let connectionless = [libc::SOCK_DGRAM as u32, libc::SOCK_RAW as u32];
    let mut code = load_argument(0);
    code.extend(one_of(
        &[AF_UNIX as u32],
        errno(EPERM),
        except(1, 0xf, &connectionless),
    ));
    code
}

/// Divides all call numbers into spans with the same code. Each span is given by its first number.
fn spans(rules: &BTreeMap<u32, Code>) -> Vec<(u32, Code)> {
    let mut spans = vec![(0, allow())];
    let mut add = |start: u32, code: Code| {
        // Replaces an empty span.
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

/// Returns a binary search over the spans, so that each call needs few instructions.
fn search_tree(spans: &[(u32, Code)]) -> Code {
    let (low, high) = spans.split_at(spans.len() / 2);
    match (low, high) {
        ([], [(_, code)]) => code.clone(),
        (_, [(start, _), ..]) => at_least(*start, search_tree(low), search_tree(high)),
        (_, []) => allow(),
    }
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    operation: u16,
    /// Number of instructions to skip if the comparison is true, and if it is false.
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

impl Instruction {
    fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.operation.to_ne_bytes();
        let [c, d, e, f] = self.operand.to_ne_bytes();
        [a, b, self.jump_true, self.jump_false, c, d, e, f]
    }
}

/// A block of instructions. No jump leads out of it.
type Code = Vec<Instruction>;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

fn compare(operation: u32, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    let operation = operation as u16;
    Instruction {
        operation,
        jump_true,
        jump_false,
        operand,
    }
}

/// An instruction that does not jump conditionally.
fn simple(operation: u32, operand: u32) -> Instruction {
    compare(operation, operand, 0, 0)
}

fn action(value: u32) -> Code {
    vec![simple(RETURN, value)]
}

fn allow() -> Code {
    action(SECCOMP_RET_ALLOW)
}

fn errno(number: i32) -> Code {
    action(SECCOMP_RET_ERRNO | number as u32)
}

fn load(offset: u32) -> Code {
    vec![simple(LOAD, offset)]
}

/// Loads the low half of an argument, which is all that the kernel reads of an int. It comes first
/// on all supported architectures.
fn load_argument(index: u32) -> Code {
    load(ARGUMENTS_AT + 8 * index)
}

/// Denies the call if the argument has one of these bits.
fn without_bits(index: u32, bits: u32) -> Code {
    let mut code = load_argument(index);
    code.push(compare(IF_BITS, bits, 0, 1));
    code.extend(errno(EPERM));
    code.extend(allow());
    code
}

/// Denies the call unless the argument is one of these values.
fn only(index: u32, values: &[u32]) -> Code {
    let mut code = load_argument(index);
    code.extend(one_of(values, errno(EPERM), allow()));
    code
}

/// Denies the call if the masked argument is one of these values.
fn except(index: u32, mask: u32, values: &[u32]) -> Code {
    let mut code = load_argument(index);
    code.push(simple(AND, mask));
    code.extend(one_of(values, allow(), errno(EPERM)));
    code
}

/// Runs `then` if the loaded value is one of these values, otherwise `otherwise`, which must end
/// with an action.
fn one_of(values: &[u32], otherwise: Code, then: Code) -> Code {
    let mut code: Code = Vec::new();
    // From the last value to the first, because the length of a jump depends on the code after it.
    for value in values.iter().rev() {
        let skip = otherwise.len() + code.len();
        code.insert(0, compare(IF_EQUAL, *value, skip as u8, 0));
    }
    code.extend(otherwise);
    code.extend(then);
    code
}

/// Runs `then` if the loaded value is at least `start`, otherwise `otherwise`, which must end with an
/// action.
fn at_least(start: u32, otherwise: Code, then: Code) -> Code {
    let mut code = match u8::try_from(otherwise.len()) {
        Ok(skip) => vec![compare(IF_AT_LEAST, start, skip, 0)],
        // A comparison can skip 255 instructions at most, a plain jump any number.
        Err(_) => vec![
            compare(IF_AT_LEAST, start, 0, 1),
            simple(JUMP, otherwise.len() as u32),
        ],
    };
    code.extend(otherwise);
    code.extend(then);
    code
}

#[cfg(test)]
mod tests;
