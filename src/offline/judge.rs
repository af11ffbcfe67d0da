//! What the blocks, the footer and the neighbours of one segment come to when taken together.

use super::SegmentInfo;
use super::check::{Checked, Fault};
use super::scan::{Rebuild, Scanner, Tail};
use crate::error::Result;
use crate::format::{Footer, PAGE_BYTES, SECTOR_BYTES, footer_bytes, is_zero};
use crate::log::{Chain, Found, Walker};

/// A segment that was read from end to end.
pub(super) struct Judged<'a> {
    pub(super) found: &'a Found,
    pub(super) walker: &'a Walker<'a>,
    pub(super) checked: &'a Checked,
    /// The segment behind it, if it is readable.
    pub(super) next: Option<&'a Found>,
}

impl Judged<'_> {
    /// The next segment's first block continues the last one before any loss: that was the end.
    fn is_continued(&self) -> bool {
        let first = self.next.and_then(|next| {
            let first = next.first_block.filter(|first| first.salt == next.salt);
            first.filter(|first| self.checked.chain.accepts(first))
        });
        first.is_some()
    }

    /// Recovery sealed the segment here: what lies behind is a torn tail, whatever it looks like.
    fn is_sealed_torn(&self) -> bool {
        let built = self.checked.index.finish(true);
        match &self.found.footer {
            Some(footer) => {
                footer.torn
                    && footer.slab_ends == built.slab_ends
                    && footer.last_lsn == built.last_lsn
            }
            None => !self.checked.rolled && self.is_continued(),
        }
    }

    fn faults(&self) -> impl Iterator<Item = &Fault> {
        let exempt = self.is_sealed_torn();
        let end = self.checked.end;
        self.checked.faults.iter().filter(move |fault| !exempt || fault.offset < end)
    }
}

