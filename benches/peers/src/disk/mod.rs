//! What the machine's disk can do without a log in the way: files read and written by hand.
//!
//! Everything here is what one would write if nothing had to be framed, checked, published or
//! recovered. It is the other side of the rows that compare with the machine.

mod files;
mod pieces;

pub use files::{
    drop_cache, free_bytes, open_direct, page_buffer, read_bytes, warm, write_durable, write_zeros,
    zeroed,
};
pub use pieces::{DEPTH, PIECE_BYTES, Pieces};
