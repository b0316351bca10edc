//! Servers that limit the number of requests per second.

use super::*;
use crate::support::rate_limit::RateLimit;
use crate::support::{local_client, long_tests_or_skip, v1_server};

/// A server that accepts every call within the limit.
fn limited(limit: &Arc<RateLimit>) -> Scripted {
    let limit = Arc::clone(limit);
    Scripted::each_request(move |_, conn| {
        let retry_after = limit.retry_after.map(|value| ("Retry-After", value));
        match limit.admits() {
            true => conn.respond(200, EXEC_OK),
            false => conn.respond_with(429, retry_after.as_slice(), "rate limited"),
        }
    })
}

/// Touches from many threads, and returns the errors.
fn touch_from(threads: usize, touches: usize, sandbox: &Sandbox) -> Vec<Error> {
    let errors = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let results = (0..touches).map(|_| sandbox.touch());
                errors
                    .lock()
                    .unwrap()
                    .extend(results.filter_map(Result::err));
            });
        }
    });
    errors.into_inner().unwrap()
}

#[test]
fn many_threads_outlast_a_rate_limit() {
    for retry_after in [None, Some("1")] {
        let mut limit = RateLimit::new(20, 4);
        limit.retry_after = retry_after;
        let limit = Arc::new(limit);
        let server = limited(&limit);
        let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(60)));
        let errors = touch_from(12, 3, &sandbox);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(limit.counts().0, 36);
    }
}

#[test]
fn sixty_four_threads_outlast_ten_requests_per_second() {
    if !long_tests_or_skip("64 threads against 10 requests per second, 70 s") {
        return;
    }
    for retry_after in [None, Some("1")] {
        let mut limit = RateLimit::new(10, 20);
        limit.retry_after = retry_after;
        let limit = Arc::new(limit);
        let server = limited(&limit);
        let sandbox = sandbox(builder(&server).timeout(Duration::from_secs(60)));
        let started = Instant::now();
        let errors = touch_from(64, 5, &sandbox);
        let (counts, took) = (limit.counts(), started.elapsed());
        println!(
            "{retry_after:?}: {} failed, {counts:?}, {took:.1?}",
            errors.len()
        );
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn waits_for_a_rate_limit_have_a_budget_of_their_own() {
    let refusing = |count: usize| {
        let seen = AtomicUsize::new(0);
        Scripted::each_request(
            move |_, conn| match seen.fetch_add(1, Ordering::SeqCst) < count {
                true => conn.respond_with(503, &[("Retry-After", "2")], "busy"),
                false => conn.respond(200, EXEC_OK),
            },
        )
    };
    // Longer than the timeout of the call, and more often than it may be attempted.
    let server = refusing(3);
    let retry = Retry::attempts(1).wait_for(Duration::from_secs(60));
    let patient = sandbox(
        builder(&server)
            .timeout(Duration::from_secs(5))
            .retry(retry),
    );
    let started = Instant::now();
    patient.touch().unwrap();
    assert!(started.elapsed() > Duration::from_secs(6));
    assert_eq!(server.requests().len(), 4);

    let server = refusing(1);
    let exec = Command::new("true").timeout(Duration::from_millis(1));
    let sandbox = sandbox(builder(&server).retry(retry));
    sandbox.run(exec).unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn time_in_errors_excludes_waits() {
    let seen = AtomicUsize::new(0);
    let server = Scripted::each_request(move |_, conn| match seen.fetch_add(1, Ordering::SeqCst) {
        0 => conn.respond_with(429, &[("Retry-After", "6")], "slow down"),
        _ => conn.stay_silent(),
    });
    let builder = builder(&server)
        .timeout(SHORT)
        .retry(Retry::attempts(1).wait_for(SOON));
    let error = fails_soon(|| sandbox(builder).touch()).to_string();
    let (_, seconds) = error.split_once("timed out after ").unwrap();
    let (seconds, _) = seconds.split_once(" s").unwrap();
    assert!(seconds.parse::<f64>().unwrap() < 6.0, "{error}");
}

#[test]
fn waits_end_with_their_budget() {
    let server = Scripted::always(429, "rate limited");
    let retry = Retry::default().wait_for(Duration::from_millis(300));
    let error = fails_soon(|| sandbox(builder(&server).retry(retry)).exec(["true"]));
    assert_eq!(error.status(), Some(429), "{error}");
    assert!(server.requests().len() > 1);
}

#[test]
fn date_in_retry_after_is_relative_to_the_server() {
    let server = Scripted::each_request(|_, conn| {
        let headers = [
            ("Date", "Fri, 02 Jan 2099 12:34:56 GMT"),
            ("Retry-After", "Fri, 02 Jan 2099 12:35:56 GMT"),
        ];
        conn.respond_with(429, &headers, "");
    });
    let error = fails_soon(|| sandbox(builder(&server)).touch());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
}

#[test]
fn polls_of_a_job_adapt_to_a_rate_limit() {
    let limit = Arc::new(RateLimit::new(4, 4));
    let (client, _dir) = local_client();
    let server = v1_server::serve_limited(Arc::clone(client.backend()), Arc::clone(&limit));
    let client = Client::new(server.url()).unwrap();
    let sandbox = client.create("s", noxrunner::SandboxSpec::new()).unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.4; done";
    let job = sandbox.spawn(["sh", "-c", script]).unwrap();
    let mut text = String::new();
    job.stdout().read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 10);
    let (admitted, refused) = limit.counts();
    assert!(refused < admitted, "{refused} refused, {admitted} admitted");
}

#[test]
fn readiness_waits_as_long_as_the_server_asks() {
    let seen = AtomicUsize::new(0);
    let server = Scripted::each_request(move |_, conn| match seen.fetch_add(1, Ordering::SeqCst) {
        0 => conn.respond_with(429, &[("Retry-After", "2")], "rate limited"),
        _ => conn.respond(200, r#"{"exitCode":0,"stdout":"ready\n"}"#),
    });
    let started = Instant::now();
    let sandbox = sandbox(builder(&server));
    sandbox
        .wait_until_ready(Duration::from_secs(60), None)
        .unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(server.requests().len(), 2);
}
