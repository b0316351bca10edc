//! Guides, in the order in which they are of use. All their code is compiled and run as tests.
//!
//! | guide | for whom |
//! | --- | --- |
//! | [`getting_started`] | everybody: a sandbox, a command, an error |
//! | [`files`] | who moves files in and out |
//! | [`jobs`] | who runs what takes long: jobs and leases |
//! | [`local`] | who has no server: what a local sandbox keeps apart, and its limits |
//! | [`cluster`] | who has one: tokens, timeouts, retries, many at once |
//! | [`backends`] | who writes a backend or a server |
//! | [`protocol`] | who wants to know what goes over the wire |
//! | [`coming_from_python`] | who knows the Python package |
//! | [`troubleshooting`] | who has an error: each kind, and what to do |

#[doc = include_str!("getting_started.md")]
pub mod getting_started {}

#[doc = include_str!("files.md")]
pub mod files {}

#[doc = include_str!("jobs.md")]
pub mod jobs {}

#[doc = include_str!("local.md")]
#[cfg(feature = "local")]
pub mod local {}

#[doc = include_str!("cluster.md")]
pub mod cluster {}

#[doc = include_str!("backends.md")]
pub mod backends {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("coming_from_python.md")]
pub mod coming_from_python {}

#[doc = include_str!("troubleshooting.md")]
pub mod troubleshooting {}
