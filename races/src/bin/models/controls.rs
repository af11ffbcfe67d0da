//! What must be found, and what need not.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use eventplane::all_models as all;
use eventplane::models::Model;

/// A line of the library's source (`#2`: the second such line of the file) whose ordering some model
/// needs, and that model.
const NEEDED: &[(&str, &str, &str)] = &[
    // The bytes below the position, and all that was stored before it, are seen with it.
    ("ring/committed.rs", "Seen(self.word.load(Ordering::Acquire))", "ring_publish_read"),
    (
        "ring/committed.rs",
        "match self.word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed) {",
        "ring_publish_read log_ticket",
    ),
    // Who sees that nothing is sought any more sees the consumer there.
    (
        "ring/readers.rs",
        "self.sought.store(NOWHERE, Ordering::Release);",
        "ring_seek_beside_retire",
    ),
    (
        "ring/readers.rs",
        "let sought = self.sought.load(Ordering::Acquire);",
        "ring_seek_beside_retire",
    ),
    // The sleeper's registration is seen with the bit.
    (
        "ring/committed.rs",
        ".compare_exchange(seen.0, seen.0 | ASLEEP, Ordering::AcqRel, Ordering::Acquire)",
        "ring_sleep",
    ),
    // Whoever waits for durability has counted itself, or sees the poison.
    (
        "ring/committed.rs",
        "self.word.fetch_or(POISONED, Ordering::SeqCst) & ASLEEP != 0",
        "log_failing_disk",
    ),
    ("sync.rs", "self.waiting.fetch_add(1, Ordering::SeqCst);", "log_event"),
    ("consumer/state.rs", "self.processed.store(lsn, Ordering::SeqCst);", "consumer_progress"),
    // Who waits has entered what it waits for, or sees that it is processed.
    (
        "consumer/state.rs",
        "self.awaited.fetch_min(lsn.get(), Ordering::SeqCst);",
        "consumer_progress",
    ),
    (
        "consumer/state.rs",
        "self.awaited.swap(u64::MAX, Ordering::Acquire);",
        "consumer_progress_late",
    ),
    // The futex word carries what was ordered or published before it was bumped.
    ("sync/modelled.rs", "self.word.load(Ordering::Acquire)", "consumer_stop"),
    ("sync/modelled.rs", "self.word.fetch_add(1, Ordering::Release);", "consumer_stop"),
];

/// Orderings that no model needs, and why that is so.
const NEEDLESS: &[(&str, &str, &str)] = &[
    ("consumer/core.rs", "tier_epoch.load(Ordering::Acquire)", "read under a lock then"),
    ("consumer/tiering.rs", "tier_epoch.fetch_add(1, Ordering::Release)", "read under a lock"),
    ("consumer/plane.rs", "self.refusing.load(Ordering::Acquire)", "under a lock"),
    ("consumer/state.rs", "control_epoch", "read under a lock; the futex word orders"),
    ("consumer/state.rs", "self.processed.store(cursor", "seeks_applied is stored behind it"),
    ("consumer/state.rs", "self.seeks_applied.store", "behind a SeqCst store"),
    ("consumer/state.rs", "self.processed.load(Ordering::SeqCst)", "behind seeks_applied"),
    ("consumer/state.rs", "self.seeks_applied.load", "the control lock orders"),
    ("consumer/state.rs", "self.awaited.load(Ordering::SeqCst)", "the store before it has a fence"),
    ("log/mod.rs", "stop.load(Ordering::Acquire)", "set before the futex word is bumped"),
    ("log/segments.rs", "wanted_below", "what it asks for is sent through a channel"),
    ("log/segments.rs", "prepared_below", "the segment is taken from under a lock"),
    (
        "ring/committed.rs",
        "Seen(self.word.load(Ordering::SeqCst))",
        "the count before it has a fence",
    ),
    ("ring/pool.rs", "oldest", "the slot, which is looked at next, is the truth"),
    ("ring/pool.rs", "committed_lsn", "the committed word carries it"),
    ("ring/slab.rs", "self.end.", "the committed word carries it"),
    ("ring/sleepers.rs", "self.asleep.", "the committed word carries it"),
    ("sync.rs", "self.waiting.load(Ordering::SeqCst)", "the store before it has a fence"),
    ("sync.rs", "self.waiting.fetch_sub(1, Ordering::SeqCst)", "a count too high costs a call"),
];

