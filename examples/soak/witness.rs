//! What one subscriber has seen and may see next, judged batch by batch and signal by signal.

use std::collections::VecDeque;

use eventplane::{Batch, OwnedRecord, Reason, Signal, Tier};

use crate::board::Slot;
use crate::broken;
use crate::cast::Role;
use crate::content::Content;
use crate::plant::{Plant, Planter};
use crate::world::World;

pub(crate) struct Witness {
    pub(crate) role: Role,
    /// Its place in the cast: whose number on the board is the next LSN due.
    pub(crate) place: usize,
    /// Where seeks lead that have not been seen to take effect.
    targets: Vec<u64>,
    /// How far behind `next` a start that was not chosen by LSN may be; and where it was.
    slack_to: u64,
    began_at: u64,
    tier: Option<Tier>,
    signals: u64,
    pub(crate) leases: VecDeque<OwnedRecord>,
    planter: Planter,
}

impl Witness {
    pub(crate) fn new(world: &World, place: usize) -> Witness {
        Witness {
            role: world.cast[place],
            place,
            targets: Vec::new(),
            slack_to: 0,
            began_at: 0,
            tier: None,
            signals: 0,
            leases: VecDeque::new(),
            planter: Planter::new(world.plant, place),
        }
    }

    pub(crate) fn fail(&self, world: &World, what: impl std::fmt::Display) -> ! {
        let next = world.board.next(self.place);
        broken::promise(format!(
            "{} (due: LSN {next}, seeks pending: {:?}): {what}",
            self.role.name, self.targets
        ))
    }

    pub(crate) fn next(&self, world: &World) -> u64 {
        world.board.next(self.place)
    }

    /// The first that it cannot have missed: where it began may be further on.
    pub(crate) fn due(&self, world: &World) -> u64 {
        self.next(world).max(self.slack_to)
    }

    /// Known before it is ordered: the consumer may be quicker.
    pub(crate) fn expect_target(&mut self, lsn: u64) {
        self.targets.push(lsn);
    }

    pub(crate) fn forget_target(&mut self, lsn: u64) {
        self.targets.retain(|target| *target != lsn);
    }

    pub(crate) fn has_targets(&self) -> bool {
        !self.targets.is_empty()
    }

    /// It begins anew somewhere from `from` to `to`.
    pub(crate) fn begin_from(&mut self, world: &World, from: u64) {
        world.board.set_next(self.place, from);
        (self.slack_to, self.began_at) = (u64::MAX, 0);
        self.targets.clear();
    }

    /// As it turns out, it began at `to` at the latest.
    pub(crate) fn began_by(&mut self, world: &World, to: u64) {
        if self.slack_to > 0 {
            self.slack_to = to;
        } else if self.began_at > to {
            self.fail(world, format!("it began at {}, behind {to}", self.began_at));
        }
    }

    /// A new subscription: signals start afresh.
    pub(crate) fn subscribed(&mut self) {
        (self.tier, self.signals) = (None, 0);
    }

    fn wants(&self, content: &Content, lsn: u64) -> bool {
        self.role.want.wants(content.shape(lsn))
    }

    /// Whether a run that begins at `first` continues what was seen up to `from`.
    fn continues(&self, content: &Content, from: u64, first: u64) -> bool {
        first >= from && (from..first).all(|lsn| !self.wants(content, lsn))
    }

    /// Takes whatever pending start the run fits; false if it fits none.
    fn take_up(&mut self, world: &World, first: u64) -> bool {
        let content = &world.content;
        let next = self.next(world);
        if self.continues(content, next, first) || (next..=self.slack_to).contains(&first) {
            if self.slack_to > 0 {
                (self.slack_to, self.began_at) = (0, first);
            }
            world.board.set_next(self.place, first);
            return true;
        }
        let fits = |target: &u64| self.continues(content, *target, first);
        let Some(taken) = self.targets.iter().position(fits) else { return false };
        self.targets.drain(..=taken);
        world.board.set_next(self.place, first);
        true
    }

