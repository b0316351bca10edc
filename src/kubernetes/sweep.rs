//! Deleting pods that have ended.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::api::Api;
use super::pod::{Pod, Stage};
use crate::error::Result;
use crate::os::time;

/// Minimum time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(10);

/// Minimum time that an ended pod is kept, so that calls can report why it ended.
const KEEP_ENDED: Duration = Duration::from_secs(60);

/// Maximum time that a pod waits for a node. Its creator has given up long before.
const KEEP_PENDING: Duration = Duration::from_secs(3600);

/// Maximum numbers of pods that a sweep lists and deletes.
const MAX_LISTED: u32 = 500;
const MAX_DELETED: usize = 16;

/// Maximum time of a sweep.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Deletes pods that have ended, from time to time.
#[derive(Default)]
pub(super) struct Sweeper {
    last: Mutex<Option<Instant>>,
}

impl Sweeper {
    /// Sweeps, unless the last sweep was a short time ago. Failures are only logged, because the next sweep
    /// deletes the rest.
    pub(super) fn sweep_if_due(&self, api: &Api) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        if let Err(e) = sweep(api) {
            log::warn!("cannot delete pods that have ended: {e:#}");
        }
    }
}

fn sweep(api: &Api) -> Result<()> {
    let end = Instant::now() + TIMEOUT;
    let now = SystemTime::now();
    let pods = api.list("status.phase!=Running", MAX_LISTED, end)?;
    for pod in pods
        .iter()
        .filter(|pod| is_over(pod, now))
        .take(MAX_DELETED)
    {
        api.delete(pod, end)?;
    }
    Ok(())
}

fn is_over(pod: &Pod, now: SystemTime) -> bool {
    let created = pod.metadata.creation_timestamp.as_deref();
    let (since, keep) = match pod.stage() {
        Stage::Ended(_) => (pod.finished_at().or(created), KEEP_ENDED),
        Stage::Alive | Stage::Terminating => (created, KEEP_PENDING),
    };
    let since = since.and_then(time::parse);
    let age = since.and_then(|since| now.duration_since(since).ok());
    age.is_some_and(|age| age > keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_pods_that_are_over_for_a_while_are_deleted() {
        let now = time::parse("2026-01-02T12:00:00Z").unwrap();
        let pod = |phase: &str, created: &str, finished: Option<&str>| -> Pod {
            let ends = finished.map(
                |at| json!([{"name": "sandbox", "state": {"terminated": {"finishedAt": at}}}]),
            );
            let status = json!({"phase": phase, "containerStatuses": ends.unwrap_or(json!([]))});
            let metadata = json!({"name": "x", "creationTimestamp": created});
            serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
        };
        let early = "2026-01-02T10:00:00Z";
        for (phase, created, finished, over) in [
            ("Succeeded", early, Some("2026-01-02T11:58:59Z"), true),
            ("Succeeded", early, Some("2026-01-02T11:59:30Z"), false),
            ("Failed", early, None, true),
            ("Failed", "2026-01-02T11:59:30Z", None, false),
            ("Pending", early, None, true),
            ("Pending", "2026-01-02T11:30:00Z", None, false),
        ] {
            assert_eq!(
                is_over(&pod(phase, created, finished), now),
                over,
                "{phase} {created}"
            );
        }
    }
}
