//! fjall: a write batch a group, keyed by number. With a durability of `SyncData`, `commit` syncs
//! the journal's data before it returns.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{FJALL, Payload, Peer, beside};
use crate::Context;

pub fn run(context: &Context) -> anyhow::Result<()> {
    beside::<Fjall>(context, FJALL.name, "fjall 3.1")
}

struct Fjall {
    database: Database,
    log: Keyspace,
}

impl Peer for Fjall {
    fn open(dir: &Path) -> anyhow::Result<Fjall> {
        let database = Database::builder(dir).open()?;
        let log = database.keyspace("log", KeyspaceCreateOptions::default)?;
        Ok(Fjall { database, log })
    }

    fn commit(&mut self, first: u64, group: &[Payload]) -> anyhow::Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for (payload, number) in group.iter().zip(first..) {
            batch.insert(&self.log, number.to_be_bytes(), &payload[..]);
        }
        Ok(batch.commit()?)
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        Ok(self.log.len()? as u64)
    }
}
