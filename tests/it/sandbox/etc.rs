//! The host's `/etc` in a sandbox.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{client, create, shell};
use crate::support::is_root;
use crate::support::processes::{assert_passes, copy_this_program};

#[test]
fn settings_of_programs_are_visible() {
    let sandbox = create(&client(), "settings");
    let look = |name: &str| shell(&sandbox, &format!("cat /etc/{name}/* /etc/{name} 2>&1"));
    for name in [
        "os-release",
        "services",
        "profile",
        "ld.so.conf.d",
        "skel/.profile",
        "login.defs",
    ] {
        if Path::new("/etc").join(name).exists() {
            let seen = look(name);
            let lines = seen.lines().filter(|line| !line.contains("cat: "));
            assert!(lines.count() > 0, "{name}: {seen}");
        } else {
            println!("skipped: no /etc/{name}");
        }
    }
    let generated = shell(
        &sandbox,
        "cat /etc/hostname /etc/resolv.conf; id -un; readlink /etc/mtab",
    );
    assert_eq!(generated, "sandbox\nsandbox\n/proc/self/mounts\n");
}

#[test]
fn listed_entries_are_hidden() {
    let sandbox = create(&client(), "hidden");
    let names = "shadow shadow- gshadow sudoers ssh fstab crypttab machine-id environment docker \
        containers wireguard pip.conf npmrc gitconfig netrc apt/auth.conf apt/sources.list \
        ssl/private hosts.allow motd";
    let seen = shell(&sandbox, &format!("cd /etc; ls -d {names} 2>/dev/null"));
    assert_eq!(seen, "");
}

/// An unprivileged user who owns files in `/etc`.
const OWNER: u32 = 65_530;

/// Mounts a given number of overlays on `/etc`, and creates files of a user in it.
const OVERLAYS: &str = r#"
set -e
mount -t tmpfs none /mnt
for n in $(seq "$1"); do
    mkdir -p /mnt/upper$n /mnt/work$n
    mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper$n,workdir=/mnt/work$n none /etc
done
mkdir /etc/nx /etc/nx-clean
echo SECRET > /etc/nx/own; echo SECRET > /etc/nx-own; echo SECRET > /etc/npmrc
echo public > /etc/nx/all; echo public > /etc/nx-clean/all; echo public > /etc/nx-all
chmod 600 /etc/nx/own /etc/nx-own; chmod 644 /etc/npmrc /etc/nx/all /etc/nx-clean/all /etc/nx-all
chmod 755 /etc/nx /etc/nx-clean
chown "$2:$2" /etc/nx/own /etc/nx-own
shift
user=$1; shift
exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
"#;

/// With two overlays, the kernel does not allow a third, and the entries are bound one by one.
#[test]
fn own_files_in_etc_are_hidden() {
    if !is_root() {
        println!("skipped: only root can mount on /etc");
        return;
    }
    let home = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = home.path().join("program");
    copy_this_program(&program);
    for (overlays, below) in [("1", "public\n"), ("2", "")] {
        let mut command = std::process::Command::new("unshare");
        command
            .args([
                "-m",
                "sh",
                "-c",
                OVERLAYS,
                "sh",
                overlays,
                &OWNER.to_string(),
            ])
            .arg(&program)
            .args([
                "--exact",
                "sandbox::etc::look_at_own_files",
                "--ignored",
                "--nocapture",
            ])
            .env("NX_BELOW", below)
            .env("HOME", home.path())
            .current_dir("/");
        assert_passes(command);
    }
}

#[test]
#[ignore = "run by another test, as the user of the files"]
fn look_at_own_files() {
    assert_eq!(std::fs::read_to_string("/etc/nx-own").unwrap(), "SECRET\n");
    let client = client();
    let sandbox = create(&client, "own-files");
    let found = shell(
        &sandbox,
        "grep -rs SECRET /etc; ls -d /etc/nx/own /etc/nx-own /etc/npmrc 2>/dev/null",
    );
    assert_eq!(found, "");
    assert_eq!(
        shell(&sandbox, "cat /etc/nx-all /etc/nx-clean/all"),
        "public\npublic\n"
    );
    let below = std::env::var("NX_BELOW").unwrap();
    assert_eq!(shell(&sandbox, "cat /etc/nx/all 2>/dev/null"), below);
    let bound = shell(&sandbox, "grep -c ' /etc/nx-clean ' /proc/self/mounts");
    let expected = if below.is_empty() { "1\n" } else { "0\n" };
    assert_eq!(bound, expected, "bound entry by entry");
    assert_eq!(
        shell(&sandbox, "id -un; cat /etc/hostname"),
        "sandbox\nsandbox\n"
    );
    assert_ne!(
        shell(&sandbox, "touch /etc/x && echo written; true"),
        "written\n"
    );
}
