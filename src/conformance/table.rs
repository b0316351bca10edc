//! The checks. Where the protocol's text is silent, a rule is a SHOULD or a MAY, and says what clients
//! have come to expect.

use super::{Call, Check, Level, exec, files, sandboxes};

const EVERY: &[Call] = &[];
const TOUCH: &[Call] = &[Call::Touch];
const UPLOAD: &[Call] = &[Call::Upload];
const DOWNLOAD: &[Call] = &[Call::Download];
const BOTH_WAYS: &[Call] = &[Call::Upload, Call::Download];

/// `LEVEL "NAME" BACKENDS = CODE: "RULE";`, with `waits` before the `=` for what runs beside the others.
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
        "the answer of /healthz is text/plain";
    Should "unknown-route" EVERY = sandboxes::unknown_route:
        "a path that v1 does not have is not found";
    Must "create-answer" EVERY = sandboxes::create_answer:
        "PUT answers 200 with JSON in which podName and expiresAt are strings";
    Should "create-expiry" EVERY = sandboxes::create_expiry:
        "expiresAt is a time in ISO 8601 that says its zone, like 2026-01-02T12:34:56Z";
    Must "create-defaults" EVERY = sandboxes::create_defaults:
        "every field of the creation is optional: ttlSeconds defaults to 900";
    Must "create-idempotent" EVERY = sandboxes::create_idempotent:
        "PUT is idempotent: where the sandbox exists it is ensured, and keeps its name and its files";
    Should "create-repeats-ttl" EVERY waits = sandboxes::create_repeats_ttl:
        "PUT of a sandbox that exists starts its TTL again";
    Must "create-bad-ttl" EVERY = sandboxes::create_bad_ttl:
        "a TTL that can't be is answered with 400";
    Should "create-bad-json" EVERY = sandboxes::create_bad_json:
        "a body that is no JSON is answered with 400";
    Should "create-unknown-fields" EVERY = sandboxes::create_unknown_fields:
        "a field that the server does not know is no error: v1 may get new optional ones";
    Must "ids-apart" EVERY = sandboxes::ids_apart:
        "the backend keeps one sandbox per session id";
    Must "ids-reserved" EVERY = sandboxes::ids_reserved:
        "a session id is any string, percent-encoded as one segment of the path: two are never mixed up";
    Must "ttl-expires" EVERY waits = sandboxes::ttl_expires:
        "a sandbox whose TTL is over is cleaned up";
    Must "touch-ok" TOUCH = sandboxes::touch_ok:
        "POST touch answers 200, also where the request has neither a body nor a Content-Length";
    Must "touch-extends" TOUCH waits = sandboxes::touch_extends:
        "touch makes expiresAt now + TTL";
    Must "touch-unknown" TOUCH = sandboxes::touch_unknown:
        "touch of a sandbox that does not exist is answered with 404";
    Must "exec-answer" EVERY = exec::answer:
        "exec answers 200 with JSON: exitCode and durationMs are integers, stdout and stderr strings";
    Must "exec-exit-code" EVERY = exec::exit_code:
        "an exit code other than 0 is still 200, and exitCode says it";
    Must "exec-streams" EVERY = exec::streams:
        "stdout and stderr are apart";
    Must "exec-arguments" EVERY = exec::arguments:
        "cmd is an array of strings, and never a line for a shell";
    Must "exec-no-expansion" EVERY = exec::no_expansion:
        "$NAME in an argument is literal, unless the command itself is a shell";
    Should "exec-large-argument" EVERY = exec::large_argument:
        "an argument may be large: 100,000 bytes arrive whole";
    Must "exec-environment" EVERY = exec::environment:
        "the variables of env are set before the command starts";
    Must "exec-default-workdir" EVERY = exec::default_workdir:
        "workdir defaults to /workspace";
    Must "exec-workdir" EVERY = exec::workdir:
        "a command starts in its workdir";
    May "exec-relative-workdir" EVERY = exec::relative_workdir:
        "a relative workdir is relative to /workspace";
    Should "exec-stdin" EVERY = exec::stdin:
        "a command's standard input is empty, not one that never ends";
    Should "exec-not-utf8" EVERY = exec::not_utf8:
        "stdout is text: bytes that are not UTF-8 do not fail the call";
    Should "exec-long-output" EVERY = exec::long_output:
        "long output does not fail the call, and is not lost as a whole";
    Should "exec-output-cap" EVERY = exec::output_cap:
        "a stream is cut at about 1 MB";
    Should "exec-not-found" EVERY = exec::not_found:
        "a program that is not found is exit code 127";
    Should "exec-signal" EVERY = exec::signal:
        "a command that a signal ends has failed, and has not timed out";
    Should "exec-signal-code" EVERY = exec::signal_code:
        "a command that signal N ends has exit code 128 + N";
    Must "exec-empty-command" EVERY = exec::empty_command:
        "an empty command is answered with 400";
    Must "exec-bad-timeout" EVERY = exec::bad_timeout:
        "a timeout that can't be is answered with 400";
    Must "exec-unknown" EVERY = exec::unknown:
        "exec in a sandbox that does not exist is answered with 404";
    Must "exec-timeout" EVERY = exec::timeout:
        "timeoutSeconds ends the command, and an answer comes within 10 s";
    Should "exec-timeout-children" EVERY = exec::timeout_children:
        "timeoutSeconds ends the command with its children";
    Should "exec-timeout-code" EVERY = exec::timeout_code:
        "a command that ran out of time has exit code 124";
    Should "exec-timeout-output" EVERY = exec::timeout_output:
        "what a command wrote before its time was over is kept";
    Should "exec-concurrent" EVERY = exec::concurrent:
        "several execs in one sandbox at a time all succeed";
    Should "exec-parallel" EVERY = exec::parallel:
        "execs in one sandbox run at the same time";
    Should "background-child" EVERY = exec::background_child:
        "a background child lives on when its exec has ended";
    Should "background-holds" EVERY = exec::background_holds:
        "a background child that has the streams does not hold up the answer";
    May "jobs" EVERY = exec::jobs:
        "background processes and the image's programs are enough for jobs";
    Must "files-round-trip" BOTH_WAYS = files::round_trip:
        "files come back byte for byte";
    Must "files-large" BOTH_WAYS = files::large:
        "files of some megabytes come back whole";
    Must "files-names" BOTH_WAYS = files::odd_names:
        "names come back as they were: spaces, quotes, dashes, Unicode, long ones";
    Must "files-empty" BOTH_WAYS = files::empty:
        "files of no length come back";
    Should "files-empty-directories" BOTH_WAYS = files::empty_directories:
        "empty directories come back";
    Should "files-modes" BOTH_WAYS = files::modes:
        "modes are kept where possible";
    May "files-links" BOTH_WAYS = files::links:
        "symbolic links come back as links";
    Must "upload-dest" UPLOAD = files::upload_dest:
        "dest is created";
    Should "upload-replaces" UPLOAD = files::upload_replaces:
        "a file that is there already is replaced";
    Must "upload-bad-archive" UPLOAD = files::upload_bad_archive:
        "a bad archive is answered with 400";
    Should "upload-stays-inside" UPLOAD = files::upload_stays_inside:
        "an entry with `..` in its name writes nothing outside dest";
    Must "upload-unknown" UPLOAD = files::upload_unknown:
        "upload to a sandbox that does not exist is answered with 404";
    Must "download-relative" DOWNLOAD = files::download_relative:
        "names in the archive are relative to src";
    Must "download-gzip" DOWNLOAD = files::download_gzip:
        "the archive is a gzip-compressed tar";
    Should "download-type" DOWNLOAD = files::download_type:
        "the archive is application/x-tar";
    May "download-file" DOWNLOAD = files::download_file:
        "src may be a single file: the archive holds it alone";
    Must "download-missing" DOWNLOAD = files::download_missing:
        "a src that does not exist is answered with 404";
    Must "download-unknown" DOWNLOAD = files::download_unknown:
        "download from a sandbox that does not exist is answered with 404";
    Must "delete-answer" EVERY = sandboxes::delete_answer:
        "DELETE answers 204 or 200";
    Must "delete-gone" EVERY = sandboxes::delete_gone:
        "after DELETE the sandbox is gone";
    Must "delete-releases" EVERY = sandboxes::delete_releases:
        "DELETE releases what the sandbox had: a new one of that id begins empty";
    Must "delete-ends-processes" EVERY = sandboxes::delete_ends_processes:
        "DELETE releases resources at once: background processes end";
    Must "delete-twice" EVERY = sandboxes::delete_twice:
        "DELETE of a sandbox that does not exist is 404, or a success";
    Should "error-json" EVERY = sandboxes::error_json:
        "errors of the JSON endpoints are JSON with a string `error`";
};

/// What a backend can do, by the check that shows it.
pub(super) static ABILITIES: &[(&str, &str)] = &[
    (
        "touch: leases and jobs that are followed outlive the TTL",
        "touch-extends",
    ),
    ("upload", "upload-dest"),
    ("download", "download-relative"),
    ("single files can be downloaded", "download-file"),
    ("modes are kept", "files-modes"),
    ("symbolic links are kept", "files-links"),
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
