//! What a disk must hold after a crash: opened as a user would, read as a consumer would.

use eventplane::testing::{Crash, ManualClock, SimDisk};
use eventplane::{Bus, Lsn, Start};
use fastrand::Rng;

use crate::ledger::Ledger;
use crate::life::{DIR, builder};

/// Crash states by where the crash struck.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) states: u64,
    /// Of them, crashes of a recovery that was under way.
    pub(crate) in_recovery: u64,
    pub(crate) torn: u64,
    /// Checkpoints compared.
    pub(crate) checkpoints: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.states += other.states;
        self.in_recovery += other.in_recovery;
        self.torn += other.torn;
        self.checkpoints += other.checkpoints;
    }
}

pub(crate) struct Judge<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) rng: Rng,
    pub(crate) counts: Counts,
}

impl Judge<'_> {
    /// Opens the crashed disk and compares; crashes the recovery as well, now and then.
    pub(crate) fn judge(&mut self, disk: &SimDisk) -> Result<(), String> {
        let nested = if self.rng.u8(0..4) == 0 { self.crash_recovery(disk)? } else { Vec::new() };
        let bus = self.open(disk)?;
        let last = self.compare(&bus)?;
        self.compare_checkpoints(&bus)?;
        self.compare_files(&bus, disk)?;
        match self.rng.u8(0..6) {
            0 => self.again(disk, last)?,
            1 => self.go_on(&bus, disk, last)?,
            _ => {}
        }
        for crashed in nested {
            self.counts.in_recovery += 1;
            let bus = self
                .open(&crashed)
                .map_err(|e| format!("after a crash of recovery: {e}"))?;
            self.compare(&bus)
                .map_err(|e| format!("after a crash of recovery: {e}"))?;
            self.compare_checkpoints(&bus)?;
        }
        Ok(())
    }

    fn open(&mut self, disk: &SimDisk) -> Result<Bus, String> {
        self.counts.states += 1;
        let bus = builder(disk, &ManualClock::default()).open(DIR);
        let bus = bus.map_err(|e| format!("refused: {e:?}"))?;
        self.counts.torn += u64::from(bus.recovery().torn_bytes > 0);
        Ok(bus)
    }

    /// Disks as crashes in the middle of this disk's recovery leave them. On a copy: what is judged
    /// is not to be changed.
    fn crash_recovery(&mut self, disk: &SimDisk) -> Result<Vec<SimDisk>, String> {
        let copy = disk.copy();
        let crashed = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut dice = self.rng.fork();
        let taken = std::sync::Arc::clone(&crashed);
        copy.watch(move |disk, _| {
            let mut taken = taken.lock().unwrap();
            if taken.len() < 3 && dice.u8(0..3) == 0 {
                taken.push(disk.crash(crash(&mut dice), dice.u64(..)));
            }
        });
        let bus = self.open(&copy)?;
        copy.unwatch();
        drop(bus);
        let taken = std::mem::take(&mut *crashed.lock().unwrap());
        Ok(taken)
    }

    /// Reads everything. Returns the last LSN.
    fn compare(&self, bus: &Bus) -> Result<u64, String> {
        let ledger = self.ledger;
        let first = bus.first_lsn().get();
        let mut next = first;
        let mut reader = bus
            .reader(Start::Earliest)
            .map_err(|e| format!("no reader: {e}"))?;
        while let Some(record) = reader.try_next().map_err(|e| format!("unreadable: {e:?}"))? {
            let lsn = record.lsn().get();
            if lsn != next {
                return Err(format!("LSN {lsn} where {next} was expected"));
            }
            ledger.compare(lsn, record.kind(), record.key(), record.payload())?;
            next += 1;
        }
        let last = next - 1;
        if last != bus.recovery().last_lsn.get() || next - first != bus.recovery().records {
            return Err(format!("read up to {last}, but {:?}", bus.recovery()));
        }
        if last < ledger.acked {
            return Err(format!(
                "lost: {} was acknowledged, {last} is there",
                ledger.acked
            ));
        }
        if ledger.entry(last).is_some_and(|entry| !entry.ends_batch) {
            return Err(format!("phantom: the batch with LSN {last} is there in part"));
        }
        Ok(last)
    }

    fn compare_checkpoints(&mut self, bus: &Bus) -> Result<(), String> {
        for (name, may_be) in &self.ledger.checkpoints {
            self.counts.checkpoints += 1;
            let stored = bus
                .checkpoint(name)
                .map_err(|e| format!("checkpoint of {name}: {e}"))?;
            if !may_be.contains(&stored.map(Lsn::get)) {
                return Err(format!(
                    "checkpoint of {name} is {stored:?}, not one of {may_be:?}"
                ));
            }
        }
        Ok(())
    }

    /// Nothing is deleted but what may be.
    fn compare_files(&self, bus: &Bus, disk: &SimDisk) -> Result<(), String> {
        let (first, deletes) = (bus.first_lsn().get(), self.ledger.deletes);
        if first == 1 {
            return Ok(());
        }
        if !deletes.something {
            return Err(format!(
                "lost: the log begins at {first}, though nothing is deleted"
            ));
        }
        let files = disk.files();
        let files = files
            .keys()
            .filter(|p| p.extension().is_some_and(|e| e == "log"))
            .count();
        if (files as u64) < deletes.files_min {
            return Err(format!("lost: {files} files are kept of {}", deletes.files_min));
        }
        match self.ledger.barrier() {
            Some(barrier) if !deletes.ignores_barrier && first > barrier + 1 => Err(format!(
                "lost: the log begins at {first}, a checkpoint is at {barrier}"
            )),
            _ => Ok(()),
        }
    }

    /// Opening once more finds the same, whatever happens: what was found is durable.
    fn again(&mut self, disk: &SimDisk, last: u64) -> Result<(), String> {
        let crashed = disk.crash(crash(&mut self.rng), self.rng.u64(..));
        let bus = self.open(&crashed)?;
        let now = self.compare(&bus)?;
        if now == last { Ok(()) } else { Err(format!("found up to {last}, then up to {now}")) }
    }

    /// The log goes on: more is appended, and a crash takes none of it.
    fn go_on(&mut self, bus: &Bus, disk: &SimDisk, last: u64) -> Result<(), String> {
        let mut more = self.ledger.clone();
        more.entries.truncate(last as usize);
        for _ in 0..self.rng.u8(1..6) {
            let entry = more.make(&mut self.rng, 1)[0];
            let lsn = bus.writer().append(entry.kind(), entry.key, &entry.payload());
            let lsn = lsn.map_err(|e| format!("cannot go on: {e}"))?.get();
            more.entries.push(entry);
            if lsn != more.last() {
                return Err(format!("goes on at LSN {lsn}, not {}", more.last()));
            }
        }
        more.acked = more.last();
        let crashed = disk.crash(Crash::PowerCut, self.rng.u64(..));
        let mut judge = Judge { ledger: &more, rng: self.rng.fork(), counts: Counts::default() };
        let bus = judge
            .open(&crashed)
            .map_err(|e| format!("after going on: {e}"))?;
        judge
            .compare(&bus)
            .map_err(|e| format!("after going on: {e}"))?;
        self.counts.states += 1;
        Ok(())
    }
}

/// Mostly a power cut: that is what takes most.
pub(crate) fn crash(rng: &mut Rng) -> Crash {
    if rng.u8(0..4) == 0 { Crash::Kill } else { Crash::PowerCut }
}
