//! Text or JSON on standard output, errors on standard error, and what the exit status says.

use std::io::{self, BufWriter, ErrorKind as IoKind, Stdout, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use eventplane::{Error, Lsn};
use serde_json::{Value, json};

const FINDINGS: u8 = 1;
const UNREADABLE: u8 = 3;

pub(crate) enum Failure {
    Log(Error),
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Log(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl Failure {
    fn report(self, dir: &Path) -> ExitCode {
        match self {
            Failure::Log(error) => {
                eprintln!("eventplane: {}: {error}", dir.display());
                if let Some(advice) = crate::advice(error.kind()) {
                    eprintln!("eventplane: {advice}");
                }
                ExitCode::from(UNREADABLE)
            }
            Failure::Output(error) => {
                eprintln!("eventplane: cannot write the output: {error}");
                ExitCode::from(UNREADABLE)
            }
        }
    }
}

pub(crate) struct Out {
    pub(crate) json: bool,
    /// Something is wrong with the log. Set before it is printed, which may fail.
    pub(crate) has_found: bool,
    stdout: BufWriter<Stdout>,
}

impl Out {
    pub(crate) fn new(json: bool) -> Out {
        Out { json, has_found: false, stdout: BufWriter::new(io::stdout()) }
    }

    /// The last of it, and the exit status.
    pub(crate) fn end(&mut self, done: Result<(), Failure>, dir: &Path) -> ExitCode {
        match done.and_then(|()| self.flush()) {
            Err(Failure::Output(error)) if error.kind() == IoKind::BrokenPipe => {
                // `| head` has seen enough; what was found is there all the same.
            }
            Err(failure) => return failure.report(dir),
            Ok(()) => {}
        }
        if self.has_found { ExitCode::from(FINDINGS) } else { ExitCode::SUCCESS }
    }

    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.stdout, "{line}")
    }

    /// A name and its value, aligned.
    pub(crate) fn field(&mut self, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.stdout, "{name:<16}{value}")
    }

    pub(crate) fn findings(&mut self, findings: &[Error]) -> io::Result<()> {
        findings.iter().try_for_each(|finding| self.line(format_args!("finding: {finding}")))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush()?)
    }
}

pub(crate) fn findings_json(findings: &[Error]) -> Value {
    let each = findings.iter().map(|finding| {
        json!({
            "kind": format!("{:?}", finding.kind()),
            "message": finding.to_string(),
            "path": finding.path().map(|path| path.display().to_string()),
            "segment": finding.segment(),
            "offset": finding.offset(),
            "first_lsn": finding.lsns().map(|(first, _)| first.get()),
            "last_lsn": finding.lsns().map(|(_, last)| last.get()),
        })
    });
    each.collect()
}

pub(crate) fn lsns(lsns: Option<(Lsn, Lsn)>) -> String {
    lsns.map_or_else(|| "-".into(), |(first, last)| format!("{first}..{last}"))
}

pub(crate) fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// As in RFC 3339, in UTC, to the microsecond.
pub(crate) fn utc(time: SystemTime) -> String {
    let nanos = unix_nanos(time);
    let (seconds, micros) = (nanos / 1_000_000_000, nanos % 1_000_000_000 / 1_000);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a day since 1970-01-01. Years begin in March here, so that the leap day
/// is the last of its year; 400 years have 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1_460 + day_of_era / 146_096;
    let year_of_era = (day_of_era + day_of_era / 36_524 - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (era * 400 + year_of_era + year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000Z");
    }
}
