//! A subscriber that keeps its LSN with its results, and so takes every record exactly once.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eventplane::{Batch, Record, Start};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::input::{Input, Row};
use crate::sequence::Sequence;
use crate::store;

const SAVE_INTERVAL: Duration = Duration::from_millis(500);

/// What a subscriber makes of events.
pub(crate) trait Work:
    Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + 'static
{
    const NAME: &'static str;

    fn take(&mut self, row: Row<'_>);

    /// The same from the file alone.
    fn expected(input: &Input, records: u64) -> Self;

    /// In one line.
    fn summary(&self) -> String;
}

/// The results with the LSNs they are of: stored together, or not at all.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Ledger<W: Work> {
    pub(crate) sequence: Sequence,
    pub(crate) work: W,
}

pub(crate) type Shared<T> = Arc<Mutex<T>>;

/// A panic elsewhere is told by its own thread; the value is whole between two records.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn row<'a>(record: &Record<'a>) -> Row<'a> {
    Row { kind: record.kind(), key: record.key(), payload: record.payload() }
}

pub(crate) struct Exact<W: Work> {
    ledger: Shared<Ledger<W>>,
    path: PathBuf,
    saved_at: Instant,
}

impl<W: Work> Exact<W> {
    /// The ledger as it was stored last, or an empty one, and where to start.
    pub(crate) fn open(home: &Home) -> io::Result<(Exact<W>, Start)> {
        let path = home.state(W::NAME).with_extension("json");
        let ledger: Ledger<W> = store::load(&path)?.unwrap_or_default();
        let start = match ledger.sequence.last() {
            0 => Start::Earliest,
            last => Start::Lsn(eventplane::Lsn::new(last + 1)),
        };
        let ledger = Arc::new(Mutex::new(ledger));
        Ok((Exact { ledger, path, saved_at: Instant::now() }, start))
    }

    /// Begins anew.
    pub(crate) fn forget(home: &Home) -> io::Result<()> {
        let path = home.state(W::NAME).with_extension("json");
        store::save(&path, &Ledger::<W>::default())
    }

    pub(crate) fn ledger(&self) -> Shared<Ledger<W>> {
        Arc::clone(&self.ledger)
    }

    pub(crate) fn deliver(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        let mut ledger = lock(&self.ledger);
        for record in batch {
            ledger.sequence.take(record.lsn().get());
            ledger.work.take(row(&record));
        }
        if self.saved_at.elapsed() >= SAVE_INTERVAL {
            store::save(&self.path, &*ledger)?;
            self.saved_at = Instant::now();
        }
        Ok(())
    }
}

impl<W: Work> Drop for Exact<W> {
    /// When the consumer is stopped. A failure costs a resumed run nothing but time.
    fn drop(&mut self) {
        let _ = store::save(&self.path, &*lock(&self.ledger));
    }
}
