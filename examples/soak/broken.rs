//! How a run fails: at once, from whichever thread finds it, with what repeats it.

use std::panic;
use std::process;
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::watch;

/// Exit status of a run that found a broken promise. Also of a child that found one.
pub(crate) const STATUS: i32 = 3;
/// Of one that could not run.
pub(crate) const STATUS_UNABLE: i32 = 4;

static REPEAT: OnceLock<String> = OnceLock::new();
/// The life that is lived.
static LIFE: Mutex<String> = Mutex::new(String::new());

/// What to say when something is broken, and makes any panic but a planned one the end.
pub(crate) fn prepare(repeat: String) {
    REPEAT.get_or_init(|| repeat);
    panic::set_hook(Box::new(|info| {
        eprintln!("the soak itself failed: {info}");
        tell_repeat();
        process::exit(STATUS_UNABLE);
    }));
}

pub(crate) fn in_life(summary: String) {
    *LIFE.lock() = summary;
}

fn tell_repeat() {
    eprintln!("in {}", LIFE.lock());
    if let Some(repeat) = REPEAT.get() {
        eprintln!("{repeat}");
    }
}

/// A promise is broken.
pub(crate) fn promise(what: impl std::fmt::Display) -> ! {
    eprintln!("BROKEN: {what}");
    tell_repeat();
    eprintln!("its threads, with ticks in user and system mode:\n{}", watch::threads());
    process::exit(STATUS);
}

/// A panic that the hook does not see: for callbacks that are to panic.
pub(crate) fn planned_panic() -> ! {
    panic::resume_unwind(Box::new("as planned"));
}
