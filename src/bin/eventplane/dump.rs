//! `eventplane dump`

use std::io;
use std::ops::ControlFlow;

use clap::Args;
use eventplane::Lsn;
use eventplane::offline::{Dumped, LogDir};
use serde_json::json;

use crate::Where;
use crate::output::{Failure, Out, unix_nanos, utc};

#[derive(Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    pub(crate) at: Where,
    /// The first record.
    #[arg(long, value_name = "LSN", default_value_t = 1)]
    from: u64,
    /// The last record.
    #[arg(long, value_name = "LSN", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Only records of this kind; may be repeated.
    #[arg(long)]
    kind: Vec<u16>,
    /// At most so many records.
    #[arg(long, value_name = "RECORDS")]
    limit: Option<u64>,
}

impl Dump {
    pub(crate) fn run(&self, log: &LogDir, out: &mut Out) -> Result<(), Failure> {
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut written = Ok(());
        if left == 0 {
            return Ok(());
        }
        let done = log.records(Lsn::new(self.from)..=Lsn::new(self.to), |record| {
            if !self.kind.is_empty() && !self.kind.contains(&record.kind) {
                return ControlFlow::Continue(());
            }
            written = print(&record, out);
            left -= 1;
            if left == 0 || written.is_err() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        written?;
        match done {
            Err(error) if error.is_damage() => {
                out.has_found = true;
                out.flush()?;
                eprintln!("eventplane: the records end here: {error}");
                Ok(())
            }
            done => Ok(done?),
        }
    }
}

fn print(record: &Dumped<'_>, out: &mut Out) -> io::Result<()> {
    let text = str::from_utf8(record.payload).ok();
    let (lsn, kind, key) = (record.lsn, record.kind, record.key);
    if !out.json {
        let payload = text.map_or_else(|| hex(record.payload), |text| format!("{text:?}"));
        let time = utc(record.time);
        return out.line(format_args!("{lsn} {time} kind {kind} key {key} {payload}"));
    }
    let mut line = json!({
        "lsn": lsn.get(),
        "time_nanos": unix_nanos(record.time),
        "kind": kind,
        "key": key,
    });
    match text {
        Some(text) => line["text"] = text.into(),
        None => line["hex"] = hex(record.payload).into(),
    }
    out.line(line)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