    /// Everything that is to be said of a batch before it is answered.
    pub(crate) fn check(&mut self, world: &World, batch: &Batch<'_>) {
        let (first, last) = (batch.first_lsn().get(), batch.last_lsn().get());
        let mut got = Vec::with_capacity(batch.len());
        for record in batch {
            let lsn = record.lsn().get();
            let (kind, key) = (record.kind(), record.key());
            let planted = self.planter.damage(record.payload());
            let payload = planted.as_deref().unwrap_or(record.payload());
            if let Err(wrong) = world.content.judge(lsn, kind, key, payload) {
                self.fail(world, wrong);
            }
            got.push(lsn);
        }
        if got.is_empty() || got.len() != batch.len() {
            self.fail(world, format!("a batch of {} says it has {}", got.len(), batch.len()));
        }
        self.planter.twist(&mut got);
        if !self.take_up(world, first) {
            self.fail(world, format!("got {first} to {last}"));
        }
        let due = (first..=last).filter(|lsn| self.wants(&world.content, *lsn));
        if !due.eq(got.iter().copied()) {
            self.fail(world, format!("got {got:?} of {first} to {last}"));
        }
        world.board.raise(Slot::Seen, last);
        let tier = Tier::ALL.iter().position(|tier| *tier == batch.tier()).unwrap_or(0);
        world.board.add_nth(Slot::Delivered, tier, got.len() as u64);
    }

    /// It is done with everything through `lsn`.
    pub(crate) fn done_through(&mut self, world: &World, lsn: u64) {
        world.board.set_next(self.place, lsn + 1);
    }

    // ---- signals ---------------------------------------------------------------------------

    pub(crate) fn heed(&mut self, world: &World, signal: &Signal) {
        let board = &world.board;
        match signal {
            Signal::CaughtUp { .. } => {
                if self.planter.swallows_signal() {
                    return;
                }
                board.add(Slot::CaughtUp, 1);
                self.alternate(world, 0, signal);
            }
            Signal::FellBehind { .. } => {
                board.add(Slot::FellBehind, 1);
                self.alternate(world, 1, signal);
            }
            Signal::TierChanged { from, to, reason, .. } => {
                self.changed(world, *from, *to, *reason);
                // One that is shed comes back only with hands free.
                if *to == Tier::Cold {
                    self.let_go(world);
                }
            }
            Signal::PositionLost { from, to, .. } => {
                self.lost(world, from.get(), to.get());
                let next = to.get() + 1;
                board.set_next(self.place, next);
            }
            Signal::Parked { .. } => board.add(Slot::Parked, 1),
            other => self.fail(world, format!("an unknown signal, {other:?}")),
        }
    }

    fn alternate(&mut self, world: &World, due: u64, signal: &Signal) {
        if self.signals % 2 != due {
            self.fail(
                world,
                format!("{signal:?} does not alternate, it is number {}", self.signals),
            );
        }
        self.signals += 1;
    }

    fn changed(&mut self, world: &World, from: Tier, to: Tier, reason: Reason) {
        if self.tier.is_some_and(|tier| tier != from) {
            self.fail(world, format!("it left {from} and was in {:?}", self.tier));
        }
        self.tier = Some(to);
        if !is_legal(from, to, reason) {
            self.fail(world, format!("from {from} to {to} because of {reason}"));
        }
        let nth = Reason::ALL.iter().position(|known| *known == reason).unwrap_or(0);
        world.board.add_nth(Slot::Reasons, nth, 1);
    }

    /// Records are gone, and it is told which.
    pub(crate) fn lost(&mut self, world: &World, from: u64, to: u64) {
        let from = if self.planter.is(Plant::Loss) { from + 1 } else { from };
        if to < from || !self.take_up(world, from) {
            self.fail(world, format!("told that {from} to {to} are lost"));
        }
        // Retention waits for a stored checkpoint. But who keeps an LSN of its own is behind its
        // checkpoint by records that it did not want: those it does not miss.
        let missed = (from..=to).filter(|lsn| self.wants(&world.content, *lsn)).count();
        world.lost(to, missed == 0, self.role.name);
        world.board.add(Slot::Losses, 1);
        world.board.add(Slot::LostRecords, missed as u64);
    }

    /// Gives back what it leased, which must not have changed.
    pub(crate) fn let_go(&mut self, world: &World) {
        let leases = std::mem::take(&mut self.leases);
        for lease in &leases {
            let lsn = lease.lsn().get();
            let judged = world.content.judge(lsn, lease.kind(), lease.key(), lease.payload());
            if let Err(wrong) = judged {
                self.fail(world, format!("a lease: {wrong}"));
            }
        }
    }
}

/// The supervisor's table.
pub(crate) fn is_legal(from: Tier, to: Tier, reason: Reason) -> bool {
    use Tier::{CatchUp, Cold, Hot};
    match reason {
        Reason::Lapped => (from, to) == (Hot, CatchUp),
        Reason::CaughtUp => (from, to) == (CatchUp, Hot),
        Reason::PinBudget | Reason::Stalled => from != Cold && to == Cold,
        Reason::Lag | Reason::Flapping => (from, to) == (CatchUp, Cold),
        Reason::Admitted => (from, to) == (Cold, Cold),
        Reason::Recovering => (from, to) == (Cold, CatchUp),
        _ => false,
    }
}
