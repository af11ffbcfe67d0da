//! loom's atomics, with two differences.
//!
//! loom takes SeqCst for AcqRel. Here a SeqCst store or exchange has a fence behind it, and a load
//! none: so x86 does it, which is the weakest that compilers make of it.
//!
//! loom remembers one access to an atomic, the last, and so misses that a store comes into
//! conflict with a load before that: it would leave out executions. Here each access is preceded by
//! a relaxed exchange of a word beside it, which conflicts with each other one and orders nothing.
//!
//! And one ordering of the product can be weakened, to see that a model needs it: `RACES_WEAKEN`
//! names its place in the source, as `file:line:ordering`. `RACES_SITES` has the places printed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::Location;
use std::sync::{Mutex, OnceLock};

pub(crate) use loom::sync::atomic::Ordering;
use loom::sync::atomic::fence;

struct Weaken {
    file: String,
    line: u32,
    to: Ordering,
}

fn weaken() -> Option<&'static Weaken> {
    static WEAKEN: OnceLock<Option<Weaken>> = OnceLock::new();
    let read = || {
        let text = std::env::var("RACES_WEAKEN").ok()?;
        let mut parts = text.split(':');
        let (file, line) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        let to = match parts.next()? {
            "relaxed" => Ordering::Relaxed,
            "acqrel" => Ordering::AcqRel,
            _ => return None,
        };
        Some(Weaken { file, line, to })
    };
    WEAKEN.get_or_init(read).as_ref()
}

/// Places seen with an ordering other than Relaxed.
static SITES: Mutex<BTreeSet<(&'static str, u32, &'static str)>> = Mutex::new(BTreeSet::new());

/// Prints each place once: `site file:line seqcst` or `weaker`.
pub(crate) fn print_sites() {
    let sites = SITES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (file, line, what) in &*sites {
        let file = file.split_once("src/").map_or(*file, |(_, file)| file);
        let text = format!("site {file}:{line} {what}\n");
        let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    }
}

fn ordering(written: Ordering, at: &'static Location<'static>) -> Ordering {
    static LISTS: OnceLock<bool> = OnceLock::new();
    if written == Ordering::Relaxed {
        return written;
    }
    if *LISTS.get_or_init(|| std::env::var_os("RACES_SITES").is_some()) {
        let what = if written == Ordering::SeqCst { "seqcst" } else { "weaker" };
        let mut sites = SITES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        sites.insert((at.file(), at.line(), what));
    }
    match weaken() {
        Some(weaken) if weaken.line == at.line() && at.file().ends_with(&*weaken.file) => weaken.to,
        _ => written,
    }
}

fn load_part(ordering: Ordering) -> Ordering {
    match ordering {
        Ordering::AcqRel => Ordering::Acquire,
        other => other,
    }
}

fn store_part(ordering: Ordering) -> Ordering {
    match ordering {
        Ordering::AcqRel => Ordering::Release,
        other => other,
    }
}

fn behind(ordering: Ordering) {
    if ordering == Ordering::SeqCst {
        fence(Ordering::SeqCst);
    }
}

/// What makes each access conflict with each other one.
#[derive(Debug, Default)]
struct Turn(loom::sync::atomic::AtomicU32);

std::thread_local! {
    /// What the model is about is over. All threads of a model are one to the system.
    static ENDED: Cell<bool> = const { Cell::new(false) };
}

/// From here on one order of events is enough, until `begin`.
pub(crate) fn end() {
    ENDED.set(true);
    loom::stop_exploring();
}

pub(crate) fn begin() {
    ENDED.set(false);
}

impl Turn {
    fn take(&self) {
        if !ENDED.get() {
            self.0.fetch_add(0, Ordering::Relaxed);
        }
    }

    /// For an access that sees the last value whatever comes of it: one point of choice is enough.
    fn with<T>(&self, access: impl FnOnce() -> T) -> T {
        self.take();
        if ENDED.get() {
            return access();
        }
        loom::stop_exploring();
        let outcome = access();
        loom::explore();
        outcome
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(loom::sync::atomic::$name, Turn);

        #[allow(dead_code, reason = "each type is used for a part of it")]
        impl $name {
            pub(crate) fn new(value: $value) -> $name {
                $name(loom::sync::atomic::$name::new(value), Turn::default())
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                let order = ordering(order, Location::caller());
                self.1.take();
                self.0.load(load_part(order))
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                let order = ordering(order, Location::caller());
                self.1.with(|| self.0.store(value, store_part(order)));
                behind(order);
            }

            #[track_caller]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                let order = ordering(order, Location::caller());
                let old = self.1.with(|| self.0.swap(value, order));
                behind(order);
                old
            }

            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let at = Location::caller();
                let (success, failure) = (ordering(success, at), ordering(failure, at));
                let failure = load_part(failure);
                let exchange = || self.0.compare_exchange(old, new, success, failure);
                let outcome = self.1.with(exchange);
                if outcome.is_ok() {
                    behind(success);
                }
                outcome
            }

            #[track_caller]
            pub(crate) fn compare_exchange_weak(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(old, new, success, failure)
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty, $($operation:ident),*) => {
        #[allow(dead_code, reason = "each type is used for a part of it")]
        impl $name {$(
            #[track_caller]
            pub(crate) fn $operation(&self, value: $value, order: Ordering) -> $value {
                let order = ordering(order, Location::caller());
                let old = self.1.with(|| self.0.$operation(value, order));
                behind(order);
                old
            }
        )*}
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
arithmetic!(AtomicU32, u32, fetch_add, fetch_sub);
arithmetic!(AtomicU64, u64, fetch_add, fetch_max, fetch_or, fetch_min);

/// loom's Arc, whose last reference is found by `get_mut` in every order.
#[derive(Debug)]
pub(crate) struct CountedArc<T>(loom::sync::Arc<(T, Turn)>);

impl<T> CountedArc<T> {
    pub(crate) fn new(value: T) -> CountedArc<T> {
        CountedArc(loom::sync::Arc::new((value, Turn::default())))
    }

    pub(crate) fn get_mut(this: &mut CountedArc<T>) -> Option<&mut T> {
        this.0.1.take();
        loom::sync::Arc::get_mut(&mut this.0).map(|(value, _)| value)
    }
}

impl<T> Clone for CountedArc<T> {
    fn clone(&self) -> CountedArc<T> {
        self.0.1.take();
        CountedArc(loom::sync::Arc::clone(&self.0))
    }
}

impl<T> Drop for CountedArc<T> {
    fn drop(&mut self) {
        self.0.1.take();
    }
}

impl<T> std::ops::Deref for CountedArc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}
