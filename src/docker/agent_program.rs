//! Finding the program of the agent that runs in containers.

use std::env;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The command that builds a static `noxrc`. Without `--target`, the flag would apply to procedural macros
/// as well, which cannot be static.
const BUILD_COMMAND: &str = "RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release \
    --features cli --bin noxrc --target x86_64-unknown-linux-gnu";

/// A static `noxrc`, which runs in any Linux container as `noxrc agent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AgentProgram {
    path: PathBuf,
}

impl AgentProgram {
    /// Finds the program: `given`, or the running program if it is a static `noxrc`, or the first static
    /// `noxrc` on `PATH`.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the given file is not a static program,
    /// [`Unsupported`](ErrorKind::Unsupported) if none is found.
    pub(super) fn find(given: Option<&Path>) -> Result<AgentProgram> {
        if let Some(path) = given {
            return AgentProgram::check(path);
        }
        let candidates = candidates();
        let mut usable = candidates.iter().map(|path| AgentProgram::check(path));
        if let Some(Ok(found)) = usable.find(Result::is_ok) {
            return Ok(found);
        }
        let seen = match candidates.first() {
            Some(path) => format!("{} is not static", path.display()),
            None => "no noxrc is on PATH".to_owned(),
        };
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "cannot find a static noxrc to run in containers: {seen}; build one and set its path (noxrc: --agent): {BUILD_COMMAND}"
            ),
        ))
    }

    /// Returns the absolute path of the program, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn check(path: &Path) -> Result<AgentProgram> {
        let shown = path.display();
        let failed = |e| {
            let text = format!("cannot read the agent program {shown}");
            Error::new(ErrorKind::InvalidInput, text).with_source(e)
        };
        let path = path.canonicalize().map_err(failed)?;
        let file = File::open(&path).map_err(failed)?;
        match linkage(&file).map_err(failed)? {
            Linkage::Static => Ok(AgentProgram { path }),
            Linkage::Dynamic => Err(Error::invalid(format!(
                "agent program {shown} is linked dynamically, so it would not run in every container: build a static one: {BUILD_COMMAND}"
            ))),
            Linkage::NotElf => Err(Error::invalid(format!(
                "agent program {shown} is not a Linux program of this machine's architecture"
            ))),
        }
    }
}

/// Returns the files that may be the program, the best one first.
fn candidates() -> Vec<PathBuf> {
    let running = env::current_exe().ok();
    let running = running.filter(|path| path.file_name().is_some_and(|name| name == "noxrc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).filter(|dir| dir.is_absolute());
    let installed = dirs.map(|dir| dir.join("noxrc"));
    running
        .into_iter()
        .chain(installed.filter(|path| path.is_file()))
        .collect()
}

#[derive(Debug, PartialEq)]
enum Linkage {
    Static,
    Dynamic,
    NotElf,
}

/// Reads from the program headers of an ELF file whether the program needs a dynamic loader.
fn linkage(file: &File) -> io::Result<Linkage> {
    /// 64 bits, little-endian, version 1.
    const IDENT: &[u8] = b"\x7fELF\x02\x01\x01";
    const PT_INTERP: u32 = 3;
    const MACHINE: u16 = if cfg!(target_arch = "x86_64") {
        62
    } else {
        183
    };
    let mut head = [0; 64];
    match file.read_exact_at(&mut head, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Linkage::NotElf),
        result => result?,
    }
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if !head.starts_with(IDENT) || u16_at(18) != MACHINE {
        return Ok(Linkage::NotElf);
    }
    let table = head[32..40].iter().rev();
    let table = table.fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let (size, count) = (u16_at(54), u16_at(56));
    for index in 0..u64::from(count) {
        let mut kind = [0; 4];
        let at = index * u64::from(size);
        file.read_exact_at(&mut kind, table.saturating_add(at))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(Linkage::Dynamic);
        }
    }
    Ok(Linkage::Static)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Returns the head of a program with one program header.
    fn elf(header: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[18] = if cfg!(target_arch = "x86_64") {
            62
        } else {
            183
        };
        (elf[32], elf[54], elf[56]) = (64, 56, 1);
        elf[64..68].copy_from_slice(&header.to_le_bytes());
        elf
    }

    #[test]
    fn only_static_programs_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("noxrc");
        let check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            AgentProgram::check(&path)
        };
        let found = check(&elf(1)).unwrap();
        assert_eq!(found.path(), path.canonicalize().unwrap());
        for (bytes, text) in [
            (elf(3), "linked dynamically"),
            (b"#!/bin/sh\n".to_vec(), "is not a Linux program"),
            (Vec::new(), "is not a Linux program"),
        ] {
            let error = check(&bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(text), "{error}");
        }
        let missing = AgentProgram::find(Some(Path::new("/no/such/noxrc"))).unwrap_err();
        assert!(missing.to_string().contains("/no/such/noxrc"), "{missing}");
    }
}
