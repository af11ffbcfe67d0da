//! A subscriber: how it is subscribed, and what its callback makes of a batch.

use std::error::Error as StdError;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use eventplane::{
    Ack, Batch, Bus, Error, ErrorKind, Lsn, OnPositionLost, Retry, Start, Subscription,
};
use fastrand::Rng;
use parking_lot::Mutex;

use crate::board::Slot;
use crate::broken;
use crate::cast::{Temper, is_pill};
use crate::plan;
use crate::witness::Witness;
use crate::world::World;

type Failure = Box<dyn StdError + Send + Sync>;

const LEASES_MAX: usize = 400;
const PER: u32 = 10_000;

pub(crate) struct Member {
    pub(crate) witness: Arc<Mutex<Witness>>,
    pub(crate) subscription: Option<Subscription>,
    /// It was subscribed in this life.
    pub(crate) came: bool,
    rng: Rng,
}

impl Member {
    pub(crate) fn new(world: &World, place: usize) -> Member {
        let rng = plan::rng(world.content.seed, world.plan.life, 100 + place as u64);
        let witness = Arc::new(Mutex::new(Witness::new(world, place)));
        Member { witness, subscription: None, came: false, rng }
    }

    /// Subscribes, at the LSN that is due.
    pub(crate) fn subscribe(&mut self, world: &Arc<World>, bus: &Bus) -> Result<(), Error> {
        let (role, is_guest) = {
            let mut witness = self.witness.lock();
            witness.subscribed();
            (witness.role, witness.role.is_guest())
        };
        let subscription = if role.exact {
            self.subscribe_exactly(world, bus)?
        } else if is_guest {
            self.subscribe_as_guest(world, bus)?
        } else {
            self.run(world, bus, |subscribe| subscribe.start_if_new(Start::Earliest))?
        };
        self.subscription = Some(subscription);
        self.came = true;
        Ok(())
    }

    /// Behind what it has with its own data; or behind what it is told is lost.
    fn subscribe_exactly(&mut self, world: &Arc<World>, bus: &Bus) -> Result<Subscription, Error> {
        loop {
            let next = self.witness.lock().next(world);
            let start = Start::Lsn(Lsn::new(next));
            match self.run(world, bus, |subscribe| subscribe.start_at(start)) {
                Err(e) if e.kind() == ErrorKind::PositionLost => {
                    let Some((from, to)) = e.lsns() else {
                        broken::promise(format!("a loss without its range: {e}"));
                    };
                    let mut witness = self.witness.lock();
                    witness.lost(world, from.get(), to.get());
                    witness.done_through(world, to.get());
                }
                Err(e) if e.kind() == ErrorKind::BeyondEnd => {
                    let witness = self.witness.lock();
                    witness.fail(world, format!("what it has processed is gone: {e}"));
                }
                outcome => return outcome,
            }
        }
    }

    /// Somebody new: forgotten before, so it starts anywhere.
    fn subscribe_as_guest(&mut self, world: &Arc<World>, bus: &Bus) -> Result<Subscription, Error> {
        let name = self.witness.lock().role.name;
        bus.forget(name)?;
        let from_end = self.rng.bool();
        let start = if from_end { Start::Latest } else { Start::Earliest };
        let edge = || if from_end { bus.committed_lsn().get() + 1 } else { bus.first_lsn().get() };
        // It may be called before `run` returns.
        self.witness.lock().begin_from(world, edge());
        let subscription = self.run(world, bus, |subscribe| subscribe.start_if_new(start))?;
        self.witness.lock().began_by(world, edge());
        world.board.add(Slot::Guests, 1);
        Ok(subscription)
    }

