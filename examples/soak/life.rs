//! One life of the log: opened, written and read by everybody at once, ended.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{Bus, Error, ErrorKind, Lsn, Start};
use fastrand::Rng;

use crate::board::Slot;
use crate::broken;
use crate::content::remaining;
use crate::faults::Injector;
use crate::plan::{self, End};
use crate::plant::Plant;
use crate::producer::Producer;
use crate::reader;
use crate::subscriber::Member;
use crate::watch;
use crate::witness::is_legal;
use crate::world::World;

/// Everybody gets further within this, once nothing is in the way.
const SETTLES_WITHIN: Duration = Duration::from_secs(90);
/// Memory beside that of the bus: the C library's arenas, the metrics, the soak itself.
const MEMORY_BESIDE_BYTES: u64 = 96 << 20;

/// What a life left.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Left {
    /// Closed without an error: nothing of what was committed may be missing.
    pub(crate) clean: bool,
    /// The last checkpoint of this one had nowhere to go.
    pub(crate) hung: Option<usize>,
    /// Who was there, a bit each.
    pub(crate) came: u64,
}

pub(crate) struct Life<'a> {
    world: &'a Arc<World>,
    rng: Rng,
    injector: Option<Injector>,
    members: Vec<Member>,
    memory_before: u64,
    begun: Instant,
}

/// Lives it, until it ends; a life that is to be killed, until it is killed.
pub(crate) fn live(world: &Arc<World>, dir: &Path, memory_before: u64) -> Left {
    let rng = plan::rng(world.content.seed, world.plan.life, 4);
    let injector = (world.plan.end == End::Faulty).then(Injector::new);
    let members = (0..world.cast.len()).map(|place| Member::new(world, place)).collect();
    let begun = Instant::now();
    let mut life = Life { world, rng, injector, members, memory_before, begun };
    let bus = life.open(dir);
    life.check_opened(&bus);
    life.assemble(&bus);
    world.board.set(Slot::Ready, 1);
    life.perform(&bus);
    life.end(bus)
}

