//! Cutting a log at its first damage, so that it opens again. Nothing is ever deleted: what is cut
//! goes to `cut/`, and of a segment that is rewritten a whole copy goes there first.
//!
//! # Crash
//! The order of the steps lets a second run finish what a first one began. The generation is raised
//! before anything is cut, so no checkpoint can ever be taken for one of the shorter log. The
//! damaged segment is rewritten up to the damage before the segments behind it are moved, last
//! first: as long as one of them is left, the segment in front of it visibly does not end there.

use std::path::{Path, PathBuf};

use super::LogDir;
use super::check::Checker;
use super::scan::{Cut, Depth, Rebuild, Scan, walker};
use super::side::Side;
use crate::disk::{AlignedBuf, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BLOCK_HEADER_BYTES, PAGE_BYTES, SegmentHeader, footer_bytes, is_zero};
use crate::limits;
use crate::log::{MetaFile, Survey, random_u64, segment_path};
use crate::lsn::Lsn;
use crate::sync::Clock;

/// Records that a repair gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Loss {
    /// The first.
    pub from: Lsn,
    /// The last that anything is known of; `None` if nothing is.
    pub to: Option<Lsn>,
    /// Bytes of log concerned.
    pub bytes: u64,
}

impl Loss {
    /// How many records, as far as that is known.
    #[must_use]
    pub fn records(&self) -> Option<u64> {
        self.to.map(|to| to.get() + 1 - self.from.get())
    }
}

/// What a repair does, or would do.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Repair {
    /// What is wrong.
    pub findings: Vec<Error>,
    /// Records lost at the start: their segments are not there.
    pub lost_start: Option<Loss>,
    /// Records lost at the end: everything from the first damage on.
    pub lost_end: Option<Loss>,
    /// The segment file and the offset in it at which the log is cut.
    pub cut_at: Option<(PathBuf, u64)>,
    /// Files that go to `cut/`.
    pub moved: Vec<PathBuf>,
    /// Files that are written anew, after a copy went to `cut/`: what is good of them is kept.
    pub rewritten: Vec<PathBuf>,
    /// Empty segments made for the log to go on in.
    pub created: Vec<PathBuf>,
    /// Of the log afterwards.
    pub generation: u64,
    /// First record afterwards, or the next to be written.
    pub first_lsn: Lsn,
    /// Last record afterwards.
    pub last_lsn: Lsn,
}

impl Repair {
    /// Whether there is anything to do.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !(self.moved.is_empty()
            && self.rewritten.is_empty()
            && self.created.is_empty()
            && self.lost_start.is_none())
    }
}

struct Plan {
    repair: Repair,
    /// In the order in which they are done.
    rebuilds: Vec<Rebuild>,
    moves: Vec<PathBuf>,
    renew: Option<u64>,
    begins: Option<(u64, u64)>,
    raises: bool,
    side: Side,
}

impl LogDir {
    /// What [`repair`](Self::repair) would do. Changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if a segment needs a later build; [`ErrorKind::Io`].
    pub fn plan_repair(&self) -> Result<Repair> {
        Ok(self.plan()?.repair)
    }

    /// Cuts the log at its first damage and makes it one that opens.
    ///
    /// Everything behind the damage is moved to `cut/` in the log's directory; if records are lost
    /// at the end, the log's generation is raised, so that stored checkpoints, which may name
    /// records that no longer exist, are refused. Where only bytes beside the records are damaged
    /// (a footer, padding, a slot of `meta`), they are written anew and nothing is lost. If the
    /// first segments are missing, the log starts at the first that is there.
    ///
    /// # Crash
    /// May be interrupted at any point, and called again.
    ///
    /// # Errors
    /// As [`plan_repair`](Self::plan_repair); [`ErrorKind::StorageFull`]; [`ErrorKind::Corrupt`]
    /// if damage is left afterwards.
    pub fn repair(&mut self) -> Result<Repair> {
        let plan = self.plan()?;
        if !plan.repair.is_needed() {
            return Ok(plan.repair);
        }
        let cut = self.cut_dir();
        self.disk.create_dir(&cut).map_err(|e| Error::io("cannot create a directory", &cut, e))?;
        self.sync_dir(&self.dir)?;
        self.update_meta(&plan)?;
        for rebuild in &plan.rebuilds {
            let path = self.segment_path(rebuild.number);
            self.copy_aside(&path)?;
            self.rebuild(&path, rebuild)?;
        }
        for path in &plan.moves {
            self.move_aside(path)?;
        }
        if let Some(number) = plan.renew {
            self.renew(number)?;
        }
        let left = self.plan()?.repair;
        if left.is_needed() {
            let error = Error::new(ErrorKind::Corrupt, "damage is left after the repair");
            return Err(match left.findings.into_iter().next() {
                Some(finding) => error.at_path(&self.dir).because(finding),
                None => error.at_path(&self.dir),
            });
        }
        Ok(plan.repair)
    }

