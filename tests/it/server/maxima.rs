//! The operator's maxima.

use super::*;

fn limited() -> (RunningServer, tempfile::TempDir) {
    let (builder, dir) = local();
    let builder = builder.tcp("127.0.0.1:0").max_ttl(Duration::from_secs(600));
    let builder = builder.max_memory("1Gi").max_storage("2Gi").max_cpu("2");
    (RunningServer::start(builder.max_sandboxes(2)), dir)
}

#[test]
fn requests_beyond_a_maximum_get_400() {
    let (server, _dir) = limited();
    for (body, says) in [
        (r#"{"ttlSeconds": 601}"#, "maximum of 600 s"),
        (r#"{"ttlSeconds": 31536000}"#, "maximum of 600 s"),
        (r#"{"memoryLimit": "900Gi"}"#, "maximum of 1Gi"),
        (r#"{"memoryLimit": "1073741825"}"#, "maximum of 1Gi"),
        (r#"{"ephemeralStorageLimit": "7Ei"}"#, "maximum of 2Gi"),
        (r#"{"cpuLimit": "2001m"}"#, "maximum of 2"),
        (r#"{"cpuLimit": "-1"}"#, "cpu limit"),
    ] {
        let response = server.request("PUT", "/v1/sandboxes/a", JSON, body);
        assert_eq!(response.status, 400, "{body}: {}", response.body);
        assert!(response.body.contains(says), "{body}: {}", response.body);
    }
    let spec = || SandboxSpec::new().ttl(Duration::from_secs(600));
    let error = server
        .client()
        .create("a", spec().memory("1100Mi"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let spec = spec().memory("1Gi").storage("2Gi").cpu("2");
    server.client().create("a", spec).unwrap();
}

#[test]
fn default_ttl_is_capped() {
    let (server, _dir) = limited();
    let created = server.request("PUT", "/v1/sandboxes/a", JSON, "{}");
    let created: Value = serde_json::from_str(&created.body).unwrap();
    let info = SandboxInfo::new("", created["expiresAt"].as_str().unwrap());
    let left = info
        .expires_at_time()
        .unwrap()
        .duration_since(std::time::SystemTime::now());
    assert!(left.unwrap() <= Duration::from_secs(601));
}

#[test]
fn sandboxes_beyond_the_maximum_get_429() {
    let (server, _dir) = limited();
    let put = |id: &str| server.request("PUT", &format!("/v1/sandboxes/{id}"), JSON, "{}");
    assert_eq!((put("a").status, put("b").status), (200, 200));
    let refused = put("c");
    assert_eq!(refused.status, 429);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    assert!(
        refused.body.contains("maximum of 2 sandboxes"),
        "{}",
        refused.body
    );
    assert_eq!(put("a").status, 200, "one that exists is renewed");
    server.request("DELETE", "/v1/sandboxes/b", "", "");
    assert_eq!(put("c").status, 200);
    // Creations that fail do not count.
    let (builder, _) = fake_server();
    let server = RunningServer::start(builder.max_sandboxes(1));
    for _ in 0..3 {
        let panics = server.request("PUT", "/v1/sandboxes/panic", JSON, "{}");
        assert_eq!(panics.status, 500);
    }
}
