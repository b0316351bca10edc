//! What a command finds: the root of a sandbox, as steps for the holder.

use std::fs;
use std::path::Path;

use super::protocol::{Rule, SANDBOX_ID, Step};

/// Directories of programs and libraries, where the machine has them; links stay links.
const PROGRAMS: [&str; 8] = [
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "usr",
    "nix/store",
];

/// What programs look up in /etc, of the machine: nothing there is about its users, its network or
/// its name.
const SETTINGS: [&str; 17] = [
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "fonts",
    "java",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "pki",
    "protocols",
    "python3",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
];

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Parts of /proc that say something of the machine or its users, or do something to it.
const MASKED: [&str; 15] = [
    "acpi",
    "asound",
    "bus",
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

const READ_ONLY: [&str; 2] = ["irq", "sys"];

/// All but the files of the sandbox, whose options depend on its limits.
pub(super) fn root(shared_memory_options: &str) -> Vec<Step> {
    let mut steps = Steps::default();
    for name in [
        "etc",
        "dev",
        "dev/shm",
        "proc",
        "tmp",
        "workspace",
        "var",
        "run",
    ] {
        steps.dir(name);
    }
    steps.link("/tmp", "var/tmp");
    steps.link("/run", "var/run");
    for (target, path) in [
        ("/proc/self/fd", "dev/fd"),
        ("/proc/self/fd/0", "dev/stdin"),
        ("/proc/self/fd/1", "dev/stdout"),
        ("/proc/self/fd/2", "dev/stderr"),
        ("/proc/self/mounts", "etc/mtab"),
    ] {
        steps.link(target, path);
    }
    for name in DEVICES {
        steps.file(&format!("dev/{name}"), "");
    }
    let id = SANDBOX_ID;
    steps.file(
        "etc/passwd",
        &format!(
            "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n\
             sandbox:x:{id}:{id}:sandbox:/workspace:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
    );
    steps.file(
        "etc/group",
        &format!("root:x:0:\nsandbox:x:{id}:\nnogroup:x:65534:\n"),
    );
    steps.file("etc/hostname", "sandbox\n");
    steps.file("etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n");
    steps.file("etc/resolv.conf", "");
    steps.file(
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    );
    for name in SETTINGS {
        steps.bind(&format!("etc/{name}"));
    }
    for name in PROGRAMS {
        steps.bind(name);
    }
    let mut steps = steps.0;
    steps.push(Step::Seal);
    for name in DEVICES {
        steps.push(Step::Device(format!("/dev/{name}"), format!("dev/{name}")));
    }
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

/// What Landlock lets the commands do on top of that.
pub(super) fn rules() -> Vec<Rule> {
    let rule = |path: &str, write| Rule {
        path: path.to_owned(),
        write,
    };
    let mut rules = vec![rule("/", false)];
    for path in ["/workspace", "/tmp", "/dev", "/proc"] {
        rules.push(rule(path, true));
    }
    rules
}

/// The same without a root of the sandbox's own, where its files are at this place.
pub(super) fn rules_at(place: &Path) -> Vec<Rule> {
    let rule = |path: String, write| Rule { path, write };
    let mut rules = vec![rule("/proc".to_owned(), false)];
    for name in PROGRAMS {
        rules.push(rule(format!("/{name}"), false));
    }
    for name in SETTINGS.iter().chain(&["nsswitch.conf"]) {
        rules.push(rule(format!("/etc/{name}"), false));
    }
    for name in DEVICES {
        rules.push(rule(format!("/dev/{name}"), true));
    }
    for name in ["workspace", "tmp"] {
        rules.push(rule(place.join(name).to_string_lossy().into_owned(), true));
    }
    rules
}

/// Steps with each directory made once, before what is in it.
#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn dir(&mut self, path: &str) {
        let step = Step::Dir(path.to_owned());
        if !self.0.contains(&step) {
            self.0.push(step);
        }
    }

    fn parents(&mut self, path: &str) {
        let separators = path.match_indices('/').map(|(at, _)| at);
        for at in separators.collect::<Vec<_>>() {
            self.dir(&path[..at]);
        }
    }

    fn file(&mut self, path: &str, content: &str) {
        let content = content.as_bytes().to_vec();
        self.0.push(Step::File(path.to_owned(), content));
    }

    fn link(&mut self, target: &str, path: &str) {
        self.0.push(Step::Link(target.to_owned(), path.to_owned()));
    }

    /// What the machine has at this path, at the same path, if it has it.
    fn bind(&mut self, path: &str) {
        let from = Path::new("/").join(path);
        let Ok(found) = fs::symlink_metadata(&from) else {
            return;
        };
        // A link to elsewhere in /etc would lead to nothing.
        let is_setting = path.starts_with("etc/");
        if found.is_symlink() && !is_setting {
            if let Some(target) = fs::read_link(&from).ok().as_deref().and_then(Path::to_str) {
                self.link(target, path);
            }
            return;
        }
        let Some(real) = from.canonicalize().ok() else {
            return;
        };
        let Some(real_text) = real.to_str() else {
            return;
        };
        self.parents(path);
        if real.is_dir() {
            self.dir(path);
        } else {
            self.file(path, "");
        }
        self.0
            .push(Step::Bind(real_text.to_owned(), path.to_owned()));
    }
}
