//! Reading records, checked, as far as there is no damage.

use std::ops::{ControlFlow, RangeInclusive};
use std::time::SystemTime;

use super::LogDir;
use super::check::{Checker, before};
use super::info::{SegmentState, time};
use super::scan::{Depth, walker};
use crate::disk::OpenMode;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockHeader, read_record};
use crate::log::Survey;
use crate::lsn::Lsn;

/// A record as it lies in the log.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Dumped<'a> {
    /// Its address.
    pub lsn: Lsn,
    /// When its block was written.
    pub time: SystemTime,
    /// Its kind.
    pub kind: u16,
    /// Its key.
    pub key: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

impl LogDir {
    /// Calls `each` with every record in `lsns` in order, until it breaks. Every block is checked
    /// before anything of it is handed out. Records that do not exist are left out at either end.
    ///
    /// # Errors
    /// The damage at which the records end, after those before it; [`ErrorKind::Io`].
    pub fn records(
        &self,
        lsns: RangeInclusive<Lsn>,
        mut each: impl FnMut(Dumped<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let scan = self.scan(Depth::Footers)?;
        let (disk, dir, log_id) = (&*self.disk, &*self.dir, self.meta.log_id);
        let survey = Survey { disk, dir, geometry: self.geometry, log_id };
        let mut stop = false;
        for segment in &scan.segments {
            let holds = |&(first, last): &(Lsn, Lsn)| first <= *lsns.end() && last >= *lsns.start();
            let Some((first, last)) = segment.lsns.filter(holds) else {
                if segment.state == SegmentState::Damaged {
                    break;
                }
                continue;
            };
            let found = survey.look(segment.number)?;
            let mode = OpenMode { write: false, create: false, direct: false };
            let failed = |e| Error::io("cannot open a segment", &found.path, e);
            let file = disk.open(&found.path, mode).map_err(failed)?;
            let walker = walker(&self.geometry, &found, &*file);
            let chain = found.first_block.map(|block| before(&block));
            let checked = Checker::new(&walker, chain, first.get()).run(|header, body| {
                stop = stop || deliver(header, body, &lsns, &mut each).is_break();
            })?;
            if stop {
                return Ok(());
            }
            if checked.chain.next_lsn <= last.get() && checked.chain.next_lsn <= lsns.end().get() {
                let next = Lsn::new(checked.chain.next_lsn);
                return Err(Error::new(ErrorKind::Corrupt, "a committed block is damaged")
                    .at_path(&found.path)
                    .at_segment(found.number, checked.end)
                    .at_lsns(next, last));
            }
            if segment.state == SegmentState::Damaged {
                break;
            }
        }
        // What lies before the end of the range, but behind damage.
        let beyond = scan.cut.is_some() && lsns.end().get() >= scan.next_lsn;
        let before = scan.begins.is_some() && lsns.start().get() < scan.first_lsn;
        match scan.findings.into_iter().next().filter(|_| beyond || before) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn deliver(
    header: &BlockHeader,
    body: &[u8],
    lsns: &RangeInclusive<Lsn>,
    each: &mut impl FnMut(Dumped<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut offset = 0;
    let mut lsn = Lsn::new(header.first_lsn);
    while let Some((record, next)) = read_record(body, offset) {
        if lsn > *lsns.end() {
            return ControlFlow::Break(());
        }
        if lsn >= *lsns.start() {
            let (kind, key, payload) = (record.kind, record.key, record.payload);
            each(Dumped { lsn, time: time(header.time_nanos), kind, key, payload })?;
        }
        (offset, lsn) = (next, lsn.next());
    }
    ControlFlow::Continue(())
}
