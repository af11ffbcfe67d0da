//! `eventplane verify`

use eventplane::offline::LogDir;
use serde_json::json;

use crate::output::{Failure, Out, findings_json};

pub(crate) fn run(log: &LogDir, out: &mut Out) -> Result<(), Failure> {
    let report = log.verify()?;
    out.has_found = !report.findings.is_empty();
    if out.json {
        out.line(json!({
            "segments": report.segments,
            "blocks": report.blocks,
            "records": report.records,
            "findings": findings_json(&report.findings),
            "notes": report.notes,
        }))?;
        return Ok(());
    }
    out.findings(&report.findings)?;
    for note in &report.notes {
        out.line(format_args!("note: {note}"))?;
    }
    let (segments, blocks, records) = (report.segments, report.blocks, report.records);
    out.line(format_args!(
        "{segments} segments, {blocks} good blocks, {records} records in a row, {} findings",
        report.findings.len()
    ))?;
    if out.has_found {
        out.line("`eventplane repair DIR` shows what a repair would do and lose")?;
    }
    Ok(())
}
