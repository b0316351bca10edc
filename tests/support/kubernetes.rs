//! The Kubernetes cluster of the tests.
//!
//! `NOXRUNNER_TEST_KUBERNETES` is the path of a kubeconfig. `NOXRUNNER_TEST_KUBERNETES_IMAGE` is an image with
//! the usual programs, such as busybox, and `NOXRUNNER_TEST_KUBERNETES_AGENT_IMAGE` the agent image. If
//! `NOXRUNNER_TEST_KUBERNETES_SCRIPTS` is the directory `tests/engines`, whose cluster this is, then pods can be
//! reached by their addresses, and nodes and the API server can be stopped.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use noxrunner::{KubernetesBackend, KubernetesBackendBuilder, PodAccess};

use super::long_tests_or_skip;
use super::processes::wait_for;

/// A key that all tests share.
pub(crate) const KEY: &str = "a key that only tests use";

/// A namespace of the cluster, which is deleted at the end of the test.
pub(crate) struct Namespace {
    pub(crate) name: String,
    kubeconfig: String,
    image: String,
    agent_image: String,
    scripts: Option<PathBuf>,
    _usage: Usage,
}

/// Tests that break the cluster run alone.
static CLUSTER: RwLock<()> = RwLock::new(());

#[derive(Debug)]
enum Usage {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

impl Namespace {
    /// Creates a namespace for one test. Without a cluster, reports what is skipped and returns `None`.
    pub(crate) fn new_or_skip(what: &str) -> Option<Namespace> {
        Namespace::with(what, || Usage::Shared {
            _guard: CLUSTER.read().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// Creates a namespace for a test that breaks parts of the cluster. No other test of this process uses the
    /// cluster meanwhile. Without the cluster's scripts, reports what is skipped and returns `None`.
    pub(crate) fn alone_or_skip(what: &str) -> Option<Namespace> {
        if !long_tests_or_skip(what) {
            return None;
        }
        let namespace = Namespace::with(what, || Usage::Alone {
            _guard: CLUSTER.write().unwrap_or_else(PoisonError::into_inner),
        });
        namespace.filter(|namespace| namespace.script_or_skip(what))
    }

    fn with(what: &str, usage: impl FnOnce() -> Usage) -> Option<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Ok(kubeconfig) = env::var("NOXRUNNER_TEST_KUBERNETES") else {
            let required =
                env::var_os("NOXRUNNER_REQUIRE_ENGINES").is_some_and(|value| value == "1");
            assert!(!required, "NOXRUNNER_TEST_KUBERNETES is not set");
            let _ = writeln!(
                std::io::stderr(),
                "skipped without NOXRUNNER_TEST_KUBERNETES: {what}"
            );
            return None;
        };
        let setting = |name: &str| {
            let name = format!("NOXRUNNER_TEST_KUBERNETES_{name}");
            env::var(&name).unwrap_or_else(|_| panic!("{name} is not set"))
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace {
            name: format!("test-{}-{number}", std::process::id()),
            kubeconfig,
            image: setting("IMAGE"),
            agent_image: setting("AGENT_IMAGE"),
            scripts: env::var_os("NOXRUNNER_TEST_KUBERNETES_SCRIPTS").map(PathBuf::from),
            _usage: usage(),
        };
        namespace.kubectl(&["create", "namespace", &namespace.name]);
        wait_for("the service account of a namespace", || {
            namespace
                .try_kubectl(&["get", "serviceaccount", "default"])
                .is_ok()
        });
        Some(namespace)
    }

    /// Returns the settings of a backend for this namespace.
    pub(crate) fn builder(&self) -> KubernetesBackendBuilder {
        KubernetesBackend::builder()
            .kubeconfig(&self.kubeconfig)
            .namespace(&self.name)
            .image(&self.image)
            .agent_image(&self.agent_image)
            .key(KEY)
    }

    pub(crate) fn backend(&self) -> KubernetesBackend {
        self.builder().build().unwrap()
    }

    /// Returns the ways to reach pods from here.
    pub(crate) fn accesses(&self) -> &'static [PodAccess] {
        match &self.scripts {
            Some(_) => &[PodAccess::ApiServer, PodAccess::Address],
            None => &[PodAccess::ApiServer],
        }
    }

    /// Runs a script of the cluster. Without the scripts, reports what is skipped and returns false.
    pub(crate) fn script_or_skip(&self, what: &str) -> bool {
        let found = self.scripts.is_some();
        if !found {
            let _ = writeln!(
                std::io::stderr(),
                "skipped without NOXRUNNER_TEST_KUBERNETES_SCRIPTS: {what}"
            );
        }
        found
    }

    /// Runs a script of the cluster.
    pub(crate) fn script(&self, name: &str, args: &[&str]) {
        let path = self
            .scripts
            .as_ref()
            .expect("the scripts are known")
            .join(name);
        let status = Command::new(path).args(args).status().unwrap();
        assert!(status.success(), "{name} {args:?}: {status}");
    }

    pub(crate) fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn agent_image(&self) -> &str {
        &self.agent_image
    }

    /// Runs kubectl in the namespace, and returns what it prints.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let printed = self.try_kubectl(args);
        printed.unwrap_or_else(|e| panic!("kubectl {args:?}: {e}"))
    }

    fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--kubeconfig", &self.kubeconfig, "--namespace", &self.name]);
        let done = kubectl.args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() {
            Ok(text(&done.stdout))
        } else {
            Err(text(&done.stderr))
        }
    }

    /// Applies an object of JSON.
    pub(crate) fn apply(&self, object: &serde_json::Value) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object.json");
        fs::write(&path, object.to_string()).unwrap();
        self.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    }

    /// Returns the names of the pods.
    pub(crate) fn pods(&self) -> Vec<String> {
        let names = self.kubectl(&["get", "pods", "-o", "name"]);
        names.lines().map(str::to_owned).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.try_kubectl(&[
            "delete",
            "pods",
            "--all",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ]);
        let _ = self.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
