//! The sandboxes of a namespace: calls go to the agent in a pod, with a look at the pod after a failure.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::agent::{Agent, not_started};
use super::create::Creator;
use super::pod::{Pod, Stage};
use super::refusal::Refusal;
use crate::engine::{AgentCache, gone, lost, sandbox_name};
use crate::error::{Error, ErrorKind, Result};
use crate::session_id::SessionId;

/// Maximum number of connections that a call tries, because the pod was replaced or a token has expired.
const MAX_ATTEMPTS: u32 = 4;

/// Maximum time of a look at the pod after a failure.
const LOOK: Duration = Duration::from_secs(3);

/// Maximum time until the status of a pod shows why its agent does not answer. A node limits its requests to the API
/// server, in Kubernetes 1.20 to five per second for all of its pods.
const STATUS_DELAY: Duration = Duration::from_secs(10);
const STATUS_PAUSE: Duration = Duration::from_millis(200);

/// The effect of a call that may have reached the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Doing it twice has the same effect as once.
    Idempotent,
    /// A command may have run.
    Exec,
}

/// The next step of a call after a failure.
enum Next {
    Again(Arc<Agent>),
    Fail(Error),
}

/// Finds the agents of sandboxes, and calls them.
pub(super) struct Sandboxes {
    pub(super) creator: Creator,
    pub(super) cache: AgentCache<Agent>,
    /// Timeout of calls to the API server.
    pub(super) timeout: Duration,
}

impl Sandboxes {
    /// Calls the agent of a sandbox. `call` gets an agent, and is called again if the agent certainly did not
    /// get the request and there is another connection to try.
    pub(super) fn call<T>(
        &self,
        id: &SessionId,
        effect: Effect,
        mut call: impl FnMut(&Agent) -> std::result::Result<T, CallError>,
    ) -> Result<T> {
        let mut agent = self.agent(id)?;
        for _ in 1..MAX_ATTEMPTS {
            let (error, may_repeat) = match call(&agent) {
                Ok(value) => return Ok(value),
                Err(CallError::Final(error)) => return Err(error),
                Err(CallError::Failed { error, may_repeat }) => (error, may_repeat),
            };
            match self.after_failure(id, &agent, effect, error)? {
                Next::Again(next) if may_repeat => agent = next,
                Next::Again(_) => {
                    let text = "the sandbox was replaced while the call started: try again";
                    return Err(Error::new(ErrorKind::NotReady, text));
                }
                Next::Fail(error) => return Err(error),
            }
        }
        let text = "the sandbox is replaced again and again: try again later";
        Err(Error::new(ErrorKind::NotReady, text))
    }

    /// Returns the agent of a sandbox, from an earlier call or by looking for its pod.
    fn agent(&self, id: &SessionId) -> Result<Arc<Agent>> {
        if let Some(agent) = self.cache.get(id) {
            let is_current = agent.session == self.creator.api.session()?.number;
            return if is_current {
                Ok(agent)
            } else {
                self.reconnect(id, &agent)
            };
        }
        let end = Instant::now() + self.timeout;
        let pod = self.creator.api.get(&sandbox_name(id), end)?;
        let pod = pod
            .filter(|pod| pod.belongs_to(id))
            .ok_or_else(no_such_sandbox)?;
        self.connect(id, &pod)
    }

    fn connect(&self, id: &SessionId, pod: &Pod) -> Result<Arc<Agent>> {
        match pod.stage() {
            Stage::Ended(why) => Err(ended(&why)),
            Stage::Terminating => Err(ended("its pod is being deleted")),
            Stage::Alive if pod.address().is_none() => Err(not_started(pod)),
            Stage::Alive => {
                let agent = self.creator.dialer.connect(&self.creator.api, pod)?;
                Ok(self.cache.insert(id, agent))
            }
        }
    }

    fn reconnect(&self, id: &SessionId, agent: &Agent) -> Result<Arc<Agent>> {
        let agent = self.creator.dialer.reconnect(&self.creator.api, agent)?;
        Ok(self.cache.insert(id, agent))
    }

