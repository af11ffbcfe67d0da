//! `eventplane info`

use eventplane::offline::LogDir;
use serde_json::{Value, json};

use crate::output::{Failure, Out, findings_json};

pub(crate) fn run(log: &LogDir, out: &mut Out) -> Result<(), Failure> {
    let info = log.info()?;
    out.has_found = !info.findings.is_empty();
    if out.json {
        let checkpoints: Value = info
            .checkpoints
            .iter()
            .map(|c| json!({ "name": c.name, "lsn": c.lsn.get(), "lag_records": c.lag_records }))
            .collect();
        out.line(json!({
            "log_id": info.log_id,
            "format_version": info.format_version,
            "generation": info.generation,
            "slab_bytes": info.slab_bytes,
            "segment_bytes": info.segment_bytes,
            "first_lsn": info.first_lsn.get(),
            "last_lsn": info.last_lsn.get(),
            "records": info.records,
            "segments": info.segments,
            "bytes": info.bytes,
            "clean": info.clean,
            "torn_bytes": info.torn_bytes,
            "checkpoints": checkpoints,
            "findings": findings_json(&info.findings),
        }))?;
        return Ok(());
    }
    out.field("log", &info.log_id)?;
    out.field("format", info.format_version)?;
    out.field("generation", info.generation)?;
    out.field("slab", format_args!("{} bytes", info.slab_bytes))?;
    out.field("segment", format_args!("{} bytes", info.segment_bytes))?;
    out.field("records", info.records)?;
    if info.records > 0 {
        out.field("LSNs", format_args!("{}..{}", info.first_lsn, info.last_lsn))?;
    }
    out.field("segments", format_args!("{}, {} bytes", info.segments, info.bytes))?;
    out.field(
        "end",
        match (info.torn_bytes, info.clean) {
            (_, true) => "clean".to_owned(),
            (0, false) => {
                "no later block vouches for the last records: not closed, or no room for one".into()
            }
            (torn, false) => format!("{torn} bytes of a torn write that was never acknowledged"),
        },
    )?;
    for c in &info.checkpoints {
        let (name, lsn, lag) = (&c.name, c.lsn, c.lag_records);
        out.field("checkpoint", format_args!("{name}: LSN {lsn}, {lag} records behind"))?;
    }
    Ok(out.findings(&info.findings)?)
}
