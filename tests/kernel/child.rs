//! The process under test: this test binary, run again. It opens the log, writes with several
//! producers, consumes, tells what it promised and what it saw, and goes on until it is killed or
//! the log refuses.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, io};

use eventplane::{Ack, Batch, Bus, Retry, Start, Ticket};
use fastrand::Rng;

use super::load::{self, OUTSTANDING_MAX};
use super::seccomp;
use super::wire::{Message, Orders, Plant, Teller, hear};

const ORDERS: &str = "EVENTPLANE_ORDERS";
pub(crate) const CONSUMERS: [&str; 3] = ["fast", "slow", "picky"];
pub(crate) const PRODUCERS: u64 = 3;

/// A running process under test, with a thread that listens to it. Killed when dropped.
pub(crate) struct UnderTest {
    process: Child,
    listener: Option<JoinHandle<Vec<Message>>>,
    /// Said by the listener, for whoever waits for the log to be open. Relaxed: nothing else is
    /// read because of it.
    opened: Arc<AtomicBool>,
    output: tempfile::NamedTempFile,
}

impl UnderTest {
    pub(crate) fn start(orders: &Orders) -> UnderTest {
        let (mut hears, says) = io::pipe().unwrap();
        let output = tempfile::NamedTempFile::new().unwrap();
        let writes = || Stdio::from(File::options().append(true).open(output.path()).unwrap());
        // This very program, also where another one has been built in its place.
        let process = Command::new("/proc/self/exe")
            .args(["child::process_under_test", "--exact", "--nocapture", "--test-threads=1"])
            .env(ORDERS, serde_json::to_string(orders).unwrap())
            .stdin(Stdio::from(says))
            .stdout(writes())
            .stderr(writes())
            .spawn()
            .unwrap();
        let opened = Arc::new(AtomicBool::new(false));
        let tells = Arc::clone(&opened);
        let listener = thread::spawn(move || {
            let mut heard = Vec::new();
            while let Some(message) = hear(&mut hears) {
                heard.push(message);
                tells.store(true, Ordering::Relaxed);
            }
            heard
        });
        UnderTest { process, listener: Some(listener), opened, output }
    }

    /// A moment to strike at: mostly while it writes, at times while it opens the log.
    pub(crate) fn wait_for_a_moment(&mut self, rng: &mut Rng) {
        if rng.u8(0..5) > 0 {
            let so = || self.opened.load(Ordering::Relaxed);
            let ended = |process: &mut Child| process.try_wait().unwrap().is_some();
            super::until("the log is open", || so() || ended(&mut self.process));
        }
        thread::sleep(Duration::from_micros(rng.u64(0..80_000)));
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    /// Waits for its end, however it comes; what it told until then.
    pub(crate) fn ended(mut self) -> (ExitStatus, Vec<Message>, String) {
        let status = self.process.wait().unwrap();
        let heard = self.listener.take().unwrap().join().unwrap();
        (status, heard, fs::read_to_string(self.output.path()).unwrap())
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

impl Drop for UnderTest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test of its own: what `UnderTest::start` runs.
#[test]
fn process_under_test() {
    let Ok(orders) = env::var(ORDERS) else { return };
    let orders: Orders = serde_json::from_str(&orders).unwrap();
    let teller = Arc::new(Teller::of_this_process());
    match orders.plant {
        Some(Plant::LoseCheckpoints) => {
            drop(fs::remove_file(format!("{}/checkpoints", orders.dir)))
        }
        Some(Plant::SkipSyncs) => seccomp::skip_syncs(),
        _ => {}
    }
    let bus = match load::builder(&orders).open(&orders.dir) {
        Ok(bus) => bus,
        Err(error) => return println!("cannot open: {error:?}"),
    };
    teller.say(Message::Opened { last: bus.recovery().last_lsn.get() });
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for (consumer, name) in CONSUMERS.iter().enumerate() {
            if let Err(error) = consume(&bus, consumer, &teller, orders.plant) {
                println!("{name}: {error:?}");
            }
        }
        // From here on every checkpoint that is stored is one of all consumers.
        scope.spawn(|| watch_checkpoints(Path::new(&orders.dir), &teller, &ended));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|p| {
                let (bus, teller, orders) = (&bus, &teller, &orders);
                scope.spawn(move || produce(bus, p, orders, teller))
            })
            .collect();
        producers
            .into_iter()
            .for_each(|producer| producer.join().unwrap());
        ended.store(true, Ordering::Relaxed);
    });
    println!("closed: {:?}", bus.close());
}

