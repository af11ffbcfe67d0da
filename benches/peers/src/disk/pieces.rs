//! The best that is known for a stream past the page cache: io_uring, pieces of 256 KiB from
//! registered memory, four of them in flight.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::ensure;
use io_uring::{IoUring, opcode, types};
use memmap2::MmapMut;

use super::files::page_buffer;

pub const PIECE_BYTES: usize = 256 << 10;
pub const DEPTH: usize = 4;

/// A queue of [`DEPTH`] slots, each with a piece of memory.
pub struct Pieces {
    // Before `memory`: what the kernel may still write to is dropped after the ring.
    ring: IoUring,
    memory: MmapMut,
    busy: [bool; DEPTH],
}

impl Pieces {
    pub fn new() -> anyhow::Result<Pieces> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(2 * DEPTH as u32)?;
        let mut memory = page_buffer(PIECE_BYTES * DEPTH)?;
        for (byte, i) in memory.iter_mut().zip(0_u32..) {
            *byte = (i.wrapping_mul(2_654_435_761) >> 24) as u8;
        }
        let whole = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
        // SAFETY: the memory is unmapped after the ring is gone.
        unsafe { ring.submitter().register_buffers(&[whole])? };
        Ok(Pieces { ring, memory, busy: [false; DEPTH] })
    }

    fn push(&mut self, slot: usize, entry: &io_uring::squeue::Entry) -> anyhow::Result<()> {
        ensure!(!self.busy[slot], "slot {slot} is in flight");
        self.busy[slot] = true;
        // SAFETY: the entry refers to the slot's piece, which nobody touches while it is busy, and
        // to a file that the caller keeps open until then.
        unsafe { self.ring.submission().push(entry)? };
        self.ring.submit()?;
        Ok(())
    }

    /// Begins to write a slot. The file stays open until [`Pieces::wait`] has returned the slot.
    pub fn write(&mut self, slot: usize, file: &File, offset: u64) -> anyhow::Result<()> {
        let piece = self.memory[slot * PIECE_BYTES..].as_ptr();
        let entry =
            opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), piece, PIECE_BYTES as u32, 0)
                .offset(offset)
                .build()
                .user_data(slot as u64);
        self.push(slot, &entry)
    }

    /// Begins to read into a slot, likewise.
    pub fn read(&mut self, slot: usize, file: &File, offset: u64) -> anyhow::Result<()> {
        let piece = self.memory[slot * PIECE_BYTES..].as_mut_ptr();
        let entry =
            opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), piece, PIECE_BYTES as u32, 0)
                .offset(offset)
                .build()
                .user_data(slot as u64);
        self.push(slot, &entry)
    }

    /// A slot that is not in flight.
    pub fn free(&self) -> Option<usize> {
        self.busy.iter().position(|busy| !busy)
    }

    pub fn is_busy(&self, slot: usize) -> bool {
        self.busy[slot]
    }

    pub fn in_flight(&self) -> usize {
        self.busy.iter().filter(|busy| **busy).count()
    }

    /// Waits until at least one slot is done; returns how many are.
    pub fn wait(&mut self) -> anyhow::Result<usize> {
        self.ring.submit_and_wait(1)?;
        let mut done = 0;
        for completion in self.ring.completion() {
            let result = completion.result();
            if result < 0 {
                return Err(io::Error::from_raw_os_error(-result).into());
            }
            ensure!(result as usize == PIECE_BYTES, "{result} bytes of a piece");
            self.busy[completion.user_data() as usize] = false;
            done += 1;
        }
        Ok(done)
    }

    /// What a slot that is not in flight holds.
    pub fn piece(&self, slot: usize) -> &[u8] {
        &self.memory[slot * PIECE_BYTES..(slot + 1) * PIECE_BYTES]
    }
}
