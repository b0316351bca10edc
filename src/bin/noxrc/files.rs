//! `upload`, `download`, `cp`, `cat`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use noxrunner::{Contents, Error, ErrorKind, Extract, Files, Result, Sandbox};
use serde_json::json;

use crate::args::{Args, Download, Upload};
use crate::connect::{client, file_failed};
use crate::say::Say;

pub(crate) fn upload(args: &Args, upload: &Upload, say: &Say) -> Result<()> {
    let sandbox = client(args)?.sandbox(&upload.id)?;
    let dest = &upload.dest;
    if let Some(dir) = &upload.dir {
        say.info(&format!("Uploading {}...", dir.display()));
        sandbox.upload_dir(dir, dest)?;
        say.success(&format!("Uploaded {} to {dest}", dir.display()));
    } else {
        let count = upload.files.len();
        if count == 0 {
            let text = "there are no files to upload: name some, or a directory with --dir";
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        let mut files = Files::new();
        for path in &upload.files {
            let name = path.file_name().unwrap_or(path.as_os_str());
            files = files.add(PathBuf::from(name), regular(path)?);
        }
        say.info(&format!("Uploading {count} file(s)..."));
        sandbox.upload(files, dest)?;
        say.success(&format!("Uploaded {count} file(s) to {dest}"));
    }
    say.value(&json!({"id": upload.id, "dest": dest}));
    Ok(())
}

fn regular(path: &Path) -> Result<Contents<'static>> {
    let found = fs::metadata(path).map_err(|e| file_failed("cannot upload", path, e))?;
    if found.is_dir() {
        let text = format!("{} is a directory: upload it with --dir", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(Contents::path(path))
}

pub(crate) fn download(args: &Args, download: &Download, say: &Say) -> Result<()> {
    let sandbox = client(args)?.sandbox(&download.id)?;
    say.info("Downloading files...");
    if let Some(output) = &download.output {
        let failed = |e| file_failed("cannot write", output, e);
        let mut archive = sandbox.download_archive(&download.src)?;
        let mut file = File::create(output).map_err(failed)?;
        let bytes = io::copy(&mut archive, &mut file).map_err(failed)?;
        say.success(&format!("Downloaded to {}", output.display()));
        say.value(&json!({"id": download.id, "output": output, "bytes": bytes}));
        return Ok(());
    }
    let dir = download.extract.as_deref().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(|e| file_failed("cannot make", dir, e))?;
    extract(&sandbox, &download.src, dir, say)
}

/// Unpacks what may be unpacked, and tells of the rest.
fn extract(sandbox: &Sandbox, src: &str, dir: &Path, say: &Say) -> Result<()> {
    let done = sandbox.download_dir_with(src, dir, &Extract::new().skip_refused(true))?;
    for refusal in done.refused() {
        say.warning(&format!("Skipped {:?}: {}", refusal.name(), refusal.rule()));
    }
    say.success(&format!("Extracted to {}", dir.display()));
    let mut value = json!(done);
    value["id"] = json!(sandbox.id());
    value["directory"] = json!(dir);
    say.value(&value);
    Ok(())
}

pub(crate) fn cat(args: &Args, id: &str, path: &str, say: &Say) -> Result<()> {
    let sandbox = client(args)?.sandbox(id)?;
    if say.is_json() {
        let bytes = sandbox.read(path)?;
        say.value(&json!({"id": id, "path": path, "text": String::from_utf8_lossy(&bytes)}));
        return Ok(());
    }
    let mut stdout = Pipe(io::stdout().lock());
    sandbox.read_to(path, &mut stdout).map(drop)
}

/// Takes all, also when nobody reads it any more.
struct Pipe<W>(W);

impl<W: Write> Write for Pipe<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.0.write(buf) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(buf.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// One side of a copy.
enum Side<'a> {
    Here(&'a Path),
    Sandbox(&'a str, &'a str),
}

fn side(text: &str) -> Side<'_> {
    match text.split_once(':') {
        // ./a:b and /a:b are files.
        Some((id, path)) if !id.is_empty() && !id.contains('/') => Side::Sandbox(id, path),
        _ => Side::Here(Path::new(text)),
    }
}

pub(crate) fn copy(args: &Args, source: &str, target: &str, say: &Say) -> Result<()> {
    match (side(source), side(target)) {
        (Side::Here(from), Side::Sandbox(id, to)) => {
            put(&client(args)?.sandbox(id)?, from, to)?;
            say.success(&format!("Copied {} to {target}", from.display()));
        }
        (Side::Sandbox(id, from), Side::Here(to)) => {
            let to = get(&client(args)?.sandbox(id)?, from, to)?;
            say.success(&format!("Copied {source} to {}", to.display()));
        }
        _ => {
            let text = "one side of a copy is ID:PATH, the other a file here (./a:b, if its name has a colon)";
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
    }
    say.value(&json!({"from": source, "to": target}));
    Ok(())
}

fn is_dir(sandbox: &Sandbox, path: &str) -> Result<bool> {
    Ok(sandbox.exec(["test", "-d", path])?.success())
}

/// As cp does: into a directory that is there, else to that name.
pub(crate) fn put(sandbox: &Sandbox, from: &Path, to: &str) -> Result<()> {
    let to = if to.is_empty() { "." } else { to };
    let found = fs::metadata(from).map_err(|e| file_failed("cannot copy", from, e))?;
    let name = || {
        let real = from
            .canonicalize()
            .map_err(|e| file_failed("cannot copy", from, e))?;
        let name = real.file_name().map(PathBuf::from);
        name.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the root can't be copied"))
    };
    let into = to.ends_with('/') || is_dir(sandbox, to)?;
    match (found.is_dir(), into) {
        (false, true) => sandbox.upload(Files::new().add(name()?, Contents::path(from)), to),
        (false, false) => sandbox.write(to, Contents::path(from)),
        (true, true) => {
            let name = name()?;
            let name = name.to_str().ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, "a directory's name must be UTF-8")
            })?;
            sandbox.upload_dir(from, format!("{}/{name}", to.trim_end_matches('/')))
        }
        (true, false) => sandbox.upload_dir(from, to),
    }
}

/// Answers with where it is now.
pub(crate) fn get(sandbox: &Sandbox, from: &str, to: &Path) -> Result<PathBuf> {
    let from = if from.is_empty() { "." } else { from };
    let to = match (to.is_dir(), Path::new(from).file_name()) {
        (true, Some(name)) => to.join(name),
        _ => to.to_owned(),
    };
    if is_dir(sandbox, from)? {
        sandbox.download_dir(from, &to)?;
        return Ok(to);
    }
    // Nothing half-written takes the place of what is there.
    let part = to.with_file_name(format!(
        ".{}.part-{}",
        to.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let write = || {
        let mut file = File::create(&part).map_err(|e| file_failed("cannot write", &part, e))?;
        sandbox.read_to(from, &mut file)?;
        fs::rename(&part, &to).map_err(|e| file_failed("cannot write", &to, e))
    };
    write().inspect_err(|_| drop(fs::remove_file(&part)))?;
    Ok(to)
}
