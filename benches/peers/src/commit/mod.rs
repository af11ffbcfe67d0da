//! x

use crate::Bench;

pub const BENCHES: &[&Bench] = &[];
