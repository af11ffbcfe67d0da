//! One life of a bus on a simulated disk: what a seed decides to do with it, step by step, on one
//! thread, and what must hold after each step.

use std::time::Duration;

use eventplane::testing::{Force, ManualClock, Probe, SimDisk};
use eventplane::{
    Builder, Bus, Durability, ErrorKind, Lsn, Reason, Result, Retention, Ticket, Writer,
};
use fastrand::Rng;

use crate::ledger::{Deletes, Shared, lock};
use crate::subscriber::Sub;

pub(crate) const DIR: &str = "/data/events";
pub(crate) const SLAB_BYTES: u64 = 64 << 10;
pub(crate) const SEGMENT_BYTES: u64 = 128 << 10;

/// Small enough that a few hundred records fill several segments.
pub(crate) fn builder(disk: &SimDisk, clock: &ManualClock) -> Builder {
    Bus::builder()
        .slab_bytes(SLAB_BYTES)
        .segment_bytes(SEGMENT_BYTES)
        .ring_bytes(2 * SEGMENT_BYTES)
        .pin_budget_bytes(4 * SLAB_BYTES)
        .catchup_window_bytes(4 * SEGMENT_BYTES)
        .consumers_max(8)
        .cold_bytes_per_second(None)
        .shed_backoff(Duration::from_millis(20), Duration::from_millis(80))
        .simulated(disk)
        .manual(clock)
}

/// Options of a life, drawn by its seed.
fn options(rng: &mut Rng, builder: Builder) -> (Builder, Deletes) {
    let durability = match rng.u8(0..3) {
        0 => Durability::Deferred { interval: Duration::from_millis(20), bytes: 64 << 10 },
        _ => Durability::Synced,
    };
    let kept = rng.u64(2..6);
    let (retention, deletes) = match rng.u8(0..4) {
        0 => (Retention::keep_all(), Deletes::default()),
        1 => {
            let retention = Retention::bytes(kept * SEGMENT_BYTES);
            (
                retention,
                Deletes { something: true, files_min: kept, ignores_barrier: false },
            )
        }
        2 => {
            let retention =
                Retention::bytes(kept * SEGMENT_BYTES).hard_cap_bytes((kept + 1) * SEGMENT_BYTES);
            (
                retention,
                Deletes { something: true, files_min: kept, ignores_barrier: true },
            )
        }
        _ => (
            Retention::consumed(),
            Deletes { something: true, files_min: 1, ignores_barrier: false },
        ),
    };
    (builder.durability(durability).retention(retention), deletes)
}

pub(crate) struct Life {
    // Subscribers leave before the bus goes.
    subs: Vec<Sub>,
    tickets: Vec<Ticket>,
    writer: Writer,
    pub(crate) bus: Bus,
    clock: ManualClock,
    rng: Rng,
    ledger: Shared,
    names: u64,
    /// What the last call was about, for messages.
    pub(crate) doing: &'static str,
}

