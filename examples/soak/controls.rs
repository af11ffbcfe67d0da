//! The negative controls: each planted mistake must be found.

use std::env;
use std::process::{Command, Stdio};
use std::thread;

use clap::ValueEnum;

use crate::plant::Plant;
use crate::{Failure, broken};

/// Each of them waits for the disk most of the time.
const AT_ONCE: usize = 4;

pub(crate) fn run() -> Result<(), Failure> {
    let plants = Plant::value_variants();
    for few in plants.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let runs: Vec<_> = few.iter().map(|plant| scope.spawn(|| find(*plant))).collect();
            runs.into_iter().try_for_each(|run| run.join().map_err(|_| "a panic")?)
        })?;
    }
    println!("proof soak_controls {}", plants.len());
    Ok(())
}

/// Runs the soak with this mistake: it must say that a promise is broken.
fn find(plant: Plant) -> Result<(), Failure> {
    let value = plant.to_possible_value().ok_or("a plant without a name")?;
    let name = value.get_name();
    let mut command = Command::new(env::current_exe()?);
    for row in ["LIVES", "RECORDS", "FAULTS"] {
        command.env_remove(format!("PROOF_SOAK_{row}"));
    }
    let run = command
        .args(["--minutes", "0", "--seed", "1", "--plant", name])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&run.stderr);
    let found = said.lines().find(|line| line.starts_with("BROKEN"));
    match found {
        Some(found) if run.status.code() == Some(broken::STATUS) => {
            let short: String = found.chars().take(100).collect();
            println!("planted {name}: found: {short}");
            Ok(())
        }
        _ => Err(format!("planted {name}: not found, {}: {said}", run.status).into()),
    }
}
