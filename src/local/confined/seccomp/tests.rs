//! Tests of the filter, with an interpreter in place of the kernel.

use super::*;
use libc::*;
use proptest::prelude::*;

const ALLOW: Action = Action::Allow;
const NO: Action = Action::Errno(EPERM);
const ABSENT: Action = Action::Errno(ENOSYS);

const LOOSE: Options = Options {
    own_namespaces: true,
    network: false,
    memory_files: true,
    affinity: true,
};
const TIGHT: Options = Options {
    own_namespaces: false,
    network: false,
    memory_files: false,
    affinity: false,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    Errno(i32),
    Kill,
}

/// Returns the action of the kernel for this call, and the number of instructions that it needs.
/// Panics if the kernel would not load the program.
fn interpret(program: &[u8], arch: u32, number: u32, args: [u64; 6]) -> (Action, usize) {
    let mut data = [number.to_ne_bytes(), arch.to_ne_bytes()].concat();
    data.extend([0; 8]);
    data.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let (mut loaded, mut at) = (0, 0);
    for steps in 1.. {
        let [a, b, jump_true, jump_false, ..] = program[at * 8..][..8] else {
            unreachable!()
        };
        let operand = word(&program[at * 8 + 4..][..4]);
        at += 1;
        let jump = |holds| usize::from(if holds { jump_true } else { jump_false });
        // Numbers from linux/bpf_common.h, because the constants under test could be wrong.
        match u16::from_ne_bytes([a, b]) {
            0x20 => loaded = word(&data[operand as usize..][..4]),
            0x54 => loaded &= operand,
            0x05 => at += operand as usize,
            0x15 => at += jump(loaded == operand),
            0x35 => at += jump(loaded >= operand),
            0x45 => at += jump(loaded & operand != 0),
            0x06 => {
                let action = match operand & SECCOMP_RET_ACTION_FULL {
                    SECCOMP_RET_ALLOW => ALLOW,
                    SECCOMP_RET_KILL_PROCESS => Action::Kill,
                    SECCOMP_RET_ERRNO => Action::Errno((operand & SECCOMP_RET_DATA) as i32),
                    other => panic!("unknown action {other:#x}"),
                };
                return (action, steps);
            }
            other => panic!("unknown instruction {other:#x}"),
        }
    }
    unreachable!()
}

fn action_of(options: Options, number: c_long, args: &[u64]) -> Action {
    let mut all = [0xffff_ffff_0000_0000; 6];
    all.iter_mut().zip(args).for_each(|(to, from)| *to |= *from);
    interpret(&program(&options), ARCH, number as u32, all).0
}

/// Returns the action for the call, which must not depend on the options.
fn always(number: c_long, args: &[u64]) -> Action {
    let action = action_of(LOOSE, number, args);
    assert_eq!(action_of(TIGHT, number, args), action);
    action
}

#[test]
fn ordinary_calls_are_allowed_and_cheap() {
    for number in [
        SYS_read,
        SYS_write,
        SYS_openat,
        SYS_close,
        SYS_mmap,
        SYS_futex,
        SYS_execve,
        SYS_wait4,
        SYS_newfstatat,
        SYS_getdents64,
        SYS_epoll_pwait,
        SYS_kill,
        SYS_seccomp,
        SYS_prctl,
        SYS_setrlimit,
        SYS_set_mempolicy,
        SYS_mbind,
        SYS_exit_group,
        SYS_rseq,
        424,
        436,
        437,
        439,
        444,
        445,
        446,
        449,
        451,
        457,
        458,
        462,
        468,
    ] {
        assert_eq!(always(number, &[]), ALLOW, "{number}");
    }
    for options in [LOOSE, TIGHT] {
        for number in [SYS_read, SYS_write, SYS_openat] {
            let (_, steps) = interpret(&program(&options), ARCH, number as u32, [0; 6]);
            assert!(steps <= 14, "call {number} takes {steps} instructions");
        }
    }
}

#[test]
fn program_is_small_enough_for_the_kernel() {
    for options in [LOOSE, TIGHT] {
        let program = program(&options);
        assert!(program.len() % 8 == 0 && program.len() / 8 < 4096);
    }
}

#[test]
fn calls_of_another_architecture_are_killed() {
    for arch in [0, 0x4000_0003, 0x4000_0028, !0, ARCH ^ 1] {
        let (action, _) = interpret(&program(&LOOSE), arch, SYS_read as u32, [0; 6]);
        assert_eq!(action, Action::Kill, "{arch:#x}");
    }
}

#[test]
fn x32_calls_return_enosys() {
    for number in [
        X32,
        X32 | SYS_read as u32,
        X32 | 521,
        0x7fff_ffff,
        1 << 31,
        !0,
    ] {
        assert_eq!(always(number.into(), &[]), ABSENT, "{number:#x}");
    }
    assert_eq!(always(i64::from(X32) - 1, &[]), ALLOW);
    let old = [511, 512, 520, 547, 548].map(|number| always(number, &[]));
    if cfg!(target_arch = "x86_64") {
        assert_eq!(old, [ALLOW, ABSENT, ABSENT, ABSENT, ALLOW]);
    }
}

