//! The contents of a sandbox's root, as steps for the holder, and its Landlock rules.
//!
//! Add a directory of the host to [`PROGRAMS`], a masked file of `/proc` to [`MASKED`]. `etc` chooses the
//! entries of `/etc`.

use std::fs;
use std::path::Path;

use super::etc::HostEtc;
use super::protocol::{LandlockRule, SANDBOX_ID, STAGED, Step};
use crate::local::options::SharedPath;
use crate::os;

/// Host directories of programs and libraries, and what they read, read-only. Links are copied as links.
const PROGRAMS: [&str; 11] = [
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "usr",
    "nix/store",
    // Certificates that links in /etc lead to.
    "var/lib/ca-certificates",
    // Processors and memory nodes, for `lscpu` and `nproc`.
    "sys/devices/system/cpu",
    "sys/devices/system/node",
];

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Maximum length of the copy of `/etc/resolv.conf`. The C library reads three servers.
const MAX_RESOLV_CONF: usize = 8192;

/// Pseudo-terminals of the sandbox alone. The machine has some thousand in total.
const TERMINAL_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620,max=64";

/// Entries of `/proc` that reveal information about the host or its users, or control the host. They
/// are covered.
const MASKED: [&str; 16] = [
    "acpi",
    "asound",
    "bus",
    "cmdline",
    "fs",
    "interrupts",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_list",
];

/// Entries of `/proc` that are made read-only.
const READ_ONLY: [&str; 2] = ["irq", "sys"];

/// Links in `/dev`, `/etc` and `/var`: target, path.
const LINKS: [(&str, &str); 8] = [
    ("/tmp", "var/tmp"),
    ("/run", "var/run"),
    ("pts/ptmx", "dev/ptmx"),
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("/proc/self/mounts", "etc/mtab"),
];

/// The parts of the host that the caller lets sandboxes use.
#[derive(Debug)]
pub(super) struct HostAccess {
    pub(super) paths: Vec<SharedPath>,
    pub(super) network: bool,
}

impl HostAccess {
    /// Returns the paths that the user of sandboxes cannot reach. `as_other_user` is true if that is
    /// another user than this process's.
    pub(super) fn unreachable(&self, as_other_user: bool) -> Vec<&SharedPath> {
        let paths = self.paths.iter().filter(|_| as_other_user);
        paths.filter(|path| !path.is_reachable_by_all()).collect()
    }
}

/// Returns the steps that create a private root. `staged` are the shared paths that the holder binds
/// before it switches the user.
pub(super) fn root_steps(
    shared_memory_options: &str,
    etc: &HostEtc,
    access: &HostAccess,
    staged: &[&SharedPath],
) -> Vec<Step> {
    let mut list = StepList::default();
    for name in [
        "etc",
        "dev",
        "dev/pts",
        "dev/shm",
        "proc",
        "tmp",
        "workspace",
        "var",
        "run",
        "sys",
        "sys/devices",
        "sys/devices/system",
    ] {
        list.dir(name);
    }
    for (target, path) in LINKS {
        list.link(target, path);
    }
    // Some containers have no /dev/tty.
    let tty = Path::new("/dev/tty").exists().then_some("tty");
    for name in DEVICES.into_iter().chain(tty) {
        list.file(&format!("dev/{name}"), "");
    }
    add_generated_settings(&mut list, access.network);
    for name in PROGRAMS {
        list.bind(name);
    }
    for path in &access.paths {
        let index = staged.iter().position(|staged| *staged == path);
        list.share(path, index);
    }
    let mut steps = list.0;
    steps.push(Step::Etc(hidden_entries(etc, access.network, &steps)));
    steps.push(Step::Seal);
    for name in DEVICES.into_iter().chain(tty) {
        steps.push(Step::Device(format!("/dev/{name}"), format!("dev/{name}")));
    }
    steps.push(Step::Terminals(
        "dev/pts".to_owned(),
        TERMINAL_OPTIONS.to_owned(),
    ));
    steps.push(Step::Proc("proc".to_owned()));
    let in_proc = |name: &&str| format!("proc/{name}");
    steps.extend(MASKED.iter().map(in_proc).map(Step::Mask));
    steps.extend(READ_ONLY.iter().map(in_proc).map(Step::ReadOnly));
    steps.push(Step::Tmpfs(
        "dev/shm".to_owned(),
        shared_memory_options.to_owned(),
    ));
    for name in ["workspace", "tmp"] {
        steps.push(Step::Data(name.to_owned(), name.to_owned()));
    }
    steps
}

/// Returns the entries of the host's `/etc` to hide: those that no step replaces.
fn hidden_entries(etc: &HostEtc, network: bool, steps: &[Step]) -> Vec<String> {
    let created = steps.iter().filter_map(|step| match step {
        Step::File(path, _) | Step::Link(_, path) => path.strip_prefix("etc/"),
        _ => None,
    });
    let created: Vec<&str> = created.collect();
    let is_hidden = |name: &&String| {
        let is_visible = network && *name == "hosts";
        !is_visible && !created.contains(&name.as_str())
    };
    etc.hidden.iter().filter(is_hidden).cloned().collect()
}

