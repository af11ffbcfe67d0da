//! `eventplane`: looks at, checks and repairs a log that no process has open.

mod dump;
mod info;
mod output;
mod repair;
mod segments;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use eventplane::{ErrorKind, offline::LogDir};

use output::Out;

const EXIT_HELP: &str = "Exit status: 0 nothing is wrong; 1 something is; 2 wrong usage; \
                         3 the directory holds no log, cannot be read or written, or is open \
                         elsewhere.";

/// Looks at, checks and repairs the log of an event bus. Only `repair --write` changes anything.
#[derive(Parser)]
#[command(version, about, after_help = EXIT_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The log at a glance: identity, sizes, records, checkpoints, how it was closed.
    Info(Where),
    /// One line for each segment.
    Segments(Where),
    /// Records, checked, as far as there is no damage.
    Dump(dump::Dump),
    /// Reads and checks everything, and lists what is wrong.
    Verify(Where),
    /// Cuts the log at its first damage and makes it one that opens; moves what it cuts to `cut/`.
    Repair(repair::Repair),
}

#[derive(Args)]
struct Where {
    /// The log's directory.
    dir: PathBuf,
    /// JSON instead of text: one value, or one a line for `dump`.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let at = match &cli.command {
        Command::Info(at) | Command::Segments(at) | Command::Verify(at) => at,
        Command::Dump(dump) => &dump.at,
        Command::Repair(repair) => &repair.at,
    };
    let mut out = Out::new(at.json);
    let done = LogDir::open(&at.dir).map_err(output::Failure::from).and_then(|mut log| match &cli
        .command
    {
        Command::Info(_) => info::run(&log, &mut out),
        Command::Segments(_) => segments::run(&log, &mut out),
        Command::Dump(dump) => dump.run(&log, &mut out),
        Command::Verify(_) => verify::run(&log, &mut out),
        Command::Repair(repair) => repair.run(&mut log, &mut out),
    });
    out.end(done, &at.dir)
}

/// What to tell about an error of the library on standard error.
fn advice(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Locked => Some("close the bus that has it open, or wait for its process to end"),
        ErrorKind::Unsupported => Some("use the build that wrote the log"),
        _ => None,
    }
}
