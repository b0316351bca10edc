//! Leases that outlive their TTL, through a proxy.

use std::time::{Duration, Instant};

use noxrunner::Command;

use crate::expiring::Expiring;
use crate::ledger::{Call, EXEC_TIMEOUT};
use crate::random::Random;
use crate::run::Soak;
use crate::tracked::LATE;
use crate::{proxy::FaultProxy, run};

/// Creates leases until the end of the soak.
pub(crate) fn lease_all_along(soak: &Soak<'_>, proxy: &FaultProxy, mut random: Random) {
    let client = run::client(&proxy.url());
    let mut expiring = Expiring::new(soak);
    let ttl = soak.backend.ttl() / 2;
    while soak.sleep(random.millis(100..2000)) {
        expiring.check_due();
        let spec = soak.backend.spec().ttl(ttl);
        let Ok(lease) = soak
            .ledger
            .call(Call::Lease, "lease", || client.lease_with(spec))
        else {
            continue;
        };
        let id = lease.id().to_owned();
        let end = Instant::now() + ttl + ttl / 2;
        let mut has_worked = true;
        while Instant::now() < end && lease.lost().is_none() && soak.sleep(Duration::from_secs(1)) {
            let command = Command::new("true").timeout(EXEC_TIMEOUT);
            has_worked = soak
                .ledger
                .call(Call::Exec, &id, || lease.exec(command))
                .is_ok();
        }
        soak.ledger.count(match lease.lost() {
            Some(_) => "leases lost",
            None if has_worked => "leases held longer than their TTL",
            None => "leases of unknown state",
        });
        let closed = soak.ledger.call(Call::CloseLease, &id, || lease.close());
        let gone_by = match closed {
            Ok(_) => Instant::now() + LATE,
            Err(_) => Instant::now() + ttl + LATE,
        };
        expiring.add(&id, gone_by);
    }
    expiring.check_all();
}
