//! Calls about many files, several under way at once where that is faster: a small read takes as
//! long as the disk takes to answer, and a disk answers many at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::Disk;

/// What `call` makes of each item, in the order of the items. Up to [`Disk::calls_at_once`] calls
/// are under way at once, begun in that order; where that is 1, no thread is started.
pub(crate) fn at_once<T, R>(disk: &dyn Disk, items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R>
where
    T: Sync,
    R: Send,
{
    let workers = disk.calls_at_once().min(items.len());
    if workers <= 1 {
        return items.iter().map(call).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        // Relaxed: each number is given out once; what the calls return is handed over by joining.
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(index)
        {
            done.push((index, call(item)));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let start = |_| thread::Builder::new().name("ep-open".into()).spawn_scoped(scope, work);
        // A system that gives fewer threads gets it done more slowly.
        let others: Vec<_> = (1..workers).map_while(|n| start(n).ok()).collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
