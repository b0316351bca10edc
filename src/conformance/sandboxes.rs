//! Health, creation, touch, deletion, ids and errors.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::probe::{Miss, Probe, Verdict, all, want};
use crate::http::Endpoint;
use crate::os::time;

/// How long after its end a sandbox may still be there.
const EXPIRED_WITHIN: Duration = Duration::from_secs(40);

pub(super) fn health_ok(probe: &Probe) -> Verdict {
    let answer = probe.ask("GET", Endpoint::Health, None)?;
    let says_ok = String::from_utf8_lossy(&answer.body).contains("OK");
    want(answer.status == 200 && says_ok, answer.seen())
}

pub(super) fn health_text(probe: &Probe) -> Verdict {
    let answer = probe.ask("GET", Endpoint::Health, None)?;
    let content_type = answer.content_type.unwrap_or_default();
    want(
        content_type.starts_with("text/plain"),
        format!("Content-Type: {content_type}"),
    )
}

pub(super) fn unknown_route(probe: &Probe) -> Verdict {
    let answer = probe.ask("GET", Endpoint::Unknown, None)?;
    want(matches!(answer.status, 404 | 405), answer.seen())
}

fn created(probe: &Probe, id: &str, body: &Value) -> Result<Value, Miss> {
    let answer = probe.put(id, body.to_string().as_bytes())?;
    let seen = answer.seen();
    let value = serde_json::from_slice(&answer.body).ok();
    value
        .filter(|_| answer.status == 200)
        .ok_or(Miss::Failed(seen))
}

pub(super) fn create_answer(probe: &Probe) -> Verdict {
    let body = json!({"ttlSeconds": 120, "image": "python:3.12", "cpuLimit": "1",
        "memoryLimit": "256Mi", "ephemeralStorageLimit": "64Mi"});
    let answer = created(probe, &probe.id("answer"), &body)?;
    let are_texts = answer["podName"].is_string() && answer["expiresAt"].is_string();
    want(are_texts, answer.to_string())
}

/// When a sandbox expires that is made now, if that can be read.
fn expiry(probe: &Probe, name: &str, body: &Value) -> Result<Option<SystemTime>, Miss> {
    let answer = created(probe, &probe.id(name), body)?;
    Ok(time::parse(
        answer["expiresAt"].as_str().unwrap_or_default(),
    ))
}

pub(super) fn create_expiry(probe: &Probe) -> Verdict {
    let answer = created(probe, &probe.id("expiry"), &json!({"ttlSeconds": 120}))?;
    let text = answer["expiresAt"].as_str().unwrap_or_default();
    // What one server sends, and no clock reads.
    let right = time::parse(text).is_some() && !text.ends_with("+00:00Z");
    want(right, format!("expiresAt {text:?}"))
}

pub(super) fn create_defaults(probe: &Probe) -> Verdict {
    let by_default = expiry(probe, "defaults", &json!({}))?;
    let in_a_minute = expiry(probe, "a-minute", &json!({"ttlSeconds": 60}))?;
    // By the server's clock, whatever that is.
    let (Some(by_default), Some(in_a_minute)) = (by_default, in_a_minute) else {
        return Ok("it is made; its expiresAt can't be read".to_owned());
    };
    let longer = by_default
        .duration_since(in_a_minute)
        .unwrap_or_default()
        .as_secs();
    let seen = format!("without a TTL it lives for about {} s", longer + 60);
    want((780..=900).contains(&longer), seen)
}

pub(super) fn create_unknown_fields(probe: &Probe) -> Verdict {
    let body = json!({"ttlSeconds": 120, "aFieldOfTomorrow": {"x": [1]}});
    created(probe, &probe.id("unknown-fields"), &body).map(|answer| answer.to_string())
}

pub(super) fn create_idempotent(probe: &Probe) -> Verdict {
    let id = probe.fresh("idempotent")?;
    mark(probe, &id)?;
    let first = created(probe, &id, &json!({"ttlSeconds": 120}))?;
    let again = created(probe, &id, &json!({"ttlSeconds": 120}))?;
    let kept = is_marked(probe, &id)?;
    let names = format!("podName {} and {}", first["podName"], again["podName"]);
    want(
        kept && first["podName"] == again["podName"],
        format!("{names}, the files stay: {kept}"),
    )
}