/// Bugs planted by name, and the model that finds each.
const PLANTED: &[(&str, &str)] = &[
    ("publish_ignores_sleepers", "ring_sleep"),
    ("announce_sleep_only_loads", "ring_sleep_beside_another"),
    ("take_does_not_ask", "ring_lap_reuse"),
    ("retire_ignores_holds", "ring_start_beside_retire"),
    ("needs_looks_at_the_place_first", "ring_seek_beside_retire"),
    ("sleep_word_is_read_late", "consumer_stop"),
    ("wait_ignores_seeks", "consumer_seek"),
    ("wait_enters_the_next", "consumer_progress"),
    ("lead_forgets_the_rest", "log_two_producers"),
    ("hand_over_wakes_nobody", "log_ticket"),
];

/// No model takes that long once something is planted.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);

pub fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            let longer = proof("loom_executions").is_some_and(|wanted| wanted > 500_000);
            run_all(longer);
            run_controls();
        }
        ["run", name] => {
            let least = if env::var("RACES_LONG").is_ok_and(|long| long == "1") { 3 } else { 0 };
            let explore = |model: Model| {
                Model { preemptions: model.preemptions.max(least), ..model }.explore(None)
            };
            let executions: u64 = named(name).map(explore).sum();
            println!("{name}: {executions} executions");
        }
        ["sites"] => {
            all().iter().for_each(|model| {
                Model { preemptions: 1, ..*model }.explore(None);
            });
            Model::print_sites();
        }
        ["sweep"] => sweep(),
        _ => panic!("models [run NAME | sweep]"),
    }
}

fn named(name: &str) -> impl Iterator<Item = Model> {
    all().into_iter().filter(move |model| model.name == name)
}

fn proof(row: &str) -> Option<u64> {
    env::var(format!("PROOF_{}", row.to_uppercase())).ok()?.parse().ok()
}

