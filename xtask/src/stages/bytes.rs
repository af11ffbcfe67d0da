//! Bad bytes.

use super::Stage;

pub const STAGES: &[Stage] = &[];