/// Tells when the file of checkpoints has been replaced.
fn watch_checkpoints(dir: &Path, teller: &Teller, ended: &AtomicBool) {
    let path = dir.join("checkpoints");
    let mut seen = None;
    while !ended.load(Ordering::Relaxed) {
        let now = fs::metadata(&path)
            .ok()
            .map(|m| (m.ino(), m.mtime(), m.mtime_nsec()));
        if now != seen {
            teller.say(Message::Stored);
            seen = now;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

// ---- consumers -----------------------------------------------------------------------------

fn consume(
    bus: &Bus,
    consumer: usize,
    teller: &Arc<Teller>,
    plant: Option<Plant>,
) -> eventplane::Result<()> {
    let early = plant == Some(Plant::ConsumeEarly) && CONSUMERS[consumer] == "fast";
    let teller = Arc::clone(teller);
    let records_max = [1024, 40, 100][consumer];
    let subscribe = bus
        .subscribe(CONSUMERS[consumer])
        .start_if_new(Start::Earliest)
        .batch_records_max(records_max)
        .retry(Retry::exponential(Duration::from_millis(1), Duration::from_millis(4)).forever());
    let mut calls = 0;
    let running = subscribe.run(move |batch: &Batch<'_>| {
        calls += 1;
        let (first, last) = (batch.first_lsn().get(), batch.last_lsn().get());
        let prints = batch.iter().map(|r| load::print_of(r.lsn().get(), r.key()));
        let print = prints.fold(0, u64::wrapping_add);
        let consumer = consumer as u64;
        teller.say(Message::Delivered { consumer, first, last, print });
        if early {
            let teller = Arc::clone(&teller);
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(40));
                teller.say(Message::Processed { consumer, last });
            });
            return Ok(Ack::All);
        }
        let (answer, last) = match (CONSUMERS[consumer as usize], load::mix(first ^ calls) % 4) {
            ("slow", _) => {
                thread::sleep(Duration::from_micros(400));
                (Ack::All, last)
            }
            ("picky", 0) => return Err("not this time".into()),
            ("picky", 1) => {
                let middle = first + (last - first) / 2;
                (Ack::Through(eventplane::Lsn::new(middle)), middle)
            }
            _ => (Ack::All, last),
        };
        teller.say(Message::Processed { consumer, last });
        Ok(answer)
    })?;
    // It runs until the process ends.
    drop(running);
    Ok(())
}

// ---- producers -----------------------------------------------------------------------------

fn produce(bus: &Bus, place: u64, orders: &Orders, teller: &Teller) {
    let large = if orders.large { load::LARGE } else { 0 };
    let producer = large | (orders.life * PRODUCERS + place);
    let mut pending = VecDeque::new();
    for sequence in 0.. {
        let outcome = commit(bus, (producer, sequence), orders, &mut pending, teller);
        if let Err(error) = outcome {
            println!("producer {producer}: {error:?}");
            return teller.say(Message::Refused { producer, kind: error.kind() as u64 });
        }
        if place == 2 {
            // An idle log, now and then.
            thread::sleep(Duration::from_millis(load::mix(sequence ^ orders.seed) % 9));
        }
    }
}

/// A batch, and how it is going to be acknowledged.
fn commit(
    bus: &Bus,
    (producer, sequence): (u64, u64),
    orders: &Orders,
    pending: &mut VecDeque<(u64, Ticket)>,
    teller: &Teller,
) -> eventplane::Result<()> {
    let writer = bus.writer();
    let say = |sequence, lsns: std::ops::RangeInclusive<eventplane::Lsn>| {
        let (first, last) = (lsns.start().get(), lsns.end().get());
        teller.say(Message::Acknowledged { producer, sequence, first, last });
    };
    if load::is_abandoned_first(producer, sequence) {
        let mut batch = writer.batch();
        load::fill(&mut batch, (producer, sequence), true)?;
        if orders.plant == Some(Plant::CommitAbandoned) {
            batch.commit()?;
        }
    }
    let mut batch = writer.batch();
    load::fill(&mut batch, (producer, sequence), false)?;
    if orders.plant == Some(Plant::AcknowledgeEarly) {
        say(sequence, batch.commit_later()?.lsns());
        return Ok(());
    }
    if orders.deferred {
        pending.push_back((sequence, batch.commit_later()?));
        if pending.len() as u64 > OUTSTANDING_MAX / 2 {
            bus.sync()?;
            pending
                .drain(..)
                .for_each(|(sequence, ticket)| say(sequence, ticket.lsns()));
        }
        return Ok(());
    }
    if (producer & !load::LARGE) % PRODUCERS != 1 {
        say(sequence, batch.commit()?);
        return Ok(());
    }
    pending.push_back((sequence, batch.commit_later()?));
    if pending.len() as u64 > OUTSTANDING_MAX / 2 {
        let (sequence, ticket) = pending.pop_front().unwrap();
        say(sequence, ticket.wait()?);
    }
    Ok(())
}