/// Works through a list on two threads.
fn on_two_threads<T: Send, R: Send>(work: Vec<T>, run: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (work, done) = (Mutex::new(work.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(next) = work.lock().unwrap().next() else { return };
                    let result = run(next);
                    done.lock().unwrap().push(result);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

/// Each model to its end. One that fails says which it was.
fn run_all(longer: bool) {
    let mut models = all();
    models.sort_by_key(|model| !model.name.starts_with("consumer"));
    let executed = on_two_threads(models, |model| {
        let preemptions = if longer { model.preemptions.max(3) } else { model.preemptions };
        let begun = Instant::now();
        let outcome = child(&["run", model.name], &[("RACES_LONG", usize::from(longer))]);
        println!("{} at {preemptions} preemptions: {:?}", model.name, begun.elapsed());
        (model.name, outcome)
    });
    let mut executions = 0;
    for (name, (status, output)) in &executed {
        let replay = format!("races/: models run {name}");
        assert!(
            status.is_some_and(|s| s.success()),
            "{name} fails, {status:?} ({replay}):\n{output}"
        );
        let count = output.rsplit_once(": ").and_then(|(_, rest)| rest.split(' ').next());
        executions += count.and_then(|n| n.parse::<u64>().ok()).expect("a number of executions");
    }
    println!("proof loom_models {}", executed.len());
    println!("proof loom_executions {executions}");
}

/// Runs this program with arguments and environment. `None`: it did not end in time.
fn child(arguments: &[&str], environment: &[(&str, impl ToString)]) -> Run {
    let this = env::current_exe().expect("the path of this program");
    let mut command = Command::new(this);
    command.args(arguments).env("RUST_BACKTRACE", "0").stdout(Stdio::piped());
    environment.iter().for_each(|(name, value)| {
        command.env(name, value.to_string());
    });
    let mut child = command.stderr(Stdio::piped()).spawn().expect("a child");
    let until = Instant::now() + CONTROL_TIMEOUT * 20;
    while child.try_wait().expect("a status").is_none() {
        if Instant::now() > until {
            child.kill().expect("it is ours");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("its output");
    let text = [output.stdout, output.stderr].concat();
    (Some(output.status), String::from_utf8_lossy(&text).into_owned())
}

type Run = (Option<ExitStatus>, String);

/// A place in the source with an ordering: file, line, whether it is SeqCst, the line's text.
struct Site {
    file: String,
    line: u32,
    is_seq_cst: bool,
    text: String,
}

fn sites() -> Vec<Site> {
    let (_, output) = child(&["sites"], &[("RACES_SITES", 1)]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut sites = Vec::new();
    for line in output.lines().filter_map(|line| line.strip_prefix("site ")) {
        let (place, what) = line.split_once(' ').expect("place and kind");
        let (file, line) = place.split_once(':').expect("file and line");
        let line: u32 = line.parse().expect("a line number");
        // The models' own are not the product's.
        if file.ends_with("models.rs") {
            continue;
        }
        let text = std::fs::read_to_string(source.join(file)).expect("the source");
        let lines: Vec<&str> = text.lines().take(line as usize).map(str::trim).collect();
        let (text, before) = lines.split_last().expect("the line");
        let again = before.iter().filter(|line| *line == text).count();
        let text = if again > 0 { format!("{text} #{}", again + 1) } else { text.to_string() };
        sites.push(Site { file: file.to_owned(), line, is_seq_cst: what == "seqcst", text });
    }
    assert!(!sites.is_empty(), "no ordering was seen");
    sites
}

impl Site {
    fn weakened(&self) -> Vec<String> {
        let to: &[&str] = if self.is_seq_cst { &["acqrel", "relaxed"] } else { &["relaxed"] };
        to.iter().map(|to| format!("{}:{}:{to}", self.file, self.line)).collect()
    }
}

/// The first of these models that fails with it.
fn found_by<'a>(models: &[&'a str], planted: (&str, &str)) -> Option<&'a str> {
    let fails = |name: &&&str| {
        let (status, output) = child(&["run", name], &[planted]);
        // Not by a signal such as an abort while unwinding alone: a model's own words.
        !status.is_some_and(|s| s.success()) && output.contains("panicked at")
    };
    models.iter().find(fails).copied()
}

/// Everything planted must be found; every ordering must be needed, or be known not to be.
fn run_controls() {
    let mut controls: Vec<(&str, String, Vec<&str>)> = PLANTED
        .iter()
        .map(|(bug, model)| ("RACES_PLANT", (*bug).to_owned(), vec![*model]))
        .collect();
    let mut seen = BTreeSet::new();
    for site in sites() {
        let needed = NEEDED.iter().position(|entry| site.file == entry.0 && site.text == entry.1);
        let needless =
            NEEDLESS.iter().any(|entry| site.file == entry.0 && site.text.contains(entry.1));
        let Site { file, line, text, .. } = &site;
        assert!(
            needed.is_some() != needless,
            "who needs {file}:{line} `{text}`? Add it to a table"
        );
        for weakened in site.weakened().into_iter().filter(|_| needed.is_some()) {
            let models = NEEDED[needed.unwrap_or(0)].2.split(' ').collect();
            controls.push(("RACES_WEAKEN", weakened, models));
        }
        seen.extend(needed);
    }
    assert_eq!(seen.len(), NEEDED.len(), "a line of the table is gone from the source");
    let found = on_two_threads(controls, |(kind, what, models)| {
        let by = found_by(&models, (kind, &what));
        println!("planted {what}: found by {}", by.unwrap_or("NO MODEL"));
        by.is_some()
    });
    assert!(found.iter().all(|found| *found), "something planted was not found");
    println!("proof loom_controls {}", found.len());
}

/// The whole matrix, to fill the tables from.
fn sweep() {
    let models = all();
    let mut names: Vec<&str> = models.iter().map(|model| model.name).collect();
    names.sort_by_key(|name| name.starts_with("consumer"));
    let work: Vec<(Site, String)> = sites()
        .into_iter()
        .flat_map(|site| {
            let weakened = site.weakened();
            weakened
                .into_iter()
                .map(move |to| {
                    (Site { text: site.text.clone(), file: site.file.clone(), ..site }, to)
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let found: BTreeMap<String, bool> = on_two_threads(work, |(site, weakened)| {
        let by = found_by(&names, ("RACES_WEAKEN", &weakened));
        println!("{weakened} `{}`: {}", site.text, by.unwrap_or("found by none"));
        (weakened, by.is_some())
    })
    .into_iter()
    .collect();
    println!("{} of {} are needed", found.values().filter(|found| **found).count(), found.len());
}
