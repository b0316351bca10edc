//! The checks. Rules that the specification does not state, but that clients expect, are a SHOULD or a
//! MAY.

use std::fmt;

use super::level::{Level, OptionalCall};
use super::probe::Probe;
use super::verdict::Verdict;
use super::{exec, files, sandboxes};

/// A check.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) level: Level,
    pub(super) rule: &'static str,
    /// Calls that a minimal backend need not implement.
    pub(super) needs: &'static [OptionalCall],
    /// The check mostly waits, in its own sandboxes, so it runs beside the others.
    pub(super) waits: bool,
    pub(super) run: fn(&Probe<'_>) -> Verdict,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

const EVERY: &[OptionalCall] = &[];
const TOUCH: &[OptionalCall] = &[OptionalCall::Touch];
const UPLOAD: &[OptionalCall] = &[OptionalCall::Upload];
const DOWNLOAD: &[OptionalCall] = &[OptionalCall::Download];
const BOTH_WAYS: &[OptionalCall] = &[OptionalCall::Upload, OptionalCall::Download];

/// Defines checks: `LEVEL "NAME" CALLS [waits] = FUNCTION: "RULE";`.
macro_rules! checks {
    ($($level:ident $name:literal $needs:ident $($waits:ident)? = $run:path: $rule:literal;)*) => {
        &[$(Check {
            name: $name,
            level: Level::$level,
            rule: $rule,
            needs: $needs,
            waits: !matches!(stringify!($($waits)?).as_bytes(), b""),
            run: $run,
        }),*]
    };
}

pub(super) static CHECKS: &[Check] = checks! {
    Must "health-ok" EVERY = sandboxes::health_ok:
        "GET /healthz answers 200 with a body that contains OK";
    Should "health-text" EVERY = sandboxes::health_text:
        "the response to GET /healthz is text/plain";
    Should "unknown-route" EVERY = sandboxes::unknown_route:
        "a path that is not part of v1 answers 404 or 405";
    Must "create-answer" EVERY = sandboxes::create_answer:
        "PUT answers 200 with JSON in which podName and expiresAt are strings";
    Should "create-expiry" EVERY = sandboxes::create_expiry:
        "expiresAt is a time in ISO 8601 with a time zone, such as 2026-01-02T12:34:56Z";
    Must "create-defaults" EVERY = sandboxes::create_defaults:
        "every field of PUT is optional, and ttlSeconds defaults to 900";
    Must "create-idempotent" EVERY = sandboxes::create_idempotent:
        "PUT is idempotent: an existing sandbox keeps its name and its files";
    Should "create-repeats-ttl" EVERY waits = sandboxes::create_repeats_ttl:
        "PUT of an existing sandbox renews its TTL";
    Must "create-bad-ttl" EVERY = sandboxes::create_bad_ttl:
        "an invalid TTL answers 400";
    Should "create-bad-json" EVERY = sandboxes::create_bad_json:
        "a body that is not JSON answers 400";
    Should "create-unknown-fields" EVERY = sandboxes::create_unknown_fields:
        "an unknown field is not an error, because v1 may get new optional fields";
    Must "ids-apart" EVERY = sandboxes::ids_apart:
        "the backend keeps one sandbox per session id";
    Must "ids-reserved" EVERY = sandboxes::ids_reserved:
        "a session id is any string, percent-encoded as one path segment, and different ids are different sandboxes";
    Must "ttl-expires" EVERY waits = sandboxes::ttl_expires:
        "a sandbox whose TTL has expired is cleaned up";
    Must "touch-ok" TOUCH = sandboxes::touch_ok:
        "POST touch answers 200, also for a request without a body and Content-Length";
    Must "touch-extends" TOUCH waits = sandboxes::touch_extends:
        "touch sets expiresAt to now + TTL";
    Must "touch-unknown" TOUCH = sandboxes::touch_unknown:
        "touch of a sandbox that does not exist answers 404";
    Must "exec-answer" EVERY = exec::answer:
        "exec answers 200 with JSON: exitCode and durationMs are integers, stdout and stderr strings";
    Must "exec-exit-code" EVERY = exec::exit_code:
        "a non-zero exit code answers 200, with the code in exitCode";
    Must "exec-streams" EVERY = exec::streams:
        "stdout and stderr are separate";
    Must "exec-arguments" EVERY = exec::arguments:
        "cmd is an array of strings, never a shell line";
    Must "exec-no-expansion" EVERY = exec::no_expansion:
        "$NAME in an argument is literal, unless the command itself is a shell";
    Should "exec-large-argument" EVERY = exec::large_argument:
        "an argument of 100,000 bytes arrives completely";
    Must "exec-environment" EVERY = exec::environment:
        "the variables of env are set before the command starts";
    Must "exec-default-workdir" EVERY = exec::default_workdir:
        "workdir defaults to /workspace";
    Must "exec-workdir" EVERY = exec::workdir:
        "a command starts in its workdir";
    May "exec-relative-workdir" EVERY = exec::relative_workdir:
        "a relative workdir is resolved against /workspace";
    Should "exec-stdin" EVERY = exec::stdin:
        "a command's standard input is empty and at its end";
    Should "exec-not-utf8" EVERY = exec::not_utf8:
        "stdout is text: bytes that are not UTF-8 do not fail the call";
    Should "exec-long-output" EVERY = exec::long_output:
        "long output does not fail the call and is not lost completely";
    Should "exec-output-cap" EVERY = exec::output_cap:
        "a stream is cut at about 1 MB";
    Should "exec-not-found" EVERY = exec::not_found:
        "a program that does not exist has exit code 127";
    Should "exec-signal" EVERY = exec::signal:
        "a command that is killed by a signal has failed and has not timed out";
    Should "exec-signal-code" EVERY = exec::signal_code:
        "a command that is killed by signal N has exit code 128 + N";
    Must "exec-empty-command" EVERY = exec::empty_command:
        "an empty command answers 400";
    Must "exec-bad-timeout" EVERY = exec::bad_timeout:
        "an invalid timeout answers 400";
    Must "exec-unknown" EVERY = exec::unknown:
        "exec in a sandbox that does not exist answers 404";
    Must "exec-timeout" EVERY = exec::timeout:
        "a command is killed after timeoutSeconds, and the response follows within 10 s";
    Should "exec-timeout-children" EVERY = exec::timeout_children:
        "a command is killed with its children after timeoutSeconds";
    Should "exec-timeout-code" EVERY = exec::timeout_code:
        "a command that exceeds its timeout has exit code 124";
    Should "exec-timeout-output" EVERY = exec::timeout_output:
        "the output before a timeout is kept";
    Should "exec-concurrent" EVERY = exec::concurrent:
        "several concurrent execs in one sandbox all succeed";
    Should "exec-parallel" EVERY = exec::parallel:
        "execs in one sandbox run at the same time";
    Should "background-child" EVERY = exec::background_child:
        "a background child outlives its exec";
    Should "background-holds" EVERY = exec::background_holds:
        "a background child that holds the streams open does not delay the response";
    May "exec-live" EVERY = exec::live:
        "the response to Accept: text/event-stream is server-sent events with the output and the result";
    May "jobs" EVERY = exec::jobs:
        "background processes and the image's programs are enough for jobs";
    Must "files-round-trip" BOTH_WAYS = files::round_trip:
        "files are unchanged after an upload and a download";
    Must "files-large" BOTH_WAYS = files::large:
        "files of several megabytes are unchanged";
    Must "files-names" BOTH_WAYS = files::odd_names:
        "names are unchanged: spaces, quotes, dashes, Unicode, long names";
    Must "files-empty" BOTH_WAYS = files::empty:
        "empty files are kept";
    Should "files-empty-directories" BOTH_WAYS = files::empty_directories:
        "empty directories are kept";
    Should "files-modes" BOTH_WAYS = files::modes:
        "modes are kept where possible";
    May "files-links" BOTH_WAYS = files::links:
        "symbolic links remain links";
    Must "upload-dest" UPLOAD = files::upload_dest:
        "dest is created";
    Should "upload-replaces" UPLOAD = files::upload_replaces:
        "an existing file is replaced";
    Must "upload-bad-archive" UPLOAD = files::upload_bad_archive:
        "an invalid archive answers 400";
    Should "upload-stays-inside" UPLOAD = files::upload_stays_inside:
        "an entry with `..` in its name writes nothing outside dest";
    Must "upload-unknown" UPLOAD = files::upload_unknown:
        "upload to a sandbox that does not exist answers 404";
    Must "download-relative" DOWNLOAD = files::download_relative:
        "names in the archive are relative to src";
    Must "download-gzip" DOWNLOAD = files::download_gzip:
        "the archive is a gzip-compressed tar";
    Should "download-type" DOWNLOAD = files::download_type:
        "the archive is application/x-tar";
    May "download-file" DOWNLOAD = files::download_file:
        "src may be a single file, and the archive contains only that";
    Must "download-missing" DOWNLOAD = files::download_missing:
        "a src that does not exist answers 404";
    Must "download-unknown" DOWNLOAD = files::download_unknown:
        "download from a sandbox that does not exist answers 404";
    Must "delete-answer" EVERY = sandboxes::delete_answer:
        "DELETE answers 204 or 200";
    Must "delete-gone" EVERY = sandboxes::delete_gone:
        "after DELETE the sandbox does not exist";
    Must "delete-releases" EVERY = sandboxes::delete_releases:
        "DELETE releases resources: a new sandbox with the same id is empty";
    Must "delete-ends-processes" EVERY = sandboxes::delete_ends_processes:
        "DELETE releases resources at once, and kills background processes";
    Must "delete-twice" EVERY = sandboxes::delete_twice:
        "DELETE of a sandbox that does not exist answers 404 or a success";
    Should "error-json" EVERY = sandboxes::error_json:
        "errors of the JSON endpoints are JSON with a string error";
};

/// Abilities of a backend, each with the check that shows it.
pub(super) static ABILITIES: &[(&str, &str)] = &[
    (
        "touch: leases and followed jobs outlive the TTL",
        "touch-extends",
    ),
    ("upload", "upload-dest"),
    ("download", "download-relative"),
    ("single files can be downloaded", "download-file"),
    ("modes are kept", "files-modes"),
    ("symbolic links are kept", "files-links"),
    ("live output", "exec-live"),
    ("jobs", "jobs"),
    ("commands run in parallel", "exec-parallel"),
    ("relative workdirs", "exec-relative-workdir"),
    ("output before a timeout is kept", "exec-timeout-output"),
    ("any session id", "ids-reserved"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_abilities_are_checks() {
        for (n, check) in CHECKS.iter().enumerate() {
            let name = |other: &&Check| other.name == check.name;
            assert_eq!(CHECKS.iter().position(|c| name(&c)), Some(n));
            assert!(!check.rule.ends_with('.'), "{}", check.name);
        }
        for (_, name) in ABILITIES {
            assert!(CHECKS.iter().any(|check| check.name == *name), "{name}");
        }
    }
}
