//! The whole bus on a simulated disk.

use super::Stage;

pub const STAGES: &[Stage] = &[];
