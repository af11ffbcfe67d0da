//! What lies beside the segments: the slots of `meta`, and the checkpoints.

use std::path::{Path, PathBuf};

use super::LogDir;
use crate::disk::OpenMode;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CheckpointEntry, Checkpoints, Meta, PAGE_BYTES};
use crate::limits;
use crate::log::MetaFile;
use crate::lsn::Lsn;

#[derive(Default)]
pub(super) struct Side {
    pub(super) findings: Vec<Error>,
    pub(super) notes: Vec<String>,
    pub(super) checkpoints: Vec<CheckpointEntry>,
    /// One of the two slots of `meta` is unusable.
    pub(super) meta_damaged: bool,
    /// Checkpoints that cannot be decoded: no bus opens with them.
    pub(super) damaged_checkpoints: Vec<PathBuf>,
}

impl LogDir {
    fn read_small(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let failed = |e| Error::io("cannot read a file of the log", path, e);
        let mode = OpenMode { write: false, create: false, direct: false };
        let file = match self.disk.open(path, mode) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let len = file.len().map_err(failed)?.min(limits::CHECKPOINT_FILE_BYTES_MAX + 1);
        let mut bytes = vec![0; len as usize];
        let read = file.read_at(&mut bytes, 0).map_err(failed)?;
        bytes.truncate(read);
        Ok(Some(bytes))
    }

    /// `last_lsn` is the last record seen anywhere.
    pub(super) fn side(&self, last_lsn: u64) -> Result<Side> {
        let mut side = Side::default();
        self.check_meta(&mut side)?;
        self.check_checkpoints(&mut side, last_lsn)?;
        Ok(side)
    }

    /// A slot's contents fit its first sector, which a crash leaves whole, old or new, and the rest
    /// is always zeros: so a slot that is not whole is damaged, not torn.
    fn check_meta(&self, side: &mut Side) -> Result<()> {
        let path = MetaFile::path(&self.dir);
        let bytes = self.read_small(&path)?.unwrap_or_default();
        for slot in 0..2 {
            let from = slot as usize * PAGE_BYTES as usize;
            let found = Meta::decode(bytes.get(from..).unwrap_or_default());
            let what = format!("slot {slot} of the meta file is damaged");
            let error = Error::new(ErrorKind::Corrupt, what).at_path(&path);
            let error = match found {
                Ok(meta) if meta.slot() == slot => continue,
                Ok(_) => error,
                Err(cause) => error.because(cause),
            };
            side.meta_damaged = true;
            side.findings.push(error);
        }
        Ok(())
    }

    /// `None` if there is no such file, or a damaged one.
    fn read_checkpoints(&self, path: &Path, side: &mut Side) -> Result<Option<Checkpoints>> {
        let Some(bytes) = self.read_small(path)? else { return Ok(None) };
        let found = Checkpoints::decode(&bytes).map_err(|cause| {
            let error = if cause.is_newer() {
                Error::new(ErrorKind::Unsupported, "this build cannot read the checkpoints")
            } else {
                side.damaged_checkpoints.push(path.to_owned());
                Error::new(ErrorKind::Corrupt, "the checkpoint file is damaged")
            };
            side.findings.push(error.at_path(path).because(cause));
        });
        Ok(found.ok())
    }

    fn check_checkpoints(&self, side: &mut Side, last_lsn: u64) -> Result<()> {
        // Those of another log or generation, set aside: all that counts is whether a bus opens.
        self.read_checkpoints(&self.dir.join("checkpoints.foreign"), side)?;
        let path = self.dir.join("checkpoints");
        let Some(found) = self.read_checkpoints(&path, side)? else { return Ok(()) };
        let (log_id, generation) = (self.meta.log_id, self.meta.generation);
        if found.log_id == log_id && found.generation < generation {
            side.notes.push(format!(
                "the checkpoints are of generation {}, before a repair cut the log: their \
                 consumers are refused until they say where they start",
                found.generation
            ));
        } else if (found.log_id, found.generation) != (log_id, generation) {
            let what = format!(
                "the checkpoints are of log {} generation {}, this is {log_id} generation \
                 {generation}",
                found.log_id, found.generation
            );
            side.findings.push(Error::new(ErrorKind::ForeignCheckpoint, what).at_path(&path));
        } else {
            for entry in found.entries.iter().filter(|entry| entry.lsn > last_lsn) {
                let what = format!(
                    "the checkpoint of {:?} lies beyond the log's end, {last_lsn}",
                    entry.name
                );
                let lsn = Lsn::new(entry.lsn);
                let error = Error::new(ErrorKind::BeyondEnd, what);
                side.findings.push(error.at_path(&path).at_lsns(lsn, lsn));
            }
            side.checkpoints = found.entries;
        }
        Ok(())
    }
}
