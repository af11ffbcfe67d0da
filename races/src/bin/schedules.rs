//! The whole bus, with all its threads, under shuttle's PCT scheduler: in memory, on the simulated
//! disk with a sealed segment to catch up from, and there while retention deletes it. Time passes
//! only where the schedule says so, and no wait times out: a wake-up that is lost is a deadlock,
//! which shuttle reports.
//!
//! ```text
//! schedules                     as many as PROOF_SHUTTLE_SCHEDULES says, then the controls
//! schedules KIND SEED COUNT     KIND is `memory`, `disk` or `retention`: what a failure names to
//!                               replay it
//! ```

#[cfg(not(races = "shuttle"))]
fn main() {
    panic!("build with RUSTFLAGS='--cfg races --cfg races=\"shuttle\"'");
}

#[cfg(races = "shuttle")]
fn main() {
    scheduled::main();
}

#[cfg(races = "shuttle")]
mod scheduled {
    use std::env;
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use eventplane::testing::{Force, ManualClock, SimDisk};
    use eventplane::{
        Ack, Batch, Builder, Bus, Lsn, Reason, Retention, Start, Subscription, Tier, Writer,
    };
    use shuttle::scheduler::PctScheduler;
    use shuttle::{Config, MaxSteps, Runner, thread};

    const LONG: Duration = Duration::from_secs(1_000);
    /// Records that the disk holds before a schedule begins: a sealed segment and a part.
    const OLD: u64 = 5;
    const NEW: u64 = 4;
    /// Schedules of one seed; a failure is replayed from its beginning.
    const SCHEDULES_PER_SEED: u64 = 500;
    /// PCT finds a bug that takes so many ordered events with a known probability.
    const DEPTH: usize = 4;
    const STEPS_MAX: usize = 200_000;

    fn builder(clock: &ManualClock) -> Builder {
        Bus::builder()
            .slab_bytes(64 << 10)
            .segment_bytes(128 << 10)
            .ring_bytes(256 << 10)
            .pin_budget_bytes(256 << 10)
            .catchup_window_bytes(1 << 20)
            .readahead_bytes(64 << 10)
            .consumers_max(2)
            .idle_spins(0)
            .manual(clock)
    }

    /// A log of `OLD` records, each about half a slab.
    fn template() -> SimDisk {
        let disk = SimDisk::new(1);
        let filled = disk.clone();
        let fill = move || {
            let clock = ManualClock::default();
            let bus = builder(&clock).simulated(&filled).open("/log").expect("it opens");
            let writer = bus.writer();
            for key in 1..=OLD {
                writer.append(1, key, &[key as u8; 30_000]).expect("the disk works");
            }
            bus.close().expect("it closes");
        };
        shuttle::check_random_with_seed(fill, 1, 1);
        disk
    }

    /// What a consumer was given, and whether it was right.
    #[derive(Default)]
    struct Track {
        lsns: Vec<u64>,
        wrong: Vec<String>,
    }

    type Shared = Arc<Mutex<Track>>;

