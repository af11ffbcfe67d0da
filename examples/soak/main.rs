//! The long run: everything at once on real files and threads, for as long as one likes. Producers,
//! subscribers of every temper, readers; faults of the disk, retention, restarts of every kind; and
//! the whole promise checked: what was acknowledged is delivered to every subscriber, in order, or
//! it is told exactly what is missing.
//!
//! `cargo xtask soak --minutes 10` builds and runs it.
//!
//! | file | what is in it |
//! |---|---|
//! | `content` | what a record holds, as it follows from seed, life and LSN |
//! | `plan`, `cast` | what a life is like, and who subscribes |
//! | `life`, `world`, `board` | a life, what its parts share, and what outlives a kill |
//! | `producer`, `subscriber`, `reader`, `faults` | who writes, who reads, what fails |
//! | `witness`, `between`, `metered`, `watch` | the checks: by batch, between lives, from outside |
//! | `plant`, `controls` | mistakes that the checks must find |
//! | `report`, `broken` | what it says, and how it fails |

mod between;
mod board;
mod broken;
mod cast;
mod content;
mod controls;
mod faults;
mod life;
mod metered;
mod plan;
mod plant;
mod producer;
mod reader;
mod report;
mod run;
mod subscriber;
mod watch;
mod witness;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::plant::Plant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Everything at once, for a while, and the whole promise checked.
#[derive(Parser)]
pub(crate) struct Args {
    /// At least this long. The environment may ask for more: `PROOF_SOAK_LIVES`,
    /// `PROOF_SOAK_RECORDS`, `PROOF_SOAK_FAULTS`.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Decides plans, sizes, options, tempers and faults. Threads and time have their part too: a
    /// seed repeats the circumstances, not the schedule. Default: from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the log lies. Default: a temporary directory, which is kept if something is broken.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Plants a mistake in the soak's own bookkeeping, which it must find.
    #[arg(long)]
    plant: Option<Plant>,
    /// Runs itself with each mistake planted, and fails if one is not found.
    #[arg(long)]
    controls: bool,
    /// A life that is to be killed, in a process of its own: where its ledger and board are.
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match (&args.child, args.controls) {
        (Some(home), _) => run::child(home),
        (None, true) => controls::run(),
        (None, false) => run::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::from(broken::STATUS_UNABLE as u8)
        }
    }
}
