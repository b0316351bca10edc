//! Creating a sandbox: a pod, and the agent in it that answers.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::agent::{Agent, Dialer};
use super::api::Api;
use super::labels::NONCE_ANNOTATION;
use super::pod::{Pod, Stage};
use super::pod_spec::{Identity, PodSettings};
use super::refusal::Refusal;
use super::status::is_temporary;
use super::watch::{Change, PodWatch};
use crate::backend::Backend as _;
use crate::engine::{random_hex, sandbox_name};
use crate::error::{Error, ErrorKind, Result};
use crate::printable::printable;
use crate::session_id::SessionId;
use crate::spec::{SandboxInfo, SandboxSpec};

/// First and longest pause between two questions whether the agent has started.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// Maximum time of one question whether the agent has started.
const QUESTION: Duration = Duration::from_secs(5);

/// Pause before a pod that disappears is looked for again, or the API server is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Maximum time until a deleted pod ends, before it is removed.
const MAX_TERMINATION: Duration = Duration::from_secs(5);

/// Maximum time for ending an agent before its pod is deleted.
const FAREWELL: Duration = Duration::from_secs(2);

/// Maximum time for deleting the pod of a create that failed.
const CLEANUP: Duration = Duration::from_secs(10);

/// Creates the pods of sandboxes.
pub(super) struct Creator {
    pub(super) api: Arc<Api>,
    pub(super) dialer: Dialer,
    pub(super) pods: PodSettings,
    pub(super) timeout: Duration,
    /// Maximum time until a node takes a pod.
    pub(super) unschedulable: Duration,
}

/// A pod that may be the sandbox.
struct Candidate {
    pod: Pod,
    /// This call has created it.
    is_own: bool,
}

impl Creator {
    /// Creates the sandbox, or renews its TTL if it already exists.
    pub(super) fn create(
        &self,
        id: &SessionId,
        spec: &SandboxSpec,
    ) -> Result<(SandboxInfo, Agent)> {
        let end = Instant::now() + self.timeout;
        let (name, nonce) = (sandbox_name(id), random_hex()?);
        let token = self.dialer.key.token(self.api.namespace(), &name, &nonce);
        let identity = Identity {
            id,
            name: &name,
            nonce: &nonce,
            token: &token,
        };
        let new = self.pods.pod(&identity, spec)?;
        loop {
            let candidate = self.candidate(id, &identity, &new, end)?;
            match self.wait_for_agent(&candidate, spec, end) {
                Ok(Some(started)) => return Ok(started),
                Ok(None) => sleep(RETRY_PAUSE),
                Err(e) => {
                    self.clean_up(&candidate);
                    return Err(e);
                }
            }
        }
    }

