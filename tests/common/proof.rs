//! Says how much of a row of docs/reliability.md was really executed; `cargo xtask prove` compares
//! that with what is required.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::env;

/// How many cases to execute: what `cargo xtask prove` asks for, else the default, which is small.
pub(crate) fn cases(row: &str, default: u64) -> u64 {
    let name = format!("PROOF_{}", row.to_uppercase());
    match env::var(&name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
        Err(_) => default,
    }
}

/// So many cases were executed, and hold.
pub(crate) fn executed(row: &str, cases: u64) {
    println!("proof {row} {cases}");
}

/// Nothing was executed: the machine lacks what it takes.
pub(crate) fn skipped(row: &str, why: &str) {
    println!("proof {row} SKIP {why}");
}
