//! Kills the processes of a soak: holders, agents, supervisors, the server and the engine.

use std::time::{Duration, Instant};

use crate::random::Random;
use crate::run::Soak;
use crate::support::processes::{
    children_of, command_line, is_first_of_namespace, parent_of, send_signal, with_argument,
};

/// The server is killed in this part of the time only: its memory is compared over the rest.
const SERVER_KILLS_PERCENT: u32 = 40;

/// The name of the holder, as it appears in the list of processes, and of its supervisors.
const HOLDER: &[u8] = b"noxrunner-sandbox";

/// Kills until the end of the soak.
pub(crate) fn kill_all_along(soak: &Soak<'_>, mut random: Random) {
    let last_server_kill = soak.started + soak.length() * SERVER_KILLS_PERCENT / 100;
    let pause = soak.length() / 8;
    let mut server_at = soak.started + pause.min(Duration::from_secs(20));
    let mut engine_at = soak.started + 3 * pause;
    while soak.sleep(random.millis(1000..9000)) {
        let now = Instant::now();
        if now >= server_at && now < last_server_kill {
            server_at = now + random.millis(10_000..30_000);
            kill_server(soak, &mut random);
        } else if now >= engine_at && soak.backend.has_own_engine() {
            engine_at = now + pause.max(Duration::from_secs(90));
            restart_engine(soak, &mut random);
        } else {
            kill_in_sandbox(soak, &mut random);
        }
    }
}

fn kill_server(soak: &Soak<'_>, random: &mut Random) {
    let pause = random.millis(0..2000);
    soak.server.during_outage(|| {
        if !soak.backend.outlives_server() {
            soak.losses.lose_all();
        }
        let pause = || std::thread::sleep(pause);
        soak.server.kill_and_restart(soak.backend, pause);
    });
    soak.ledger.count("killed: server");
}

fn restart_engine(soak: &Soak<'_>, random: &mut Random) {
    let pause = random.millis(0..5000);
    soak.server.during_outage(|| {
        if !soak.backend.outlives_engine() {
            soak.losses.lose_all();
        }
        let pause = || std::thread::sleep(pause);
        soak.backend.restart_engine(pause);
    });
    soak.ledger.count("killed: engine");
}

/// Kills the holder or the agent of a sandbox, or the supervisor of a command.
fn kill_in_sandbox(soak: &Soak<'_>, random: &mut Random) {
    let Some(marker) = soak.losses.choose(random) else {
        return;
    };
    // Its sandbox may have expired.
    let Some(first) = with_argument(&marker).into_iter().find_map(first_process) else {
        return;
    };
    let is_holder = command_line(first).starts_with(HOLDER);
    let supervisor = children_of(first).find(|child| command_line(*child).starts_with(HOLDER));
    let (victim, what) = match supervisor {
        Some(supervisor) if is_holder && random.percent(50) => (supervisor, "killed: supervisor"),
        _ if is_holder => (first, "killed: holder"),
        _ => (first, "killed: agent"),
    };
    // It may end at the same time.
    if send_signal(victim, "KILL") {
        soak.ledger.count(what);
    }
}

/// Returns the first process of the namespace that a process of a sandbox is in.
fn first_process(process: u32) -> Option<u32> {
    let mut ancestors = std::iter::successors(Some(process), |pid| parent_of(*pid));
    ancestors.find(|pid| is_first_of_namespace(*pid))
}
