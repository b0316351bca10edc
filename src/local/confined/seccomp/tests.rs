//! The filter, run by a small interpreter instead of the kernel.

use super::*;
use libc::*;
use proptest::prelude::*;

const ALLOW: Answer = Answer::Allow;
const NO: Answer = Answer::Errno(EPERM);
const ABSENT: Answer = Answer::Errno(ENOSYS);

const LOOSE: Options = Options {
    own_namespaces: true,
    memfd: true,
    affinity: true,
};
const TIGHT: Options = Options {
    own_namespaces: false,
    memfd: false,
    affinity: false,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allow,
    Errno(i32),
    Kill,
}

/// What the kernel would do with this call, and the instructions that it takes. Panics on
/// whatever the kernel would refuse to load.
fn run(program: &[u8], arch: u32, number: u32, args: [u64; 6]) -> (Answer, usize) {
    let mut data = [number.to_ne_bytes(), arch.to_ne_bytes()].concat();
    data.extend([0; 8]);
    data.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let (mut loaded, mut at) = (0, 0);
    for steps in 1.. {
        let [a, b, yes, no, ..] = program[at * 8..][..8] else {
            unreachable!()
        };
        let operand = word(&program[at * 8 + 4..][..4]);
        at += 1;
        let jump = |holds| usize::from(if holds { yes } else { no });
        // As linux/bpf_common.h has them; the names would only agree with themselves.
        match u16::from_ne_bytes([a, b]) {
            0x20 => loaded = word(&data[operand as usize..][..4]),
            0x54 => loaded &= operand,
            0x05 => at += operand as usize,
            0x15 => at += jump(loaded == operand),
            0x35 => at += jump(loaded >= operand),
            0x45 => at += jump(loaded & operand != 0),
            0x06 => {
                let answer = match operand & SECCOMP_RET_ACTION_FULL {
                    SECCOMP_RET_ALLOW => ALLOW,
                    SECCOMP_RET_KILL_PROCESS => Answer::Kill,
                    SECCOMP_RET_ERRNO => Answer::Errno((operand & SECCOMP_RET_DATA) as i32),
                    other => panic!("an answer {other:#x}"),
                };
                return (answer, steps);
            }
            other => panic!("an instruction {other:#x}"),
        }
    }
    unreachable!()
}

fn tell(options: Options, number: c_long, args: &[u64]) -> Answer {
    let mut all = [0xffff_ffff_0000_0000; 6];
    all.iter_mut().zip(args).for_each(|(to, from)| *to |= *from);
    run(&program(&options), ARCH, number as u32, all).0
}

/// The same whatever the options.
fn always(number: c_long, args: &[u64]) -> Answer {
    let answer = tell(LOOSE, number, args);
    assert_eq!(tell(TIGHT, number, args), answer);
    answer
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
        469,
    ] {
        assert_eq!(always(number, &[]), ALLOW, "{number}");
    }
    for options in [LOOSE, TIGHT] {
        for number in [SYS_read, SYS_write, SYS_openat] {
            let (_, steps) = run(&program(&options), ARCH, number as u32, [0; 6]);
            assert!(steps <= 14, "call {number} takes {steps} instructions");
        }
    }
}

#[test]
fn the_kernel_could_load_it() {
    for options in [LOOSE, TIGHT] {
        let program = program(&options);
        assert!(program.len() % 8 == 0 && program.len() / 8 < 4096);
    }
}

#[test]
fn another_architecture_is_killed() {
    for arch in [0, 0x4000_0003, 0x4000_0028, !0, ARCH ^ 1] {
        let (answer, _) = run(&program(&LOOSE), arch, SYS_read as u32, [0; 6]);
        assert_eq!(answer, Answer::Kill, "{arch:#x}");
    }
}

