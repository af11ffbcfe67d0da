//! okaywal: an entry a group, a chunk a record. `EntryWriter::commit` returns when the file is
//! synced.

use std::path::Path;

use anyhow::ensure;
use okaywal::{Configuration, LogVoid, WriteAheadLog};

use super::{GROUP, OKAYWAL, Payload, Peer, beside};
use crate::Context;

pub fn run(context: &Context) -> anyhow::Result<()> {
    beside::<Okaywal>(context, OKAYWAL.name, "okaywal 0.3")
}

struct Okaywal {
    log: Option<WriteAheadLog>,
    groups: u64,
}

impl Peer for Okaywal {
    fn open(dir: &Path) -> anyhow::Result<Okaywal> {
        // Files as large as ours, instead of 1 MiB: rolling costs it time.
        let config = Configuration::default_for(dir)
            .preallocate_bytes(16 << 20)
            .checkpoint_after_bytes(15 << 20);
        Ok(Okaywal { log: Some(config.open(LogVoid)?), groups: 0 })
    }

    fn commit(&mut self, _first: u64, group: &[Payload]) -> anyhow::Result<()> {
        let log = self.log.as_ref().expect("open");
        let mut entry = log.begin_entry()?;
        for payload in group {
            entry.write_chunk(payload)?;
        }
        let id = entry.commit()?.0;
        self.groups += 1;
        ensure!(id == self.groups, "entry {id} instead of {}", self.groups);
        Ok(())
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        Ok(self.groups * GROUP)
    }
}

impl Drop for Okaywal {
    fn drop(&mut self) {
        // Its threads end, and nothing is left that could write to a directory that goes.
        if let Some(Err(error)) = self.log.take().map(WriteAheadLog::shutdown) {
            println!("  okaywal did not shut down: {error}");
        }
    }
}
