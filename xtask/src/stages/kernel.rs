//! Real files, real errors, real crashes.

use super::Stage;

pub const STAGES: &[Stage] = &[];
