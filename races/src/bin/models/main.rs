//! Runs the models of the library, then each of them that must fail with something planted.
//!
//! ```text
//! models              all models, then all controls
//! models run NAME     one model; RACES_WEAKEN and RACES_PLANT as in src/sync/modelled
//! models sweep        each ordering weakened in turn, against all models: what finds it
//! ```

#[cfg(races = "loom")]
mod controls;

#[cfg(races = "loom")]
fn main() {
    controls::main();
}

#[cfg(not(races = "loom"))]
fn main() {
    panic!("build with RUSTFLAGS='--cfg races --cfg races=\"loom\"'");
}
