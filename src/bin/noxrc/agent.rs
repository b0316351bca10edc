//! `agent`.

use noxrunner::agent::{Agent, install};
use noxrunner::{Error, ErrorKind, Result, SessionId};
use serde_json::json;

use crate::allocator::return_large_blocks;
use crate::args::{AgentArgs, AgentSubcommand, Args};
use crate::console::{self, Console};

pub(crate) fn agent(args: &Args, agent: &AgentArgs, console: &Console) -> Result<()> {
    if let Some(AgentSubcommand::Install { dir }) = &agent.subcommand {
        let path = install(dir)?;
        console.success(&format!("Installed {}", path.display()));
        console.value(&json!({"path": path}));
        return Ok(());
    }
    console::log_to_stderr(if args.verbose {
        log::LevelFilter::Debug
    } else {
        log::LevelFilter::Warn
    });
    return_large_blocks();
    let id = agent.session_id.as_deref().unwrap_or_default();
    let mut builder = Agent::builder(SessionId::new(id)?).ttl(agent.ttl);
    for addr in &agent.listen {
        builder = builder.tcp(*addr);
    }
    if let Some(path) = &agent.unix {
        builder = builder.unix(path);
    }
    if let Some(hash) = &agent.token_sha256 {
        builder = builder.token_sha256(hash);
    }
    if agent.listen.is_empty() && agent.unix.is_none() {
        let text = "no address to listen on: set --listen or --unix";
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    builder.bind()?.run()
}
