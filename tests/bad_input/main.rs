//! Wrong options, wrong files, wrong calls: for each an error of its kind, that says where, and not
//! a byte changed on disk.

#[path = "../traps/bed.rs"]
mod bed;
mod calls;
mod damaged;
mod directories;
mod options;
#[path = "../traps/raw.rs"]
mod raw;
mod starts;
