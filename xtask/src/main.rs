//! `cargo xtask prove`: runs what docs/reliability.md claims, each stage within its time, and
//! compares what was really executed with what is required, so that nothing shrinks unseen.

mod run;
mod soak;
mod stages;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of this repository.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs the proofs: all stages, or those named.
    Prove {
        /// The long versions: ten times as much, or as stated.
        #[arg(long)]
        long: bool,
        /// Only tells what there is.
        #[arg(long)]
        list: bool,
        /// Names of stages.
        stages: Vec<String>,
    },
    /// The long run: everything at once, and the whole promise checked.
    Soak(soak::Soak),
}

fn main() -> ExitCode {
    match Args::parse().task {
        Task::Prove { long, list, stages } => prove(long, list, &stages),
        Task::Soak(soak) => soak::run(&soak),
    }
}

fn prove(long: bool, list: bool, stages: &[String]) -> ExitCode {
    let unknown = stages.iter().find(|name| stages::all().all(|s| s.name != **name));
    if let Some(name) = unknown {
        eprintln!("there is no stage {name:?}: see --list");
        return ExitCode::FAILURE;
    }
    let chosen: Vec<_> = stages::all()
        .filter(|stage| stages.is_empty() || stages.iter().any(|name| stage.name == *name))
        .collect();
    if list {
        for stage in chosen {
            println!("{:<12} {}", stage.name, stage.what);
        }
        return ExitCode::SUCCESS;
    }
    if run::all(&chosen, long) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
