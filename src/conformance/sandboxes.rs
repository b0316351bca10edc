//! Checks of health, create, touch, delete, session ids and errors.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::probe::Probe;
use super::verdict::{NotPassed, Verdict, all, expect};
use crate::http::Endpoint;
use crate::os::time;

/// Maximum time by which a sandbox may outlive its TTL.
const EXPIRY_GRACE: Duration = Duration::from_secs(40);

pub(super) fn health_ok(probe: &Probe) -> Verdict {
    let answer = probe.send("GET", Endpoint::Health, None)?;
    let says_ok = String::from_utf8_lossy(&answer.body).contains("OK");
    expect(answer.status == 200 && says_ok, answer.summary())
}

pub(super) fn health_text(probe: &Probe) -> Verdict {
    let answer = probe.send("GET", Endpoint::Health, None)?;
    let content_type = answer.content_type.unwrap_or_default();
    expect(
        content_type.starts_with("text/plain"),
        format!("Content-Type: {content_type}"),
    )
}

pub(super) fn unknown_route(probe: &Probe) -> Verdict {
    let answer = probe.send("GET", Endpoint::Unknown, None)?;
    expect(matches!(answer.status, 404 | 405), answer.summary())
}

/// Creates a sandbox and returns the JSON of the response.
fn create(probe: &Probe, id: &str, body: &Value) -> Result<Value, NotPassed> {
    let answer = probe.send_create(id, body.to_string().as_bytes())?;
    let seen = answer.summary();
    let value = serde_json::from_slice(&answer.body).ok();
    value
        .filter(|_| answer.status == 200)
        .ok_or(NotPassed::Failed(seen))
}

pub(super) fn create_answer(probe: &Probe) -> Verdict {
    let body = json!({"ttlSeconds": 120, "image": "python:3.12", "cpuLimit": "1",
        "memoryLimit": "256Mi", "ephemeralStorageLimit": "64Mi"});
    let answer = create(probe, &probe.id("answer"), &body)?;
    let are_texts = answer["podName"].is_string() && answer["expiresAt"].is_string();
    expect(are_texts, answer.to_string())
}

/// Creates a sandbox and returns when it expires, if that can be parsed.
fn expiry(probe: &Probe, name: &str, body: &Value) -> Result<Option<SystemTime>, NotPassed> {
    let answer = create(probe, &probe.id(name), body)?;
    Ok(time::parse(
        answer["expiresAt"].as_str().unwrap_or_default(),
    ))
}

pub(super) fn create_expiry(probe: &Probe) -> Verdict {
    let answer = create(probe, &probe.id("expiry"), &json!({"ttlSeconds": 120}))?;
    let text = answer["expiresAt"].as_str().unwrap_or_default();
    // One server sends `+00:00Z`, which is not ISO 8601.
    let is_valid = time::parse(text).is_some() && !text.ends_with("+00:00Z");
    expect(is_valid, format!("expiresAt {text:?}"))
}

pub(super) fn create_defaults(probe: &Probe) -> Verdict {
    let by_default = expiry(probe, "defaults", &json!({}))?;
    let in_a_minute = expiry(probe, "a-minute", &json!({"ttlSeconds": 60}))?;
    // Compares two times of the server, whose clock may differ from ours.
    let (Some(by_default), Some(in_a_minute)) = (by_default, in_a_minute) else {
        return Ok("created; expiresAt cannot be parsed".to_owned());
    };
    let longer = by_default
        .duration_since(in_a_minute)
        .unwrap_or_default()
        .as_secs();
    let seen = format!("the TTL defaults to about {} s", longer + 60);
    expect((780..=900).contains(&longer), seen)
}

pub(super) fn create_unknown_fields(probe: &Probe) -> Verdict {
    let body = json!({"ttlSeconds": 120, "aFieldOfTomorrow": {"x": [1]}});
    create(probe, &probe.id("unknown-fields"), &body).map(|answer| answer.to_string())
}

pub(super) fn create_idempotent(probe: &Probe) -> Verdict {
    let id = probe.create_sandbox("idempotent")?;
    mark(probe, &id)?;
    let first = create(probe, &id, &json!({"ttlSeconds": 120}))?;
    let again = create(probe, &id, &json!({"ttlSeconds": 120}))?;
    let kept = is_marked(probe, &id)?;
    let names = format!("podName {} and {}", first["podName"], again["podName"]);
    expect(
        kept && first["podName"] == again["podName"],
        format!("{names}, the files are kept: {kept}"),
    )
}

