//! The processes of the sandbox.

use std::collections::HashSet;
use std::{fs, io, process};

use crate::sys::process::{kill_all, kill_process, stop_process};

/// Kills all processes of the sandbox except this one.
pub(crate) fn kill_everything() {
    if is_namespace_init() {
        kill_all();
        return;
    }
    // Without /proc there is nothing to find the processes by.
    let _ = kill_descendants(process::id());
}

/// Kills the descendants of a process. Fails if `/proc` is not mounted.
pub(crate) fn kill_descendants(of: u32) -> io::Result<()> {
    // Stops the processes first. A stopped process cannot fork, but still counts towards the process
    // limit, so the scan ends even if the processes fork quickly.
    let mut stopped = HashSet::new();
    loop {
        let found = descendants(of)?;
        let new: Vec<u32> = found.into_iter().filter(|p| stopped.insert(*p)).collect();
        if new.is_empty() {
            break;
        }
        new.into_iter().for_each(stop_process);
    }
    stopped.into_iter().for_each(kill_process);
    Ok(())
}

/// Returns true if a signal has stopped the process.
pub(crate) fn is_stopped(pid: u32) -> bool {
    stat_fields(pid).is_some_and(|fields| fields.starts_with(['T', 't']))
}

/// Returns true if this is the first process of a pid namespace. The namespace contains only the
/// sandbox.
fn is_namespace_init() -> bool {
    process::id() == 1
}

/// Lists all processes with their parents. Fails if `/proc` is not mounted.
fn processes() -> io::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        found.extend(parent(pid).map(|parent| (pid, parent)));
    }
    Ok(found)
}

/// Returns the parent of a process.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    stat_fields(pid)?.split(' ').nth(1)?.parse().ok()
}

/// Returns the fields of `/proc/PID/stat` from the third on: the state, the parent, and so on. `None` if the
/// process has ended.
pub(crate) fn stat_fields(pid: u32) -> Option<String> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The program's name can contain any bytes, and ends with the last parenthesis.
    let after_name = stat.rsplit(|byte| *byte == b')').next()?;
    let fields = after_name.strip_prefix(b" ")?;
    String::from_utf8(fields.to_vec()).ok()
}

/// Returns the directories of the threads of a process, in `/proc`.
pub(crate) fn thread_dirs(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads
        .map(|thread| thread.path().display().to_string())
        .collect()
}

/// Reads a file in `/proc`, in which the names of programs and files can contain any bytes.
pub(crate) fn read_proc(path: String) -> io::Result<String> {
    let text = String::from_utf8(fs::read(path)?);
    Ok(text.unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// Returns the children of a process, their children, and so on.
pub(crate) fn descendants(of: u32) -> io::Result<Vec<u32>> {
    let processes = processes()?;
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let children = processes.iter().filter(|(_, found)| *found == parent);
        found.extend(children.map(|(pid, _)| *pid));
    }
    found.remove(0);
    Ok(found)
}

/// Returns all processes of the sandbox, except this one.
pub(crate) fn sandbox_processes() -> Vec<u32> {
    if !is_namespace_init() {
        return descendants(process::id()).unwrap_or_default();
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != process::id()).collect()
}
