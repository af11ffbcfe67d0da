//! `eventplane segments`

use eventplane::offline::{LogDir, SegmentInfo};
use serde_json::{Value, json};

use crate::output::{Failure, Out, findings_json, lsns, unix_nanos, utc};

pub(crate) fn run(log: &LogDir, out: &mut Out) -> Result<(), Failure> {
    let (segments, findings) = log.segments()?;
    out.has_found = !findings.is_empty();
    if out.json {
        let segments: Value = segments.iter().map(as_json).collect();
        let all = json!({ "segments": segments, "findings": findings_json(&findings) });
        return Ok(out.line(all)?);
    }
    out.line(format_args!(
        "{:>6}  {:<24}  {:<8}  {:>23}  {:>9}  {:>10}  {:>5}  time",
        "number", "file", "state", "LSNs", "records", "bytes", "index"
    ))?;
    for segment in &segments {
        let name = segment.path.file_name().unwrap_or_default().to_string_lossy();
        let times = segment
            .times
            .map_or_else(|| "-".into(), |(first, last)| format!("{}..{}", utc(first), utc(last)));
        out.line(format_args!(
            "{:>6}  {:<24}  {:<8}  {:>23}  {:>9}  {:>10}  {:>5}  {times}",
            segment.number,
            name,
            segment.state.as_str(),
            lsns(segment.lsns),
            segment.records,
            segment.used_bytes,
            segment.index_entries,
        ))?;
    }
    Ok(out.findings(&findings)?)
}

fn as_json(segment: &SegmentInfo) -> Value {
    json!({
        "number": segment.number,
        "path": segment.path.display().to_string(),
        "state": segment.state.as_str(),
        "first_lsn": segment.lsns.map(|(first, _)| first.get()),
        "last_lsn": segment.lsns.map(|(_, last)| last.get()),
        "records": segment.records,
        "first_time_nanos": segment.times.map(|(first, _)| unix_nanos(first)),
        "last_time_nanos": segment.times.map(|(_, last)| unix_nanos(last)),
        "used_bytes": segment.used_bytes,
        "index_entries": segment.index_entries,
    })
}