#[test]
fn calls_that_leave_the_sandbox_are_denied() {
    let newer = FORBIDDEN_NEWER.iter().map(|number| c_long::from(*number));
    for number in FORBIDDEN.iter().copied().chain(newer) {
        assert_eq!(always(number, &[]), NO, "{number}");
    }
    // Repeated here, so that removing one from the lists fails a test.
    for number in [
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_chroot,
        SYS_setns,
        SYS_keyctl,
        SYS_bpf,
        SYS_open_by_handle_at,
        SYS_userfaultfd,
        SYS_perf_event_open,
        SYS_syslog,
        425,
        426,
        427,
        428,
        429,
        430,
        431,
        432,
        433,
        438,
        440,
        442,
        443,
        448,
        460,
        467,
    ] {
        assert_eq!(always(number, &[]), NO, "{number}");
    }
}

#[test]
fn clone_and_unshare_cannot_create_namespaces() {
    let thread = (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD) as u64;
    let fork = (SIGCHLD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID) as u64;
    for flags in [thread, fork, (CLONE_VM | CLONE_VFORK | SIGCHLD) as u64] {
        assert_eq!(always(SYS_clone, &[flags]), ALLOW, "{flags:#x}");
        for bit in 25..31 {
            assert_eq!(always(SYS_clone, &[flags | 1 << bit]), NO, "{bit}");
        }
        assert_eq!(always(SYS_clone, &[flags | CLONE_NEWNS as u64]), NO);
    }
    assert_eq!(always(435, &[]), ABSENT);
    assert_eq!(
        always(SYS_unshare, &[(CLONE_FILES | CLONE_FS) as u64]),
        ALLOW
    );
    for flag in [
        0x80,
        0x2_0000,
        0x200_0000,
        0x400_0000,
        0x800_0000,
        0x1000_0000,
        0x4000_0000,
    ] {
        assert_eq!(always(SYS_unshare, &[flag]), NO, "{flag:#x}");
    }
}

#[test]
fn only_the_default_personality_is_allowed() {
    assert_eq!(
        [0, 0xffff_ffff].map(|p| always(SYS_personality, &[p])),
        [ALLOW; 2]
    );
    assert_eq!(
        [8, 0x4_0000, 0xffff_fffe].map(|p| always(SYS_personality, &[p])),
        [NO; 3]
    );
}

#[test]
fn device_files_are_denied() {
    let modes = [S_IFREG, S_IFIFO, S_IFSOCK, 0, S_IFCHR, S_IFBLK];
    let expected = [ALLOW, ALLOW, ALLOW, ALLOW, NO, NO];
    let mode = |kind: mode_t| u64::from(kind | 0o644);
    assert_eq!(
        modes.map(|m| always(SYS_mknodat, &[0, 0, mode(m)])),
        expected
    );
    #[cfg(target_arch = "x86_64")]
    assert_eq!(modes.map(|m| always(SYS_mknod, &[0, mode(m)])), expected);
}

#[test]
fn terminal_input_injection_is_denied() {
    for request in [TIOCSTI as u32, TIOCLINUX as u32, TIOCSETD as u32] {
        assert_eq!(always(SYS_ioctl, &[0, request.into()]), NO);
    }
    assert_eq!(
        always(
            SYS_ioctl,
            &[(TIOCSTI as u32).into(), (TCGETS as u32).into()]
        ),
        ALLOW
    );
}

#[test]
fn limits_of_other_processes_are_denied() {
    assert_eq!(
        [0, 1, 0xffff_ffff].map(|pid| always(SYS_prlimit64, &[pid])),
        [ALLOW, NO, NO]
    );
}

#[test]
fn only_common_socket_families_are_allowed() {
    let socket = |options, family: i32, protocol| {
        action_of(
            options,
            SYS_socket,
            &[family as u64, SOCK_STREAM as u64, protocol],
        )
    };
    for (family, protocol, expected) in [
        (AF_UNIX, 0, ALLOW),
        (AF_INET, 6, ALLOW),
        (AF_INET6, 17, ALLOW),
        (AF_INET, 0, ALLOW),
        (AF_INET, 262, NO),
        (AF_INET6, 136, NO),
        (AF_INET, 132, NO),
        (AF_UNIX, 1, ALLOW),
        (AF_NETLINK, 0, ALLOW),
        (AF_NETLINK, 12, NO),
        (AF_UNSPEC, 0, NO),
        (AF_PACKET, 0, NO),
        (AF_ALG, 0, NO),
        (AF_VSOCK, 0, NO),
        (-1, 0, NO),
    ] {
        assert_eq!(
            socket(LOOSE, family, protocol),
            expected,
            "{family} {protocol}"
        );
        assert_eq!(socket(TIGHT, family, protocol), NO, "{family} {protocol}");
    }
    let flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    for kind in [SOCK_STREAM, SOCK_SEQPACKET] {
        let pair = |family: i32| always(SYS_socketpair, &[family as u64, (kind | flags) as u64]);
        assert_eq!([AF_UNIX, AF_INET, AF_TIPC].map(pair), [ALLOW, NO, NO]);
    }
    for kind in [SOCK_DGRAM, SOCK_RAW] {
        let args = [AF_UNIX as u64, (kind | flags) as u64];
        assert_eq!(action_of(LOOSE, SYS_socketpair, &args), ALLOW);
        assert_eq!(action_of(TIGHT, SYS_socketpair, &args), NO);
    }
}

