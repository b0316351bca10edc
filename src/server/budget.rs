//! The memory that all requests share. It is reserved before it is used.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Size of a permit, in bytes.
const UNIT: u64 = 1024;

/// Memory for a connection: the head of a request and the end of a response, which are rarely both large.
pub(super) const CONNECTION: u64 = 48 * 1024;

/// Memory for the output of a running command, and for a short response: two streams of 1 MiB, and 512 KiB.
pub(super) const EXEC: u64 = 2560 * 1024;

/// Memory for an archive in transfer, and for packing or unpacking it.
pub(super) const TRANSFER: u64 = 1536 * 1024;

/// The part of the budget that connections may use is one in this many.
const CONNECTIONS_PART: u64 = 3;

/// Smallest budget, in bytes.
pub(super) const MIN_BUDGET: u64 = 8 * 1024 * 1024;

/// Reason for not getting memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortage {
    /// It is in use.
    Now,
    /// The whole budget is smaller.
    Always,
}

/// Memory that is not reserved.
#[derive(Clone)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    total: u64,
}

impl Budget {
    /// Sets memory for connections aside, and returns the rest with the number of connections.
    pub(super) fn new(bytes: u64, max_connections: usize) -> (Budget, usize) {
        let affordable = usize::try_from(bytes / CONNECTIONS_PART / CONNECTION);
        let connections = max_connections.min(affordable.unwrap_or(usize::MAX));
        let total = bytes - connections as u64 * CONNECTION;
        let permits = usize::try_from(total / UNIT).unwrap_or(usize::MAX);
        let free = Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        (Budget { free, total }, connections)
    }

    pub(super) fn reserve(&self, bytes: u64) -> Result<Reservation, Shortage> {
        let mut memory = Reservation {
            budget: self.clone(),
            permit: None,
        };
        memory.grow_to(bytes)?;
        Ok(memory)
    }
}

/// Reserved memory, which is released when this is dropped.
pub(super) struct Reservation {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    fn units(&self) -> usize {
        self.permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Reserves more memory, if it is free.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), Shortage> {
        let Some(more) = self.missing(bytes)? else {
            return Ok(());
        };
        let free = Arc::clone(&self.budget.free);
        let permit = free.try_acquire_many_owned(more);
        self.add(permit.map_err(|_| Shortage::Now)?);
        Ok(())
    }

    /// Reserves this much more memory, if it is free.
    pub(super) fn grow_by(&mut self, bytes: u64) -> Result<(), Shortage> {
        self.grow_to((self.units() as u64) * UNIT + bytes)
    }

    /// Reserves more memory once it is free. Returns false if that takes too long.
    pub(super) async fn grow_within(&mut self, bytes: u64, time: Duration) -> bool {
        let more = match self.missing(bytes) {
            Ok(Some(more)) => more,
            missing => return missing.is_ok(),
        };
        let free = Arc::clone(&self.budget.free);
        match tokio::time::timeout(time, free.acquire_many_owned(more)).await {
            Ok(Ok(permit)) => self.add(permit),
            _ => return false,
        }
        true
    }

    /// Releases all but this much.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let surplus = self.units().saturating_sub(keep);
        if let Some(permit) = &mut self.permit {
            drop(permit.split(surplus));
        }
    }

    /// Returns the number of permits that are missing, if any.
    fn missing(&self, bytes: u64) -> Result<Option<u32>, Shortage> {
        if bytes > self.budget.total {
            return Err(Shortage::Always);
        }
        let wanted = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let more = wanted.saturating_sub(self.units());
        let more = u32::try_from(more).map_err(|_| Shortage::Always)?;
        Ok((more > 0).then_some(more))
    }

    fn add(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(all) => all.merge(permit),
            None => self.permit = Some(permit),
        }
    }
}

/// Bytes with the memory that is reserved for them.
pub(super) struct Reserved {
    pub(super) bytes: Vec<u8>,
    pub(super) memory: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reserved_and_released() {
        let (budget, connections) = Budget::new(MIN_BUDGET, 800);
        assert_eq!(connections, 56);
        let total = budget.total;
        assert_eq!(total, MIN_BUDGET - 56 * CONNECTION);
        let mut first = budget.reserve(total - 10 * UNIT).unwrap();
        assert_eq!(budget.reserve(11 * UNIT).err(), Some(Shortage::Now));
        assert_eq!(budget.reserve(total + 1).err(), Some(Shortage::Always));
        let second = budget.reserve(10 * UNIT).unwrap();
        assert!(first.grow_to(total - 9 * UNIT).is_err());
        drop(second);
        first.grow_to(total).unwrap();
        first.shrink_to(1);
        assert_eq!(first.units(), 1);
        assert!(budget.reserve(total - UNIT).is_ok());
    }
}
