//! raft-engine: a log batch a group, an entry a record. `write` with `sync` ends in an fdatasync of
//! the file.

use std::path::Path;

use anyhow::Context as _;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use super::{Payload, Peer, RAFT_ENGINE, beside};
use crate::Context;

pub fn run(context: &Context) -> anyhow::Result<()> {
    beside::<RaftEngine>(context, RAFT_ENGINE.name, "raft-engine 0.4")
}

/// The one group that there is.
const REGION: u64 = 1;

struct RaftEngine {
    engine: Engine,
    batch: LogBatch,
    entries: Vec<BytesValue>,
}

/// An entry's index is what the payload begins with.
#[derive(Clone)]
struct Numbered;

impl MessageExt for Numbered {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let number = entry.value[..8].try_into().expect("eight bytes");
        u64::from_le_bytes(number)
    }
}

impl Peer for RaftEngine {
    fn open(dir: &Path) -> anyhow::Result<RaftEngine> {
        let config = Config {
            dir: dir.to_str().context("a path in UTF-8")?.to_owned(),
            // Payloads do not compress: trying would cost it time.
            batch_compression_threshold: ReadableSize(0),
            ..Config::default()
        };
        let engine = Engine::open(config)?;
        Ok(RaftEngine { engine, batch: LogBatch::default(), entries: Vec::new() })
    }

    fn commit(&mut self, _first: u64, group: &[Payload]) -> anyhow::Result<()> {
        self.entries.clear();
        self.entries.extend(group.iter().map(|payload| {
            let mut entry = BytesValue::new();
            entry.set_value(payload.to_vec());
            entry
        }));
        self.batch.add_entries::<Numbered>(REGION, &self.entries)?;
        self.engine.write(&mut self.batch, true)?;
        Ok(())
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        let first = self.engine.first_index(REGION).context("a first index")?;
        let last = self.engine.last_index(REGION).context("a last index")?;
        Ok(last + 1 - first)
    }
}
