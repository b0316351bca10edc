//! The Docker backend: sandboxes in containers of Docker or Podman.
//!
//! - `builder`, `settings`, `options`: settings of a backend and of all its sandboxes.
//! - `locate`: which engine. `engine`: the calls of its API. `image`, `auth`: pulling images.
//! - `agent_program`: the program of the agents. `backend`: the calls of `Backend`. `create`, `last_words`: creating sandboxes. `sandboxes`: finding and deleting them.
//! - `container`: the configuration of containers. `dirs`, `connection`: reaching the agents.

mod agent_program;
mod auth;
mod backend;
mod builder;
mod connection;
mod container;
mod create;
mod dirs;
mod engine;
mod image;
mod last_words;
mod locate;
mod options;
mod sandboxes;
mod settings;

pub use self::backend::DockerBackend;
pub use self::builder::DockerBackendBuilder;
pub use self::image::{Pull, PullProgress};
