//! The visible part of the host's `/etc`.
//!
//! An entry is visible if it belongs to the owner of `/etc`, everyone can read it, and it is not in
//! [`HIDDEN`]. Add what identifies or authenticates the machine to that list.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const ETC: &str = "/etc";

/// Entries that are hidden even if everyone can read them. An asterisk at the end stands for any text.
#[rustfmt::skip]
const HIDDEN: &[(&str, &[&str])] = &[
    ("users, passwords and rights", &[
        "passwd*", "group*", "shadow*", "gshadow*", "subuid*", "subgid*", "sudo*", "doas.conf",
        "security/opasswd", "krb5*", "sssd", "nslcd.conf", "ldap", "ldap.*", "libnss-ldap*",
        "pam_ldap*", "samba", "sasl*", "cups",
    ]),
    ("name, identity and network of the machine", &[
        "HOSTNAME", "hostname", "hosts", "hosts.*", "mailname", "resolv.conf*", "resolvconf",
        "machine-id", "machine-info", "hostid", "motd*", "ssh", "dropbear", "network", "networks",
        "NetworkManager", "netplan", "systemd/network", "wpa_supplicant", "iwd", "dhcp*", "cloud",
        "waagent.conf", "snmp",
    ]),
    ("disks", &[
        "fstab*", "crypttab*", "mtab", "exports*", "auto.*", "autofs*", "iscsi", "nvme", "ceph",
        "multipath*",
    ]),
    ("the environment of logins, where tokens are kept", &["environment", "environment.d"]),
    ("credentials of package managers and clients", &[
        "apt/auth.conf", "apt/auth.conf.d", "apt/sources.list", "apt/sources.list.d",
        "apt/apt.conf", "apt/apt.conf.d", "apk/repositories", "yum.repos.d", "yum.conf", "dnf",
        "zypp", "pacman.d", "pip.conf", "pip", "pypirc", "uv", "conda", "condarc", "npmrc",
        "yarnrc*", "gemrc", "bundle", "composer", "cargo", "gitconfig", "netrc", "wgetrc", "curlrc",
        "maven/settings.xml", "maven/settings-security.xml", "aws", "boto.cfg", "gcloud", "azure",
        "rclone*", "davfs2", "msmtprc", "mysql/debian.cnf", "rhsm", "ubuntu-advantage",
    ]),
    ("containers and virtual machines", &[
        "docker", "containerd", "containers", "crio", "crictl.yaml", "cni", "podman", "buildkit",
        "kubernetes", "k0s", "k3s", "rancher", "microk8s", "nomad*", "consul*", "vault*", "lxc",
        "lxd", "incus", "libvirt", "qemu", "xen",
    ]),
    ("virtual private networks", &[
        "openvpn", "wireguard", "amnezia", "tailscale*", "zerotier*", "nebula", "ipsec*",
        "strongswan*", "swanctl", "vpnc", "openconnect", "openfortivpn", "ppp", "tor", "stunnel",
        "cloudflared", "frp",
    ]),
    ("keys and passwords of services", &[
        "letsencrypt", "acme", "ssl/private", "pki/tls/private", "pki/entitlement", "postfix",
        "exim4", "dovecot", "opendkim*", "rsyncd.secrets", "rsyslog*", "puppet*", "chef", "salt",
        "ansible", "zabbix", "datadog-agent", "telegraf", "grafana",
    ]),
];

/// Listed entries that are hidden also if they are created while a sandbox runs: those where everyone
/// can often read credentials. Each takes some microseconds of every creation of a sandbox. All others
/// are hidden from the next sandbox on.
const HIDDEN_LATER: [&str; 8] = [
    "containers",
    "docker",
    "environment",
    "gitconfig",
    "kubernetes",
    "netrc",
    "npmrc",
    "pip.conf",
];

/// Maximum number of hidden entries below a directory of `/etc`. If there are more, the whole directory
/// is hidden.
const MAX_BELOW: usize = 64;

/// Maximum number of hidden entries, because they are sent in one message. If there are more, every
/// directory that contains one is hidden.
const MAX_HIDDEN: usize = 400;

