//! The host's `/etc` below the generated files of the sandbox.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, symlink};
use std::path::Path;

use crate::sys::isolation::{MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, make_whiteout, mount};

/// Shows the host's `/etc` at `etc` in the current directory, without the hidden entries and below the
/// files that exist there.
pub(crate) fn show_etc(hidden: &[String]) -> io::Result<()> {
    // A link takes half the time of a new entry.
    let mut first: Option<String> = None;
    let mut last_parent = "";
    for name in hidden {
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
        if parent != last_parent && !parent.is_empty() {
            let mut dir = DirBuilder::new();
            dir.recursive(true).mode(0o755).create(in_etc(parent))?;
            last_parent = parent;
        }
        let path = in_etc(name);
        if let Some(first) = &first {
            fs::hard_link(first, &path)?;
        } else {
            make_whiteout(&path)?;
            first = Some(path);
        }
    }
    // The upper layer hides entries by name, also if the host replaces them. A mount on an entry would
    // vanish with it.
    let options = "lowerdir=etc:/etc,userxattr";
    let mounted = mount("overlay", "etc", "overlay", MS_NOSUID | MS_NODEV, options);
    // The kernel has no overlayfs, or /etc is already in as many of them as it allows.
    mounted.or_else(|_| bind_entries(hidden))
}

fn in_etc(name: &str) -> String {
    format!("etc/{name}")
}

/// Binds every entry of the host's `/etc`. Leaves out directories with hidden entries. This takes much
/// longer than one overlay.
fn bind_entries(hidden: &[String]) -> io::Result<()> {
    let mut hidden_top = HashSet::new();
    for name in hidden {
        let top = name.split('/').next().unwrap_or(name);
        hidden_top.insert(top);
        let path = in_etc(top);
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        if found.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if found.file_type().is_char_device() {
            fs::remove_file(&path)?;
        }
    }
    for entry in fs::read_dir("/etc")?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !hidden_top.contains(name)) else {
            continue;
        };
        match bind_entry(&entry.path(), &in_etc(name)) {
            // The host has just removed it, or the file is generated.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists
                ) => {}
            result => result?,
        }
    }
    Ok(())
}

fn bind_entry(from: &Path, to: &str) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_dir() {
        DirBuilder::new().mode(0o755).create(to)?;
    } else {
        File::create_new(to)?;
    }
    let from = from.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    mount(from, to, "", MS_BIND | MS_REC, "")
}
