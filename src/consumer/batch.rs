//! What a callback is given: [`Batch`] and [`Record`], borrowed from wherever the bytes are held;
//! and what it may keep: [`OwnedRecord`].

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::filter::Filter;
use super::pins::{Account, Charge, SlabPin};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::policy::Tier;
use crate::ring::SlabArc;
use crate::source::{RunIter, Select};

/// What leases of a batch are charged to, and what they pin.
pub(crate) struct Lender<'a> {
    pub(crate) account: &'a Arc<Account>,
    /// The slab that holds the bytes; `None` where a lease copies: a pinned mapping would defeat
    /// the release of its pages, a pinned buffer the pool.
    pub(crate) slab: Option<&'a SlabArc>,
    /// Filled by the first lease, so that the next ones only clone it.
    pub(crate) pin: OnceCell<Arc<SlabPin>>,
}

impl Lender<'_> {
    fn lend(&self, payload: &[u8]) -> Result<Payload> {
        let Some(slab) = self.slab else {
            let charge = self.account.charge(payload.len() as u64)?;
            return Ok(Payload::Copied { bytes: payload.into(), _charge: Some(charge) });
        };
        let pin = match self.pin.get() {
            Some(pin) => Arc::clone(pin),
            None => Arc::clone(self.pin.get_or_init({
                let pin = self.account.pin(slab)?;
                || pin
            })),
        };
        Ok(Payload::Pinned { bytes: NonNull::from(payload), _pin: pin })
    }
}

/// Records of one callback, in LSN order, borrowed from the slab, the mapping or the read buffer.
///
/// Those that the consumer's filter leaves out are not in it, so LSNs may be apart; in between
/// nothing is missing that the filter lets through.
pub struct Batch<'a> {
    run: RunIter<'a>,
    records: usize,
    first: Lsn,
    last: Lsn,
    tier: Tier,
    filter: &'a Filter,
    lender: Lender<'a>,
    /// Where the last record ends in its block, once somebody has passed it.
    reached: Cell<Option<u32>>,
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("records", &self.records)
            .field("first_lsn", &self.first)
            .field("last_lsn", &self.last)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        (run, records): (RunIter<'a>, usize),
        (first, last): (Lsn, Lsn),
        tier: Tier,
        filter: &'a Filter,
        lender: Lender<'a>,
    ) -> Batch<'a> {
        Batch { run, records, first, last, tier, filter, lender, reached: Cell::new(None) }
    }

    pub(crate) fn reached(&self) -> Option<u32> {
        self.reached.get()
    }

    /// How many records it holds; never none.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records
    }

    /// Always false; for completeness.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The first LSN that acknowledging the batch covers. The record itself may be filtered out.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.first
    }

    /// The last LSN that acknowledging the batch covers. The record itself may be filtered out.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.last
    }

    /// The tier that the consumer is in.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The records.
    #[must_use]
    pub fn iter(&self) -> BatchIter<'_> {
        let (run, lender, reached) = (self.run.clone(), &self.lender, &self.reached);
        BatchIter { run, filter: self.filter, lender, reached }
    }
}

impl<'b> IntoIterator for &'b Batch<'_> {
    type Item = Record<'b>;
    type IntoIter = BatchIter<'b>;

    fn into_iter(self) -> BatchIter<'b> {
        self.iter()
    }
}

/// Iterates over the records of a [`Batch`].
pub struct BatchIter<'b> {
    run: RunIter<'b>,
    filter: &'b Filter,
    lender: &'b Lender<'b>,
    reached: &'b Cell<Option<u32>>,
}

impl fmt::Debug for BatchIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchIter").finish_non_exhaustive()
    }
}

impl Drop for BatchIter<'_> {
    fn drop(&mut self) {
        if self.run.left() == 0 {
            self.reached.set(Some(self.run.offset()));
        }
    }
}

impl<'b> Iterator for BatchIter<'b> {
    type Item = Record<'b>;

    #[inline]
    fn next(&mut self) -> Option<Record<'b>> {
        loop {
            let (lsn, time_nanos, raw) = self.run.next()?;
            if self.filter.all() || self.filter.matches(raw.kind, raw.key) {
                let (kind, key, payload) = (raw.kind, raw.key, raw.payload);
                return Some(Record { lsn, time_nanos, kind, key, payload, lender: self.lender });
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.run.left() as usize))
    }
}

/// One record, borrowed.
#[derive(Clone, Copy)]
pub struct Record<'b> {
    lsn: Lsn,
    time_nanos: u64,
    kind: u16,
    key: u64,
    payload: &'b [u8],
    lender: &'b Lender<'b>,
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("lsn", &self.lsn)
            .field("kind", &self.kind)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

fn system_time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

impl<'b> Record<'b> {
    /// Its address.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The kind given on append.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// The key given on append.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The payload, where it lies: in the slab, the mapping or the read buffer.
    #[must_use]
    pub fn payload(&self) -> &'b [u8] {
        self.payload
    }

    /// When its group was committed.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        system_time(self.time_nanos)
    }

    /// Keeps the record beyond the callback: in the hot tier without a copy, by pinning its slab;
    /// elsewhere as a copy. Either is charged to the consumer's share of the pin budget until the
    /// last lease in that slab is dropped. A consumer that is shed stays so while its leases pin
    /// more than half its share.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseRefused`](crate::ErrorKind::LeaseRefused) over the share or the budget:
    /// copy what is needed instead.
    pub fn lease(&self) -> Result<OwnedRecord> {
        Ok(self.owned(self.lender.lend(self.payload)?))
    }

    /// Leases it while the share lasts, else copies it.
    pub(crate) fn lease_or_copy(&self) -> OwnedRecord {
        self.lease().unwrap_or_else(|_| {
            self.owned(Payload::Copied { bytes: self.payload.into(), _charge: None })
        })
    }

    fn owned(&self, payload: Payload) -> OwnedRecord {
        let Record { lsn, time_nanos, kind, key, .. } = *self;
        OwnedRecord { lsn, time_nanos, kind, key, payload }
    }
}

/// A record that outlives its batch.
pub struct OwnedRecord {
    lsn: Lsn,
    time_nanos: u64,
    kind: u16,
    key: u64,
    payload: Payload,
}

enum Payload {
    Pinned {
        /// Below the committed position of the slab that `_pin` keeps.
        bytes: NonNull<[u8]>,
        _pin: Arc<SlabPin>,
    },
    Copied {
        bytes: Box<[u8]>,
        _charge: Option<Charge>,
    },
}

// SAFETY: pinned bytes are committed, so nobody writes them (invariant I1), and the pin keeps them.
unsafe impl Send for Payload {}
// SAFETY: as above; shared reads of immutable bytes.
unsafe impl Sync for Payload {}

impl fmt::Debug for OwnedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedRecord")
            .field("lsn", &self.lsn)
            .field("kind", &self.kind)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload().len())
            .finish()
    }
}

impl OwnedRecord {
    /// Its address.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The kind given on append.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// The key given on append.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        match &self.payload {
            // SAFETY: the pin keeps the slab, and committed bytes never change (invariant I1).
            Payload::Pinned { bytes, .. } => unsafe { bytes.as_ref() },
            Payload::Copied { bytes, .. } => bytes,
        }
    }

    /// When its group was committed.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        system_time(self.time_nanos)
    }

    /// Whether it pins a slab rather than being a copy.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        matches!(self.payload, Payload::Pinned { .. })
    }
}

impl AsRef<[u8]> for OwnedRecord {
    fn as_ref(&self) -> &[u8] {
        self.payload()
    }
}
