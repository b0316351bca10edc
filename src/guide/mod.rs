//! Guides. Their code is compiled and run as tests.
//!
//! | guide | topic |
//! | --- | --- |
//! | [`getting_started`] | a first sandbox, commands and errors |
//! | [`files`] | files and directories, in and out |
//! | [`jobs`] | long-running commands, and keeping sandboxes alive |
//! | [`recipes`] | recovery, worker pools, progress, Ctrl-C, JSON |
//! | [`local`] | local sandboxes: isolation and limits |
//! | `docker` | sandboxes in containers of Docker or Podman (feature `docker`) |
//! | [`cluster`] | servers: tokens, timeouts, retries, concurrency |
//! | [`servers`] | servers of other people, and their limits |
//! | [`agent`] | the server inside a container |
//! | `kubernetes` | sandboxes in pods of a Kubernetes cluster (feature `kubernetes`) |
//! | [`command`] | the command `noxrc`, and its JSON output |
//! | [`backends`] | writing a backend, and serving it |
//! | [`testing`] | in your own tests: local sandboxes, fixed answers, faults |
//! | [`numbers`] | what a call costs, beside other ways to run commands |
//! | [`protocol`] | the requests and responses of NoxRunner v1 |
//! | [`coming_from_python`] | the names of the Python package |
//! | [`troubleshooting`] | each kind of error, and what to do |

#[doc = include_str!("getting_started.md")]
pub mod getting_started {}

#[doc = include_str!("files.md")]
pub mod files {}

#[doc = include_str!("jobs.md")]
pub mod jobs {}

#[doc = include_str!("recipes.md")]
pub mod recipes {}

#[doc = include_str!("local.md")]
#[cfg(feature = "local")]
pub mod local {}

#[doc = include_str!("docker.md")]
#[cfg(feature = "docker")]
pub mod docker {}

#[doc = include_str!("cluster.md")]
pub mod cluster {}

#[doc = include_str!("servers.md")]
pub mod servers {}

#[doc = include_str!("agent.md")]
pub mod agent {}

#[doc = include_str!("kubernetes.md")]
#[cfg(feature = "kubernetes")]
pub mod kubernetes {}

#[doc = include_str!("command.md")]
pub mod command {}

#[doc = include_str!("backends.md")]
pub mod backends {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("numbers/intro.md")]
#[doc = include_str!("numbers/exec.md")]
#[doc = include_str!("numbers/exec_of_true.svg")]
#[doc = include_str!("numbers/create.md")]
#[doc = include_str!("numbers/create_until_the_first_command_has_ended.svg")]
#[doc = include_str!("numbers/transfer.md")]
#[doc = include_str!("numbers/upload_of_128_MiB_of_random_bytes.svg")]
#[doc = include_str!("numbers/memory.md")]
#[doc = include_str!("numbers/peak_memory_of_the_uploading_program.svg")]
#[doc = include_str!("numbers/build.md")]
#[doc = include_str!("numbers/crates_in_the_dependency_tree.svg")]
#[doc = include_str!("numbers/cold_debug_build_of_a_dependent.svg")]
pub mod numbers {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("coming_from_python.md")]
pub mod coming_from_python {}

#[doc = include_str!("troubleshooting.md")]
pub mod troubleshooting {}