pub(super) fn create_bad_ttl(probe: &Probe) -> Verdict {
    let answer = probe.send_create(&probe.id("bad-ttl"), br#"{"ttlSeconds": -1}"#)?;
    expect(answer.status == 400, answer.summary())
}

pub(super) fn create_bad_json(probe: &Probe) -> Verdict {
    let answer = probe.send_create(&probe.id("bad-json"), b"{\"ttlSeconds\": ")?;
    expect(answer.status == 400, answer.summary())
}

pub(super) fn ids_apart(probe: &Probe) -> Verdict {
    let (one, other) = (
        probe.create_sandbox("apart-1")?,
        probe.create_sandbox("apart-2")?,
    );
    mark(probe, &one)?;
    let seen = is_marked(probe, &other)?;
    expect(
        !seen,
        format!("a file of one is visible in the other: {seen}"),
    )
}

pub(super) fn ids_reserved(probe: &Probe) -> Verdict {
    let plain = probe.create_sandbox("odd")?;
    mark(probe, &plain)?;
    let mut verdicts = Vec::new();
    for odd in ["/b", "?b=c", "#b", " b", "%2Fb", "+ü€"] {
        let id = probe.id(&format!("odd{odd}"));
        let made = probe.send_create(&id, br#"{"ttlSeconds": 600}"#)?;
        if made.status == 400 {
            let text = format!("the server refuses {odd:?} in an id: {}", made.summary());
            return Err(NotPassed::Skipped(text));
        }
        expect(made.status == 200, format!("{odd:?}: {}", made.summary()))?;
        probe.wait_until_ready(&id);
        let apart = !is_marked(probe, &id)?;
        mark(probe, &id)?;
        let deleted = probe.send("DELETE", Endpoint::Sandbox(&id), None)?.status;
        let kept = is_marked(probe, &plain)?;
        verdicts.push(expect(
            apart && kept && matches!(deleted, 200 | 204),
            format!("{odd:?}: a separate sandbox: {}", apart && kept),
        ));
    }
    all(verdicts)
}

/// Creates a file that identifies the sandbox.
fn mark(probe: &Probe, id: &str) -> Result<(), NotPassed> {
    probe.set_up(id, ": >marked").map(drop)
}

fn is_marked(probe: &Probe, id: &str) -> Result<bool, NotPassed> {
    let ran = probe.set_up(id, "if [ -e marked ]; then echo yes; else echo no; fi")?;
    match ran.stdout.trim() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(NotPassed::Failed(ran.summary())),
    }
}

/// Returns true if a marked sandbox still exists. Some backends create it again, without the mark.
fn exists(probe: &Probe, id: &str) -> Result<bool, NotPassed> {
    match probe.exec(id, &json!({"cmd": ["true"]}))?.status {
        200 => is_marked(probe, id),
        _ => Ok(false),
    }
}

/// Creates a marked sandbox with a short TTL, and returns when it was created.
fn create_short_lived(probe: &Probe, name: &str, ttl: u64) -> Result<(String, Instant), NotPassed> {
    let id = probe.id(name);
    probe.create(&id, ttl)?;
    let made = Instant::now();
    probe.wait_until_ready(&id);
    if made.elapsed() > Duration::from_secs(ttl) / 2 {
        let text = format!(
            "a sandbox takes {:.1} s to become ready",
            made.elapsed().as_secs_f64()
        );
        return Err(NotPassed::Skipped(text));
    }
    mark(probe, &id)?;
    Ok((id, made))
}

pub(super) fn ttl_expires(probe: &Probe) -> Verdict {
    let ttl = probe.short_ttl()?;
    let (id, made) = create_short_lived(probe, "expires", ttl)?;
    let ttl_over = Duration::from_secs(ttl);
    while made.elapsed() < ttl_over + EXPIRY_GRACE {
        probe.sleep((ttl_over + Duration::from_secs(1)).saturating_sub(made.elapsed()));
        if !exists(probe, &id)? {
            let seconds = made.elapsed().as_secs_f64();
            return Ok(format!(
                "expired {seconds:.1} s after its creation with a TTL of {ttl} s"
            ));
        }
        probe.sleep(Duration::from_secs(2));
    }
    let seconds = EXPIRY_GRACE.as_secs();
    expect(
        false,
        format!("still exists {seconds} s after its TTL expired"),
    )
}

/// Checks that a call renews the TTL. A slow server gets a longer one.
fn check_renewal(
    probe: &Probe,
    name: &str,
    renew: impl Fn(&str, u64) -> Result<u16, NotPassed>,
) -> Verdict {
    let ttl = probe.short_ttl()?;
    if let Some(seen) = renew_in_time(probe, name, ttl, &renew)? {
        return Ok(seen);
    }
    let seen = renew_in_time(probe, &format!("{name}-slow"), 4 * ttl, &renew)?;
    seen.ok_or_else(|| NotPassed::Skipped("the server is too slow for this check".to_owned()))
}

/// Creates two sandboxes with the same TTL and renews one of them after two thirds of it. Passes if only
/// that one still exists later. Returns `None` if the server is too slow.
fn renew_in_time(
    probe: &Probe,
    name: &str,
    ttl: u64,
    renew: &impl Fn(&str, u64) -> Result<u16, NotPassed>,
) -> Result<Option<String>, NotPassed> {
    let (other, _) = create_short_lived(probe, &format!("{name}-not"), ttl)?;
    let (id, made) = create_short_lived(probe, name, ttl)?;
    let after = |part: u32| (Duration::from_secs(ttl) * part / 12).saturating_sub(made.elapsed());
    probe.sleep(after(8));
    let answered = renew(&id, ttl)?;
    if after(11).is_zero() {
        return Ok(None);
    }
    probe.sleep(after(16));
    let still_exists = exists(probe, &id)?;
    if !still_exists && after(19).is_zero() {
        return Ok(None);
    }
    if still_exists && exists(probe, &other)? {
        let text = "a sandbox that was not renewed still exists as well, so the check says nothing";
        return Err(NotPassed::Skipped(text.to_owned()));
    }
    let seen = format!("answered {answered}; still exists after 4/3 of its TTL: {still_exists}");
    expect(still_exists, seen).map(Some)
}

pub(super) fn create_repeats_ttl(probe: &Probe) -> Verdict {
    check_renewal(probe, "repeats-ttl", |id, ttl| {
        Ok(probe.create(id, ttl)?.status)
    })
}

pub(super) fn touch_extends(probe: &Probe) -> Verdict {
    check_renewal(probe, "extends", |id, _| Ok(probe.touch(id)?.status))
}

pub(super) fn touch_ok(probe: &Probe) -> Verdict {
    let answer = probe.send("POST", Endpoint::Call(probe.shared()?, "touch"), None)?;
    expect(answer.status == 200, answer.summary())
}

pub(super) fn touch_unknown(probe: &Probe) -> Verdict {
    let answer = probe.touch(&probe.unknown_id())?;
    expect(answer.status == 404, answer.summary())
}

pub(super) fn delete_answer(probe: &Probe) -> Verdict {
    let id = probe.create_sandbox("answer-to-delete")?;
    let answer = probe.send("DELETE", Endpoint::Sandbox(&id), None)?;
    expect(matches!(answer.status, 200 | 204), answer.summary())
}

pub(super) fn delete_gone(probe: &Probe) -> Verdict {
    let id = probe.create_sandbox("gone")?;
    mark(probe, &id)?;
    probe.send("DELETE", Endpoint::Sandbox(&id), None)?;
    let still_exists = exists(probe, &id)?;
    expect(
        !still_exists,
        format!("still exists with its files: {still_exists}"),
    )
}

pub(super) fn delete_releases(probe: &Probe) -> Verdict {
    let id = probe.create_sandbox("releases")?;
    mark(probe, &id)?;
    probe.send("DELETE", Endpoint::Sandbox(&id), None)?;
    let id = probe.create_sandbox("releases")?;
    let marked = is_marked(probe, &id)?;
    expect(
        !marked,
        format!("a new sandbox with the same id has the old files: {marked}"),
    )
}

pub(super) fn delete_ends_processes(probe: &Probe) -> Verdict {
    let id = probe.create_sandbox("processes")?;
    let number = probe.number().to_string();
    // Ends by itself if the server does not end it.
    let start = format!("sh -c 'sleep 60; : nx-{number}' </dev/null >/dev/null 2>&1 &");
    probe.set_up(&id, &start)?;
    // The brackets keep grep from finding itself.
    let (first, rest) = number.split_at(1);
    let look = format!(
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'nx-[{first}]{rest}'"
    );
    let is_visible = || Ok::<_, NotPassed>(!matches!(probe.sh(&look)?.stdout.trim(), "0" | ""));
    if !is_visible()? {
        let text = "processes of one sandbox are not visible in another, so the check says nothing";
        return Err(NotPassed::Skipped(text.to_owned()));
    }
    probe.send("DELETE", Endpoint::Sandbox(&id), None)?;
    probe.sleep(Duration::from_secs(1));
    let remains = is_visible()?;
    expect(
        !remains,
        format!("a background process is still running: {remains}"),
    )
}

pub(super) fn delete_twice(probe: &Probe) -> Verdict {
    let id = probe.create_sandbox("twice")?;
    probe.send("DELETE", Endpoint::Sandbox(&id), None)?;
    let answer = probe.send("DELETE", Endpoint::Sandbox(&id), None)?;
    expect(matches!(answer.status, 200 | 204 | 404), answer.summary())
}

pub(super) fn error_json(probe: &Probe) -> Verdict {
    let empty = probe.exec(probe.shared()?, &json!({"cmd": []}))?;
    let value: Option<Value> = serde_json::from_slice(&empty.body).ok();
    let has_error = value.is_some_and(|value| value["error"].is_string());
    expect(has_error && empty.status >= 400, empty.summary())
}
