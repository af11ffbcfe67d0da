//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};
use eventplane::{Backend, Durability};

use crate::geometry::{DEFERRED_BYTES, DEFERRED_INTERVAL};

pub(crate) const FLIGHTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights-2013-01.csv");

/// Commits real events while five subscribers keep up, fall behind, come late, hang and hoard; each
/// comes back to hot, and each result is checked against the file.
///
/// The events are the flights out of New York in January 2013, read in a loop: one record a row,
/// the payload is the row, the key a hash of the aircraft's tail number, the kind 1 for departed
/// and 2 for cancelled.
///
/// The subscribers:
///   board     counts departures an hour; keeps up
///   delays    delay statistics by carrier and airport; heavy work in bursts: lapped, catches up,
///             and is shed for flapping when that happens too often
///   audit     a checksum over everything, from the beginning, subscribed late: shed for lag
///   webhook   posts cancellations to an endpoint that hangs: shed as stalled
///   keeper    holds leases of records: refused over its share, shed for the pin budget
///
/// The scenes follow each other by what was committed and what the bus reports, not by the clock:
/// in a scene that must wait for something the writer holds back, so that a slow disk or a busy
/// machine changes how long it takes and nothing else.
#[derive(Parser, Debug)]
#[command(name = "tiers", verbatim_doc_comment, after_long_help = AFTERWORD)]
pub(crate) struct Args {
    /// Records a second between the bursts, or `max`. Bursts are as fast as the log takes them.
    #[arg(long, default_value = "120000", value_name = "N|max")]
    pub(crate) rate: Rate,

    /// A file of lines, each a record. Lines that are no flights count as departures of the
    /// carrier "?".
    /// [default: the flights that come with the crate]
    #[arg(long, value_name = "FILE", default_value = FLIGHTS, hide_default_value = true,
        verbatim_doc_comment)]
    pub(crate) input: PathBuf,

    /// How many records to commit in all. The scenes need about 1,220,000 records of flights.
    #[arg(long, default_value_t = 3_000_000, value_name = "N")]
    pub(crate) records: u64,

    /// Where the log (DIR/log) and the subscribers' state (DIR/state) go: missing or empty, unless
    /// with --resume.
    /// [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    pub(crate) dir: Option<PathBuf>,

    /// Serve Prometheus metrics here while it runs, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,

    /// When a commit is acknowledged: once it is on stable storage, or at once, with the sync
    /// following within 50 ms or 4 MiB
    #[arg(long, value_enum, default_value_t = Acknowledge::Synced, verbatim_doc_comment)]
    pub(crate) durability: Acknowledge,

    /// Which system calls carry the writes; `auto` is io_uring where it is allowed, else pwrite
    #[arg(long, value_enum, default_value_t = Calls::Auto)]
    pub(crate) backend: Calls,

    /// Go on with a run that was interrupted, also by kill -9, in the same --dir
    #[arg(long, requires = "dir")]
    pub(crate) resume: bool,

    /// Write what the library traces to this file.
    /// [default: warnings to stderr when standard output is not a terminal]
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    pub(crate) log: Option<PathBuf>,
}

const AFTERWORD: &str = "\
Output:
  On a terminal a table, else one line a second. The last line begins with `verified:` if every
  consumer saw every record once, in order, every result is that of the file, every scene played,
  every tier was entered and left for every reason there is, and all five ended hot; otherwise with
  `NOT verified:`, below the reasons.

Resuming:
  board, delays, audit and keeper store their results together with their LSN in DIR/state, twice a
  second, and start behind it: exactly once. webhook keeps nothing and starts at the checkpoint that
  the bus stored every 100 ms; its endpoint knows what it has accepted and ignores what comes again.
  How much that was is printed as `redelivered=K`. No record that was acknowledged may be missing.
  Scenes that had played, and the transitions counted until then, are stored as well and count; a
  scene that the crash interrupted plays again from its beginning, in the records that remain, and
  an audit whose scene was interrupted begins anew. So a run may be killed at any point. Only if it
  is killed again and again in the same scene may too few records remain; then it says so.
  --records and --input must be those of the first run; the other options may differ.

Exit status:
  0 verified, 1 not verified or failed, 2 bad arguments or input";

/// Records a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    PerSecond(u64),
    Max,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "max" {
            return Ok(Rate::Max);
        }
        match text.parse() {
            Ok(rate) if rate > 0 => Ok(Rate::PerSecond(rate)),
            _ => Err("a number of records a second, at least 1, or `max`".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Acknowledge {
    Synced,
    Deferred,
}

impl Acknowledge {
    pub(crate) fn durability(self) -> Durability {
        match self {
            Acknowledge::Synced => Durability::Synced,
            Acknowledge::Deferred => {
                Durability::Deferred { interval: DEFERRED_INTERVAL, bytes: DEFERRED_BYTES }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Calls {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Psync,
}

impl Calls {
    pub(crate) fn backend(self) -> Backend {
        match self {
            Calls::Auto => Backend::Auto,
            Calls::IoUring => Backend::IoUring,
            Calls::Psync => Backend::Psync,
        }
    }
}
