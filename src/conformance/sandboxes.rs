//! Health, creation, touch, deletion, ids and errors.

use std::time::Duration;

use serde_json::{Value, json};

use super::probe::{Miss, Probe, Verdict, all, want};
use crate::backend::http::Place;
use crate::time;

pub(super) fn health_ok(probe: &Probe) -> Verdict {
    let answer = probe.ask("GET", Place::Health, None)?;
    let says_ok = String::from_utf8_lossy(&answer.body).contains("OK");
    want(answer.status == 200 && says_ok, answer.seen())
}

pub(super) fn health_text(probe: &Probe) -> Verdict {
    let answer = probe.ask("GET", Place::Health, None)?;
    let content_type = answer.content_type.unwrap_or_default();
    want(
        content_type.starts_with("text/plain"),
        format!("Content-Type: {content_type}"),
    )
}

pub(super) fn unknown_route(probe: &Probe) -> Verdict {
    let answer = probe.ask("GET", Place::Unknown, None)?;
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

pub(super) fn create_expiry(probe: &Probe) -> Verdict {
    let answer = created(probe, &probe.id("expiry"), &json!({"ttlSeconds": 120}))?;
    let text = answer["expiresAt"].as_str().unwrap_or_default();
    want(time::parse(text).is_some(), format!("expiresAt {text:?}"))
}

pub(super) fn create_defaults(probe: &Probe) -> Verdict {
    created(probe, &probe.id("defaults"), &json!({})).map(|answer| answer.to_string())
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
    all([0, -1].map(|ttl| {
        let body = json!({"ttlSeconds": ttl}).to_string();
        let answer = probe.put(&probe.id("bad-ttl"), body.as_bytes())?;
        want(answer.status == 400, format!("{ttl}: {}", answer.seen()))
    }))
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
        let id = probe.fresh(&format!("odd{odd}"))?;
        let apart = !is_marked(probe, &id)?;
        mark(probe, &id)?;
        let deleted = probe.ask("DELETE", Place::Sandbox(&id), None)?.status;
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
    let ran = probe.run(id, &json!({"cmd": ["sh", "-c", ": >marked"]}))?;
    want(ran.exit_code == 0, ran.seen()).map(drop)
}

fn is_marked(probe: &Probe, id: &str) -> Result<bool, Miss> {
    let look = json!({"cmd": ["sh", "-c", "if [ -e marked ]; then echo yes; else echo no; fi"]});
    let ran = probe.run(id, &look)?;
    match ran.stdout.trim() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(Miss::Failed(ran.seen())),
    }
}

/// The status of a command in a sandbox that may be gone.
fn status(probe: &Probe, id: &str) -> Result<u16, Miss> {
    Ok(probe.exec(id, &json!({"cmd": ["true"]}))?.status)
}

pub(super) fn ttl_expires(probe: &Probe) -> Verdict {
    let id = probe.id("expires");
    probe.create(&id, 2)?;
    let mut last = 0;
    for pause in [3, 2, 5, 10] {
        probe.sleep(Duration::from_secs(pause));
        last = status(probe, &id)?;
        if last == 404 {
            return Ok("404 when its time was over".to_owned());
        }
    }
    want(
        false,
        format!("20 s after a TTL of 2 s, exec answered {last}"),
    )
}

/// Lives for 5 s, and is renewed after 3.
fn renewed(probe: &Probe, name: &str, renew: impl Fn(&str) -> Result<u16, Miss>) -> Verdict {
    let id = probe.id(name);
    probe.create(&id, 5)?;
    probe.sleep(Duration::from_secs(3));
    let answered = renew(&id)?;
    probe.sleep(Duration::from_secs(3));
    let status = status(probe, &id)?;
    want(
        status == 200,
        format!("answered {answered} after 3 of 5 s; exec after 6 s: {status}"),
    )
}

pub(super) fn create_repeats_ttl(probe: &Probe) -> Verdict {
    renewed(probe, "repeats-ttl", |id| Ok(probe.create(id, 5)?.status))
}

pub(super) fn touch_extends(probe: &Probe) -> Verdict {
    renewed(probe, "extends", |id| {
        Ok(probe.ask("POST", Place::Call(id, "touch"), None)?.status)
    })
}

pub(super) fn touch_ok(probe: &Probe) -> Verdict {
    let answer = probe.ask("POST", Place::Call(probe.shared()?, "touch"), None)?;
    want(answer.status == 200, answer.seen())
}

pub(super) fn touch_unknown(probe: &Probe) -> Verdict {
    let id = probe.id("nobody");
    let answer = probe.ask("POST", Place::Call(&id, "touch"), None)?;
    want(answer.status == 404, answer.seen())
}

pub(super) fn delete_answer(probe: &Probe) -> Verdict {
    let id = probe.fresh("answer-to-delete")?;
    let answer = probe.ask("DELETE", Place::Sandbox(&id), None)?;
    want(matches!(answer.status, 200 | 204), answer.seen())
}

pub(super) fn delete_gone(probe: &Probe) -> Verdict {
    let id = probe.fresh("gone")?;
    mark(probe, &id)?;
    probe.ask("DELETE", Place::Sandbox(&id), None)?;
    match status(probe, &id)? {
        404 => Ok("exec answers 404".to_owned()),
        // Some make it anew.
        _ => {
            let marked = is_marked(probe, &id)?;
            want(
                !marked,
                format!("exec runs, and the files are there: {marked}"),
            )
        }
    }
}

pub(super) fn delete_releases(probe: &Probe) -> Verdict {
    let id = probe.fresh("releases")?;
    mark(probe, &id)?;
    probe.ask("DELETE", Place::Sandbox(&id), None)?;
    let id = probe.fresh("releases")?;
    let marked = is_marked(probe, &id)?;
    want(
        !marked,
        format!("a new sandbox of that id has the old files: {marked}"),
    )
}

pub(super) fn delete_ends_processes(probe: &Probe) -> Verdict {
    let id = probe.fresh("processes")?;
    let number = probe.number();
    let start = format!("setsid sleep {number} </dev/null >/dev/null 2>&1 & echo started");
    let ran = probe.run(&id, &json!({"cmd": ["sh", "-c", start]}))?;
    want(ran.stdout == "started\n", ran.seen())?;
    probe.ask("DELETE", Place::Sandbox(&id), None)?;
    probe.sleep(Duration::from_secs(1));
    // Where sandboxes are not kept apart it is seen from another one; the brackets keep the
    // search from finding itself.
    let digits = number.to_string();
    let (first, rest) = digits.split_at(1);
    let look =
        format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[{first}]{rest}'");
    let ran = probe.sh(&look)?;
    let none = ran.stdout.trim() == "0";
    want(
        none,
        format!("a background process of it is still there: {}", !none),
    )
}

pub(super) fn delete_twice(probe: &Probe) -> Verdict {
    let id = probe.fresh("twice")?;
    probe.ask("DELETE", Place::Sandbox(&id), None)?;
    let answer = probe.ask("DELETE", Place::Sandbox(&id), None)?;
    want(matches!(answer.status, 200 | 204 | 404), answer.seen())
}

pub(super) fn error_json(probe: &Probe) -> Verdict {
    let empty = probe.exec(probe.shared()?, &json!({"cmd": []}))?;
    let unknown = probe.exec(&probe.id("nobody"), &json!({"cmd": ["true"]}))?;
    all([empty, unknown].map(|answer| {
        let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let says = value.is_some_and(|value| value["error"].is_string());
        want(says && answer.status >= 400, answer.seen())
    }))
}
