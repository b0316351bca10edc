//! Calls that cannot work on other people's servers fail with the right kind, and the error says what to do.

use std::time::Duration;

use noxrunner::{Client, Command, ErrorKind, Sandbox, SandboxSpec};

use crate::backends::quirky;
use crate::support::ErrorText as _;
use crate::support::quirky_server::Quirks;

/// Calls `check` with a sandbox of a server that has these deviations.
fn sandbox_of(quirks: Quirks, check: impl Fn(&Sandbox)) {
    quirky(quirks, |client: &Client| {
        check(&client.create("s", SandboxSpec::new()).unwrap());
    });
}

#[test]
fn timeout_over_the_maximum_suggests_a_job() {
    sandbox_of(Quirks::control_plane(), |sandbox| {
        let long = Command::new("true").timeout(Duration::from_secs(301));
        let error = sandbox.exec(long).unwrap_err();
        assert_eq!(
            (error.kind(), error.status()),
            (ErrorKind::Timeout, Some(504))
        );
        assert_eq!(
            (error.code(), error.request_id()),
            (Some("EXEC_TIMEOUT"), Some("req-1"))
        );
        assert!(error.chain().contains("job"), "{error:#}");
    });
}

#[cfg(feature = "server")]
#[test]
fn gateway_passes_codes_and_request_ids_on() {
    crate::backends::quirky_backend(Quirks::control_plane(), |backend| {
        let gateway = noxrunner::server::Server::builder(backend).tcp("127.0.0.1:0");
        let gateway = crate::server::RunningServer::start(gateway);
        let sandbox = gateway.client().create("s", SandboxSpec::new()).unwrap();
        let long = Command::new("true").timeout(Duration::from_secs(301));
        let error = sandbox.exec(long).unwrap_err();
        let seen = (error.kind(), error.code(), error.request_id());
        let expected = (ErrorKind::Timeout, Some("EXEC_TIMEOUT"), Some("req-1"));
        assert_eq!(seen, expected, "{error:#}");
        let refused = sandbox.exec(Command::new("true").workdir("/tmp"));
        assert_eq!(refused.unwrap_err().code(), Some("VALIDATION_FAILED"));
    });
}

#[test]
fn exec_that_is_cut_off_suggests_a_job() {
    let quirks = Quirks {
        write_timeout: Some(Duration::from_secs(6)),
        ..Quirks::control_plane()
    };
    sandbox_of(quirks, |sandbox| {
        let error = sandbox.exec(Command::shell("sleep 7")).unwrap_err();
        assert!(error.is_outcome_unknown(), "{error:#}");
        assert!(error.chain().contains("job"), "{error:#}");
        // A job needs only short calls.
        let job = sandbox.spawn(Command::shell("sleep 1; echo done")).unwrap();
        assert_eq!(job.wait_with_output().unwrap().stdout(), "done\n");
    });
}

#[test]
fn refused_arguments_are_invalid_input() {
    sandbox_of(Quirks::control_plane(), |sandbox| {
        for error in [
            sandbox
                .exec(Command::new("true").env("lower", "x"))
                .unwrap_err(),
            sandbox
                .exec(Command::new("true").workdir("/tmp"))
                .unwrap_err(),
            sandbox.upload([("f", "x")], "/tmp").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:#}");
            assert_eq!(error.code(), Some("VALIDATION_FAILED"), "{error:#}");
        }
    });
}

#[test]
fn missing_key_names_both_ways_to_set_it() {
    let keyless = Quirks {
        service_key: None,
        ..Quirks::control_plane()
    };
    sandbox_of(keyless, |sandbox| assert!(sandbox.touch().is_ok()));
    let (backend, _dir) = crate::support::local_backend(noxrunner::Isolation::None);
    let server = crate::support::quirky_server::serve(backend, Quirks::control_plane());
    let error = Client::new(server.url())
        .unwrap()
        .sandbox("s")
        .unwrap()
        .touch();
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let text = error.chain();
    assert!(
        text.contains("token()") && text.contains("header()"),
        "{text}"
    );
    for header in [
        ("X-Service-Key", "key of the service"),
        ("Authorization", "ServiceKey key of the service"),
    ] {
        let client = Client::builder(server.url()).header(header.0, header.1);
        assert!(
            client
                .build()
                .unwrap()
                .create("s", SandboxSpec::new())
                .is_ok()
        );
    }
}

#[test]
fn large_upload_is_refused() {
    let quirks = Quirks {
        max_upload: Some(100_000),
        ..Quirks::control_plane()
    };
    sandbox_of(quirks, |sandbox| {
        let noise: Vec<u8> = (0..50_000_u32)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
            .collect();
        let error = sandbox.write("f", noise).unwrap_err();
        assert_eq!(error.status(), Some(413), "{error:#}");
    });
}
