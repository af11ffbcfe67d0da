//! eventplane beside its peers, and beside what the machine can do.
//!
//! Every row runs ours and the other in turn, in one process, and prints the ratio of each pair:
//! machines differ, ratios less so. A row checks what it measures (all bytes read, LSNs
//! contiguous): a fast wrong answer is a failure.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml            # everything
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- hot_    # some
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --quick # a smoke test
//! ```

mod commit;
mod disk;
mod hot;
mod load;
mod machine;
mod replay;
mod report;

use std::path::PathBuf;

use clap::Parser;

use crate::report::Report;

/// Measures eventplane beside its peers and the limits of the machine.
#[derive(Parser)]
struct Arguments {
    /// Rows whose names contain one of these; all if none is given.
    rows: Vec<String>,
    /// Where logs and files go: a directory on the disk to be measured.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Pairs of runs a row.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Little work, so that nothing rots; its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Prints the names of the rows.
    #[arg(long)]
    list: bool,
    /// What a row has another process do.
    #[arg(long, hide = true)]
    append_until_killed: Option<PathBuf>,
}

/// What a row has to know.
pub struct Context {
    /// A directory of this run's own, on the disk to be measured.
    pub dir: PathBuf,
    pub rounds: usize,
    pub quick: bool,
    pub report: Report,
}

impl Context {
    /// `full`, or a small part of it in a smoke test.
    pub fn scaled(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }
}

/// A row, or several that are measured together.
pub struct Bench {
    pub name: &'static str,
    pub run: fn(&Context) -> anyhow::Result<()>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(dir) = &arguments.append_until_killed {
        return replay::append_until_killed(dir);
    }
    let benches = [hot::BENCHES, commit::BENCHES, replay::BENCHES].concat();
    let wanted = |bench: &&&Bench| {
        arguments.rows.is_empty() || arguments.rows.iter().any(|row| bench.name.contains(row))
    };
    let chosen: Vec<&Bench> = benches.iter().copied().filter(|b| wanted(&b)).collect();
    if arguments.list {
        chosen.iter().for_each(|bench| println!("{}", bench.name));
        return Ok(());
    }
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let context = Context {
        dir: dir.path().to_owned(),
        rounds: if arguments.quick { 1 } else { arguments.rounds },
        quick: arguments.quick,
        report: Report::default(),
    };
    machine::describe(&context.dir);
    for bench in chosen {
        (bench.run)(&context).map_err(|e| e.context(bench.name))?;
    }
    context.report.finish();
    Ok(())
}