pub(super) fn create_bad_ttl(probe: &Probe) -> Verdict {
    let answer = probe.put(&probe.id("bad-ttl"), br#"{"ttlSeconds": -1}"#)?;
    want(answer.status == 400, answer.seen())
}

pub(super) fn create_bad_json(probe: &Probe) -> Verdict {
    let answer = probe.put(&probe.id("bad-json"), b"{\"ttlSeconds\": ")?;
    want(answer.status == 400, answer.seen())
}

pub(super) fn ids_apart(probe: &Probe) -> Verdict {
    let (one, other) = (probe.fresh("apart-1")?, probe.fresh("apart-2")?);
    mark(probe, &one)?;
    let seen = is_marked(probe, &other)?;
    want(!seen, format!("a file of one is seen in the other: {seen}"))
}

pub(super) fn ids_reserved(probe: &Probe) -> Verdict {
    let plain = probe.fresh("odd")?;
    mark(probe, &plain)?;
    let mut verdicts = Vec::new();
    for odd in ["/b", "?b=c", "#b", " b", "%2Fb", "+ü€"] {
        let id = probe.id(&format!("odd{odd}"));
        let made = probe.put(&id, br#"{"ttlSeconds": 600}"#)?;
        if made.status == 400 {
            let text = format!("{odd:?} in an id is refused: {}", made.seen());
            return Err(Miss::Skipped(text));
        }
        want(made.status == 200, format!("{odd:?}: {}", made.seen()))?;
        probe.wait_until_ready(&id);
        let apart = !is_marked(probe, &id)?;
        mark(probe, &id)?;
        let deleted = probe.ask("DELETE", Endpoint::Sandbox(&id), None)?.status;
        let kept = is_marked(probe, &plain)?;
        verdicts.push(want(
            apart && kept && matches!(deleted, 200 | 204),
            format!("{odd:?}: a sandbox of its own: {}", apart && kept),
        ));
    }
    all(verdicts)
}

/// A file of which nothing is known but that it is there.
fn mark(probe: &Probe, id: &str) -> Result<(), Miss> {
    probe.set_up(id, ": >marked").map(drop)
}

fn is_marked(probe: &Probe, id: &str) -> Result<bool, Miss> {
    let ran = probe.set_up(id, "if [ -e marked ]; then echo yes; else echo no; fi")?;
    match ran.stdout.trim() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(Miss::Failed(ran.seen())),
    }
}

/// Whether a sandbox that was marked is still there. Some backends make it anew, and empty.
fn lives(probe: &Probe, id: &str) -> Result<bool, Miss> {
    match probe.exec(id, &json!({"cmd": ["true"]}))?.status {
        200 => is_marked(probe, id),
        _ => Ok(false),
    }
}

/// A marked sandbox whose time is soon over, and when it was made.
fn short_lived(probe: &Probe, name: &str, ttl: u64) -> Result<(String, Instant), Miss> {
    let id = probe.id(name);
    probe.create(&id, ttl)?;
    let made = Instant::now();
    probe.wait_until_ready(&id);
    if made.elapsed() > Duration::from_secs(ttl) / 2 {
        let text = format!(
            "a sandbox takes {:.1} s to be ready",
            made.elapsed().as_secs_f64()
        );
        return Err(Miss::Skipped(text));
    }
    mark(probe, &id)?;
    Ok((id, made))
}

pub(super) fn ttl_expires(probe: &Probe) -> Verdict {
    let ttl = probe.short_ttl()?;
    let (id, made) = short_lived(probe, "expires", ttl)?;
    let over = Duration::from_secs(ttl);
    while made.elapsed() < over + EXPIRED_WITHIN {
        probe.sleep((over + Duration::from_secs(1)).saturating_sub(made.elapsed()));
        if !lives(probe, &id)? {
            let seconds = made.elapsed().as_secs_f64();
            return Ok(format!(
                "gone {seconds:.1} s after its creation, of a TTL of {ttl} s"
            ));
        }
        probe.sleep(Duration::from_secs(2));
    }
    let seconds = EXPIRED_WITHIN.as_secs();
    want(
        false,
        format!("{seconds} s after the end of its TTL it is still there"),
    )
}

/// Two sandboxes of the same short life, one of which is renewed after two thirds of it.
fn renewed(probe: &Probe, name: &str, renew: impl Fn(&str, u64) -> Result<u16, Miss>) -> Verdict {
    let ttl = probe.short_ttl()?;
    let (other, _) = short_lived(probe, &format!("{name}-not"), ttl)?;
    let (id, made) = short_lived(probe, name, ttl)?;
    let after = |part: u32| (Duration::from_secs(ttl) * part / 12).saturating_sub(made.elapsed());
    probe.sleep(after(8));
    let answered = renew(&id, ttl)?;
    if after(11).is_zero() {
        return Err(Miss::Skipped("the server was too slow for that".to_owned()));
    }
    probe.sleep(after(16));
    let lives_on = lives(probe, &id)?;
    if lives_on && lives(probe, &other)? {
        let text = "one that was not renewed is still there as well, so it can't be told";
        return Err(Miss::Skipped(text.to_owned()));
    }
    want(
        lives_on,
        format!("answered {answered}; still there after 4/3 of its TTL: {lives_on}"),
    )
}

pub(super) fn create_repeats_ttl(probe: &Probe) -> Verdict {
    renewed(probe, "repeats-ttl", |id, ttl| {
        Ok(probe.create(id, ttl)?.status)
    })
}

pub(super) fn touch_extends(probe: &Probe) -> Verdict {
    renewed(probe, "extends", |id, _| Ok(probe.touch(id)?.status))
}

pub(super) fn touch_ok(probe: &Probe) -> Verdict {
    let answer = probe.ask("POST", Endpoint::Call(probe.shared()?, "touch"), None)?;
    want(answer.status == 200, answer.seen())
}

pub(super) fn touch_unknown(probe: &Probe) -> Verdict {
    let answer = probe.touch(&probe.nobody())?;
    want(answer.status == 404, answer.seen())
}

pub(super) fn delete_answer(probe: &Probe) -> Verdict {
    let id = probe.fresh("answer-to-delete")?;
    let answer = probe.ask("DELETE", Endpoint::Sandbox(&id), None)?;
    want(matches!(answer.status, 200 | 204), answer.seen())
}

pub(super) fn delete_gone(probe: &Probe) -> Verdict {
    let id = probe.fresh("gone")?;
    mark(probe, &id)?;
    probe.ask("DELETE", Endpoint::Sandbox(&id), None)?;
    let lives = lives(probe, &id)?;
    want(!lives, format!("still there with its files: {lives}"))
}

pub(super) fn delete_releases(probe: &Probe) -> Verdict {
    let id = probe.fresh("releases")?;
    mark(probe, &id)?;
    probe.ask("DELETE", Endpoint::Sandbox(&id), None)?;
    let id = probe.fresh("releases")?;
    let marked = is_marked(probe, &id)?;
    want(
        !marked,
        format!("a new sandbox of that id has the old files: {marked}"),
    )
}

pub(super) fn delete_ends_processes(probe: &Probe) -> Verdict {
    let id = probe.fresh("processes")?;
    let number = probe.number().to_string();
    // What is not ended by the server ends by itself.
    let start = format!("sh -c 'sleep 60; : nx-{number}' </dev/null >/dev/null 2>&1 &");
    probe.set_up(&id, &start)?;
    // The brackets keep the search from finding itself.
    let (first, rest) = number.split_at(1);
    let look = format!(
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'nx-[{first}]{rest}'"
    );
    let is_seen = || Ok::<_, Miss>(!matches!(probe.sh(&look)?.stdout.trim(), "0" | ""));
    if !is_seen()? {
        let text = "processes of one sandbox are not seen from another, so it can't be told";
        return Err(Miss::Skipped(text.to_owned()));
    }
    probe.ask("DELETE", Endpoint::Sandbox(&id), None)?;
    probe.sleep(Duration::from_secs(1));
    let stays = is_seen()?;
    want(
        !stays,
        format!("a background process of it is still there: {stays}"),
    )
}

pub(super) fn delete_twice(probe: &Probe) -> Verdict {
    let id = probe.fresh("twice")?;
    probe.ask("DELETE", Endpoint::Sandbox(&id), None)?;
    let answer = probe.ask("DELETE", Endpoint::Sandbox(&id), None)?;
    want(matches!(answer.status, 200 | 204 | 404), answer.seen())
}

pub(super) fn error_json(probe: &Probe) -> Verdict {
    let empty = probe.exec(probe.shared()?, &json!({"cmd": []}))?;
    let value: Option<Value> = serde_json::from_slice(&empty.body).ok();
    let says = value.is_some_and(|value| value["error"].is_string());
    want(says && empty.status >= 400, empty.seen())
}
