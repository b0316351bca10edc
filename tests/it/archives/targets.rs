//! Files on this machine that downloads are written to.

use super::*;

/// A reader that checks the temporary file of a download when it is read.
struct Observer {
    dir: PathBuf,
    archive: std::io::Cursor<Vec<u8>>,
}

impl Read for Observer {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let entries = fs::read_dir(&self.dir).unwrap().flatten();
        let temporary = entries.filter(|e| e.file_name().as_bytes().starts_with(b".noxrunner-"));
        let modes: Vec<_> = temporary
            .map(|e| e.metadata().unwrap().mode() & 0o7777)
            .collect();
        assert_eq!(modes, [0o600]);
        self.archive.read(buf)
    }
}

fn archive_of_file() -> Vec<u8> {
    let (sandbox, _dir) = local();
    sandbox.write("f", "content").unwrap();
    let mut archive = Vec::new();
    let mut download = sandbox.download_archive("f").unwrap();
    download.read_to_end(&mut archive).unwrap();
    archive
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn temporary_file_is_private_until_it_is_complete() {
    let dir = Scratch::new();
    let (archive, at) = (archive_of_file(), dir.path().to_owned());
    let sandbox = sandbox_with_stream(move || {
        Box::new(Observer {
            dir: at.clone(),
            archive: std::io::Cursor::new(archive.clone()),
        })
    });
    File::create(dir.join("plain")).unwrap();
    let usual = mode_of(&dir.join("plain"));
    sandbox.download_file("f", dir.join("new")).unwrap();
    assert_eq!(mode_of(&dir.join("new")), usual);
    assert_eq!(fs::read(dir.join("new")).unwrap(), b"content");
    chmod(dir.join("new"), 0o640);
    sandbox.download_archive_to("f", dir.join("new")).unwrap();
    assert_eq!(mode_of(&dir.join("new")), 0o640);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn links_to_files_are_followed() {
    let dir = Scratch::new();
    let sandbox = sandbox_with_download(archive_of_file());
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/file"), "old").unwrap();
    symlink("d/file", dir.join("one")).unwrap();
    symlink("one", dir.join("two")).unwrap();
    symlink("d/missing", dir.join("dangling")).unwrap();
    for (link, file) in [("two", "d/file"), ("dangling", "d/missing")] {
        sandbox.download_file("f", dir.join(link)).unwrap();
        assert_eq!(fs::read(dir.join(file)).unwrap(), b"content");
        assert!(dir.join(link).is_symlink());
    }
    symlink("loop", dir.join("loop")).unwrap();
    let result = sandbox.download_file("f", dir.join("loop"));
    assert_error(result, ErrorKind::Io, &["cannot write", "symbolic links"]);
    let result = sandbox.download_file("f", dir.join("d"));
    assert_error(result, ErrorKind::Io, &["is a directory"]);
    assert_eq!(fs::read_dir(dir.join("d")).unwrap().count(), 2);
}

#[test]
fn fifos_and_devices_are_written_to_directly() {
    let dir = Scratch::new();
    let sandbox = sandbox_with_download(archive_of_file());
    let fifo = dir.join("pipe");
    mkfifo(&fifo);
    let reader = {
        let fifo = fifo.clone();
        thread::spawn(move || fs::read(fifo).unwrap())
    };
    sandbox.download_file("f", &fifo).unwrap();
    assert_eq!(reader.join().unwrap(), b"content");
    sandbox.download_archive_to("f", "/dev/null").unwrap();
    assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