/// Adds the files that replace those of the host's `/etc`.
fn add_generated_settings(list: &mut StepList, network: bool) {
    let id = SANDBOX_ID;
    list.file(
        "etc/passwd",
        &format!(
            "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n\
             sandbox:x:{id}:{id}:sandbox:/workspace:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
    );
    list.file(
        "etc/group",
        &format!("root:x:0:\nsandbox:x:{id}:\nnogroup:x:65534:\n"),
    );
    list.file("etc/hostname", "sandbox\n");
    let users = "passwd: files\ngroup: files\n";
    if network {
        // A copy, because it is often a link to a file in /run.
        let servers = os::read_lossy("/etc/resolv.conf").unwrap_or_default();
        let servers = servers.get(..MAX_RESOLV_CONF).unwrap_or(&servers);
        list.file("etc/resolv.conf", servers);
        list.file("etc/nsswitch.conf", &format!("{users}hosts: files dns\n"));
    } else {
        list.file("etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n");
        list.file("etc/resolv.conf", "");
        list.file("etc/nsswitch.conf", &format!("{users}hosts: files\n"));
    }
}

/// Returns the Landlock rules of a sandbox with a private root.
pub(super) fn rules() -> Vec<LandlockRule> {
    let rule = |path: &str, write| LandlockRule {
        path: path.to_owned(),
        write,
    };
    let mut rules = vec![rule("/", false)];
    for path in ["/workspace", "/tmp", "/dev", "/proc"] {
        rules.push(rule(path, true));
    }
    rules
}

/// Returns the Landlock rules of a sandbox without a private root, whose files are in `host_dir`.
pub(super) fn rules_at(host_dir: &Path, etc: &HostEtc, access: &HostAccess) -> Vec<LandlockRule> {
    let rule = |path: String, write| LandlockRule { path, write };
    let mut rules = vec![rule("/proc".to_owned(), false)];
    for name in PROGRAMS {
        rules.push(rule(format!("/{name}"), false));
    }
    if access.network {
        for name in ["hosts", "resolv.conf"] {
            rules.push(rule(format!("/etc/{name}"), false));
        }
    }
    let shared = access.paths.iter().map(|shared| &shared.target);
    for path in etc.visible.iter().chain(shared) {
        rules.push(rule(path.to_string_lossy().into_owned(), false));
    }
    for name in DEVICES {
        rules.push(rule(format!("/dev/{name}"), true));
    }
    for name in ["workspace", "tmp"] {
        let path = host_dir.join(name);
        rules.push(rule(path.to_string_lossy().into_owned(), true));
    }
    rules
}

/// A list of steps.
#[derive(Default)]
struct StepList(Vec<Step>);

impl StepList {
    /// Creates a directory and its parents.
    fn dir(&mut self, path: &str) {
        self.0.push(Step::Dir(path.to_owned()));
    }

    fn file(&mut self, path: &str, content: &str) {
        let content = content.as_bytes().to_vec();
        self.0.push(Step::File(path.to_owned(), content));
    }

    fn link(&mut self, target: &str, path: &str) {
        self.0.push(Step::Link(target.to_owned(), path.to_owned()));
    }

    /// Shows a path of the host, unless a directory of programs contains it. `staged` is its index in
    /// [`STAGED`], if it is there.
    fn share(&mut self, shared: &SharedPath, staged: Option<usize>) {
        let is_visible = |name: &str| Path::new(&shared.path).starts_with(format!("/{name}"));
        let (Some(target), None) = (
            shared.target.to_str(),
            PROGRAMS.into_iter().find(|name| is_visible(name)),
        ) else {
            return;
        };
        let path = shared.path.trim_start_matches('/');
        if shared.target.is_dir() {
            self.dir(path);
        } else {
            if let Some((parent, _)) = path.rsplit_once('/') {
                self.dir(parent);
            }
            self.file(path, "");
        }
        let from = staged.map_or(target.to_owned(), |index| format!("{STAGED}/{index}"));
        self.0.push(Step::Bind(from, path.to_owned()));
    }

    /// Shows a path of the host at the same path, if it exists.
    fn bind(&mut self, path: &str) {
        let from = Path::new("/").join(path);
        let Ok(found) = fs::symlink_metadata(&from) else {
            return;
        };
        if found.is_symlink() {
            if let Some(target) = fs::read_link(&from).ok().as_deref().and_then(Path::to_str) {
                self.link(target, path);
            }
            return;
        }
        self.dir(path);
        self.0.push(Step::Bind(format!("/{path}"), path.to_owned()));
    }
}