    fn plan(&self) -> Result<Plan> {
        let scan = self.scan(Depth::Blocks)?;
        if let Some(error) = scan.unsupported {
            return Err(error
                .plain()
                .advise("use the build that wrote it; nothing can be cut here"));
        }
        let side = self.side(scan.end_lsn())?;
        let mut repair = Repair {
            generation: self.meta.generation,
            first_lsn: Lsn::new(scan.first_lsn),
            last_lsn: Lsn::new(scan.next_lsn).previous(),
            ..Repair::default()
        };
        repair.lost_start = scan.begins.map(|(number, lsn)| Loss {
            from: Lsn::new(self.meta.log_start_lsn),
            to: Some(Lsn::new(lsn - 1)).filter(|to| to.get() >= self.meta.log_start_lsn),
            bytes: self.geometry.segment_start(number) - self.meta.log_start,
        });
        let mut plan = Plan {
            rebuilds: scan.rebuilds.clone(),
            moves: Vec::new(),
            renew: None,
            begins: scan.begins,
            raises: false,
            repair,
            side,
        };
        if let Some(cut) = &scan.cut {
            self.plan_cut(&scan, cut, &mut plan)?;
        }
        let repair = &mut plan.repair;
        repair.rewritten = plan.rebuilds.iter().map(|r| self.segment_path(r.number)).collect();
        if plan.side.meta_damaged {
            repair.rewritten.push(MetaFile::path(&self.dir));
        }
        plan.moves.append(&mut plan.side.damaged_checkpoints);
        repair.moved = plan.moves.clone();
        repair.findings = scan.findings;
        repair.findings.append(&mut plan.side.findings);
        Ok(plan)
    }

    fn plan_cut(&self, scan: &Scan, cut: &Cut, plan: &mut Plan) -> Result<()> {
        let (disk, dir, log_id) = (&*self.disk, &*self.dir, self.meta.log_id);
        let (numbers, _) = Survey { disk, dir, geometry: self.geometry, log_id }.list()?;
        plan.rebuilds.retain(|rebuild| rebuild.number < cut.number);
        let kept = cut.offset > 0;
        let mut bytes = 0;
        for &number in numbers.iter().rev().take_while(|&&n| n >= cut.number) {
            let path = self.segment_path(number);
            let from = if number == cut.number { cut.offset } else { 0 };
            bytes += self.used_end(&path)?.saturating_sub(from.max(PAGE_BYTES));
            if number > cut.number || !kept {
                plan.moves.push(path);
            }
        }
        if kept {
            let (number, end) = (cut.number, cut.offset);
            plan.rebuilds.push(Rebuild { number, end, footer: None, rolled: false });
        } else if cut.renew {
            plan.renew = Some(cut.number);
            plan.repair.created.push(self.segment_path(cut.number));
        }
        plan.repair.cut_at = Some((self.segment_path(cut.number), cut.offset));
        // Behind the end of the log there is nothing to lose.
        plan.raises = kept || cut.renew;
        if plan.raises {
            plan.repair.generation += 1;
            let to = Some(Lsn::new(scan.last_seen)).filter(|to| to.get() >= cut.next_lsn);
            plan.repair.lost_end = Some(Loss { from: Lsn::new(cut.next_lsn), to, bytes });
        }
        Ok(())
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        segment_path(&self.dir, &self.geometry, number)
    }

    fn cut_dir(&self) -> PathBuf {
        self.dir.join("cut")
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.disk.sync_dir(dir).map_err(|e| Error::io("cannot sync a directory", dir, e))
    }

    fn open_read(&self, path: &Path) -> Result<std::sync::Arc<dyn DiskFile>> {
        let mode = OpenMode { write: false, create: false, direct: false };
        self.disk.open(path, mode).map_err(|e| Error::io("cannot open a file", path, e))
    }

    /// Offset behind the last byte before the footer that is not zero.
    fn used_end(&self, path: &Path) -> Result<u64> {
        let file = self.open_read(path)?;
        let failed = |e| Error::io("cannot read a segment", path, e);
        let limit = self.geometry.segment_bytes - footer_bytes(self.geometry.segment_bytes);
        let mut page = vec![0; PAGE_BYTES as usize];
        let mut end = file.len().map_err(failed)?.min(limit);
        while end > 0 {
            let from = (end - 1) / PAGE_BYTES * PAGE_BYTES;
            let read = file.read_at(&mut page, from).map_err(failed)?;
            if !is_zero(&page[..read]) {
                return Ok(end);
            }
            end = from;
        }
        Ok(0)
    }

    fn update_meta(&mut self, plan: &Plan) -> Result<()> {
        if !(plan.raises || plan.begins.is_some() || plan.side.meta_damaged) {
            return Ok(());
        }
        if plan.side.meta_damaged {
            self.copy_aside(&MetaFile::path(&self.dir))?;
        }
        let file = MetaFile::open(&*self.disk, &self.dir, true)?;
        file.update(|meta| {
            meta.generation += u64::from(plan.raises);
            if let Some((number, lsn)) = plan.begins {
                meta.log_start = self.geometry.segment_start(number);
                meta.log_start_lsn = lsn;
            }
        })?;
        self.meta = file.get();
        Ok(())
    }

