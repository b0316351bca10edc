//! Fuzz targets. Each is a function that gives any bytes to code that reads input from outside, and panics
//! if a property of it does not hold.
//!
//! `tests/fuzz/Cargo.toml` describes how to search for new inputs. The unit test below replays the inputs in
//! `tests/fuzz/corpus`. Targets that need private items of a module are beside it, in its `fuzz.rs`.

mod answers;
mod archives;
mod client;
pub(crate) mod input;
pub(crate) mod printed;
#[cfg(any(
    feature = "docker",
    feature = "kubernetes",
    feature = "local",
    feature = "server"
))]
mod quantities;
mod tar_script;
mod texts;
mod unpacking;

pub use answers::answers;
pub use archives::archives;
pub use client::client;
#[cfg(any(
    feature = "docker",
    feature = "kubernetes",
    feature = "local",
    feature = "server"
))]
pub use quantities::quantities;
pub use texts::{paths, shell_words, timestamps};
pub use unpacking::unpacking;

pub use crate::files::fuzz::lists;
pub use crate::jobs::fuzz::job_answers;
#[cfg(all(feature = "local", target_os = "linux"))]
pub use crate::local::holder_messages;
#[cfg(feature = "server")]
pub use crate::server::fuzz::requests;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Runs a target with each input of its corpus.
    fn replay(target: fn(&[u8]), name: &str) {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
        // A package from a registry contains no other package.
        if !fuzz.join("Cargo.toml").exists() {
            return;
        }
        let corpus = fs::read_dir(fuzz.join("corpus").join(name)).unwrap();
        let mut inputs: Vec<_> = corpus.map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "the corpus of {name} is empty");
        inputs.sort();
        for input in inputs {
            let data = fs::read(&input).unwrap();
            let replayed = std::panic::catch_unwind(|| target(&data));
            assert!(replayed.is_ok(), "the target panicked: {}", input.display());
        }
    }

    macro_rules! replay_corpora {
        ($($(#[$cfg:meta])* $target:ident,)*) => {$(
            $(#[$cfg])*
            #[test]
            fn $target() {
                replay(super::$target, stringify!($target));
            }
        )*};
    }

    replay_corpora! {
        answers,
        archives,
        client,
        #[cfg(all(feature = "local", target_os = "linux"))]
        holder_messages,
        job_answers,
        lists,
        paths,
        #[cfg(any(
            feature = "docker",
            feature = "kubernetes",
            feature = "local",
            feature = "server"
        ))]
        quantities,
        #[cfg(feature = "server")]
        requests,
        shell_words,
        timestamps,
        unpacking,
    }
}
