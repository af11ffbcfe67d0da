//! `eventplane repair`

use std::path::PathBuf;

use clap::Args;
use eventplane::offline::{self, LogDir, Loss};
use serde_json::{Value, json};

use crate::Where;
use crate::output::{Failure, Out, findings_json};

#[derive(Args)]
pub(crate) struct Repair {
    #[command(flatten)]
    pub(crate) at: Where,
    /// Do it; without this, only say what would be done.
    #[arg(long)]
    write: bool,
}

impl Repair {
    /// Has found nothing if nothing is wrong any more.
    pub(crate) fn run(&self, log: &mut LogDir, out: &mut Out) -> Result<(), Failure> {
        let repair = if self.write { log.repair()? } else { log.plan_repair()? };
        let done = self.write && repair.is_needed();
        out.has_found =
            if done { !log.verify()?.findings.is_empty() } else { !repair.findings.is_empty() };
        if out.json {
            out.line(as_json(&repair, done))?;
        } else {
            text(&repair, done, out)?;
        }
        Ok(())
    }
}

fn as_json(repair: &offline::Repair, done: bool) -> Value {
    let paths = |paths: &[PathBuf]| -> Value {
        paths.iter().map(|path| path.display().to_string()).collect()
    };
    json!({
        "done": done,
        "needed": repair.is_needed(),
        "findings": findings_json(&repair.findings),
        "lost_start": repair.lost_start.as_ref().map(loss_json),
        "lost_end": repair.lost_end.as_ref().map(loss_json),
        "cut_path": repair.cut_at.as_ref().map(|(path, _)| path.display().to_string()),
        "cut_offset": repair.cut_at.as_ref().map(|(_, offset)| offset),
        "moved": paths(&repair.moved),
        "rewritten": paths(&repair.rewritten),
        "created": paths(&repair.created),
        "generation": repair.generation,
        "first_lsn": repair.first_lsn.get(),
        "last_lsn": repair.last_lsn.get(),
    })
}

fn loss_json(loss: &Loss) -> Value {
    json!({
        "first_lsn": loss.from.get(),
        "last_lsn": loss.to.map(|to| to.get()),
        "records": loss.records(),
        "bytes": loss.bytes,
    })
}

fn text(repair: &offline::Repair, done: bool, out: &mut Out) -> std::io::Result<()> {
    out.findings(&repair.findings)?;
    if !repair.is_needed() {
        return out.line(if repair.findings.is_empty() {
            "nothing to repair"
        } else {
            "nothing that a repair could do"
        });
    }
    if let Some((path, offset)) = &repair.cut_at {
        out.line(format_args!("cut: {} at offset {offset}", path.display()))?;
    }
    for (where_, loss) in [("start", &repair.lost_start), ("end", &repair.lost_end)] {
        let Some(loss) = loss else { continue };
        out.line(match (loss.to, loss.records()) {
            (Some(to), Some(records)) => format!(
                "lost at the {where_}: LSNs {} to {to}, {records} records or more, {} bytes",
                loss.from, loss.bytes
            ),
            _ => format!(
                "lost at the {where_}: no record is known of, from LSN {} on; {} bytes",
                loss.from, loss.bytes
            ),
        })?;
    }
    for (what, paths) in [
        ("to cut/", &repair.moved),
        ("rewritten, a copy to cut/", &repair.rewritten),
        ("made empty", &repair.created),
    ] {
        for path in paths {
            out.line(format_args!("{what}: {}", path.display()))?;
        }
    }
    if repair.lost_end.is_some() {
        out.line(format_args!(
            "generation {}: checkpoints stored before are refused, since their LSNs may come to \
             name other records",
            repair.generation
        ))?;
    }
    out.line(format_args!("the log then ends with LSN {}", repair.last_lsn))?;
    out.line(if done { "done" } else { "nothing was changed: add --write to do it" })
}