    /// A name in `cut/` that is free.
    fn name_aside(&self, path: &Path) -> Result<PathBuf> {
        let cut = self.cut_dir();
        let taken = self.disk.list(&cut);
        let taken = taken.map_err(|e| Error::io("cannot list a directory", &cut, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut free = name.clone();
        let mut copies = 0;
        while taken.contains(&free) {
            copies += 1;
            free = format!("{name}.{copies}");
        }
        Ok(cut.join(free))
    }

    fn move_aside(&self, path: &Path) -> Result<()> {
        let to = self.name_aside(path)?;
        self.disk.rename(path, &to).map_err(|e| Error::io("cannot move a file", path, e))?;
        // There first: a name may be in both directories, but not in neither.
        self.sync_dir(&self.cut_dir())?;
        self.sync_dir(path.parent().unwrap_or(&self.dir))
    }

    fn copy_aside(&self, path: &Path) -> Result<()> {
        let to = self.name_aside(path)?;
        let temporary = self.cut_dir().join("copy.tmp");
        let from = self.open_read(path)?;
        self.write_new(&temporary, &to, |file| {
            let mut piece = vec![0; limits::ZERO_FILL_BYTES];
            let mut offset = 0;
            loop {
                let read = from.read_at(&mut piece, offset)?;
                if read == 0 {
                    return Ok(());
                }
                file.write_at(&piece[..read], offset)?;
                offset += read as u64;
            }
        })
    }

    /// Makes a file under a temporary name, durable, and renames it.
    fn write_new(
        &self,
        temporary: &Path,
        path: &Path,
        fill: impl FnOnce(&dyn DiskFile) -> std::io::Result<()>,
    ) -> Result<()> {
        let failed = |e| Error::io("cannot write a file", path, e);
        let mode = OpenMode { write: true, create: true, direct: false };
        let file = match self.disk.open(temporary, mode) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.disk.remove(temporary).map_err(failed)?;
                self.disk.open(temporary, mode).map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        fill(&*file).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        self.disk.rename(temporary, path).map_err(failed)?;
        self.sync_dir(path.parent().unwrap_or(&self.dir))
    }

    /// Writes a segment anew: header, blocks up to `end`, zeros, and the footer if it has one.
    fn rebuild(&self, path: &Path, rebuild: &Rebuild) -> Result<()> {
        let geometry = self.geometry;
        let (disk, dir, log_id) = (&*self.disk, &*self.dir, self.meta.log_id);
        let found = Survey { disk, dir, geometry, log_id }.look(rebuild.number)?;
        let source = self.open_read(path)?;
        let walker = walker(&geometry, &found, &*source);
        let start = geometry.segment_start(rebuild.number);
        let mut kept = vec![(0, PAGE_BYTES)];
        Checker::new(&walker, None, 0).run(|header, _| {
            let offset = header.position - start;
            if offset < rebuild.end {
                kept.push((offset, offset + header.framed_bytes() as u64));
            }
        })?;
        if rebuild.rolled {
            let offset = geometry.segment_offset(geometry.rolled_block(rebuild.number));
            kept.push((offset, offset + BLOCK_HEADER_BYTES as u64));
        }
        let footer = rebuild.footer.as_ref().map(|f| f.encode(geometry.segment_bytes));
        let slab_bytes = geometry.slab_bytes;
        let mut old = AlignedBuf::zeroed(slab_bytes as usize);
        self.write_new(&path.with_extension("tmp"), path, |file| {
            for base in (0..geometry.segment_bytes).step_by(slab_bytes as usize) {
                source.read_at(&mut old, base)?;
                let mut new = vec![0; slab_bytes as usize];
                for &(from, to) in
                    kept.iter().filter(|(from, _)| from / slab_bytes * slab_bytes == base)
                {
                    let range = (from - base) as usize..(to - base) as usize;
                    new[range.clone()].copy_from_slice(&old[range]);
                }
                file.write_at(&new, base)?;
            }
            if let Some(footer) = footer {
                file.write_at(&footer, geometry.segment_bytes - footer.len() as u64)?;
                file.set_read_only()?;
            }
            Ok(())
        })
    }

    /// Makes an empty segment.
    fn renew(&self, number: u64) -> Result<()> {
        let path = self.segment_path(number);
        let header = SegmentHeader {
            log_id: self.meta.log_id,
            nonce: random_u64(&*self.disk)?,
            number,
            slab_bytes: self.geometry.slab_bytes,
            segment_bytes: self.geometry.segment_bytes,
            created_nanos: Clock::system().wall(),
            required: 0,
            optional: 0,
        };
        self.write_new(&path.with_extension("tmp"), &path, |file| {
            let zeros = vec![0; self.geometry.slab_bytes as usize];
            for base in (0..self.geometry.segment_bytes).step_by(zeros.len()) {
                file.write_at(&zeros, base)?;
            }
            file.write_at(&header.encode(), 0)
        })
    }
}
