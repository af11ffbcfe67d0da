//! Who subscribes: the same names in every life, each with its own temper.

use eventplane::Filter;

use crate::content::{KINDS, Shape, dice};

/// What a subscriber wants to see, as something that can be asked of an LSN too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    All,
    /// Kinds below this.
    KindsBelow(u16),
    /// One in so many keys.
    OneIn(u64),
    /// Both.
    KindsBelowAndOneIn(u16, u64),
}

impl Want {
    pub(crate) fn wants(self, shape: Shape) -> bool {
        let one_in = |n| shape.dice().is_multiple_of(n);
        match self {
            Want::All => true,
            Want::KindsBelow(kind) => shape.kind() < kind,
            Want::OneIn(n) => one_in(n),
            Want::KindsBelowAndOneIn(kind, n) => shape.kind() < kind && one_in(n),
        }
    }

    pub(crate) fn filter(self) -> Filter {
        let one_in = |n| Filter::by(move |_, key| dice(key).is_multiple_of(n));
        match self {
            Want::All => Filter::all(),
            Want::KindsBelow(kind) => Filter::kinds(0..kind.min(KINDS)),
            Want::OneIn(n) => one_in(n),
            Want::KindsBelowAndOneIn(kind, n) => Filter::kinds(0..kind.min(KINDS)).and(one_in(n)),
        }
    }
}

/// How often a callback does what, in 10,000.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Temper {
    pub(crate) fails: u32,
    pub(crate) panics: u32,
    pub(crate) later: u32,
    pub(crate) in_part: u32,
    pub(crate) slow: u32,
    pub(crate) hangs: u32,
    pub(crate) leases: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) want: Want,
    pub(crate) temper: Temper,
    /// Keeps its LSN with its own data and subscribes with `start_at`.
    pub(crate) exact: bool,
    /// Gives up after some attempts: with a dead letter, or parked.
    pub(crate) gives_up: bool,
    pub(crate) dead_letters: bool,
    pub(crate) seeks: bool,
    pub(crate) is_paused: bool,
    /// Leaves in the middle of a life, and comes back.
    pub(crate) leaves: bool,
}

impl Role {
    /// Forgotten when it leaves: it comes back as somebody new.
    pub(crate) const fn is_guest(&self) -> bool {
        self.leaves && !self.exact
    }
}

const fn role(name: &'static str, want: Want) -> Role {
    let temper = Temper { fails: 0, panics: 0, later: 0, in_part: 0, slow: 0, hangs: 0, leases: 0 };
    Role {
        name,
        want,
        temper,
        exact: false,
        gives_up: false,
        dead_letters: false,
        seeks: false,
        is_paused: false,
        leaves: false,
    }
}

const NONE: Temper =
    Temper { fails: 0, panics: 0, later: 0, in_part: 0, slow: 0, hangs: 0, leases: 0 };

pub(crate) const CAST: &[Role] = &[
    Role { exact: true, ..role("auditor", Want::All) },
    Role {
        temper: Temper { fails: 60, panics: 60, later: 40, in_part: 400, ..NONE },
        ..role("clumsy", Want::All)
    },
    Role { temper: Temper { slow: 4_000, ..NONE }, ..role("slow", Want::KindsBelow(3)) },
    Role { temper: Temper { hangs: 30, ..NONE }, ..role("hanging", Want::OneIn(3)) },
    Role { temper: Temper { leases: 6_000, ..NONE }, ..role("hoarder", Want::All) },
    Role { seeks: true, ..role("seeker", Want::All) },
    Role { is_paused: true, ..role("paused", Want::KindsBelowAndOneIn(6, 2)) },
    Role { leaves: true, ..role("guest", Want::All) },
    Role { leaves: true, exact: true, ..role("visitor", Want::OneIn(2)) },
    Role { gives_up: true, dead_letters: true, ..role("picky", Want::KindsBelow(5)) },
    Role {
        temper: Temper { fails: 400, ..NONE },
        gives_up: true,
        ..role("parking", Want::OneIn(7))
    },
    Role {
        temper: Temper { slow: 300, in_part: 100, panics: 10, leases: 300, ..NONE },
        exact: true,
        leaves: true,
        is_paused: true,
        ..role("moody", Want::All)
    },
];

/// A record that its dead-letter consumer can never take.
pub(crate) fn is_pill(shape: Shape) -> bool {
    shape.dice() % 1_999 == 7
}
