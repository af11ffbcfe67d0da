//! How threads of ours stand among those that want the same cores. All of it is asked of the
//! system, never required.

/// What a thread that others wait for runs at a time; the shortest slice there is.
const SHORT_SLICE_NANOS: u64 = 100_000;

/// Asks for short slices, so that this thread, once woken, runs before threads that compute. Linux
/// does that from 6.12 on: without it, a commit may wait for the tick at each hand-over.
pub(crate) fn answer_soon() {
    if let Some(mut own) = attributes()
        && own.sched_policy == libc::SCHED_OTHER as u32
    {
        own.sched_runtime = SHORT_SLICE_NANOS;
        // SAFETY: `own` is as the kernel gave it, with its size; it is about this thread alone.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const own, 0) };
    }
}

fn attributes() -> Option<libc::sched_attr> {
    // SAFETY: numbers only, for which zero is a value.
    let mut own: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&own);
    // SAFETY: `own` is valid for writing `size` bytes.
    let refused = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut own, size, 0) } != 0;
    (!refused).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_what_it_asks_for_and_keeps_the_rest() {
        std::thread::spawn(|| {
            let before = attributes().unwrap();
            answer_soon();
            let after = attributes().unwrap();
            let kept = |own: &libc::sched_attr| (own.sched_policy, own.sched_nice);
            assert_eq!(kept(&after), kept(&before));
            // Before Linux 6.12 the kernel tells nothing of slices, and takes nothing.
            if before.sched_runtime != 0 {
                assert_eq!(after.sched_runtime, SHORT_SLICE_NANOS);
            }
        })
        .join()
        .unwrap();
    }
}