    /// Decides after a failed call, with a look at the pod.
    fn after_failure(
        &self,
        id: &SessionId,
        agent: &Agent,
        effect: Effect,
        error: Error,
    ) -> Result<Next> {
        let refusal = Refusal::of(&error);
        match refusal {
            Refusal::Agent | Refusal::ApiServer => return Ok(Next::Fail(Refusal::explain(error))),
            Refusal::ExpiredToken => {
                if self.creator.api.renew(agent.session)? {
                    return self.reconnect(id, agent).map(Next::Again);
                }
                return Ok(Next::Fail(Refusal::explain(error)));
            }
            Refusal::NoPod | Refusal::WrongToken | Refusal::NotSent | Refusal::Lost => {}
        }
        self.cache.remove_if(id, |cached| cached.uid == agent.uid);
        let has_timed_out = error.is_timeout() || error.to_string().contains("timed out");
        let wait = if has_timed_out {
            Duration::ZERO
        } else {
            STATUS_DELAY
        };
        let Some(found) = self.look(id, &agent.uid, wait) else {
            return Ok(Next::Fail(Refusal::explain(error)));
        };
        let may_have_run = refusal == Refusal::Lost && effect == Effect::Exec;
        Ok(match found {
            Found::Alive(pod) => Next::Fail(while_alive(error, &pod, refusal, effect)),
            Found::Replaced(_) if may_have_run => Next::Fail(lost_command("was replaced")),
            Found::Replaced(pod) => Next::Again(self.connect(id, &pod)?),
            Found::Gone if may_have_run => Next::Fail(lost_command("was deleted")),
            Found::Gone => Next::Fail(no_such_sandbox()),
            Found::Ended(why) if may_have_run => {
                Next::Fail(lost_command(&format!("ended ({why})")))
            }
            Found::Ended(why) => Next::Fail(ended(&why)),
        })
    }

    /// Looks at the pod until its status shows that it is not alive, at most for `wait`. Returns `None` if the
    /// API server does not tell.
    fn look(&self, id: &SessionId, uid: &str, wait: Duration) -> Option<Found> {
        let until = Instant::now() + wait;
        loop {
            let pod = self
                .creator
                .api
                .get(&sandbox_name(id), Instant::now() + LOOK)
                .ok()?;
            let found = match pod.filter(|pod| pod.belongs_to(id)) {
                None => Found::Gone,
                Some(pod) => match pod.stage() {
                    Stage::Ended(why) => Found::Ended(why),
                    Stage::Terminating => Found::Ended("its pod is being deleted".to_owned()),
                    Stage::Alive if pod.metadata.uid != uid => Found::Replaced(pod),
                    Stage::Alive => Found::Alive(pod),
                },
            };
            match found {
                Found::Alive(_) if Instant::now() < until => sleep(STATUS_PAUSE),
                found => return Some(found),
            }
        }
    }
}

/// An error of a call to an agent.
pub(super) enum CallError {
    /// It does not come from the connection, for example that of the caller's sink.
    Final(Error),
    Failed {
        error: Error,
        /// The request can be sent again.
        may_repeat: bool,
    },
}

impl CallError {
    /// The error of a call that can be sent again, unless it does not come from the connection.
    pub(super) fn unless_final(error: Error, is_final: bool) -> CallError {
        if is_final {
            return CallError::Final(error);
        }
        CallError::repeatable(error)
    }

    /// The error of a call that can be sent again.
    pub(super) fn repeatable(error: Error) -> CallError {
        CallError::Failed {
            error,
            may_repeat: true,
        }
    }
}

/// The state of a sandbox's pod after a failure.
enum Found {
    Alive(Pod),
    Replaced(Pod),
    Gone,
    Ended(String),
}

/// Returns the error of a call that failed although the pod is alive.
fn while_alive(error: Error, pod: &Pod, refusal: Refusal, effect: Effect) -> Error {
    let error = Refusal::explain(error);
    let kind = match (refusal, effect) {
        (Refusal::Lost, Effect::Exec) => ErrorKind::OutcomeUnknown,
        (Refusal::NotSent | Refusal::WrongToken | Refusal::NoPod, _) => ErrorKind::Connect,
        _ => error.kind(),
    };
    let end = match (kind, effect) {
        (ErrorKind::OutcomeUnknown, Effect::Exec) => "; the command may have run",
        _ => "",
    };
    let trouble = pod
        .trouble()
        .map_or(String::new(), |why| format!("; {why}"));
    let text = error.to_string();
    let end = if text.contains("may have run") {
        ""
    } else {
        end
    };
    let status = error.status();
    let told = Error::new(kind, format!("{text}{end}{trouble}"));
    match status {
        Some(status) => told.with_status(status),
        None => told,
    }
}

pub(super) fn no_such_sandbox() -> Error {
    gone("no such sandbox")
}

fn ended(why: &str) -> Error {
    gone(format!("no such sandbox: it has ended: {why}"))
}

/// Returns the error of a command whose sandbox no longer exists.
fn lost_command(what: &str) -> Error {
    lost(format!(
        "the sandbox ended while the command ran: it {what}; the command may have run"
    ))
}