impl Life<'_> {
    /// Opens the log; with faults, at first perhaps in vain.
    fn open(&mut self, dir: &Path) -> Bus {
        let world = self.world;
        let Some(injector) = &mut self.injector else {
            return world.plan.builder().open(dir).unwrap_or_else(|e| {
                broken::promise(format!("the log cannot be opened: {e}"));
            });
        };
        world.raise(&world.faulty);
        for _ in 0..self.rng.u32(..3) {
            let fatal = self.rng.bool();
            injector.step(&world.board, &mut self.rng, fatal);
            let outcome = world.plan.builder().faults(&injector.faults).open(dir);
            injector.end(&world.board);
            match outcome {
                Ok(bus) => return bus,
                Err(e) if e.is_damage() => {
                    broken::promise(format!("a fault while opening passed for damage: {e}"));
                }
                Err(_) => {}
            }
        }
        world.plan.builder().faults(&injector.faults).open(dir).unwrap_or_else(|e| {
            broken::promise(format!("after a failed opening, the log cannot be opened: {e}"));
        })
    }

    /// What was found between the lives is what is there; and it ends where a batch ended.
    fn check_opened(&self, bus: &Bus) {
        let world = self.world;
        let end = bus.committed_lsn().get();
        if end != world.end_at_open {
            broken::promise(format!(
                "the log opens with {end} records, the offline check found {}",
                world.end_at_open
            ));
        }
        if end < bus.first_lsn().get() {
            return;
        }
        let last = bus.reader(Start::Lsn(Lsn::new(end))).and_then(|mut reader| reader.try_next());
        match last {
            Ok(Some(last)) if remaining(last.key()) == 0 => {}
            Ok(Some(last)) => broken::promise(format!(
                "the log ends at LSN {end}, {} records before the end of a batch",
                remaining(last.key())
            )),
            other => broken::promise(format!("the last record, LSN {end}: {other:?}")),
        }
    }

    fn assemble(&mut self, bus: &Bus) {
        let world = self.world;
        let everybody = plan::is_first_of_log(world.plan.life) || world.plan.end == End::Settled;
        for member in &mut self.members {
            if !everybody && self.rng.u32(..5) == 0 {
                continue;
            }
            // A fault may keep its first checkpoint from being stored.
            while let Err(error) = member.subscribe(world, bus) {
                if let Some(injector) = &mut self.injector {
                    injector.end(&world.board);
                }
                if !tolerable(world, &error) {
                    broken::promise(format!("subscribing: {error}"));
                }
            }
        }
    }

    /// Everybody at once.
    fn perform(&mut self, bus: &Bus) {
        let world = self.world;
        thread::scope(|scope| {
            for number in 0..world.plan.producers as u64 {
                scope.spawn(move || Producer::new(world, bus, number).run());
            }
            for number in 0..world.plan.readers as u64 {
                scope.spawn(move || reader::run(world, bus, number));
            }
            let until = Instant::now() + world.plan.lasts;
            while Instant::now() < until && !world.is(&world.poisoned) {
                self.interfere(bus);
                let pause = self.rng.u64(1..20);
                thread::sleep(Duration::from_millis(pause));
            }
            world.raise(&world.stop);
        });
    }

    // ---- interference ----------------------------------------------------------------------

    fn interfere(&mut self, bus: &Bus) {
        let world = self.world;
        self.check_memory();
        if let Some(injector) = &mut self.injector {
            let fatal = self.begun.elapsed() > world.plan.lasts / 2;
            injector.step(&world.board, &mut self.rng, fatal);
        }
        let place = self.rng.usize(..self.members.len());
        let role = world.cast[place];
        let member = &mut self.members[place];
        match &member.subscription {
            None if member.came || self.rng.u32(..4) == 0 => {
                if let Err(error) = member.subscribe(world, bus)
                    && !tolerable(world, &error)
                {
                    broken::promise(format!("{} subscribing: {error}", role.name));
                }
            }
            None => {}
            Some(subscription) => {
                if subscription.status().parked.is_some() {
                    self.check_parked(place);
                    return;
                }
                match self.rng.u32(..4) {
                    0 | 1 if role.seeks => self.seek(bus, place),
                    0 if role.is_paused => {
                        world.board.add(Slot::Pauses, 1);
                        subscription.pause();
                    }
                    1 | 2 if role.is_paused => subscription.resume(),
                    3 if role.leaves => self.leave(place),
                    _ => {}
                }
            }
        }
    }

    /// Only who gives up may be parked, or whose reads fail.
    fn check_parked(&mut self, place: usize) {
        let world = self.world;
        let role = world.cast[place];
        let Some(subscription) = &self.members[place].subscription else { return };
        if let Some(error) = subscription.status().parked {
            let gave_up = error.kind() == ErrorKind::Parked && role.gives_up;
            let disk_failed = world.is(&world.faulty) && !error.is_damage();
            if !gave_up && !disk_failed {
                broken::promise(format!("{} is parked: {error}", role.name));
            }
            subscription.resume();
        }
    }

    fn seek(&mut self, bus: &Bus, place: usize) {
        let world = self.world;
        let member = &self.members[place];
        let Some(subscription) = &member.subscription else { return };
        let (first, last) = (bus.first_lsn().get(), bus.committed_lsn().get());
        let target = self.rng.u64(first..=last.max(first - 1) + 1);
        member.witness.lock().expect_target(target);
        match subscription.seek(Start::Lsn(Lsn::new(target))) {
            Ok(()) => world.board.add(Slot::Seeks, 1),
            // Retention was quicker; or a read failed in the search.
            Err(e) if e.kind() == ErrorKind::PositionLost || tolerable(world, &e) => {
                member.witness.lock().forget_target(target);
            }
            Err(e) => broken::promise(format!("a seek to {target}: {e}")),
        }
    }

    fn leave(&mut self, place: usize) {
        let world = self.world;
        let Some(subscription) = self.members[place].subscription.take() else { return };
        world.board.add(Slot::Leaves, 1);
        match subscription.stop() {
            Ok(()) => {}
            Err(e) if tolerable(world, &e) => {}
            Err(e) => broken::promise(format!("{} cannot stop: {e}", world.cast[place].name)),
        }
    }

    fn check_memory(&self) {
        let world = self.world;
        let now = watch::memory_bytes();
        let consumers = world.cast.len() + world.plan.readers;
        let most = world.plan.memory_bytes_max(consumers) + MEMORY_BESIDE_BYTES;
        let used = now.saturating_sub(self.memory_before);
        world.board.raise(Slot::MemoryMost, used);
        if used > most {
            broken::promise(format!("{used} bytes of memory are in use, at most {most} may be"));
        }
    }

    // ---- the end ---------------------------------------------------------------------------

    fn end(&mut self, bus: Bus) -> Left {
        let world = self.world;
        let end = world.plan.end;
        let mut poisoned = world.is(&world.poisoned) || bus.sync().is_err();
        if let Some(injector) = &mut self.injector {
            injector.end(&world.board);
        }
        if end == End::Settled || end == End::Faulty {
            self.settle(&bus);
        }
        self.check_bus(&bus);
        let mut left = Left::default();
        for (place, member) in self.members.iter().enumerate() {
            left.came |= u64::from(member.came) << place;
        }
        match end {
            End::Hung => left.hung = self.close_while_one_hangs(bus),
            End::Dropped => drop(bus),
            _ => match bus.close() {
                Ok(()) => {}
                // By what nobody waits for: a seal, a watermark.
                Err(e) if e.kind() == ErrorKind::Poisoned && world.is(&world.faulty) => {
                    poisoned = true;
                }
                Err(e) => broken::promise(format!("closing: {e}")),
            },
        }
        left.clean = !poisoned;
        world.board.add(Slot::Poisoned, u64::from(poisoned));
        for member in &mut self.members {
            member.subscription = None;
            member.witness.lock().let_go(world);
        }
        left
    }

    /// Everybody gets to the end: then everything due was seen. That is so on a poisoned log too,
    /// as far as it is published.
    fn settle(&mut self, bus: &Bus) {
        let world = self.world;
        world.raise(&world.calm);
        let last = bus.committed_lsn();
        for place in 0..self.members.len() {
            let (mut reached, mut deadline) = (Lsn::ZERO, Instant::now() + SETTLES_WITHIN);
            while let Some(subscription) = &self.members[place].subscription {
                subscription.resume();
                // One that has hung pins what it hoards.
                self.members[place].witness.lock().let_go(world);
                let lsn = subscription.status().lsn;
                if lsn > reached {
                    (reached, deadline) = (lsn, Instant::now() + SETTLES_WITHIN);
                }
                match subscription.wait_processed(last, Duration::from_millis(500)) {
                    Ok(()) => break,
                    Err(e) if e.kind() == ErrorKind::Parked => self.check_parked(place),
                    Err(e) if e.kind() == ErrorKind::Timeout && Instant::now() < deadline => {}
                    Err(e) => broken::promise(format!(
                        "not caught up with {last}: {e}; {:?}",
                        subscription.status()
                    )),
                }
            }
            self.check_saw_everything(place, last.get());
        }
    }

    fn check_saw_everything(&self, place: usize, last: u64) {
        let world = self.world;
        let member = &self.members[place];
        let witness = member.witness.lock();
        let wants = |lsn: &u64| witness.role.want.wants(world.content.shape(*lsn));
        let missed = (witness.due(world)..=last).find(wants);
        // A seek to behind everything that it wants leaves no trace.
        if member.subscription.is_none() || missed.is_none() || witness.has_targets() {
            return;
        }
        witness.fail(world, format!("it never saw {missed:?} of {last}"));
    }

    /// What the bus tells of itself agrees with what was seen.
    fn check_bus(&self, bus: &Bus) {
        let world = self.world;
        let lost = world.lost_through();
        if lost >= bus.first_lsn().get() {
            let first = bus.first_lsn();
            broken::promise(format!("LSN {lost} was told lost, but the log begins at {first}"));
        }
        for transition in bus.transitions() {
            let (from, to) = (transition.from, transition.to);
            let planted = world.plant == Some(Plant::Reason);
            if planted || !is_legal(from, to, transition.reason) {
                broken::promise(format!("a transition without a reason: {transition:?}"));
            }
        }
        let counts = bus.transition_counts();
        let illegal = counts.keys().find(|(from, to, reason)| !is_legal(*from, *to, *reason));
        if let Some(illegal) = illegal {
            broken::promise(format!("a transition without a reason: {illegal:?}"));
        }
        let seen = bus.committed_lsn().get();
        let most = world.board.get(Slot::Seen);
        if most > seen {
            broken::promise(format!("LSN {most} was seen, committed is {seen}"));
        }
    }

    /// The bus closes all the same, and says who did not finish.
    fn close_while_one_hangs(&mut self, bus: Bus) -> Option<usize> {
        let world = self.world;
        let place = world.cast.iter().position(|role| role.name == "hanging")?;
        world.shut_gate();
        let deadline = Instant::now() + Duration::from_millis(500);
        self.write_a_little(&bus);
        while world.hanging() == 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let hangs = world.hanging() > 0 && self.members[place].subscription.is_some();
        if !hangs {
            world.open_gate();
        }
        let closed = bus.close_within(Duration::from_secs(if hangs { 2 } else { 30 }));
        world.open_gate();
        match closed {
            Ok(()) if !hangs => return None,
            Err(e) if hangs && e.kind() == ErrorKind::Timeout => {
                let told = e.to_string();
                if !told.contains("hanging") {
                    broken::promise(format!("one callback hangs, and another is blamed: {told}"));
                }
            }
            outcome => broken::promise(format!("closing, with one that hangs: {outcome:?}")),
        }
        // Its last checkpoint has nowhere to go.
        let subscription = self.members[place].subscription.as_ref()?;
        match subscription.stop_within(Duration::from_secs(30)) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Closed => {}
            Err(e) => broken::promise(format!("the one that hung, released, cannot stop: {e}")),
        }
        Some(place)
    }

    /// So that there is something to hang over.
    fn write_a_little(&self, bus: &Bus) {
        let world = self.world;
        let writer = bus.writer();
        for _ in 0..20 {
            let lsn = world.board.get(Slot::Attempted) + 1;
            let shape = world.content.shape(lsn);
            let mut payload = vec![0; world.content.payload_bytes(shape)];
            shape.fill(&mut payload);
            world.board.set(Slot::Attempted, lsn);
            match writer.append(shape.kind(), shape.key(0), &payload) {
                Ok(got) if got.get() == lsn => {}
                outcome => broken::promise(format!("LSN {lsn} was next: {outcome:?}")),
            }
        }
    }
}

/// What a disk that fails may lead to.
fn tolerable(world: &World, error: &Error) -> bool {
    world.is(&world.faulty)
        && matches!(
            error.kind(),
            ErrorKind::Io | ErrorKind::StorageFull | ErrorKind::Poisoned | ErrorKind::Busy
        )
}