#[test]
fn network_without_namespaces_has_no_unix_sockets() {
    let open = Options {
        network: true,
        ..TIGHT
    };
    let socket = |family: i32| action_of(open, SYS_socket, &[family as u64, SOCK_STREAM as u64, 0]);
    assert_eq!(
        [AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, AF_PACKET, AF_VSOCK].map(socket),
        [ALLOW, ALLOW, ALLOW, NO, NO, NO]
    );
    assert_eq!(action_of(open, SYS_connect, &[]), ALLOW);
}

#[test]
fn files_in_memory_are_denied() {
    assert_eq!(always(447, &[]), ABSENT);
    assert_eq!(action_of(TIGHT, SYS_memfd_create, &[]), ABSENT);
    assert_eq!(action_of(LOOSE, SYS_memfd_create, &[]), ALLOW);
}

#[test]
fn pools_of_the_machine_are_out_of_reach() {
    assert_eq!(always(SYS_io_setup, &[]), ABSENT);
    let map = |flags: i32| always(SYS_mmap, &[0, 4096, 3, flags as u64]);
    assert_eq!(map(MAP_PRIVATE | MAP_ANONYMOUS), ALLOW);
    assert_eq!(map(MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB), NO);
}

#[test]
fn options_deny_their_calls() {
    for (number, tight) in [
        (434, NO),
        (SYS_sched_setaffinity, NO),
        (SYS_connect, NO),
        (SYS_ptrace, NO),
        (SYS_inotify_init1, ABSENT),
        (SYS_fsetxattr, Action::Errno(EOPNOTSUPP)),
        (SYS_lremovexattr, Action::Errno(EOPNOTSUPP)),
        (463, ABSENT),
        (469, ABSENT),
        (SYS_process_vm_readv, NO),
        (SYS_process_vm_writev, NO),
        (SYS_setpriority, NO),
        (SYS_shmat, ABSENT),
        (SYS_semop, ABSENT),
        (SYS_mq_open, ABSENT),
    ] {
        assert_eq!(action_of(LOOSE, number, &[]), ALLOW, "{number}");
        assert_eq!(action_of(TIGHT, number, &[]), tight, "{number}");
    }
}

#[test]
fn scheduling_of_other_processes_is_denied_without_namespaces() {
    for number in [
        SYS_sched_setscheduler,
        SYS_sched_setparam,
        SYS_sched_setattr,
    ] {
        assert_eq!(action_of(LOOSE, number, &[77]), ALLOW, "{number}");
        assert_eq!(action_of(TIGHT, number, &[77]), NO, "{number}");
        assert_eq!(action_of(TIGHT, number, &[0]), ALLOW, "{number}");
    }
}

/// The search tree and its rules agree about every number.
#[test]
fn search_tree_finds_the_rule_of_every_call() {
    for options in [LOOSE, TIGHT] {
        let (rules, program) = (rules(&options), program(&options));
        for (number, args) in (0..1000).flat_map(|n| [(n, [0; 6]), (n, [1; 6]), (n, [!0; 6])]) {
            let code = rules.get(&number).cloned().unwrap_or_else(allow);
            let alone: Vec<u8> = code.iter().flat_map(Instruction::bytes).collect();
            let expected = interpret(&alone, ARCH, number, args).0;
            assert_eq!(
                interpret(&program, ARCH, number, args).0,
                expected,
                "{number}"
            );
        }
    }
}

#[test]
fn jumps_over_more_than_255_instructions_work() {
    let spans: Vec<_> = (0..1000).map(|n| (n, errno(n as i32 + 1))).collect();
    let mut code = load(NUMBER_AT);
    code.extend(search_tree(&spans));
    let bytes: Vec<u8> = code.iter().flat_map(Instruction::bytes).collect();
    for number in 0..1000 {
        let (action, _) = interpret(&bytes, ARCH, number, [0; 6]);
        assert_eq!(action, Action::Errno(number as i32 + 1));
    }
}

proptest! {
    #[test]
    fn every_call_has_an_action(
        arch in prop_oneof![Just(ARCH), any::<u32>()],
        number in prop_oneof![0..600_u32, any::<u32>()],
        args in any::<[u64; 6]>(),
        bits in any::<[bool; 4]>(),
    ) {
        let [own_namespaces, network, memory_files, affinity] = bits;
        let options = Options { own_namespaces, network, memory_files, affinity };
        let (action, steps) = interpret(&program(&options), arch, number, args);
        prop_assert!(steps <= 30);
        prop_assert_eq!(action == Action::Kill, arch != ARCH);
    }
}
