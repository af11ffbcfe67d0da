//! The stages, and what each must execute.

mod bytes;
mod kernel;
mod races;
mod simulation;
mod soak;

/// Something that is run as one command, and proves one or more rows.
pub struct Stage {
    pub name: &'static str,
    pub what: &'static str,
    /// Shell command that builds, outside the time budget; may be empty.
    pub build: &'static str,
    /// Shell command that prints `proof <row> <executed>` lines.
    pub run: &'static str,
    /// Seconds after which `run` is killed and has failed; in the long version, ten times that.
    pub budget_seconds: u64,
    pub rows: &'static [Row],
}

/// A row of docs/reliability.md.
pub struct Row {
    pub name: &'static str,
    /// How many cases have to be executed.
    pub required: u64,
    /// In the long version.
    pub long: u64,
}

const fn row(name: &'static str, required: u64, long: u64) -> Row {
    Row { name, required, long }
}

/// All of them, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Stage> {
    [simulation::STAGES, races::STAGES, kernel::STAGES, bytes::STAGES, soak::STAGES]
        .into_iter()
        .flatten()
}
