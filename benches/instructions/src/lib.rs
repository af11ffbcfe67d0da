//! Nothing: see `paths.rs`.
