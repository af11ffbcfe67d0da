//! The driver of a callback subscriber: a thread that polls, and sleeps in between.

use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::batch::Batch;
use super::core::{Consumer, Failure, Progress, Subscriber};
use super::options::{Ack, Signal};
use crate::limits;
use crate::ring::Seen;
use crate::sync::{planted, thread};

/// A subscriber made of closures.
pub(crate) struct Callbacks {
    pub(crate) deliver: Box<DeliverFn>,
    pub(crate) signal: Option<Box<SignalFn>>,
    pub(crate) dead_letter: Option<Box<DeadLetterFn>>,
}

pub(crate) type DeliverFn = dyn FnMut(&Batch<'_>) -> Result<Ack, Failure> + Send;
pub(crate) type SignalFn = dyn FnMut(&Signal) + Send;
pub(crate) type DeadLetterFn = dyn FnMut(&Batch<'_>, &Failure) + Send;

impl Subscriber for Callbacks {
    fn deliver(&mut self, batch: &Batch<'_>) -> Result<Ack, Failure> {
        (self.deliver)(batch)
    }

    fn signal(&mut self, signal: &Signal) {
        if let Some(hook) = &mut self.signal {
            hook(signal);
        }
    }

    fn dead_letter(&mut self, batch: &Batch<'_>, why: &Failure) -> bool {
        self.dead_letter.as_mut().map(|take| take(batch, why)).is_some()
    }

    fn takes_dead_letters(&self) -> bool {
        self.dead_letter.is_some()
    }
}

/// Polls until the consumer is stopped.
pub(crate) fn run(mut consumer: Consumer, mut callbacks: Callbacks) {
    let mut idle = 0;
    loop {
        // Read before the control word, so that an order given in between ends the sleep at once.
        let word = consumer.state().sleeper.word.read();
        let progress = consumer.poll(&mut callbacks);
        let late = planted("sleep_word_is_read_late");
        let word = if late { consumer.state().sleeper.word.read() } else { word };
        match progress {
            Progress::Moved => idle = 0,
            Progress::Stopped => break,
            Progress::CaughtUp(seen) => idle = rest(&consumer, word, seen, idle, limits::REST_MAX),
            Progress::NotBefore(at) => {
                let left = at.saturating_sub(consumer.plane().log.clock.now());
                consumer.state().sleeper.word.sleep(word, Duration::from_nanos(left));
            }
            Progress::Waiting => consumer.state().sleeper.word.sleep(word, limits::REST_MAX),
        }
    }
    // What the callback captured goes before anybody is told that the consumer is gone; a panic of
    // its drop must not keep them from being told.
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(callbacks)));
    if dropped.is_err() {
        let consumer = &*consumer.state().name;
        tracing::warn!(consumer, "dropping the callback panicked");
    }
    consumer.end();
}

/// Spins, then yields, then sleeps until something is committed, ordered or decided, at most
/// `timeout`; sleeps at once where others who were woken wait for a core. Returns how often it has
/// found nothing.
pub(crate) fn rest(
    consumer: &Consumer,
    word: u32,
    seen: Seen,
    idle: u32,
    timeout: Duration,
) -> u32 {
    let ring = &consumer.plane().log.ring;
    let spins = consumer.plane().options.idle_spins;
    if idle < SLEEPY && !ring.sleepers.are_crowding() {
        if idle < limits::IDLE_ROUNDS && spins > 0 {
            // Without a look in between: each one takes the line from the publisher.
            (0..spins).for_each(|_| hint::spin_loop());
        } else {
            thread::yield_now();
        }
        return idle + 1;
    }
    let sleeper = &consumer.state().sleeper;
    sleeper.register();
    if ring.committed.announce_sleep(seen) {
        sleeper.word.sleep(word, timeout);
    }
    ring.sleepers.rise(sleeper);
    // If it was woken for nothing it sleeps on.
    SLEEPY
}

/// So many looks that found nothing come before a sleep.
const SLEEPY: u32 = limits::IDLE_ROUNDS + limits::IDLE_YIELDS;