impl Life {
    pub(crate) fn begin(disk: &SimDisk, ledger: &Shared, rng: &mut Rng) -> Result<Life> {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(lock(ledger).keys));
        let (builder, deletes) = options(rng, builder(disk, &clock));
        {
            let mut ledger = lock(ledger);
            let before = ledger.deletes;
            // What an earlier life was free to delete may be gone.
            ledger.deletes = Deletes {
                something: before.something || deletes.something,
                files_min: if before.something && deletes.something {
                    before.files_min.min(deletes.files_min)
                } else {
                    before.files_min.max(deletes.files_min)
                },
                ignores_barrier: before.ignores_barrier || deletes.ignores_barrier,
            };
        }
        let bus = builder.open(DIR)?;
        Ok(Life {
            subs: Vec::new(),
            tickets: Vec::new(),
            writer: bus.writer(),
            bus,
            clock,
            rng: rng.fork(),
            ledger: ledger.clone(),
            names: 0,
            doing: "open",
        })
    }

    pub(crate) fn probe(&self) -> Probe {
        self.bus.probe()
    }

    /// What is published is durable, whoever has been told.
    fn note_committed(&self) {
        lock(&self.ledger).ack(self.bus.committed_lsn().get());
    }

    /// One action. An error is one that the bus returned: without faults there is none to return.
    pub(crate) fn act(&mut self) -> Result<()> {
        let outcome = match self.rng.u8(0..100) {
            0..16 => self.append(),
            16..34 => self.batch(),
            34..37 => self.abandon(),
            37..55 => self.step(),
            55..61 => self.drive(),
            61..64 => self.sync(),
            64..69 => self.tick(),
            69..75 => self.housekeep(),
            75..88 => self.poll(),
            88..92 => self.pass_time(),
            92..94 => self.subscribe(),
            94..96 => self.control(),
            96..97 => self.unsubscribe(),
            97..99 => self.force(),
            _ => self.wait_for_a_ticket(),
        };
        self.note_committed();
        outcome
    }

    fn append(&mut self) -> Result<()> {
        self.doing = "append";
        let batch = lock(&self.ledger).make(&mut self.rng, 1);
        self.commit(batch, false)
    }

    fn batch(&mut self) -> Result<()> {
        self.doing = "batch";
        let records = self.rng.usize(1..12);
        let batch = lock(&self.ledger).make(&mut self.rng, records);
        let later = self.rng.u8(0..3) > 0;
        self.commit(batch, later)
    }

    /// Enters the batch in the ledger as it gets its LSNs, then commits.
    fn commit(&mut self, records: Vec<crate::ledger::Entry>, later: bool) -> Result<()> {
        let mut batch = self.writer.batch();
        let mut added = Vec::new();
        for record in records {
            let payload = record.payload();
            let fits = if self.rng.bool() {
                batch.append(record.kind(), record.key, &payload)
            } else {
                let room = batch.reserve(record.kind(), record.key, payload.len());
                room.map(|room| room.copy_from_slice(&payload))
            };
            match fits {
                Ok(()) => added.push(record),
                Err(e) if e.kind() == ErrorKind::BatchTooLarge => break,
                Err(e) => return Err(e),
            }
        }
        let Some(end) = added.last_mut() else { return Ok(()) };
        end.ends_batch = true;
        let first = {
            let mut ledger = lock(&self.ledger);
            let first = ledger.last() + 1;
            ledger.entries.extend(added);
            first
        };
        let last = lock(&self.ledger).last();
        let lsns = if later {
            let ticket = batch.commit_later()?;
            let lsns = ticket.lsns();
            self.tickets.push(ticket);
            lsns
        } else {
            batch.commit()?
        };
        assert_eq!(
            lsns,
            Lsn::new(first)..=Lsn::new(last),
            "LSNs are dense and in order"
        );
        Ok(())
    }

    fn abandon(&mut self) -> Result<()> {
        self.doing = "abandon a batch";
        let entry = lock(&self.ledger).make(&mut self.rng, 1)[0];
        let mut batch = self.writer.batch();
        batch.append(entry.kind(), entry.key, &entry.payload())
    }

    fn step(&mut self) -> Result<()> {
        self.doing = "a round of the committer";
        for _ in 0..self.rng.u8(1..4) {
            self.bus.step();
        }
        Ok(())
    }

    fn drive(&mut self) -> Result<()> {
        self.doing = "the log's threads";
        self.bus.drive()
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        self.doing = "sync";
        self.bus.sync()?;
        let last = lock(&self.ledger).last();
        lock(&self.ledger).ack(last);
        self.tickets.clear();
        Ok(())
    }

    fn wait_for_a_ticket(&mut self) -> Result<()> {
        self.doing = "wait for a ticket";
        if self.tickets.is_empty() {
            return Ok(());
        }
        let ticket = self.tickets.swap_remove(self.rng.usize(0..self.tickets.len()));
        ticket.wait().map(drop)
    }

    fn tick(&mut self) -> Result<()> {
        self.doing = "the supervisor";
        self.bus.tick();
        Ok(())
    }

    fn housekeep(&mut self) -> Result<()> {
        self.doing = "the housekeeper";
        self.bus.housekeep();
        lock(&self.ledger).flushed();
        Ok(())
    }

    fn poll(&mut self) -> Result<()> {
        self.doing = "poll";
        for _ in 0..self.rng.u8(1..5) {
            if self.subs.is_empty() {
                return Ok(());
            }
            let chosen = self.rng.usize(0..self.subs.len());
            self.subs[chosen].poll();
        }
        Ok(())
    }

    fn pass_time(&mut self) -> Result<()> {
        self.doing = "time passes";
        let millis = if self.rng.u8(0..4) == 0 { self.rng.u64(50..3_000) } else { 5 };
        self.clock.advance(Duration::from_millis(millis));
        Ok(())
    }

    fn subscribe(&mut self) -> Result<()> {
        self.doing = "subscribe";
        if self.subs.len() >= 3 {
            return Ok(());
        }
        // A new name, or that of somebody who has left.
        let free: Vec<String> = {
            let ledger = lock(&self.ledger);
            let taken = |name: &String| self.subs.iter().any(|sub| sub.name == *name);
            ledger
                .checkpoints
                .keys()
                .filter(|name| !taken(name))
                .cloned()
                .collect()
        };
        let name = if free.is_empty() || self.rng.bool() {
            self.names += 1;
            let life = lock(&self.ledger).keys;
            format!("c{life}-{}", self.names)
        } else {
            free[self.rng.usize(0..free.len())].clone()
        };
        let sub = Sub::begin(&self.bus, &name, &self.ledger, &mut self.rng)?;
        self.subs.push(sub);
        Ok(())
    }

    fn unsubscribe(&mut self) -> Result<()> {
        self.doing = "unsubscribe";
        if !self.subs.is_empty() {
            let chosen = self.rng.usize(0..self.subs.len());
            // Its end stores the checkpoints of all.
            drop(self.subs.swap_remove(chosen));
            lock(&self.ledger).flushed();
        }
        Ok(())
    }

    fn control(&mut self) -> Result<()> {
        self.doing = "seek, pause, resume";
        if self.subs.is_empty() {
            return Ok(());
        }
        let chosen = self.rng.usize(0..self.subs.len());
        let first = self.bus.first_lsn().get();
        let end = self.bus.committed_lsn().get() + 1;
        match self.rng.u8(0..3) {
            0 => self.subs[chosen].seek(self.rng.u64(first..=end)),
            1 => {
                self.subs[chosen].handle().pause();
                Ok(())
            }
            _ => {
                self.subs[chosen].handle().resume();
                Ok(())
            }
        }
    }

    fn force(&mut self) -> Result<()> {
        self.doing = "force a tier";
        if let Some(sub) = self.subs.first() {
            let to = [Force::CatchUp, Force::Replaying, Force::Hot][self.rng.usize(0..3)];
            self.bus.force(&sub.name, to, Reason::Lag);
        }
        Ok(())
    }

    /// Everything is durable and stored afterwards.
    pub(crate) fn close(mut self) -> Result<()> {
        self.subs.clear();
        lock(&self.ledger).flushed();
        self.bus.close()?;
        let last = lock(&self.ledger).last();
        lock(&self.ledger).ack(last);
        Ok(())
    }
}
