//! The primitives as a model checker schedules them: loom's, which tries each order of events and
//! each value that the memory model allows, or shuttle's, which tries orders of events by chance.
//!
//! Nothing here times out, or a lost wake-up would pass for a late one. A sleep that ends by time
//! in production (`SLEEP_MAX` is not one of them: that is a net) ends when a schedule calls
//! [`pass_time`]. A bug is planted by its name in `RACES_PLANT`.

#[cfg(races = "loom")]
pub(crate) mod weakened;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{OnceLock, Weak};
use std::time::Duration;

#[cfg(races = "loom")]
pub(crate) use loom as checker;
#[cfg(races = "shuttle")]
pub(crate) use shuttle as checker;

#[cfg(races = "shuttle")]
pub(crate) use shuttle::sync::atomic;
#[cfg(races = "loom")]
pub(crate) use weakened as atomic;

pub(crate) use checker::thread;
#[cfg(races = "shuttle")]
pub(crate) use shuttle::sync::Arc as CountedArc;
#[cfg(races = "loom")]
pub(crate) use weakened::CountedArc;

use atomic::{AtomicU32, Ordering};

use crate::limits;

/// The system's thread-locals are those of all threads of a schedule.
macro_rules! local {
    ($(#[$doc:meta])* static $name:ident: $type:ty = const { $init:expr };) => {
        $crate::sync::checker::thread_local! { $(#[$doc])* static $name: $type = $init; }
    };
}
pub(crate) use local as thread_local;

/// Whether this bug is planted.
pub(crate) fn planted(bug: &str) -> bool {
    static PLANTED: OnceLock<Option<String>> = OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("RACES_PLANT").ok()).as_deref() == Some(bug)
}

// ---- locks ---------------------------------------------------------------------------------

/// A mutex that is never poisoned, as production's.
pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T>(checker::sync::MutexGuard<'a, T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(checker::sync::Mutex::new(value))
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A slot of the ring: what `ArcSwapOption` promises, which is taken as correct.
pub(crate) struct Slot<T>(Mutex<Option<CountedArc<T>>>);

impl<T> Slot<T> {
    pub(crate) fn empty() -> Slot<T> {
        Slot(Mutex::new(None))
    }

    pub(crate) fn load_full(&self) -> Option<CountedArc<T>> {
        self.0.lock().clone()
    }

    pub(crate) fn load(&self) -> Option<CountedArc<T>> {
        self.load_full()
    }

    pub(crate) fn store(&self, value: Option<CountedArc<T>>) {
        drop(self.swap(value));
    }

    pub(crate) fn swap(&self, value: Option<CountedArc<T>>) -> Option<CountedArc<T>> {
        std::mem::replace(&mut *self.0.lock(), value)
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

// ---- sleeping ------------------------------------------------------------------------------

/// The futex word of production; the kernel's part is a lock and a condition.
#[derive(Debug)]
pub(crate) struct Futex {
    word: AtomicU32,
    kernel: std::sync::Arc<Kernel>,
}

#[derive(Debug)]
struct Kernel {
    bucket: checker::sync::Mutex<()>,
    woken: checker::sync::Condvar,
}

impl Default for Futex {
    fn default() -> Futex {
        let (bucket, woken) = (checker::sync::Mutex::new(()), checker::sync::Condvar::new());
        Futex { word: AtomicU32::new(0), kernel: std::sync::Arc::new(Kernel { bucket, woken }) }
    }
}

impl Kernel {
    fn wake_all(&self) {
        drop(self.bucket.lock());
        self.woken.notify_all();
    }
}

impl Futex {
    pub(crate) fn read(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    pub(crate) fn wake_all(&self) {
        self.word.fetch_add(1, Ordering::Release);
        self.kernel.wake_all();
    }

    pub(crate) fn sleep(&self, seen: u32, timeout: Duration) {
        let Ok(bucket) = self.kernel.bucket.lock() else { return };
        if self.word.load(Ordering::Relaxed) != seen || timeout.is_zero() {
            return;
        }
        if cfg!(races = "shuttle") && timeout < limits::SLEEP_MAX {
            TIMED.with_borrow_mut(|timed| timed.push(std::sync::Arc::downgrade(&self.kernel)));
        }
        drop(self.kernel.woken.wait(bucket));
    }
}

std::thread_local! {
    /// Those who sleep until a time. All threads of a schedule are one to the system.
    static TIMED: RefCell<Vec<Weak<Kernel>>> = const { RefCell::new(Vec::new()) };
}

/// Ends every sleep that time ends.
#[cfg(races = "shuttle")]
pub(crate) fn pass_time() {
    for kernel in TIMED.take().iter().filter_map(Weak::upgrade) {
        kernel.wake_all();
    }
}

/// A wait that is either over at once or never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Duration);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Deadline {
        Deadline(if timeout.is_zero() { timeout } else { Duration::MAX })
    }

    pub(crate) fn left(self) -> Duration {
        self.0
    }
}

// ---- a channel -----------------------------------------------------------------------------

#[derive(Debug)]
struct Channel<T> {
    queue: Mutex<VecDeque<T>>,
    sent: Futex,
}

#[derive(Debug)]
pub(crate) struct Sender<T>(std::sync::Arc<Channel<T>>);

#[derive(Debug)]
pub(crate) struct Receiver<T>(std::sync::Arc<Channel<T>>);

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    let channel = Channel { queue: Mutex::default(), sent: Futex::default() };
    let channel = std::sync::Arc::new(channel);
    (Sender(std::sync::Arc::clone(&channel)), Receiver(channel))
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, message: T) -> Result<(), T> {
        self.0.queue.lock().push_back(message);
        self.0.sent.wake_all();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// An error: nothing came.
    pub(crate) fn try_recv(&self) -> Result<T, ()> {
        self.0.queue.lock().pop_front().ok_or(())
    }

    /// An error: nothing came.
    pub(crate) fn recv_timeout(&self, timeout: Duration) -> Result<T, ()> {
        let seen = self.0.sent.read();
        self.try_recv().or_else(|()| {
            self.0.sent.sleep(seen, timeout);
            self.try_recv()
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.queue.lock().is_empty()
    }
}

// ---- bytes ---------------------------------------------------------------------------------

/// Which bytes of a slab are read and written, for loom to see: a read that does not happen after
/// the write, or a write that does not happen after all reads, is a race. Eight bytes at a time,
/// which is what records and headers are aligned to; of each page the first bytes stand for all.
#[derive(Debug, Default)]
#[cfg(races = "loom")]
pub(crate) struct Touched(RefCell<std::collections::BTreeMap<usize, Cell>>);

#[cfg(races = "loom")]
type Cell = std::rc::Rc<loom::cell::UnsafeCell<()>>;

#[cfg(races = "loom")]
impl Touched {
    pub(crate) fn new() -> Touched {
        Touched::default()
    }

    fn cells(&self, from: usize, to: usize) -> Vec<Cell> {
        let new = || std::rc::Rc::new(loom::cell::UnsafeCell::new(()));
        let mut cells = self.0.borrow_mut();
        let touched = (from / 8..to.div_ceil(8)).filter(|at| at % 512 < 24);
        touched.map(|at| cells.entry(at).or_insert_with(new).clone()).collect()
    }

    pub(crate) fn read(&self, from: usize, to: usize) {
        self.cells(from, to).iter().for_each(|cell| cell.with(|_| ()));
    }

    pub(crate) fn write(&self, from: usize, to: usize) {
        self.cells(from, to).iter().for_each(|cell| cell.with_mut(|_| ()));
    }
}

/// Shuttle does not look at memory.
#[derive(Debug)]
#[cfg(races = "shuttle")]
pub(crate) struct Touched;

#[cfg(races = "shuttle")]
impl Touched {
    pub(crate) fn new() -> Touched {
        Touched
    }

    pub(crate) fn read(&self, _from: usize, _to: usize) {}

    pub(crate) fn write(&self, _from: usize, _to: usize) {}
}