    fn run(
        &mut self,
        world: &Arc<World>,
        bus: &Bus,
        start: impl FnOnce(eventplane::Subscribe) -> eventplane::Subscribe,
    ) -> Result<Subscription, Error> {
        let rng = &mut self.rng;
        let role = self.witness.lock().role;
        let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(4));
        let retry = if role.gives_up { retry.attempts(3) } else { retry.forever() };
        let told = (Arc::clone(world), Arc::clone(&self.witness));
        let mut subscribe = start(bus.subscribe(role.name))
            .filter(role.want.filter())
            .batch_records_max([1, 7, 100, 1_024][rng.usize(..4)])
            .batch_bytes_max([1, 4_096, 1 << 20][rng.usize(..3)])
            .retry(retry)
            .on_position_lost(OnPositionLost::Earliest)
            .on_signal(move |signal| told.1.lock().heed(&told.0, signal));
        if role.dead_letters {
            let taker = (Arc::clone(world), Arc::clone(&self.witness));
            subscribe =
                subscribe.dead_letter(move |batch, _| take_dead_letter(&taker.0, &taker.1, batch));
        }
        let (world, witness) = (Arc::clone(world), Arc::clone(&self.witness));
        let mut rng = rng.fork();
        subscribe.run(move |batch| deliver(&world, &witness, &mut rng, batch))
    }
}

fn deliver(
    world: &World,
    witness: &Mutex<Witness>,
    rng: &mut Rng,
    batch: &Batch<'_>,
) -> Result<Ack, Failure> {
    let role = {
        let mut witness = witness.lock();
        witness.check(world, batch);
        witness.role
    };
    let temper = if world.is(&world.calm) { Temper::default() } else { role.temper };
    if rng.u32(..PER) < temper.slow {
        thread::sleep(Duration::from_micros(rng.u64(100..3_000)));
    }
    if rng.u32(..PER) < temper.hangs || temper.hangs > 0 && world.is_gate_shut() {
        world.board.add(Slot::Hangs, 1);
        world.hang(world.plan.stall_after * rng.u32(1..4));
    }
    if rng.u32(..PER) < temper.leases {
        lease(world, &mut witness.lock(), batch, rng);
    }
    if role.dead_letters && batch.iter().any(|r| is_pill(world.content.shape(r.lsn().get()))) {
        world.board.add(Slot::Errors, 1);
        return Err("a record that it can never take".into());
    }
    if rng.u32(..PER) < temper.fails {
        world.board.add(Slot::Errors, 1);
        return Err("as planned".into());
    }
    if rng.u32(..PER) < temper.panics {
        world.board.add(Slot::Panics, 1);
        broken::planned_panic();
    }
    if rng.u32(..PER) < temper.later {
        world.board.add(Slot::LaterAnswers, 1);
        return Ok(Ack::RetryAfter(Duration::from_millis(rng.u64(..5))));
    }
    let (mut last, mut ack) = (batch.last_lsn(), Ack::All);
    if rng.u32(..PER) < temper.in_part && batch.first_lsn() < last {
        last = Lsn::new(rng.u64(batch.first_lsn().get()..last.get()));
        ack = Ack::Through(last);
        world.board.add(Slot::PartAnswers, 1);
    }
    // Its own data: kept before the bus knows of it.
    witness.lock().done_through(world, last.get());
    Ok(ack)
}

fn lease(world: &World, witness: &mut Witness, batch: &Batch<'_>, rng: &mut Rng) {
    if rng.u32(..40) == 0 {
        witness.let_go(world);
    }
    for record in batch {
        if witness.leases.len() == LEASES_MAX {
            witness.leases.pop_front();
        }
        match record.lease() {
            Ok(lease) => {
                world.board.add(Slot::Leases, 1);
                witness.leases.push_back(lease);
            }
            Err(e) if e.kind() == ErrorKind::LeaseRefused => {
                world.board.add(Slot::LeasesRefused, 1);
                return;
            }
            Err(e) => witness.fail(world, format!("a lease: {e}")),
        }
    }
}

fn take_dead_letter(world: &World, witness: &Mutex<Witness>, batch: &Batch<'_>) {
    let mut witness = witness.lock();
    witness.check(world, batch);
    let lsns: Vec<_> = batch.iter().map(|record| record.lsn().get()).collect();
    if lsns.len() != 1 || !is_pill(world.content.shape(lsns[0])) {
        witness.fail(world, format!("dead letters {lsns:?}, which it could have taken"));
    }
    world.board.add(Slot::DeadLetters, 1);
    witness.done_through(world, batch.last_lsn().get());
}