    fn subscribe(bus: &Bus, name: &str) -> (Subscription, Shared) {
        let shared = Shared::default();
        let track = Arc::clone(&shared);
        let deliver = move |batch: &Batch<'_>| {
            let mut track = track.lock().unwrap();
            for record in batch {
                if record.key() != record.lsn().get() {
                    track.wrong.push(format!("key {} at {}", record.key(), record.lsn()));
                }
                track.lsns.push(record.lsn().get());
            }
            Ok(Ack::All)
        };
        let subscribe = bus.subscribe(name).start_at(Start::Earliest).batch_records_max(2);
        (subscribe.run(deliver).expect("the name is free"), shared)
    }

    /// Every record once and in order, from the first or again from where a seek led.
    fn check(track: &Shared, last: u64, sought: Option<u64>) {
        let track = track.lock().unwrap();
        let mut jumped = false;
        let mut before = 0;
        for &lsn in &track.lsns {
            let jumps = !jumped && sought == Some(lsn) && lsn != before + 1;
            assert!(jumps || lsn == before + 1, "{lsn} after {before}: {:?}", track.lsns);
            jumped |= jumps;
            before = lsn;
        }
        assert_eq!(before, last, "{:?}", track.lsns);
        assert!(track.wrong.is_empty(), "{:?}", track.wrong);
    }

    fn write(writer: &Writer, from: u64) {
        for key in from..from + NEW {
            let mut batch = writer.batch();
            batch.append(1, key, b"new").expect("it fits");
            if key % 2 == 0 {
                batch.commit_later().expect("open").wait().expect("the disk works");
            } else {
                batch.commit().expect("the disk works");
            }
        }
    }

    /// One schedule: a writer, two consumers, one of them sought and paused, the other shed (on
    /// disk), the bus's own threads; in the end everything is stopped and closed.
    fn scenario(bus: Bus, clock: &ManualClock, old: u64) {
        let last = old + NEW;
        let (a, seen_a) = subscribe(&bus, "a");
        let (b, seen_b) = subscribe(&bus, "b");
        let writer = bus.writer();
        let writing = thread::spawn(move || write(&writer, old + 1));
        if old > 0 {
            bus.force("b", Force::Shed, Reason::Stalled);
        } else {
            b.pause();
        }
        a.wait_processed(Lsn::new(1), LONG).expect("it is written");
        a.seek(Start::Lsn(Lsn::new(1))).expect("it is there");
        clock.advance(Duration::from_millis(20));
        a.wait_processed(Lsn::new(2), LONG).expect("it is processed again");
        let again = seen_a.lock().unwrap().lsns.iter().filter(|lsn| **lsn == 1).count();
        assert_eq!(again, 2, "the wait was answered by what came before the seek");
        b.resume();
        clock.advance(Duration::from_millis(120));
        writing.join().expect("the writer");
        a.wait_processed(Lsn::new(last), LONG).expect("all is processed");
        bring_back(&b, clock, last);
        a.stop().expect("it stops");
        let committed = bus.committed_lsn().get();
        bus.close().expect("it closes");
        assert_eq!(committed, last);
        check(&seen_a, last, Some(1));
        check(&seen_b, last, None);
    }

    /// Whoever is given a start finds it there, whatever retention deletes meanwhile.
    fn retained(bus: Bus, clock: &ManualClock) {
        let passing = clock.clone();
        let time = thread::spawn(move || {
            for _ in 0..3 {
                passing.advance(Duration::from_millis(300));
                thread::yield_now();
            }
        });
        let (a, _) = subscribe(&bus, "a");
        a.wait_processed(Lsn::new(OLD), LONG).expect("what it was given is there");
        a.seek(Start::Earliest).expect("there is a first record");
        a.wait_processed(Lsn::new(OLD), LONG).expect("so is what it was sent to");
        time.join().expect("time");
        bus.close().expect("it closes");
    }

    /// A shed consumer is admitted when its back-off is over, and the supervisor looks.
    fn bring_back(b: &Subscription, clock: &ManualClock, last: u64) {
        for _ in 0..200 {
            let status = b.status();
            if !status.shed && status.tier == Tier::Hot || status.lsn.get() == last {
                break;
            }
            clock.advance(Duration::from_millis(300));
            thread::yield_now();
        }
        b.wait_processed(Lsn::new(last), LONG).expect("all is processed");
    }

    fn runner(seed: u64, count: u64) -> Runner<PctScheduler> {
        let mut config = Config::new();
        config.stack_size = 256 << 10;
        config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
        config.silence_warnings = true;
        Runner::new(PctScheduler::new_from_seed(seed, DEPTH, count as usize), config)
    }

    fn run(kind: &str, seed: u64, count: u64) {
        let template = (kind != "memory").then(template);
        let retains = kind == "retention";
        let schedules = runner(seed, count).run(move || {
            let clock = ManualClock::default();
            match &template {
                Some(disk) if retains => {
                    let age = Retention::age(Duration::from_millis(100));
                    let builder = builder(&clock).retention(age);
                    let bus = builder.simulated(&disk.copy()).open("/log");
                    retained(bus.expect("it opens"), &clock);
                }
                Some(disk) => {
                    let bus = builder(&clock).simulated(&disk.copy()).open("/log");
                    scenario(bus.expect("it opens"), &clock, OLD);
                }
                None => scenario(builder(&clock).in_memory().expect("memory"), &clock, 0),
            }
        });
        assert_eq!(schedules as u64, count);
    }

    pub fn main() {
        let arguments: Vec<String> = env::args().skip(1).collect();
        let number = |i: usize| arguments[i].parse::<u64>().expect("a number");
        match arguments.len() {
            0 => all(),
            3 => run(&arguments[0], number(1), number(2)),
            _ => panic!("schedules [KIND SEED COUNT]"),
        }
    }

    fn all() {
        let wanted = env::var("PROOF_SHUTTLE_SCHEDULES").map_or(5_000, |n| n.parse().unwrap());
        let batches: u64 = u64::div_ceil(wanted, SCHEDULES_PER_SEED);
        let kind = |batch: u64| match batch % 10 {
            0 => "disk",
            1 => "retention",
            _ => "memory",
        };
        let next = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let batch = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if batch >= batches {
                            return;
                        }
                        let (kind, count) = (kind(batch), SCHEDULES_PER_SEED);
                        let (passed, said) = child(kind, batch, count, None);
                        let replay = format!("schedules {kind} {batch} {count}");
                        assert!(passed, "replay it with: {replay}\n{said}");
                    }
                });
            }
        });
        println!("proof shuttle_schedules {}", batches * SCHEDULES_PER_SEED);
        let controls = [
            ("memory", "sleep_word_is_read_late"),
            ("memory", "publish_ignores_sleepers"),
            ("memory", "wait_ignores_seeks"),
            ("disk", "hand_over_wakes_nobody"),
            ("retention", "retention_takes_an_early_barrier"),
            ("retention", "what_is_kept_is_asked_early"),
        ];
        for (kind, bug) in controls {
            let (passed, said) = child(kind, 0, 20_000, Some(bug));
            let named = said.contains("panicked at");
            assert!(!passed && named, "{bug} is not found in 20,000 schedules:\n{said}");
            println!("planted {bug}: found");
        }
        println!("proof shuttle_controls {}", controls.len());
    }

    fn child(kind: &str, seed: u64, count: u64, bug: Option<&str>) -> (bool, String) {
        let this = env::current_exe().expect("the path of this program");
        let mut command = Command::new(this);
        command.args([kind, &seed.to_string(), &count.to_string()]).env("RUST_BACKTRACE", "0");
        if let Some(bug) = bug {
            command.env("RACES_PLANT", bug);
        }
        let output = command.stdin(Stdio::null()).output().expect("a child");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}
