//! Groups of 64 records of 100 B, each group durable before the next, beside what one would pick
//! instead. All peers are as their documentation has them for durable writes; where a setting
//! decides whether a group is really synced, it is explained beside the code that sets it.

mod fjall;
mod okaywal;
mod raft_engine;
mod redb;
mod sqlite;
mod walrus;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;

use super::open;
use crate::load::{SMALL, fill};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const OKAYWAL: Bench = Bench { name: "commit_peer_okaywal", run: okaywal::run };
pub const RAFT_ENGINE: Bench = Bench { name: "commit_peer_raft_engine", run: raft_engine::run };
pub const FJALL: Bench = Bench { name: "commit_peer_fjall", run: fjall::run };
pub const WALRUS: Bench = Bench { name: "commit_peer_walrus", run: walrus::run };
pub const SQLITE: Bench = Bench { name: "commit_peer_sqlite", run: sqlite::run };
pub const REDB: Bench = Bench { name: "commit_peer_redb", run: redb::run };

type Payload = [u8; SMALL];

const GROUP: u64 = 64;

/// A log, or what is used as one.
trait Peer: Sized {
    fn open(dir: &Path) -> anyhow::Result<Self>;

    /// Appends a group whose first record has the number `first`, counted from 1; it is durable
    /// when this returns.
    fn commit(&mut self, first: u64, group: &[Payload]) -> anyhow::Result<()>;

    /// How many records it holds, as far as it can tell.
    fn records(&mut self) -> anyhow::Result<u64>;
}

struct Eventplane(eventplane::Bus);

impl Peer for Eventplane {
    fn open(dir: &Path) -> anyhow::Result<Eventplane> {
        Ok(Eventplane(open(dir)?))
    }

    fn commit(&mut self, first: u64, group: &[Payload]) -> anyhow::Result<()> {
        let writer = self.0.writer();
        let mut batch = writer.batch();
        for (payload, lsn) in group.iter().zip(first..) {
            batch.append(1, lsn, payload)?;
        }
        let got = batch.commit()?.start().get();
        ensure!(got == first, "a group at {got} instead of {first}");
        Ok(())
    }

    fn records(&mut self) -> anyhow::Result<u64> {
        Ok(self.0.durable_lsn().get())
    }
}

fn beside<P: Peer>(context: &Context, name: &str, label: &str) -> anyhow::Result<()> {
    let groups = context.scaled(10_000, 100);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let ours = Side::new("eventplane", || rate::<Eventplane>(&dir.path().join("ours"), groups));
    let theirs = Side::new(label, || rate::<P>(&dir.path().join("peer"), groups));
    context.report.pair(context.rounds, (name, "records/s", Bar::AtLeast(2.0)), ours, theirs)
}

/// Records a second, into a new directory; opening it and closing are not measured.
fn rate<P: Peer>(dir: &Path, groups: u64) -> anyhow::Result<f64> {
    fs::create_dir_all(dir)?;
    let mut peer = P::open(dir)?;
    let mut group = [[0; SMALL]; GROUP as usize];
    let begun = Instant::now();
    for number in 0..groups {
        let first = number * GROUP + 1;
        for (payload, lsn) in group.iter_mut().zip(first..) {
            fill(payload, lsn);
        }
        peer.commit(first, &group)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let records = peer.records()?;
    ensure!(records == groups * GROUP, "{records} records of {}", groups * GROUP);
    drop(peer);
    fs::remove_dir_all(dir)?;
    Ok((groups * GROUP) as f64 / seconds)
}
