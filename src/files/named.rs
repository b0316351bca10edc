//! Sets of named contents.

use std::path::PathBuf;

use crate::archive::Contents;

/// Named contents to upload together with [`Sandbox::upload`](crate::Sandbox::upload).
///
/// ```
/// # let (client, _dir) = include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doc_client.rs"));
/// # let sandbox = client.create("demo", noxrunner::SandboxSpec::new())?;
/// use noxrunner::{Contents, Files};
///
/// let files = Files::new()
///     .add("src/main.sh", "echo 42\n")
///     .add("run.sh", Contents::from("sh src/main.sh").mode(0o755));
/// sandbox.upload(files, "/workspace")?;
/// assert_eq!(sandbox.run(["sh", "run.sh"])?.stdout(), "42\n");
/// # Ok::<_, noxrunner::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Files<'a>(pub(super) Vec<(PathBuf, Contents<'a>)>);

impl<'a> Files<'a> {
    /// Creates an empty set.
    #[must_use]
    pub fn new() -> Files<'a> {
        Files::default()
    }

    /// Adds contents under a name relative to the destination of the upload. Parent directories are
    /// created.
    #[must_use]
    pub fn add(mut self, name: impl Into<PathBuf>, contents: impl Into<Contents<'a>>) -> Files<'a> {
        self.0.push((name.into(), contents.into()));
        self
    }
}

impl<'a, P: Into<PathBuf>, C: Into<Contents<'a>>> FromIterator<(P, C)> for Files<'a> {
    fn from_iter<I: IntoIterator<Item = (P, C)>>(files: I) -> Self {
        let files = files.into_iter();
        files.fold(Files::new(), |files, (name, contents)| {
            files.add(name, contents)
        })
    }
}

/// Uses an array, a vector, a map, or anything else that yields names and contents.
impl<'a, I, P, C> From<I> for Files<'a>
where
    I: IntoIterator<Item = (P, C)>,
    P: Into<PathBuf>,
    C: Into<Contents<'a>>,
{
    fn from(files: I) -> Self {
        files.into_iter().collect()
    }
}
