//! Hot: the bytes are held by a slab of the ring.

use super::{Fetch, Window};
use crate::lsn::Geometry;
use crate::ring::{Ring, Seen, SlabArc};

pub(crate) struct Hot {
    slab: SlabArc,
    geometry: Geometry,
    /// How far the slab may be read: from a committed position loaded with Acquire.
    readable: usize,
    /// `committed` was beyond this slab.
    complete: bool,
}

impl Hot {
    /// `None` if the slab has left the ring.
    pub(crate) fn open(ring: &Ring, geometry: Geometry, position: u64) -> Option<Hot> {
        let slab = ring.get(geometry.slab_of(position))?;
        Some(Hot { slab, geometry, readable: 0, complete: false })
    }

    pub(crate) fn covers(&self, position: u64) -> bool {
        self.geometry.slab_of(position) == self.slab.number()
    }

    pub(crate) fn slab(&self) -> &SlabArc {
        &self.slab
    }

    pub(crate) fn fetch(&mut self, position: u64, committed: Seen) -> Fetch {
        self.readable = self.slab.readable(committed.position());
        self.complete = self.geometry.slab_of(committed.position()) > self.slab.number();
        if self.complete && self.geometry.slab_offset(position) >= self.readable {
            return Fetch::SlabEnd;
        }
        Fetch::Ready
    }

    pub(crate) fn window(&self) -> Window<'_> {
        // SAFETY: `readable` came from the slab itself for a committed position in `fetch`.
        let bytes = unsafe { self.slab.bytes(self.readable) };
        let base = self.geometry.slab_start(self.slab.number());
        Window { bytes, base, align: self.geometry.align_bytes as usize }
    }
}
