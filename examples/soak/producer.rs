//! Producers: single records, batches, in place, with and without waiting, in bursts; batches that
//! are given up, and records that are too large.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{Bus, Durability, Error, ErrorKind, Ticket, WriteBatch, Writer};
use fastrand::Rng;

use crate::board::Slot;
use crate::broken;
use crate::content::BATCH_RECORDS_MAX;
use crate::plan;
use crate::world::World;

const TICKETS_MAX: usize = 32;
/// Of a record, and of a block: what a batch must leave room for.
const RECORD_HEADER_BYTES: usize = 16;
const BLOCK_HEADER_BYTES: usize = 64;

pub(crate) struct Producer<'a> {
    world: &'a World,
    bus: &'a Bus,
    writer: Writer,
    rng: Rng,
    tickets: VecDeque<Ticket>,
    /// Bytes written, and until when they are paid for.
    paid_until: Instant,
}

impl<'a> Producer<'a> {
    pub(crate) fn new(world: &'a World, bus: &'a Bus, number: u64) -> Producer<'a> {
        let rng = plan::rng(world.content.seed, world.plan.life, 1_000 + number);
        let (writer, tickets) = (bus.writer(), VecDeque::new());
        Producer { world, bus, writer, rng, tickets, paid_until: Instant::now() }
    }

    /// Until the life ends or the log fails.
    pub(crate) fn run(mut self) {
        while !self.world.is(&self.world.stop) {
            if let Err(error) = self.step() {
                match self.survive(&error) {
                    true => thread::sleep(Duration::from_millis(5)),
                    false => return,
                }
            }
        }
        while let Some(ticket) = self.tickets.pop_front() {
            if let Err(error) = self.acknowledge(&ticket) {
                _ = self.survive(&error);
                return;
            }
        }
    }

    /// Whether to go on after this error.
    fn survive(&self, error: &Error) -> bool {
        let world = self.world;
        if !world.is(&world.faulty) {
            broken::promise(format!("appending failed without a fault: {error}"));
        }
        match error.kind() {
            // There is no segment to write to at the moment.
            ErrorKind::StorageFull | ErrorKind::Io | ErrorKind::Busy => {
                world.board.add(Slot::StorageFull, 1);
                true
            }
            ErrorKind::Poisoned => {
                world.raise(&world.poisoned);
                false
            }
            _ => broken::promise(format!("appending: {error}")),
        }
    }

    fn step(&mut self) -> Result<(), Error> {
        match self.rng.u32(..100) {
            0..=1 => self.alone()?,
            2..=4 => self.give_up(),
            5..=6 => self.too_large()?,
            7 => self.sync()?,
            _ => self.batch()?,
        }
        while self.tickets.len() > TICKETS_MAX {
            if let Some(ticket) = self.tickets.pop_front() {
                self.acknowledge(&ticket)?;
            }
        }
        self.pace();
        Ok(())
    }

    /// Sometimes nothing is waited for, for a while.
    fn pace(&mut self) {
        let now = Instant::now();
        if self.rng.u32(..400) == 0 {
            thread::sleep(Duration::from_millis(self.rng.u64(..100)));
        } else if self.rng.u32(..200) == 0 {
            self.paid_until = now - Duration::from_millis(self.rng.u64(..200));
        } else if self.paid_until > now {
            thread::sleep((self.paid_until - now).min(Duration::from_millis(50)));
        }
    }

    fn pay(&mut self, records: u64, bytes: usize) {
        let board = &self.world.board;
        board.add(Slot::Commits, 1);
        board.add(Slot::Records, records);
        board.add(Slot::Bytes, bytes as u64);
        let share = self.world.plan.bytes_per_second / self.world.plan.producers as u64;
        self.paid_until += Duration::from_nanos(bytes as u64 * 1_000_000_000 / share);
    }

    /// How many records of the batch that begins at `first` fit a block, of those wanted.
    fn fitting(&self, first: u64, wanted: u64) -> (u64, usize) {
        let content = &self.world.content;
        let room = content.payload_bytes_max + RECORD_HEADER_BYTES;
        let (mut records, mut bytes) = (0, 0);
        while records < wanted {
            let payload = content.payload_bytes(content.shape(first + records));
            let more = RECORD_HEADER_BYTES + payload.next_multiple_of(8);
            if bytes + more > room && records > 0 {
                break;
            }
            (records, bytes) = (records + 1, bytes + more);
        }
        (records, bytes)
    }

    fn batch(&mut self) -> Result<(), Error> {
        let most = [1, 1, 4, 30, 300, BATCH_RECORDS_MAX][self.rng.usize(..6)];
        let wanted = self.rng.u64(1..=most);
        let in_place = self.rng.bool();
        let wait = self.rng.u32(..3) == 0;
        let board = &self.world.board;
        let _together = self.world.alone.read();
        let writer = self.writer.clone();
        let mut batch = writer.batch();
        // Under the append lock: nobody else has the next LSN.
        let first = board.get(Slot::Attempted) + 1;
        let (records, bytes) = self.fitting(first, wanted);
        for i in 0..records {
            self.append(&mut batch, first + i, records - 1 - i, in_place)?;
        }
        let last = first + records - 1;
        board.set(Slot::Attempted, last);
        if wait {
            let lsns = batch.commit()?;
            self.check_lsns(first, last, &lsns);
            self.acknowledged(last);
        } else {
            let ticket = batch.commit_later()?;
            self.check_lsns(first, last, &ticket.lsns());
            self.tickets.push_back(ticket);
        }
        self.pay(records, bytes + BLOCK_HEADER_BYTES);
        Ok(())
    }

    fn check_lsns(&self, first: u64, last: u64, lsns: &std::ops::RangeInclusive<eventplane::Lsn>) {
        if (lsns.start().get(), lsns.end().get()) != (first, last) {
            broken::promise(format!("a batch got the LSNs {lsns:?}, {first} to {last} were next"));
        }
    }

    fn append(
        &self,
        batch: &mut WriteBatch<'_>,
        lsn: u64,
        remaining: u64,
        in_place: bool,
    ) -> Result<(), Error> {
        let content = &self.world.content;
        let shape = content.shape(lsn);
        let bytes = content.payload_bytes(shape);
        let (kind, key) = (shape.kind(), shape.key(remaining));
        if in_place {
            shape.fill(batch.reserve(kind, key, bytes)?);
            return Ok(());
        }
        let mut payload = vec![0; bytes];
        shape.fill(&mut payload);
        batch.append(kind, key, &payload)
    }

    /// One record by the short call, which takes the append lock by itself.
    fn alone(&mut self) -> Result<(), Error> {
        let (content, board) = (&self.world.content, &self.world.board);
        let _alone = self.world.alone.write();
        let lsn = board.get(Slot::Attempted) + 1;
        let shape = content.shape(lsn);
        let mut payload = vec![0; content.payload_bytes(shape)];
        shape.fill(&mut payload);
        board.set(Slot::Attempted, lsn);
        match self.writer.append(shape.kind(), shape.key(0), &payload) {
            Ok(got) if got.get() == lsn => {}
            Ok(got) => broken::promise(format!("LSN {got} was given, {lsn} was next")),
            Err(error) => {
                // Refused before anything was used; what failed while it was written is in doubt.
                if error.kind() != ErrorKind::Poisoned {
                    board.set(Slot::Attempted, lsn - 1);
                }
                return Err(error);
            }
        }
        self.acknowledged(lsn);
        self.pay(1, payload.len() + RECORD_HEADER_BYTES);
        Ok(())
    }

    /// Appends, and drops the batch: nothing happened.
    fn give_up(&mut self) {
        let mut batch = self.writer.batch();
        let payload = vec![0xEE; self.rng.usize(..2_000)];
        for _ in 0..self.rng.u32(1..20) {
            if batch.append(0, u64::MAX, &payload).is_err() {
                break;
            }
        }
        self.world.board.add(Slot::DroppedBatches, 1);
    }

    /// What does not fit leaves the batch as it was.
    fn too_large(&mut self) -> Result<(), Error> {
        let _together = self.world.alone.read();
        let writer = self.writer.clone();
        let mut batch = writer.batch();
        let first = self.world.board.get(Slot::Attempted) + 1;
        self.append(&mut batch, first, 0, false)?;
        let bytes = self.world.content.payload_bytes_max + self.rng.usize(1..9);
        match batch.append(0, u64::MAX, &vec![0xEE; bytes]) {
            Err(e) if e.kind() == ErrorKind::RecordTooLarge => {}
            outcome => broken::promise(format!("a record of {bytes} bytes: {outcome:?}")),
        }
        match batch.append(0, u64::MAX, &vec![0xEE; bytes - 16]) {
            Err(e) if e.kind() == ErrorKind::BatchTooLarge => {}
            outcome => broken::promise(format!("{bytes} bytes behind a record: {outcome:?}")),
        }
        self.world.board.set(Slot::Attempted, first);
        self.world.board.add(Slot::RefusedSizes, 2);
        let ticket = batch.commit_later()?;
        self.check_lsns(first, first, &ticket.lsns());
        self.tickets.push_back(ticket);
        self.pay(1, RECORD_HEADER_BYTES);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        let committed = self.tickets.back().map_or(0, |ticket| ticket.lsns().end().get());
        self.bus.sync()?;
        self.world.board.raise(Slot::Acknowledged, committed);
        let durable = self.bus.durable_lsn().get();
        if durable < committed {
            broken::promise(format!("synced through {committed}, durable is {durable}"));
        }
        self.world.board.raise(Slot::Acknowledged, durable);
        Ok(())
    }

    fn acknowledge(&self, ticket: &Ticket) -> Result<(), Error> {
        let last = ticket.wait()?.end().get();
        self.acknowledged(last);
        Ok(())
    }

    /// Nothing is promised yet where commits are deferred.
    fn acknowledged(&self, last: u64) {
        if self.world.plan.durability == Durability::Synced {
            self.world.board.raise(Slot::Acknowledged, last);
        }
    }
}
