//! SQLite: a transaction a group, a row a record. In WAL mode, `synchronous = FULL` syncs the WAL
//! at each commit; `NORMAL` would not.

use std::path::Path;

use anyhow::ensure;
use rusqlite::{Connection, params};

use super::{Payload, Peer, SQLITE, beside};
use crate::Context;

pub fn run(context: &Context) -> anyhow::Result<()> {
    beside::<Sqlite>(context, SQLITE.name, "SQLite, WAL, FULL")
}

struct Sqlite(Connection);

impl Peer for Sqlite {
    fn open(dir: &Path) -> anyhow::Result<Sqlite> {
        let connection = Connection::open(dir.join("log.sqlite"))?;
        let mode: String =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        ensure!(mode == "wal", "journal_mode is {mode}");
        connection.pragma_update(None, "synchronous", "FULL")?;
        let table = "CREATE TABLE log (lsn INTEGER PRIMARY KEY, payload BLOB NOT NULL) STRICT";
        connection.execute(table, [])?;
        Ok(Sqlite(connection))
    }

    fn commit(&mut self, first: u64, group: &[Payload]) -> anyhow::Result<()> {
        let transaction = self.0.transaction()?;
        {
            let insert = "INSERT INTO log (lsn, payload) VALUES (?1, ?2)";
            let mut insert = transaction.prepare_cached(insert)?;
            for (payload, lsn) in group.iter().zip(first as i64..) {
                insert.execute(params![lsn, &payload[..]])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        let count: i64 = self.0.query_row("SELECT count(*) FROM log", [], |row| row.get(0))?;
        Ok(count as u64)
    }
}