#[test]
fn x32_calls_do_not_exist() {
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
fn what_leaves_the_sandbox_is_refused() {
    let newer = FORBIDDEN_NEWER.iter().map(|number| c_long::from(*number));
    for number in FORBIDDEN.iter().copied().chain(newer) {
        assert_eq!(always(number, &[]), NO, "{number}");
    }
    // Written out once more, so that none of these leaves the lists unseen.
    for number in [
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_chroot,
        SYS_setns,
        SYS_ptrace,
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
fn processes_and_threads_start_without_namespaces() {
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
fn only_the_own_personality() {
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
fn device_files_are_refused() {
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
fn terminals_cannot_be_typed_into() {
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
fn limits_of_others_are_refused() {
    assert_eq!(
        [0, 1, 0xffff_ffff].map(|pid| always(SYS_prlimit64, &[pid])),
        [ALLOW, NO, NO]
    );
}

#[test]
fn sockets_are_of_the_usual_families() {
    let ask = |options, family: i32, protocol| {
        tell(
            options,
            SYS_socket,
            &[family as u64, SOCK_STREAM as u64, protocol],
        )
    };
    for (family, protocol, expected) in [
        (AF_UNIX, 0, ALLOW),
        (AF_INET, 6, ALLOW),
        (AF_INET6, 17, ALLOW),
        (AF_NETLINK, 0, ALLOW),
        (AF_NETLINK, 12, NO),
        (AF_UNSPEC, 0, NO),
        (AF_PACKET, 0, NO),
        (AF_ALG, 0, NO),
        (AF_VSOCK, 0, NO),
        (-1, 0, NO),
    ] {
        assert_eq!(
            ask(LOOSE, family, protocol),
            expected,
            "{family} {protocol}"
        );
        assert_eq!(ask(TIGHT, family, protocol), NO, "{family} {protocol}");
    }
    let flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    for kind in [SOCK_STREAM, SOCK_SEQPACKET] {
        let pair = |family: i32| always(SYS_socketpair, &[family as u64, (kind | flags) as u64]);
        assert_eq!([AF_UNIX, AF_INET, AF_TIPC].map(pair), [ALLOW, NO, NO]);
    }
    for kind in [SOCK_DGRAM, SOCK_RAW] {
        let args = [AF_UNIX as u64, (kind | flags) as u64];
        assert_eq!(tell(LOOSE, SYS_socketpair, &args), ALLOW);
        assert_eq!(tell(TIGHT, SYS_socketpair, &args), NO);
    }
}

#[test]
fn each_option_forbids_its_calls() {
    for (number, tight) in [
        (434, NO),
        (SYS_memfd_create, ABSENT),
        (447, ABSENT),
        (SYS_sched_setaffinity, NO),
        (SYS_connect, NO),
        (SYS_setpriority, NO),
        (SYS_shmat, ABSENT),
        (SYS_semop, ABSENT),
        (SYS_mq_open, ABSENT),
    ] {
        assert_eq!(tell(LOOSE, number, &[]), ALLOW, "{number}");
        assert_eq!(tell(TIGHT, number, &[]), tight, "{number}");
    }
}

#[test]
fn among_others_a_process_schedules_only_itself() {
    for number in [
        SYS_sched_setscheduler,
        SYS_sched_setparam,
        SYS_sched_setattr,
    ] {
        assert_eq!(tell(LOOSE, number, &[77]), ALLOW, "{number}");
        assert_eq!(tell(TIGHT, number, &[77]), NO, "{number}");
        assert_eq!(tell(TIGHT, number, &[0]), ALLOW, "{number}");
    }
}

/// The tree and the rules that it is made of say the same about every number.
#[test]
fn every_number_finds_its_rule() {
    for options in [LOOSE, TIGHT] {
        let (rules, program) = (rules(&options), program(&options));
        for (number, args) in (0..1000).flat_map(|n| [(n, [0; 6]), (n, [1; 6]), (n, [!0; 6])]) {
            let code = rules.get(&number).cloned().unwrap_or_else(allow);
            let alone: Vec<u8> = code.iter().flat_map(Instruction::bytes).collect();
            let expected = run(&alone, ARCH, number, args).0;
            assert_eq!(run(&program, ARCH, number, args).0, expected, "{number}");
        }
    }
}

#[test]
fn a_long_way_is_jumped() {
    let spans: Vec<_> = (0..1000).map(|n| (n, errno(n as i32 + 1))).collect();
    let mut code = load(NUMBER_AT);
    code.extend(tree(&spans));
    let bytes: Vec<u8> = code.iter().flat_map(Instruction::bytes).collect();
    for number in 0..1000 {
        let (answer, _) = run(&bytes, ARCH, number, [0; 6]);
        assert_eq!(answer, Answer::Errno(number as i32 + 1));
    }
}

proptest! {
    #[test]
    fn every_call_gets_an_answer(
        arch in prop_oneof![Just(ARCH), any::<u32>()],
        number in prop_oneof![0..600_u32, any::<u32>()],
        args in any::<[u64; 6]>(),
        bits in any::<[bool; 3]>(),
    ) {
        let [own_namespaces, memfd, affinity] = bits;
        let options = Options { own_namespaces, memfd, affinity };
        let (answer, steps) = run(&program(&options), arch, number, args);
        prop_assert!(steps <= 30);
        prop_assert_eq!(answer == Answer::Kill, arch != ARCH);
    }
}
