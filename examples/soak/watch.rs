//! What the process holds: memory, threads, files.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// After the end of a life, the kernel and the C library may take a moment.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// Anonymous memory in use.
pub(crate) fn memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Threads and open files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) threads: usize,
    pub(crate) files: usize,
}

pub(crate) fn held() -> Held {
    Held { threads: entries("/proc/self/task"), files: entries("/proc/self/fd") }
}

/// What is held once it is no more than `before`; or what it is if that does not come.
pub(crate) fn settled(before: Held) -> Held {
    let deadline = Instant::now() + SETTLES_WITHIN;
    loop {
        let now = held();
        let is_back = now.threads <= before.threads && now.files <= before.files;
        if is_back || Instant::now() >= deadline {
            return now;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// What each thread is at: name, state, ticks spent in user and system mode, where it waits.
pub(crate) fn threads() -> String {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lines = tasks.map(|task| {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let behind_name = stat.rsplit(')').next().unwrap_or("").to_owned();
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        let field = |i: usize| fields.get(i).copied().unwrap_or("?");
        let (state, user, system) = (field(0), field(11), field(12));
        format!("{:<16} {state} {user:>5} {system:>5} {}", read("comm").trim(), read("wchan"))
    });
    lines.collect::<Vec<_>>().join("\n")
}
