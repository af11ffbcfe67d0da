//! Whatever a consumer holds at the moment, and the choice of what to hold next.

use super::{Buffered, CatchUp, Cursor, Fetch, Hot, Mapped, Replay, Window};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Geometry;
use crate::ring::{Ring, Seen, SlabArc};

/// The source of a consumer's bytes. One at a time (invariant I4).
#[derive(Default)]
pub(crate) enum Held {
    #[default]
    None,
    Hot(Hot),
    Mapped(Mapped),
    Buffered(Box<Buffered>),
}

/// Where bytes are to come from by the rule of the tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Hot,
    CatchUp,
    Cold,
}

/// What there is to choose from.
#[derive(Clone, Copy)]
pub(crate) struct Supply<'a> {
    pub(crate) ring: &'a Ring,
    pub(crate) geometry: Geometry,
    /// `None` in memory.
    pub(crate) replay: Option<&'a Replay>,
}

/// What came of bringing the bytes at a cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Brought {
    Ready,
    /// The cursor is at the end of what is committed.
    End,
    /// Wanted from the ring, and no longer there.
    LeftRing,
    /// Nowhere any more.
    Lost,
    /// Not before this clock value.
    NotBefore(u64),
}

impl Held {
    /// Brings the bytes at the cursor, switching to another source where that is needed, and moves
    /// the cursor over the ends of slabs. `more`: what was brought last held a block only in part.
    pub(crate) fn bring(
        &mut self,
        supply: Supply<'_>,
        want: Want,
        cursor: &mut Cursor,
        seen: Seen,
        more: bool,
    ) -> Result<Brought> {
        loop {
            if cursor.block >= seen.position() {
                return Ok(Brought::End);
            }
            if !self.covers(cursor.block) {
                let goes_on = self.is_replay();
                *self = Held::None;
                match open(supply, want, cursor.block)? {
                    Ok(held) => *self = held,
                    Err(why) => return Ok(why),
                }
                if goes_on {
                    self.go_on();
                }
            }
            let fetch = match self {
                Held::None => return Ok(Brought::Lost),
                Held::Hot(hot) => hot.fetch(cursor.block, seen),
                Held::Mapped(mapped) => mapped.fetch(cursor.block, more)?,
                Held::Buffered(buffered) => buffered.fetch(cursor.block, more)?,
            };
            match fetch {
                Fetch::Ready => return Ok(Brought::Ready),
                Fetch::NotBefore(at) => return Ok(Brought::NotBefore(at)),
                Fetch::SlabEnd => cursor.skip_to(supply.geometry.next_slab(cursor.block)),
            }
        }
    }

    /// It follows a segment that was read to its end: there is no first record to hurry for.
    fn go_on(&mut self) {
        match self {
            Held::None | Held::Hot(_) => {}
            Held::Mapped(mapped) => mapped.go_on(),
            Held::Buffered(buffered) => buffered.go_on(),
        }
    }

    fn covers(&self, position: u64) -> bool {
        match self {
            Held::None => false,
            Held::Hot(hot) => hot.covers(position),
            Held::Mapped(mapped) => mapped.covers(position),
            Held::Buffered(buffered) => buffered.covers(position),
        }
    }

    /// The bytes brought last.
    pub(crate) fn window(&self, geometry: &Geometry) -> Window<'_> {
        match self {
            Held::None => Window { bytes: &[], base: 0, align: geometry.align_bytes as usize },
            Held::Hot(hot) => hot.window(),
            Held::Mapped(mapped) => mapped.window(),
            Held::Buffered(buffered) => buffered.window(),
        }
    }

    /// The window holds the next block in part. A replay that is asked for more, once or again,
    /// fails when there is none; the ring has whole blocks.
    pub(crate) fn ask_for_more(&self, asked: bool) -> Result<bool> {
        if asked && !self.is_replay() {
            let what = "a block ends behind the committed position";
            return Err(Error::new(ErrorKind::Gap, what));
        }
        Ok(true)
    }

    /// Checks a block before it is used, and says whether it had to: what this process wrote and
    /// still holds needs no check, nor does what was checked before.
    pub(crate) fn verify(&self, position: u64, block: &[u8]) -> Result<bool> {
        match self {
            Held::None | Held::Hot(_) => Ok(false),
            Held::Mapped(mapped) => mapped.verify(position, block),
            Held::Buffered(buffered) => buffered.verify(position, block),
        }
    }

    /// Blocks before the cursor, and the one it is in, were checked.
    pub(crate) fn passed(&mut self, cursor: &Cursor) {
        if let Held::Buffered(buffered) = self {
            buffered.passed(cursor.block, cursor.index > 0);
        }
    }

    /// The slab that leases pin; `None` where they copy.
    pub(crate) fn slab(&self) -> Option<&SlabArc> {
        match self {
            Held::Hot(hot) => Some(hot.slab()),
            _ => None,
        }
    }

    pub(crate) fn is_replay(&self) -> bool {
        matches!(self, Held::Mapped(_) | Held::Buffered(_))
    }
}

/// Availability outranks the rule: what is in no sealed segment comes from the ring. A segment
/// enters the catalogue before its slabs may leave the ring, so what the ring no longer has is
/// found there, or is below `log_start`.
fn open(supply: Supply<'_>, want: Want, position: u64) -> Result<Result<Held, Brought>> {
    let hot = || Hot::open(supply.ring, supply.geometry, position).map(Held::Hot);
    let Some(replay) = supply.replay else {
        return Ok(hot().ok_or(Brought::LeftRing));
    };
    if supply.geometry.segment_offset(position) < supply.geometry.head_bytes {
        // No block was ever there: the cursor of a checkpoint whose records are gone.
        return Ok(Err(Brought::Lost));
    }
    if want == Want::Hot {
        return Ok(hot().ok_or(Brought::LeftRing));
    }
    let mut sealed = replay.catalogue.find(position);
    if sealed.is_none() {
        if let Some(held) = hot() {
            return Ok(Ok(held));
        }
        sealed = replay.catalogue.find(position);
    }
    let Some(sealed) = sealed else {
        if position < replay.catalogue.log_start() {
            return Ok(Err(Brought::Lost));
        }
        let what = format!("position {position} is in no segment and not in the ring");
        return Err(Error::new(ErrorKind::MissingSegment, what));
    };
    let held = match want {
        Want::Cold => replay.cold(&sealed).map(|buffered| Held::Buffered(Box::new(buffered))),
        _ => replay.catch_up(&sealed, position).map(|catch_up| match catch_up {
            CatchUp::Mapped(mapped) => Held::Mapped(mapped),
            CatchUp::Buffered(buffered) => Held::Buffered(buffered),
        }),
    };
    match held {
        Ok(held) => Ok(Ok(held)),
        Err(e) if e.kind() == ErrorKind::PositionLost => Ok(Err(Brought::Lost)),
        Err(e) => Err(e),
    }
}
