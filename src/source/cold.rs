//! What the cold tier shares: permits, a byte budget, buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::disk::AlignedBuf;
use crate::limits;
use crate::sync::Clock;

/// Bounds on all cold replays together.
pub(crate) struct Cold {
    clock: Clock,
    /// Replays that may read: one has its permit while a read of its is under way, and no longer,
    /// whatever its callback does.
    permits: Slots,
    /// Replays that may have a second buffer.
    seconds: Slots,
    bucket: Option<Mutex<Bucket>>,
    buffers: Mutex<Vec<AlignedBuf>>,
    buffer_bytes: usize,
}

/// Bytes per second, with a tenth of a second of burst. May go into debt by one read.
struct Bucket {
    bytes_per_second: u64,
    tokens: i64,
    filled_at: u64,
}

/// So many at once.
struct Slots(Arc<AtomicUsize>);

/// One of them, for as long as it lives.
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slots {
    fn new(free: usize) -> Slots {
        Slots(Arc::new(AtomicUsize::new(free)))
    }

    fn has_one(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    fn take(&self) -> Option<Slot> {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(1))
            .is_ok()
            .then(|| Slot(Arc::clone(&self.0)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the next holder, for whoever reasons about order.
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// A buffer of the pool; back in it when dropped.
pub(crate) struct Buffer {
    bytes: Option<AlignedBuf>,
    cold: Arc<Cold>,
}

impl Cold {
    pub(crate) fn new(
        clock: Clock,
        replays_max: usize,
        bytes_per_second: Option<u64>,
        block_bytes_max: usize,
    ) -> Cold {
        let bucket = bytes_per_second.map(|bytes_per_second| {
            let filled_at = clock.now();
            Mutex::new(Bucket {
                bytes_per_second,
                tokens: (bytes_per_second / 10) as i64,
                filled_at,
            })
        });
        Cold {
            clock,
            permits: Slots::new(replays_max),
            seconds: Slots::new(limits::COLD_AHEAD_MAX),
            bucket,
            buffers: Mutex::default(),
            // A block is verified whole, so a buffer holds the largest.
            buffer_bytes: limits::COLD_BUFFER_BYTES.max(block_bytes_max.next_power_of_two()),
        }
    }

    pub(crate) fn has_permit(&self) -> bool {
        self.permits.has_one()
    }

    /// The right to read.
    pub(crate) fn permit(&self) -> Option<Slot> {
        self.permits.take()
    }

    /// The right to a second buffer.
    pub(crate) fn second(&self) -> Option<Slot> {
        self.seconds.take()
    }

    /// Takes `bytes` from the budget, or says when there will be some.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), u64> {
        let Some(bucket) = &self.bucket else {
            return Ok(());
        };
        let now = self.clock.now();
        let mut bucket = bucket.lock();
        bucket.fill(now);
        if bucket.tokens <= 0 {
            let owed = u128::from(bucket.tokens.unsigned_abs()) + 1;
            let wait = owed * 1_000_000_000 / u128::from(bucket.bytes_per_second);
            return Err(now + (wait as u64).max(1_000));
        }
        bucket.tokens -= bytes as i64;
        Ok(())
    }

    /// A buffer. Callbacks that keep theirs do not starve the others: a new one replaces it.
    pub(crate) fn buffer(self: &Arc<Self>) -> Buffer {
        let pooled = self.buffers.lock().pop();
        let bytes = pooled.unwrap_or_else(|| AlignedBuf::zeroed(self.buffer_bytes));
        Buffer { bytes: Some(bytes), cold: Arc::clone(self) }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Bucket {
    fn fill(&mut self, now: u64) {
        let earned = u128::from(now.saturating_sub(self.filled_at))
            * u128::from(self.bytes_per_second)
            / 1_000_000_000;
        let burst = (self.bytes_per_second / 10) as i64;
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(burst);
            self.filled_at = now;
        }
    }
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(&[])
    }

    /// Its memory; what stays behind is empty.
    pub(crate) fn take(&mut self) -> Buffer {
        Buffer { bytes: self.bytes.take(), cold: Arc::clone(&self.cold) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().unwrap_or(&mut [])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = self.cold.buffers.lock();
        if let Some(bytes) = self.bytes.take().filter(|_| pool.len() < limits::COLD_BUFFERS) {
            pool.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn cold(rate: u64) -> (Arc<Cold>, Arc<AtomicU64>) {
        let nanos = Arc::new(AtomicU64::new(0));
        let clock = Clock::Manual(Arc::clone(&nanos));
        (Arc::new(Cold::new(clock, 2, Some(rate), 1 << 16)), nanos)
    }

    #[test]
    fn the_budget_is_a_rate_with_a_bounded_burst() {
        let (cold, nanos) = cold(10_000_000);
        let mut spent = 0;
        for tick in 0..1_000 {
            nanos.store(tick * 10_000_000, Ordering::Relaxed);
            while cold.spend(64 << 10).is_ok() {
                spent += 64 << 10;
            }
        }
        // Ten seconds, a tenth of a second of burst, one read of debt.
        assert!((99_000_000..=101_100_000).contains(&spent), "{spent}");
    }

    #[test]
    fn a_wait_that_is_told_is_enough() {
        let (cold, nanos) = cold(1_000_000);
        while cold.spend(300_000).is_ok() {}
        let at = cold.spend(1).unwrap_err();
        nanos.store(at, Ordering::Relaxed);
        assert!(cold.spend(1).is_ok());
    }

    #[test]
    fn permits_and_buffers_come_back() {
        let (cold, _) = cold(1);
        let first = cold.permit();
        let second = cold.permit();
        assert!(first.is_some() && second.is_some() && cold.permit().is_none());
        drop(first);
        assert!(cold.has_permit() && cold.permit().is_some());
        let kept: Vec<Buffer> = (0..10).map(|_| cold.buffer()).collect();
        drop(kept);
        assert_eq!(cold.buffers.lock().len(), limits::COLD_BUFFERS);
    }
}
