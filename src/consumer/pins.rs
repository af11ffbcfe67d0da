//! The pin budget: how much memory leases may keep alive.
//!
//! A lease pins a whole slab, so slabs are what is charged, once a consumer and slab. A consumer
//! has a share, a quarter of the budget; when the whole budget is taken every lease is refused and
//! the supervisor sheds the consumer that pins most. Charged before memory is pinned, released
//! after it is free, so the sum never understates.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::error::{Error, ErrorKind, Result};
use crate::ring::SlabArc;
use crate::sync::Mutex;

/// The budget of a bus.
#[derive(Debug)]
pub(crate) struct PinBudget {
    budget_bytes: u64,
    share_bytes: u64,
    slab_bytes: u64,
    pinned: AtomicU64,
    /// A lease was refused because the whole budget is taken; read and cleared by the supervisor.
    exhausted: AtomicBool,
}

/// One consumer's part in it.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<PinBudget>,
    pinned: AtomicU64,
    /// Slabs pinned, so that leaving a slab and coming back does not charge it twice.
    slabs: Mutex<Vec<(u64, Weak<SlabPin>)>>,
}

/// A slab that leases of one consumer keep.
#[derive(Debug)]
pub(crate) struct SlabPin {
    /// Dropped before the charge.
    slab: Option<SlabArc>,
    _charge: Charge,
}

/// Bytes charged to an account, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

/// Adds `bytes` unless that exceeds `max`.
///
/// Relaxed: the number alone is what counts, no other memory hangs on it.
fn add(to: &AtomicU64, bytes: u64, max: u64) -> bool {
    to.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
        now.checked_add(bytes).filter(|&sum| sum <= max)
    })
    .is_ok()
}

fn subtract(from: &AtomicU64, bytes: u64) {
    let before = from.fetch_sub(bytes, Ordering::Relaxed);
    debug_assert!(before >= bytes, "{bytes} pinned bytes released of {before}");
}

impl PinBudget {
    pub(crate) fn new(budget_bytes: u64, share_bytes: u64, slab_bytes: u64) -> PinBudget {
        PinBudget {
            budget_bytes,
            share_bytes,
            slab_bytes,
            pinned: AtomicU64::new(0),
            exhausted: AtomicBool::new(false),
        }
    }

    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Whether the whole budget was asked for more than it has since the last call.
    pub(crate) fn take_exhausted(&self) -> bool {
        self.exhausted.swap(false, Ordering::Relaxed)
    }
}

impl Account {
    pub(crate) fn new(budget: &Arc<PinBudget>) -> Account {
        Account { budget: Arc::clone(budget), pinned: AtomicU64::new(0), slabs: Mutex::default() }
    }

    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Charges `bytes`, or says what stands against it.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge> {
        let budget = &self.budget;
        if !add(&self.pinned, bytes, budget.share_bytes) {
            return Err(refused(format!(
                "the consumer pins {} of its share of {} bytes",
                self.pinned_bytes(),
                budget.share_bytes
            )));
        }
        if !add(&budget.pinned, bytes, budget.budget_bytes) {
            subtract(&self.pinned, bytes);
            budget.exhausted.store(true, Ordering::Relaxed);
            return Err(refused(format!(
                "the pin budget of {} bytes is exhausted",
                budget.budget_bytes
            )));
        }
        Ok(Charge { account: Arc::clone(self), bytes })
    }

    /// Pins a slab; charged once for all leases in it.
    pub(crate) fn pin(self: &Arc<Self>, slab: &SlabArc) -> Result<Arc<SlabPin>> {
        let mut slabs = self.slabs.lock();
        let number = slab.number();
        if let Some(pin) = slabs.iter().find(|(n, _)| *n == number).and_then(|(_, p)| p.upgrade()) {
            return Ok(pin);
        }
        let charge = self.charge(self.budget.slab_bytes)?;
        let pin = Arc::new(SlabPin { slab: Some(SlabArc::clone(slab)), _charge: charge });
        slabs.retain(|(n, pin)| *n != number && pin.strong_count() > 0);
        slabs.push((number, Arc::downgrade(&pin)));
        Ok(pin)
    }
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::LeaseRefused, why).advise("copy the record instead")
}

impl Drop for SlabPin {
    fn drop(&mut self) {
        self.slab = None;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        subtract(&self.account.pinned, self.bytes);
        subtract(&self.account.budget.pinned, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_and_then_the_whole_budget() {
        let budget = Arc::new(PinBudget::new(100, 40, 10));
        let accounts: Vec<_> = (0..3).map(|_| Arc::new(Account::new(&budget))).collect();
        let held: Vec<_> = accounts.iter().map(|a| a.charge(33).unwrap()).collect();
        assert!(accounts[0].charge(10).is_err(), "over its share");
        assert!(!budget.take_exhausted(), "that is not the budget's fault");
        assert!(accounts[0].charge(2).is_err(), "over the budget");
        assert!(budget.take_exhausted() && !budget.take_exhausted());
        assert_eq!(accounts[0].pinned_bytes(), 33, "a refusal charges nothing");
        drop(held);
        assert_eq!(budget.pinned_bytes(), 0);
    }
}
