//! What the parts of one life share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::board::Board;
use crate::broken;
use crate::cast::Role;
use crate::content::Content;
use crate::plan::Plan;
use crate::plant::Plant;

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) board: Board,
    pub(crate) content: Content,
    pub(crate) cast: &'static [Role],
    pub(crate) plant: Option<Plant>,
    /// The first record kept when the life began: what was lost before is nobody's fault now.
    pub(crate) first_at_open: u64,
    /// The end of the log when the life began.
    pub(crate) end_at_open: u64,
    /// Whoever appends a single record, and so cannot know its LSN while it holds the append lock,
    /// does so alone.
    pub(crate) alone: RwLock<()>,
    /// Errors of the disk are to be expected.
    pub(crate) faulty: AtomicBool,
    pub(crate) poisoned: AtomicBool,
    pub(crate) stop: AtomicBool,
    /// Everybody is to get to the end: no more tempers.
    pub(crate) calm: AtomicBool,
    /// The last record that anybody was told is lost.
    lost_through: AtomicU64,
    /// A callback hangs here until it is released.
    gate: Gate,
}

#[derive(Default)]
struct Gate {
    state: Mutex<Gated>,
    changed: Condvar,
}

#[derive(Default)]
struct Gated {
    /// Hang for good, until this is false again.
    shut: bool,
    waiting: usize,
}

impl World {
    pub(crate) fn new(
        plan: Plan,
        board: Board,
        content: Content,
        plant: Option<Plant>,
        (first_at_open, end_at_open): (u64, u64),
    ) -> World {
        World {
            plan,
            board,
            content,
            cast: crate::cast::CAST,
            plant,
            first_at_open,
            end_at_open,
            alone: RwLock::default(),
            faulty: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            lost_through: AtomicU64::new(0),
            gate: Gate::default(),
        }
    }

    // SeqCst: flags that are looked at every few milliseconds.

    pub(crate) fn is(&self, flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }

    pub(crate) fn raise(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::SeqCst);
    }

    /// Somebody was told that records through `to` are lost: may that be?
    pub(crate) fn lost(&self, to: u64, misses_nothing: bool, name: &str) {
        self.lost_through.fetch_max(to, Ordering::SeqCst);
        if !misses_nothing && !self.plan.may_lose && to >= self.first_at_open {
            broken::promise(format!(
                "{name} was told that records through {to} are lost, but retention, {:?}, must \
                 wait for its checkpoint; the log began at {}",
                self.plan.retention, self.first_at_open
            ));
        }
    }

    pub(crate) fn lost_through(&self) -> u64 {
        self.lost_through.load(Ordering::SeqCst)
    }

    // ---- the gate --------------------------------------------------------------------------

    pub(crate) fn shut_gate(&self) {
        self.gate.state.lock().shut = true;
    }

    pub(crate) fn open_gate(&self) {
        self.gate.state.lock().shut = false;
        self.gate.changed.notify_all();
    }

    /// Hangs this long; where the gate is shut, until it is opened.
    pub(crate) fn hang(&self, long: Duration) {
        let until = Instant::now() + long;
        let mut state = self.gate.state.lock();
        state.waiting += 1;
        while state.shut || Instant::now() < until {
            self.gate.changed.wait_until(&mut state, until.max(Instant::now() + long));
        }
        state.waiting -= 1;
    }

    pub(crate) fn is_gate_shut(&self) -> bool {
        self.gate.state.lock().shut
    }

    pub(crate) fn hanging(&self) -> usize {
        self.gate.state.lock().waiting
    }
}
