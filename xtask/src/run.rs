//! Runs stages, and compares.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::stages::Stage;

/// How much longer the long version may take.
const LONG_FACTOR: u64 = 10;

/// How much of a failed stage's output is shown.
const TAIL_LINES: usize = 60;

/// What a stage said of a row.
enum Outcome {
    Executed(u64),
    Skipped(String),
}

/// Runs the stages one after the other; whether all of them hold.
pub fn all(stages: &[&Stage], long: bool) -> bool {
    let (mut failed, mut skipped) = (Vec::new(), 0);
    for stage in stages {
        println!("\n--- {}: {}", stage.name, stage.what);
        match one(stage, long) {
            Ok(skips) => skipped += skips,
            Err(why) => {
                println!("FAILED {}: {why}", stage.name);
                failed.push(stage.name);
            }
        }
    }
    println!("\n{} stages, {} failed, {skipped} rows SKIPPED", stages.len(), failed.len());
    failed.is_empty()
}

/// Runs one stage. Returns how many of its rows were skipped, or why it fails.
fn one(stage: &Stage, long: bool) -> Result<usize, String> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
    let log = root.join("target/prove").join(stage.name).with_extension("log");
    fs::create_dir_all(log.parent().expect("a directory")).map_err(|e| e.to_string())?;
    if !stage.build.is_empty() {
        let begun = Instant::now();
        let built = shell(root, stage.build).stdout(Stdio::null()).status();
        if !built.map_err(|e| e.to_string())?.success() {
            return Err(format!("`{}` failed", stage.build));
        }
        println!("built in {:.1} s", begun.elapsed().as_secs_f64());
    }
    let budget = stage.budget_seconds * if long { LONG_FACTOR } else { 1 };
    println!("$ {}", stage.run);
    let begun = Instant::now();
    let (succeeded, outcomes) = execute(root, stage, long, budget, &log)?;
    let took = begun.elapsed();
    let judged = judge(stage, long, &outcomes, took, budget);
    if !succeeded {
        show_tail(&log);
        let killed = if took >= Duration::from_secs(budget) { ": out of time" } else { "" };
        return Err(format!(
            "`{}` failed{killed}; all of its output: {}",
            stage.run,
            log.display()
        ));
    }
    judged
}

fn shell(root: &Path, command: &str) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", command]).current_dir(root);
    shell
}

/// Runs the command within its time, keeps its output, and picks the proofs out of it.
fn execute(
    root: &Path,
    stage: &Stage,
    long: bool,
    budget: u64,
    log: &PathBuf,
) -> Result<(bool, BTreeMap<String, Outcome>), String> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &budget.to_string(), "bash", "-c"]);
    command.arg(format!("exec 2>&1; {}", stage.run)).current_dir(root).stdout(Stdio::piped());
    for row in stage.rows {
        let required = if long { row.long } else { row.required };
        command.env(format!("PROOF_{}", row.name.to_uppercase()), required.to_string());
    }
    let mut child = command.spawn().map_err(|e| format!("timeout: {e}"))?;
    let mut file = File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let mut outcomes = BTreeMap::new();
    let output = child.stdout.take().expect("is piped");
    for line in BufReader::new(output).split(b'\n') {
        let line = line.map_err(|e| e.to_string())?;
        let line = String::from_utf8_lossy(&line);
        writeln!(file, "{line}").map_err(|e| e.to_string())?;
        if let Some((row, outcome)) = parse(&line) {
            add(&mut outcomes, row, outcome);
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    Ok((status.success(), outcomes))
}

/// `proof <row> <n>` or `proof <row> SKIP <why>`, anywhere in a line: a test runner may have begun
/// it with the test's name.
fn parse(line: &str) -> Option<(String, Outcome)> {
    let (_, proof) = line.split_once("proof ")?;
    let (row, said) = proof.split_once(' ')?;
    let outcome = match said.strip_prefix("SKIP ") {
        Some(why) => Outcome::Skipped(why.to_owned()),
        None => Outcome::Executed(said.split_whitespace().next()?.parse().ok()?),
    };
    Some((row.to_owned(), outcome))
}

/// Several tests may work on one row: what they executed adds up, and a skip stays one.
fn add(outcomes: &mut BTreeMap<String, Outcome>, row: String, outcome: Outcome) {
    match (outcomes.get_mut(&row), outcome) {
        (Some(Outcome::Executed(sum)), Outcome::Executed(more)) => *sum += more,
        (Some(Outcome::Skipped(_)), Outcome::Executed(_)) => {}
        (_, outcome) => {
            outcomes.insert(row, outcome);
        }
    }
}

/// Prints each row of the stage. An error if one was executed less often than required.
fn judge(
    stage: &Stage,
    long: bool,
    outcomes: &BTreeMap<String, Outcome>,
    took: Duration,
    budget: u64,
) -> Result<usize, String> {
    let mut skipped = 0;
    let mut short = Vec::new();
    for row in stage.rows {
        let required = if long { row.long } else { row.required };
        let name = row.name;
        match outcomes.get(name) {
            Some(Outcome::Executed(n)) if *n >= required => {
                println!("ok      {name:<28} executed {n} of {required} required");
            }
            Some(Outcome::Skipped(why)) => {
                println!("SKIP    {name:<28} {why}");
                skipped += 1;
            }
            Some(Outcome::Executed(n)) => {
                println!("SHORT   {name:<28} executed {n} of {required} required");
                short.push(name);
            }
            None => {
                println!("MISSING {name:<28} executed nothing of {required} required");
                short.push(name);
            }
        }
    }
    println!("{}: {:.1} s of {budget} s", stage.name, took.as_secs_f64());
    if short.is_empty() { Ok(skipped) } else { Err(format!("not proved: {}", short.join(", "))) }
}

fn show_tail(log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
        println!("    {line}");
    }
}