    /// Creates the pod, or finds the one that exists.
    fn candidate(
        &self,
        id: &SessionId,
        identity: &Identity<'_>,
        new: &Value,
        end: Instant,
    ) -> Result<Candidate> {
        let mut terminating = None;
        loop {
            let found = match self.api.create(new, end) {
                Ok(Some(pod)) => return Ok(Candidate { pod, is_own: true }),
                Ok(None) => self.api.get(identity.name, end),
                Err(e) => Err(e),
            };
            match found {
                Ok(Some(pod)) if !pod.belongs_to(id) => return Err(taken(&pod)),
                Ok(Some(pod)) => match pod.stage() {
                    Stage::Alive => {
                        let is_own = pod.annotation(NONCE_ANNOTATION) == Some(identity.nonce);
                        return Ok(Candidate { pod, is_own });
                    }
                    Stage::Ended(_) => drop(self.api.delete(&pod, end)?),
                    Stage::Terminating => self.wait_for_end(&pod, &mut terminating, end)?,
                },
                Ok(None) => sleep(RETRY_PAUSE),
                Err(e) if is_temporary(&e) && Instant::now() + RETRY_PAUSE < end => {
                    sleep(RETRY_PAUSE)
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits a moment for the end of a pod that another client has deleted. Removes the pod if that takes too long,
    /// because its node may be down. `since` is when the wait started.
    fn wait_for_end(&self, pod: &Pod, since: &mut Option<Instant>, end: Instant) -> Result<()> {
        let since = *since.get_or_insert_with(Instant::now);
        if since.elapsed() > MAX_TERMINATION {
            self.api.delete(pod, end)?;
        }
        sleep(RETRY_PAUSE);
        Ok(())
    }

    /// Waits until the agent answers, or the pod will certainly not start. Returns `None` if another client
    /// has deleted the pod, or its TTL has expired.
    fn wait_for_agent(
        &self,
        candidate: &Candidate,
        spec: &SandboxSpec,
        end: Instant,
    ) -> Result<Option<(SandboxInfo, Agent)>> {
        let watch = PodWatch::start(&self.api, &candidate.pod, end)?;
        let mut pod = candidate.pod.clone();
        let mut start = Start::new(self, end);
        loop {
            match pod.stage() {
                Stage::Alive => start.check(&pod)?,
                Stage::Ended(why) if candidate.is_own => return Err(ended_early(&why)),
                Stage::Ended(_) | Stage::Terminating => return Ok(None),
            }
            if let Some(info) = start.ask(&pod, spec)? {
                let info = SandboxInfo::new(&pod.metadata.name, info.expires_at());
                return Ok(Some((info, self.dialer.connect(&self.api, &pod)?)));
            }
            match watch.next(start.pause(&pod)?) {
                Some(Change::Pod(changed)) if changed.metadata.uid == pod.metadata.uid => {
                    pod = *changed
                }
                Some(Change::Pod(_) | Change::Gone) => return Ok(None),
                Some(Change::Failed(e)) => return Err(e),
                None => {}
            }
        }
    }

    /// Ends the sandbox in a pod that is deleted next. Without this, clients that know its agent could use it
    /// until the node ends the containers, about a second later.
    pub(super) fn end_agent(&self, pod: &Pod) {
        let ended = self
            .dialer
            .connect_once(&self.api, pod, FAREWELL)
            .and_then(|agent| agent.http.delete(&agent.id));
        if let Err(e) = ended {
            // It may not have started, or its node may be down.
            let name = printable(&pod.metadata.name);
            log::debug!("pod {name} is deleted without its agent: {e:#}");
        }
    }

    /// Deletes the pod of a create that failed.
    fn clean_up(&self, candidate: &Candidate) {
        if !candidate.is_own {
            return;
        }
        if let Err(e) = self.api.delete(&candidate.pod, Instant::now() + CLEANUP) {
            let name = printable(&candidate.pod.metadata.name);
            log::warn!("cannot delete pod {name}, which did not start: {e:#}");
        }
    }
}

/// The progress of a pod that starts.
struct Start<'a> {
    creator: &'a Creator,
    end: Instant,
    unschedulable_since: Option<Instant>,
    agent: Option<Agent>,
    pause: Duration,
    last_answer: Option<Error>,
}

impl Start<'_> {
    fn new(creator: &Creator, end: Instant) -> Start<'_> {
        Start {
            creator,
            end,
            unschedulable_since: None,
            agent: None,
            pause: FIRST_PAUSE,
            last_answer: None,
        }
    }

    /// Fails if the pod will not start.
    fn check(&mut self, pod: &Pod) -> Result<()> {
        if let Some(why) = pod.start_failure() {
            return Err(Error::invalid(format!("the pod cannot start: {why}")));
        }
        let Some(why) = pod.unschedulable() else {
            self.unschedulable_since = None;
            return Ok(());
        };
        let since = *self.unschedulable_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.creator.unschedulable {
            return Ok(());
        }
        let seconds = self.creator.unschedulable.as_secs();
        let text = format!("no node has taken the pod within {seconds} s: {why}");
        Err(Error::new(ErrorKind::NotReady, text))
    }

    /// Sends the v1 create to the agent, if the pod has an address. Returns `None` if it does not answer yet.
    fn ask(&mut self, pod: &Pod, spec: &SandboxSpec) -> Result<Option<SandboxInfo>> {
        let creator = self.creator;
        if pod.address().is_none() {
            return Ok(None);
        }
        let session = creator.api.session()?.number;
        if self
            .agent
            .as_ref()
            .is_none_or(|agent| agent.session != session)
        {
            self.agent = Some(creator.dialer.connect_once(&creator.api, pod, QUESTION)?);
        }
        let Some(agent) = &self.agent else {
            return Ok(None);
        };
        let error = match agent.http.create(&agent.id, spec) {
            Ok(info) => return Ok(Some(info)),
            Err(e) => e,
        };
        match Refusal::of(&error) {
            Refusal::ExpiredToken => {
                if !creator.api.renew(agent.session)? {
                    return Err(Refusal::explain(error));
                }
            }
            Refusal::Agent | Refusal::ApiServer => return Err(Refusal::explain(error)),
            Refusal::NoPod | Refusal::WrongToken | Refusal::NotSent | Refusal::Lost => {}
        }
        self.last_answer = Some(error);
        self.pause = (self.pause * 3 / 2).min(MAX_PAUSE);
        Ok(None)
    }

    /// Returns how long to wait for the next change.
    fn pause(&self, pod: &Pod) -> Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.timed_out(pod));
        }
        let pause = if pod.address().is_some() {
            self.pause
        } else {
            MAX_PAUSE
        };
        Ok(pause.min(left))
    }

    fn timed_out(&self, pod: &Pod) -> Error {
        let seconds = self.creator.timeout.as_secs();
        let progress = pod.progress();
        let text = format!("the agent did not answer within {seconds} s: {progress}");
        let error = Error::new(ErrorKind::Timeout, text);
        match &self.last_answer {
            Some(last) => error.with_source(last.to_string()),
            None => error,
        }
    }
}

fn taken(pod: &Pod) -> Error {
    let (name, owner) = (&pod.metadata.name, pod.describe_owner());
    Error::invalid(format!("pod {name} {owner}: choose another session id"))
}

fn ended_early(why: &str) -> Error {
    let text = format!("the pod ended before its agent answered: {why}");
    Error::new(ErrorKind::Status, text)
}