/// The entries of the host's `/etc`, by their visibility.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostEtc {
    /// Hidden entries, relative to `/etc`, without those in a hidden directory.
    pub(super) hidden: Vec<String>,
    /// Host paths of files and directories without hidden entries in them.
    pub(super) visible: Vec<PathBuf>,
}

impl HostEtc {
    /// Looks at all entries. Takes some milliseconds. Fails if `/etc` cannot be listed, because an entry
    /// that was not seen would be visible.
    pub(super) fn scan() -> io::Result<HostEtc> {
        let dir = Path::new(ETC);
        match fs::metadata(dir) {
            // In a user namespace, root may have another id.
            Ok(found) => HostEtc::scan_dir(dir, found.uid()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(HostEtc::default()),
            Err(e) => Err(e),
        }
    }

    fn scan_dir(root: &Path, owner: u32) -> io::Result<HostEtc> {
        let mut etc = HostEtc::default();
        Scan { root, owner }.children("", &mut etc)?;
        etc.hidden.extend(HIDDEN_LATER.map(str::to_owned));
        if etc.hidden.len() > MAX_HIDDEN {
            etc.hide_whole_dirs(root);
        }
        etc.hidden.sort_unstable();
        etc.hidden.dedup();
        Ok(etc)
    }

    /// Hides the directories of `/etc` that contain a hidden entry.
    fn hide_whole_dirs(&mut self, root: &Path) {
        for name in &mut self.hidden {
            if let Some((top, _)) = name.split_once('/') {
                let dir = root.join(top);
                self.visible.retain(|path| !path.starts_with(&dir));
                *name = top.to_owned();
            }
        }
    }
}

/// Returns the times of the last changes to the directories that contain listed names. If they differ
/// from earlier ones, the entries must be scanned again.
pub(super) fn change_times() -> Vec<Option<SystemTime>> {
    let parents = hidden_names().filter_map(|name| name.rsplit_once('/').map(|(dir, _)| dir));
    let mut parents: Vec<&str> = parents.chain([""]).collect();
    parents.dedup();
    // Sandboxes with a network get a copy of the file.
    parents.push("resolv.conf");
    let changed = |name: &str| {
        fs::metadata(Path::new(ETC).join(name))
            .ok()?
            .modified()
            .ok()
    };
    parents.into_iter().map(changed).collect()
}

fn hidden_names() -> impl Iterator<Item = &'static str> {
    HIDDEN.iter().flat_map(|(_, names)| names.iter().copied())
}

fn is_listed(name: &str) -> bool {
    hidden_names().any(|hidden| match hidden.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == hidden,
    })
}

struct Scan<'a> {
    root: &'a Path,
    /// The user id that visible entries belong to.
    owner: u32,
}

