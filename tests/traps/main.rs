//! The twenty traps that logs and event buses before this one fell into, each with a test of its
//! number, end to end: through the public interface, files on a real disk, on each backend. Each
//! begins with what went wrong there.

mod append;
mod bed;
mod bounds;
mod consume;
mod damage;
mod failing;
mod pins;
mod raw;
mod recover;
mod replay;
mod truncated;
mod watermark;
