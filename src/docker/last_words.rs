//! The output of an agent that ended too early.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::create::Creation;
use super::engine::Created;
use crate::error::one_line;

/// Maximum time until a second container fails like the first one.
const MAX_WAIT: Duration = Duration::from_secs(5);

impl Creation<'_> {
    /// Starts another container of the same kind, which the engine does not remove, to read what its agent
    /// writes before it ends. Returns `None` if it does not end, or writes nothing.
    pub(super) fn last_words(&self, image: &str) -> Option<String> {
        let is_shared = !self.settings.loopback_port;
        let dir = self.sandboxes.dirs.create(is_shared).ok()?;
        let words = self.run_again(image, &dir);
        self.sandboxes.remove_dir(Path::new(&dir));
        words
    }

    fn run_again(&self, image: &str, dir: &str) -> Option<String> {
        let engine = &self.sandboxes.engine;
        let mut config = self.config(image, dir).ok()?;
        config["HostConfig"]["AutoRemove"] = json!(false);
        // No sandbox has this name.
        let name = format!("{}-log", self.sandboxes.name(self.id));
        let Ok(Created::Container(id)) = engine.create(&name, &config, self.left()) else {
            return None;
        };
        let words = self.wait_for_words(&id);
        if let Err(e) = engine.remove(&id, Instant::now() + MAX_WAIT) {
            log::warn!("cannot remove container {name}: {e:#}");
        }
        words
    }

    fn wait_for_words(&self, container: &str) -> Option<String> {
        let engine = &self.sandboxes.engine;
        self.fill(container).ok()?;
        engine.start(container, self.left()).ok()?;
        let by = Instant::now() + MAX_WAIT;
        while engine.inspect(container).ok()??.state.running {
            if Instant::now() > by {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let words = engine.logs(container).ok()?;
        let words = one_line(&words);
        (!words.is_empty()).then_some(words)
    }
}
