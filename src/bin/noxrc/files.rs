//! `upload`, `download`, `cp`, `cat`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use noxrunner::{
    Contents, Error, ErrorKind, Extract, Extraction, Files, Pack, Result, Sandbox, Symlinks,
};
use serde_json::json;

use crate::args::{Args, DownloadArgs, LinksArg, PackArgs, UploadArgs};
use crate::client::client;
use crate::console::Console;
use crate::file_error::file_error;

pub(crate) fn upload(args: &Args, upload: &UploadArgs, console: &Console) -> Result<()> {
    let sandbox = client(args)?.sandbox(&upload.id)?;
    let dest = &upload.dest;
    if let Some(dir) = &upload.dir {
        console.info(&format!("Uploading {}...", dir.display()));
        sandbox.upload_dir_with(dir, dest, &pack(&upload.pack))?;
        console.success(&format!("Uploaded {} to {dest}", dir.display()));
    } else {
        let count = upload.files.len();
        if count == 0 {
            let message = "no files to upload: name some, or a directory with --dir";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        check_different_names(&upload.files, name_of)?;
        let mut files = Files::new();
        for path in &upload.files {
            files = files.add(name_of(path)?, file_contents(path)?);
        }
        console.info(&format!("Uploading {count} file(s)..."));
        sandbox.upload(files, dest)?;
        console.success(&format!("Uploaded {count} file(s) to {dest}"));
    }
    console.value(&json!({"id": upload.id, "dest": dest}));
    Ok(())
}

pub(crate) fn pack(args: &PackArgs) -> Pack {
    let pack = Pack::new().symlinks(match args.links {
        LinksArg::Keep => Symlinks::Keep,
        LinksArg::Follow => Symlinks::Follow,
        LinksArg::Skip => Symlinks::Skip,
    });
    args.exclude.iter().fold(pack, Pack::exclude)
}

fn file_contents(path: &Path) -> Result<Contents<'static>> {
    let metadata = fs::metadata(path).map_err(|e| file_error("cannot upload", path, e))?;
    if metadata.is_dir() {
        let message = format!("{} is a directory: upload it with --dir", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(Contents::path(path))
}

pub(crate) fn download(args: &Args, download: &DownloadArgs, console: &Console) -> Result<()> {
    let sandbox = client(args)?.sandbox(&download.id)?;
    console.info("Downloading files...");
    if let Some(output) = &download.output {
        let bytes = sandbox.download_archive_to(&download.src, output)?;
        console.success(&format!("Downloaded to {}", output.display()));
        console.value(&json!({"id": download.id, "output": output, "bytes": bytes}));
        return Ok(());
    }
    let dir = download.extract.as_deref().unwrap_or(Path::new("."));
    extract(&sandbox, &download.src, dir, console)
}

/// Extracts a download, and warns about refused entries.
fn extract(sandbox: &Sandbox, src: &str, dir: &Path, console: &Console) -> Result<()> {
    let extract = Extract::new().skip_refused(true);
    let extraction = sandbox.download_dir_with(src, dir, &extract)?;
    warn_of_refused(&extraction, console);
    console.success(&format!("Extracted to {}", dir.display()));
    let mut value = json!(extraction);
    value["id"] = json!(sandbox.id());
    value["directory"] = json!(dir);
    console.value(&value);
    Ok(())
}

fn warn_of_refused(extraction: &Extraction, console: &Console) {
    for refusal in extraction.refused() {
        console.warning(&format!("Skipped {:?}: {}", refusal.name(), refusal.rule()));
    }
}

pub(crate) fn cat(args: &Args, id: &str, path: &str, console: &Console) -> Result<()> {
    let sandbox = client(args)?.sandbox(id)?;
    if console.is_json() {
        let bytes = sandbox.read(path)?;
        console.value(&json!({"id": id, "path": path, "text": String::from_utf8_lossy(&bytes)}));
        return Ok(());
    }
    let stdout = IgnoreBrokenPipe(io::stdout().lock());
    sandbox.read_to(path, stdout).map(drop)
}

/// A writer that discards everything once its reader is gone.
struct IgnoreBrokenPipe<W>(W);

impl<W: Write> Write for IgnoreBrokenPipe<W> {
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

/// The source or the target of a copy.
enum Location<'a> {
    Local(&'a Path),
    Sandbox(&'a str, &'a str),
}

fn location(text: &str) -> Location<'_> {
    match text.split_once(':') {
        // ./a:b and /a:b are local.
        Some((id, path)) if !id.is_empty() && !id.contains('/') => Location::Sandbox(id, path),
        _ => Location::Local(Path::new(text)),
    }
}

pub(crate) fn copy(
    args: &Args,
    source: &str,
    target: &str,
    pack_args: &PackArgs,
    console: &Console,
) -> Result<()> {
    match (location(source), location(target)) {
        (Location::Local(from), Location::Sandbox(id, to)) => {
            copy_to_sandbox(&client(args)?.sandbox(id)?, from, to, &pack(pack_args))?;
            console.success(&format!("Copied {} to {target}", from.display()));
        }
        (Location::Sandbox(id, from), Location::Local(to)) => {
            let to = copy_from_sandbox(&client(args)?.sandbox(id)?, from, to, console)?;
            console.success(&format!("Copied {source} to {}", to.display()));
        }
        _ => {
            let message = "either the source or the target must be ID:PATH, and the other one a local path (./a:b if its name has a colon)";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
    }
    console.value(&json!({"from": source, "to": target}));
    Ok(())
}

fn is_dir(sandbox: &Sandbox, path: &str) -> Result<bool> {
    Ok(sandbox.exec(["test", "-d", path])?.success())
}

/// Copies a local file or directory as `cp` does: into an existing directory, or to a new name.
pub(crate) fn copy_to_sandbox(sandbox: &Sandbox, from: &Path, to: &str, pack: &Pack) -> Result<()> {
    let to = if to.is_empty() { "." } else { to };
    let metadata = fs::metadata(from).map_err(|e| file_error("cannot copy", from, e))?;
    let into_directory = to.ends_with('/') || is_dir(sandbox, to)?;
    match (metadata.is_dir(), into_directory) {
        (false, false) => sandbox.write(to, Contents::path(from)),
        (false, true) => sandbox.upload(Files::new().add(name_of(from)?, Contents::path(from)), to),
        (true, false) => sandbox.upload_dir_with(from, to, pack),
        (true, true) => {
            let to = Path::new(to).join(name_of(from)?);
            sandbox.upload_dir_with(from, to, pack)
        }
    }
}

/// Refuses two paths that would be copied to the same name.
pub(crate) fn check_different_names<P: AsRef<Path>>(
    paths: &[P],
    name: impl Fn(&Path) -> Result<PathBuf>,
) -> Result<()> {
    let mut seen: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for path in paths.iter().map(AsRef::as_ref) {
        if let Some(other) = seen.insert(name(path)?, path) {
            let (other, path) = (other.display(), path.display());
            let message = format!("{other} and {path} have the same name: copy them one by one");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
    }
    Ok(())
}

/// Returns the last component of a path; for `.` and `..` that of the directory.
pub(crate) fn name_of(path: &Path) -> Result<PathBuf> {
    if let Some(name) = path.file_name() {
        return Ok(name.into());
    }
    let real = path
        .canonicalize()
        .map_err(|e| file_error("cannot copy", path, e))?;
    let name = real.file_name().map(PathBuf::from);
    name.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "cannot copy the root directory"))
}

/// Copies a file or directory of a sandbox as `cp` does, and returns its new path.
pub(crate) fn copy_from_sandbox(
    sandbox: &Sandbox,
    from: &str,
    to: &Path,
    console: &Console,
) -> Result<PathBuf> {
    let from = if from.is_empty() { "." } else { from };
    let to = match Path::new(from).file_name() {
        Some(name) if to.is_dir() => to.join(name),
        _ => to.to_owned(),
    };
    if is_dir(sandbox, from)? {
        warn_of_refused(&sandbox.download_dir(from, &to)?, console);
    } else {
        sandbox.download_file(from, &to)?;
    }
    Ok(to)
}
