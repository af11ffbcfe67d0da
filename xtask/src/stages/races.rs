//! Models, schedules and sanitizers.

use super::Stage;

pub const STAGES: &[Stage] = &[];
