//! What the fuzz targets share: a bound on memory, planted bugs, and a naive reader.
//!
//! What the fuzzer gives is a program of instructions of eight bytes, which write, damage and forge:
//! however the fuzzer changes it, it stays one. Checksums are right unless they are meant to be
//! wrong, so the fuzzer gets behind them.

pub mod naive;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts what is allocated, and ends the process when it is more than allowed.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

impl Counting {
    fn take(&self, bytes: usize) {
        let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
        if live > LIMIT.load(Relaxed) && !std::thread::panicking() {
            LIMIT.store(usize::MAX, Relaxed);
            eprintln!("over-allocation: {bytes} bytes more make {live} in all");
            std::process::abort();
        }
    }
}

// SAFETY: passes everything on to the system's allocator, and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        self.take(bytes);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `call`, which may have at most so many bytes at once besides what there is already.
pub fn within<T>(bytes: usize, call: impl FnOnce() -> T) -> T {
    LIMIT.store(LIVE.load(Relaxed) + bytes, Relaxed);
    let out = call();
    LIMIT.store(usize::MAX, Relaxed);
    out
}

/// A bug in the harness, to see that a run finds it; named by the environment variable `PLANT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    None,
    /// A decoder that panics at certain contents, behind the checksum.
    Panic,
    /// A decoder that believes a length, behind the checksum.
    Allocation,
    /// A decoder that does not end.
    Hang,
    /// An opening that ends the log at the first bad block.
    FirstBad,
}

pub fn plant() -> Plant {
    static PLANT: OnceLock<Plant> = OnceLock::new();
    *PLANT.get_or_init(|| match std::env::var("PLANT").as_deref() {
        Err(_) => Plant::None,
        Ok("panic") => Plant::Panic,
        Ok("allocation") => Plant::Allocation,
        Ok("hang") => Plant::Hang,
        Ok("first-bad") => Plant::FirstBad,
        Ok(other) => panic!("no such plant: {other}"),
    })
}

/// The instructions of a program; the last is filled up with zeros.
pub fn program(data: &[u8]) -> impl Iterator<Item = [u8; 8]> {
    data.chunks(8).map(|chunk| {
        let mut instruction = [0; 8];
        instruction[..chunk.len()].copy_from_slice(chunk);
        instruction
    })
}

/// A number worth trying in place of `old`, said in two bytes.
pub fn number(how: u8, n: u8, old: u64) -> u64 {
    let signed = i64::from(n as i8);
    match how % 10 {
        0 => n.into(),
        1 | 2 => old.wrapping_add_signed(signed),
        3 => u64::MAX - u64::from(n),
        4 => (1u64 << (n % 64)).wrapping_sub(u64::from(n >= 64)),
        5 => old ^ 1 << (n % 64),
        6 => old.wrapping_add_signed(signed * naive::PAGE as i64),
        7 => old.wrapping_add_signed(signed * naive::SEGMENT as i64),
        8 => naive::NUMBER_END - u64::from(n),
        _ => u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15),
    }
}
