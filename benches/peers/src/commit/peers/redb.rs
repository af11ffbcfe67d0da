//! redb: a transaction a group, a row a record. Its default durability is `Immediate`: synced when
//! `commit` returns.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::{Payload, Peer, REDB, beside};
use crate::Context;

pub fn run(context: &Context) -> anyhow::Result<()> {
    beside::<Redb>(context, REDB.name, "redb 4.6")
}

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

struct Redb(Database);

impl Peer for Redb {
    fn open(dir: &Path) -> anyhow::Result<Redb> {
        Ok(Redb(Database::create(dir.join("log.redb"))?))
    }

    fn commit(&mut self, first: u64, group: &[Payload]) -> anyhow::Result<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut log = transaction.open_table(LOG)?;
            for (payload, lsn) in group.iter().zip(first..) {
                log.insert(lsn, &payload[..])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        Ok(self.0.begin_read()?.open_table(LOG)?.len()?)
    }
}