impl Scan<'_> {
    /// Scans the entries of a directory, given by its path relative to the root.
    fn children(&self, dir: &str, etc: &mut HostEtc) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join(dir))? {
            let path = Path::new(dir).join(entry?.file_name());
            // Only names that are UTF-8 can be hidden.
            let name = path.to_str().ok_or_else(|| {
                let text = format!("the file name {path:?} is not UTF-8: rename the file");
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            self.entry(name, etc);
        }
        Ok(())
    }

    fn entry(&self, name: &str, etc: &mut HostEtc) {
        const READ: u32 = 0o004;
        const READ_AND_SEARCH: u32 = 0o005;
        let path = self.root.join(name);
        // The entry may have been removed.
        let Ok(found) = fs::symlink_metadata(&path) else {
            return;
        };
        let needed = if found.is_dir() {
            READ_AND_SEARCH
        } else {
            READ
        };
        if is_listed(name) || found.uid() != self.owner || found.mode() & needed != needed {
            etc.hidden.push(name.to_owned());
        } else if found.is_dir() {
            self.dir(name, path, etc);
        } else if !found.is_symlink() {
            // Access to a link depends on its target.
            etc.visible.push(path);
        }
    }

    fn dir(&self, name: &str, path: PathBuf, etc: &mut HostEtc) {
        let mut below = HostEtc::default();
        let listed = self.children(name, &mut below);
        if listed.is_err() || below.hidden.len() > MAX_BELOW {
            etc.hidden.push(name.to_owned());
        } else if below.hidden.is_empty() {
            etc.visible.push(path);
        } else {
            etc.hidden.append(&mut below.hidden);
            etc.visible.append(&mut below.visible);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn own_id() -> u32 {
        crate::os::effective_uid()
    }

    fn write(path: PathBuf, mode: u32) {
        fs::write(&path, "x").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn make_dir(path: PathBuf, mode: u32) {
        fs::create_dir(&path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn private_and_listed_entries_are_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let etc = |name: &str| dir.path().join(name);
        for name in ["java", "apt", "ssl", "ssl/certs", "ssh", "docker"] {
            make_dir(etc(name), 0o755);
        }
        make_dir(etc("closed"), 0o711);
        for name in [
            "java/a",
            "apt/auth.conf",
            "apt/b",
            "ssl/certs/c",
            "hosts",
            "os",
        ] {
            write(etc(name), 0o644);
        }
        for name in ["ssl/key", "secret"] {
            write(etc(name), 0o640);
        }
        write(etc("shadow-"), 0o644);
        symlink("os", etc("link")).unwrap();
        let found = HostEtc::scan_dir(dir.path(), own_id()).unwrap();
        let hidden = |name: &str| found.hidden.iter().any(|hidden| hidden == name);
        for name in [
            "apt/auth.conf",
            "closed",
            "docker",
            "hosts",
            "secret",
            "shadow-",
            "ssh",
            "ssl/key",
            // These do not exist yet.
            "npmrc",
            "pip.conf",
        ] {
            assert!(hidden(name), "{name}");
        }
        for name in ["java", "apt", "ssl", "os", "link", "wireguard"] {
            assert!(!hidden(name), "{name}");
        }
        let mut visible = found.visible;
        visible.sort();
        assert_eq!(visible, ["apt/b", "java", "os", "ssl/certs"].map(etc));
    }

    #[test]
    fn names_that_cannot_be_hidden_are_an_error_or_hide_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::from_bytes(b"caf\xe9");
        make_dir(dir.path().join("sub"), 0o755);
        write(dir.path().join("sub").join(name), 0o644);
        let found = HostEtc::scan_dir(dir.path(), own_id()).unwrap();
        assert!(found.hidden.contains(&"sub".to_owned()));
        write(dir.path().join(name), 0o644);
        let error = HostEtc::scan_dir(dir.path(), own_id()).unwrap_err();
        assert!(error.to_string().contains(r"caf\xE9"), "{error}");
    }

    #[test]
    fn entries_that_are_hidden_later_are_listed() {
        assert!(HIDDEN_LATER.iter().all(|name| is_listed(name)));
    }

    #[test]
    fn entries_of_other_users_are_hidden() {
        let dir = tempfile::tempdir().unwrap();
        make_dir(dir.path().join("app"), 0o755);
        write(dir.path().join("file"), 0o644);
        let found = HostEtc::scan_dir(dir.path(), own_id() + 1).unwrap();
        let hidden = |name: &str| found.hidden.iter().any(|hidden| hidden == name);
        assert!(hidden("app") && hidden("file"));
        assert_eq!(found.visible, [""; 0].map(PathBuf::from));
    }

    #[test]
    fn many_hidden_entries_hide_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=MAX_HIDDEN / MAX_BELOW {
            let below = dir.path().join(format!("dir-{n}"));
            make_dir(below.clone(), 0o755);
            write(below.join("visible"), 0o644);
            (0..MAX_BELOW).for_each(|n| write(below.join(n.to_string()), 0o600));
        }
        make_dir(dir.path().join("clean"), 0o755);
        let found = HostEtc::scan_dir(dir.path(), own_id()).unwrap();
        assert!(found.hidden.contains(&"dir-0".to_owned()));
        assert!(found.hidden.iter().all(|name| !name.contains('/')));
        assert_eq!(found.visible, [dir.path().join("clean")]);
    }

    #[test]
    fn directory_with_many_hidden_entries_is_hidden() {
        let dir = tempfile::tempdir().unwrap();
        make_dir(dir.path().join("many"), 0o755);
        for n in 0..=MAX_BELOW {
            write(dir.path().join(format!("many/{n}")), 0o600);
        }
        let found = HostEtc::scan_dir(dir.path(), own_id()).unwrap();
        assert!(found.hidden.contains(&"many".to_owned()));
        assert!(found.hidden.iter().all(|name| !name.starts_with("many/")));
    }
}
