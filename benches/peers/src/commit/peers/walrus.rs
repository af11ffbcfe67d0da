//! walrus: a batch a group. A batch is synced before `batch_append_for_topic` returns, whatever the
//! schedule; `SyncEach` would open the files with O_SYNC besides and sync each entry of it.

use std::path::{Path, PathBuf};
use std::{env, fs};

use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use super::{Payload, Peer, WALRUS, beside};
use crate::Context;

pub fn run(context: &Context) -> anyhow::Result<()> {
    // It can be told in no other way where to write, and not to print every step.
    //
    // SAFETY: rows run one after the other, on this thread; what other threads a row may have left
    // behind read the environment through Rust's own lock, if at all.
    unsafe {
        env::set_var("WALRUS_QUIET", "1");
        env::set_var("WALRUS_DATA_DIR", &context.dir);
    }
    beside::<Topic>(context, WALRUS.name, "walrus-rust 0.2")
}

const NAME: &str = "log";

struct Topic {
    walrus: Walrus,
    root: PathBuf,
}

impl Peer for Topic {
    /// Its place is a key below the directory that it was told by the environment.
    fn open(_dir: &Path) -> anyhow::Result<Topic> {
        const KEY: &str = "walrus";
        let root = PathBuf::from(env::var("WALRUS_DATA_DIR")?).join(KEY);
        let schedule = FsyncSchedule::Milliseconds(200);
        let consistency = ReadConsistency::StrictlyAtOnce;
        let walrus = Walrus::with_consistency_and_schedule_for_key(KEY, consistency, schedule)?;
        Ok(Topic { walrus, root })
    }

    fn commit(&mut self, _first: u64, group: &[Payload]) -> anyhow::Result<()> {
        let entries: Vec<&[u8]> = group.iter().map(|payload| &payload[..]).collect();
        Ok(self.walrus.batch_append_for_topic(NAME, &entries)?)
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        let mut records = 0;
        loop {
            let entries = self.walrus.batch_read_for_topic(NAME, 1 << 20, true)?;
            if entries.is_empty() {
                return Ok(records);
            }
            records += entries.len() as u64;
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // Files of a gigabyte, most of it holes.
        let _ = fs::remove_dir_all(&self.root);
    }
}
