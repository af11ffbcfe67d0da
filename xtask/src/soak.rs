//! `cargo xtask soak`: builds the long run of `examples/soak` in release, and runs it.

use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Args;

/// What is passed on; `--help` of the example says more.
#[derive(Args)]
pub struct Soak {
    /// At least this long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Repeats the circumstances of a run, though not its schedule.
    #[arg(long)]
    seed: Option<u64>,
    /// Plants a mistake in the soak's own bookkeeping, which it must find: `lose`, `repeat`,
    /// `reorder` and others.
    #[arg(long)]
    plant: Option<String>,
    /// Runs it with each mistake planted, and fails if one is not found.
    #[arg(long)]
    controls: bool,
}

impl Soak {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--minutes".to_owned(), self.minutes.to_string()];
        if let Some(seed) = self.seed {
            arguments.extend(["--seed".to_owned(), seed.to_string()]);
        }
        if let Some(plant) = &self.plant {
            arguments.extend(["--plant".to_owned(), plant.clone()]);
        }
        if self.controls {
            arguments.push("--controls".to_owned());
        }
        arguments
    }
}

pub fn run(soak: &Soak) -> ExitCode {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
    let build = ["build", "--quiet", "--release", "--example", "soak"];
    let built = Command::new("cargo").args(build).current_dir(root).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("the example cannot be built");
        return ExitCode::FAILURE;
    }
    let program = root.join("target/release/examples/soak");
    match Command::new(&program).args(soak.arguments()).status() {
        Ok(status) => ExitCode::from(status.code().unwrap_or(1) as u8),
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}
