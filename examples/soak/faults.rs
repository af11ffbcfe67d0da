//! Faults of the disk, at random calls; and which of them have struck.

use eventplane::testing::{Fault, Faults, Op};
use fastrand::Rng;

use crate::board::{Board, Slot};

const EIO: i32 = libc::EIO;
const ENOSPC: i32 = libc::ENOSPC;
const EINTR: i32 = libc::EINTR;
/// What a direct file may be cut to.
const PAGE: usize = 4096;

#[derive(Clone, Copy)]
enum Effect {
    Errno(i32),
    Short,
}

/// Kinds of faults: what they are called, where they strike, what they do.
const KINDS: [(&str, &[Op], Effect); 8] = [
    ("EINTR", &[Op::Write, Op::DurableWrite, Op::Sync, Op::Read, Op::Rename], Effect::Errno(EINTR)),
    ("short write", &[Op::Write, Op::DurableWrite], Effect::Short),
    ("short read", &[Op::Read], Effect::Short),
    ("ENOSPC, segment", &[Op::Create, Op::Allocate], Effect::Errno(ENOSPC)),
    ("EIO, directory", &[Op::Rename, Op::SyncDir, Op::Remove], Effect::Errno(EIO)),
    ("EIO, read", &[Op::Read], Effect::Errno(EIO)),
    ("EIO or ENOSPC, write", &[Op::Write, Op::DurableWrite], Effect::Errno(ENOSPC)),
    ("EIO, sync", &[Op::Sync, Op::DurableWrite], Effect::Errno(EIO)),
];
/// The first of those that may poison the log.
const FATAL_FROM: usize = 6;

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, ..)| *name)
}

/// One fault at a time.
pub(crate) struct Injector {
    pub(crate) faults: Faults,
    pending: Option<Pending>,
}

struct Pending {
    kind: usize,
    op: Op,
    /// It has struck when this many calls were made.
    struck_at: u64,
    /// How often it is still waited for.
    patience: u32,
}

/// Then another fault has its turn.
const PATIENCE: u32 = 8;

impl Injector {
    pub(crate) fn new() -> Injector {
        Injector { faults: Faults::new(), pending: None }
    }

    /// Counts the fault if it has struck, and plans the next: one that may poison
    /// the log, or one that must not.
    pub(crate) fn step(&mut self, board: &Board, rng: &mut Rng, fatal: bool) {
        if let Some(pending) = &mut self.pending {
            let has_struck = self.faults.calls(pending.op) >= pending.struck_at;
            if !has_struck && pending.patience > 0 {
                pending.patience -= 1;
                return;
            }
        }
        self.end(board);
        let kind = if fatal { rng.usize(FATAL_FROM..KINDS.len()) } else { rng.usize(..FATAL_FROM) };
        let (_, ops, effect) = KINDS[kind];
        let op = ops[rng.usize(..ops.len())];
        let within = [3, 10, 40][rng.usize(..3)];
        let nth = rng.u64(1..=within);
        let fault = match effect {
            Effect::Errno(ENOSPC) if kind >= FATAL_FROM && rng.bool() => Fault::errno(op, EIO),
            Effect::Errno(errno) => Fault::errno(op, errno),
            Effect::Short => Fault::short(op, PAGE * rng.usize(..3).max(1)),
        };
        self.faults.inject(fault.nth(nth));
        // Looked at afterwards: by then it has struck for certain.
        let struck_at = self.faults.calls(op) + nth;
        self.pending = Some(Pending { kind, op, struck_at, patience: PATIENCE });
    }

    /// No more of them.
    pub(crate) fn end(&mut self, board: &Board) {
        if let Some(pending) = self.pending.take()
            && self.faults.calls(pending.op) >= pending.struck_at
        {
            board.add_nth(Slot::Faults, pending.kind, 1);
        }
        self.faults.clear();
    }
}