impl Scanner<'_> {
    /// `region` is the footer's, `followed`: some later segment holds blocks.
    pub(super) fn judge(&mut self, j: &Judged<'_>, region: &[u8], followed: bool) -> Result<()> {
        let footer = j.found.footer.as_ref();
        let complete = j.checked.rolled || footer.is_some() || j.is_continued();
        if !complete && !followed {
            return self.end_of_log(j, region);
        }
        for fault in j.faults() {
            self.loss(j.found, fault.offset, fault.lsns, &fault.what);
        }
        if j.faults().any(|fault| fault.loses) {
            self.broken(j);
        } else if let Some(footer) = footer {
            self.sealed(j, footer);
        } else if j.checked.rolled {
            self.rolled(j, region);
        } else if complete {
            let what = "the footer is damaged";
            self.loss(j.found, self.footer_offset(), None, what);
            self.rebuild(j, Some(j.checked.index.finish(true)));
            self.complete(j, &j.checked.index.finish(true));
        } else {
            let lsn = self.scan_ahead_lsn(j)?;
            self.loss(j.found, j.checked.end, lsn, "the segment does not end, but blocks follow");
            self.give_up(j, None);
        }
        Ok(())
    }

    fn footer_offset(&self) -> u64 {
        self.geometry.segment_bytes - footer_bytes(self.geometry.segment_bytes)
    }

    /// The records between the end of this segment and the next.
    fn scan_ahead_lsn(&self, j: &Judged<'_>) -> Result<Option<(u64, u64)>> {
        let from = j.checked.chain.next_lsn;
        let Some(next) = j.next else { return Ok(None) };
        let (first, _) = self.beginning(next)?;
        Ok(first.filter(|&first| first > from).map(|first| (from, first - 1)))
    }

    /// Blocks are lost in the middle.
    fn broken(&mut self, j: &Judged<'_>) {
        let next_lsn = j.checked.last.next_lsn;
        let footer = j.found.footer.as_ref();
        if let Some(footer) = footer.filter(|footer| footer.last_lsn >= next_lsn) {
            let lsns = Some((next_lsn, footer.last_lsn));
            self.loss(j.found, j.checked.used_end, lsns, "blocks that the footer lists are gone");
        }
        self.give_up(j, footer);
    }

    /// Everything behind the last good block goes.
    fn give_up(&mut self, j: &Judged<'_>, footer: Option<&Footer>) {
        let last_lsn = footer.map_or(0, |footer| footer.last_lsn);
        self.scan.last_seen = self.scan.last_seen.max(last_lsn);
        self.cut_at(j.found.number, j.checked.end, j.checked.chain.next_lsn, false);
        self.chain = footer.map(Chain::behind).or(Some(j.checked.last));
        self.scan.segments.push(SegmentInfo::damaged(j.found).holding(j.checked));
    }

    fn sealed(&mut self, j: &Judged<'_>, footer: &Footer) {
        let mut built = j.checked.index.finish(footer.torn);
        if footer.last_lsn > built.last_lsn || !ends_within(footer, &built) {
            let next_lsn = j.checked.chain.next_lsn;
            let lsns = (footer.last_lsn >= next_lsn).then_some((next_lsn, footer.last_lsn));
            self.loss(j.found, j.checked.end, lsns, "blocks that the footer lists are gone");
            return self.give_up(j, Some(footer));
        }
        let mut kinds = footer.kinds;
        kinds.merge(built.kinds);
        // A superset is as good.
        let superset = kinds == footer.kinds;
        let mut sound = j.faults().next().is_none();
        if !j.checked.rolled {
            if !footer.torn {
                let what = "the block that closes the segment is damaged";
                self.loss(j.found, self.footer_offset() - PAGE_BYTES, None, what);
                sound = false;
            }
            // What it chains to went with that block, or with a tear; the next block knows.
            built.last_crc = footer.last_crc;
            built.torn = true;
        }
        if let Some(field) = difference(footer, &built, superset) {
            let what = format!("the footer contradicts the blocks in `{field}`");
            self.loss(j.found, self.footer_offset(), None, &what);
            sound = false;
        }
        if !sound {
            self.rebuild(j, Some(Footer { kinds, ..built }));
        }
        self.complete(j, footer);
    }

    /// All blocks are there, the footer is not, or not whole.
    fn rolled(&mut self, j: &Judged<'_>, region: &[u8]) {
        let built = j.checked.index.finish(false);
        let unfinished = self.is_unfinished(region, &built);
        if !unfinished {
            self.loss(j.found, self.footer_offset(), None, "the footer is damaged");
        } else {
            let what = "is complete; its footer is written when the log is opened";
            self.scan.notes.push(format!("segment {} {what}", j.found.number));
        }
        if !unfinished || !j.checked.faults.is_empty() {
            self.rebuild(j, Some(built.clone()));
        }
        self.complete(j, &built);
    }

    /// Zeros, or what a crash leaves of this footer.
    fn is_unfinished(&self, region: &[u8], footer: &Footer) -> bool {
        let whole = footer.encode(self.geometry.segment_bytes);
        let mut sectors = region.chunks(SECTOR_BYTES).zip(whole.chunks(SECTOR_BYTES));
        sectors.all(|(is, meant)| is == meant || is_zero(is))
    }

    fn complete(&mut self, j: &Judged<'_>, footer: &Footer) {
        self.enter(SegmentInfo::sealed(j.found, footer, j.checked.end), footer.last_lsn);
        self.scan.unvouched = false;
        self.chain = Some(Chain::behind(footer));
    }

    fn rebuild(&mut self, j: &Judged<'_>, footer: Option<Footer>) {
        let (number, end, rolled) = (j.found.number, j.checked.end, j.checked.rolled);
        self.scan.rebuilds.push(Rebuild { number, end, footer, rolled });
    }

    /// Nothing follows: damage, a torn write that nobody was told about, or just the end?
    fn end_of_log(&mut self, j: &Judged<'_>, region: &[u8]) -> Result<()> {
        let checked = j.checked;
        let position = self.geometry.segment_start(j.found.number) + checked.end;
        let rest = j.walker.rest(checked.end)?;
        let next_lsn = checked.chain.next_lsn;
        let torn = rest.nonzero_bytes > 0;
        let lsns = Some((next_lsn, rest.last_lsn.max(next_lsn)));
        let damage = if rest.vouched > position {
            Some("a committed block is damaged")
        } else if torn && !j.walker.looks_torn(checked.end)? {
            Some("a block is damaged, not torn by a crash")
        } else {
            None
        };
        for fault in checked.faults.iter().filter(|fault| !fault.loses || damage.is_some()) {
            self.loss(j.found, fault.offset, fault.lsns, &fault.what);
        }
        if let Some(what) = damage {
            if !checked.is_broken() {
                self.loss(j.found, checked.end, lsns, what);
            }
            self.give_up(j, None);
            return Ok(());
        }
        let stray = !self.is_unfinished(region, &checked.index.finish(true));
        if stray {
            self.loss(j.found, self.footer_offset(), None, "the footer is damaged");
        }
        if stray || checked.faults.iter().any(|fault| !fault.loses) {
            self.rebuild(j, None);
        }
        if torn {
            let (number, offset, bytes) = (j.found.number, checked.end, rest.nonzero_bytes);
            self.scan.notes.push(format!(
                "segment {number} ends at offset {offset} in a torn write of {bytes} bytes that \
                 was never acknowledged"
            ));
        }
        let Chain { next_lsn, .. } = checked.chain;
        self.scan.torn_bytes = rest.nonzero_bytes;
        self.scan.unvouched = checked.unvouched;
        self.tail = Some(Tail { number: j.found.number, offset: checked.end, next_lsn });
        self.enter(SegmentInfo::open(j.found).holding(checked), next_lsn - 1);
        self.chain = Some(checked.chain);
        Ok(())
    }
}

/// No slab ends later in the footer than in the segment.
fn ends_within(footer: &Footer, built: &Footer) -> bool {
    let ends = footer.slab_ends.iter().zip(&built.slab_ends);
    footer.slab_ends.len() == built.slab_ends.len() && ends.into_iter().all(|(f, b)| f <= b)
}

fn difference(footer: &Footer, built: &Footer, kinds: bool) -> Option<&'static str> {
    let same = [
        ("slab ends", footer.slab_ends == built.slab_ends),
        ("first_lsn", footer.first_lsn == built.first_lsn),
        ("records", footer.records == built.records),
        ("first_time_nanos", footer.first_time_nanos == built.first_time_nanos),
        ("last_time_nanos", footer.last_time_nanos == built.last_time_nanos),
        ("kinds", kinds),
        ("last_crc", footer.last_crc == built.last_crc),
        ("index", footer.index == built.index),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(field, _)| field)
}
