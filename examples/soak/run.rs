//! The run: life after life, in this process or in one that is killed.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eventplane::{Backend, Bus};

use crate::between::{self, Ended, Ledger};
use crate::board::{Board, Slot};
use crate::cast::CAST;
use crate::life::{self, Left};
use crate::metered::Metered;
use crate::plan::{self, End, Plan};
use crate::plant::Plant;
use crate::report::{self, Progress};
use crate::watch::{self, Held};
use crate::world::World;
use crate::{Args, Failure, broken};

/// Lives after which a planted mistake must be found.
const LIVES_WITH_PLANT: u64 = 24;
/// A checkpoint is stored every interval, and a disk may be slow for so long.
const FLUSH_SLACK: Duration = Duration::from_secs(2);
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// A child says that its subscribers are there within this.
const READY_WITHIN: Duration = Duration::from_secs(60);

const BOARD: &str = "board";
const LEDGER: &str = "ledger.json";

struct Run {
    home: PathBuf,
    /// Removed at the end, if all went well.
    is_temporary: bool,
    board: Board,
    ledger: Ledger,
    backends: Vec<Backend>,
    plant: Option<Plant>,
    metered: Metered,
    memory_before: u64,
    lives: BTreeMap<End, u64>,
}

/// How many are asked for.
fn required(row: &str) -> Result<u64, Failure> {
    match env::var(format!("PROOF_{row}")) {
        Ok(value) => Ok(value.parse().map_err(|_| format!("PROOF_{row}={value} is no number"))?),
        Err(_) => Ok(0),
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let seed = args.seed.unwrap_or_else(|| now() % 1_000_000_000);
    let (lives_min, records_min) = (required("SOAK_LIVES")?, required("SOAK_RECORDS")?);
    let faults_min = required("SOAK_FAULTS")?;
    let mut run = Run::new(args, seed)?;
    println!("soak: seed {seed}, in {}", run.home.display());
    let mut progress = Progress::new();
    let least = Duration::from_secs_f64(args.minutes * 60.0);
    loop {
        let lives = run.ledger.life;
        let enough = lives >= lives_min
            && run.board.get(Slot::Records) >= records_min
            && report::faults(&run.board) >= faults_min;
        let planted = run.plant.is_some() && lives < LIVES_WITH_PLANT;
        let is_last = progress.elapsed() >= least && enough && !planted;
        run.life(is_last)?;
        progress.tell(&run.board, run.ledger.life);
        if is_last {
            break;
        }
    }
    report::table(&run.board, &run.lives, progress.elapsed());
    println!("all of the promise holds; threads made this run what it was, the seed was {seed}");
    println!("proof soak_records {}", run.board.get(Slot::Records));
    println!("proof soak_lives {}", run.ledger.life);
    println!("proof soak_faults {}", report::faults(&run.board));
    if run.is_temporary {
        fs::remove_dir_all(&run.home)?;
    }
    Ok(())
}

/// Those that this machine has.
fn backends(home: &Path) -> Result<Vec<Backend>, Failure> {
    let dir = home.join("probe");
    let probed = Bus::builder().backend(Backend::IoUring).open(&dir).map(Bus::close);
    fs::remove_dir_all(&dir).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(e),
    })?;
    Ok(match probed {
        Ok(_) => vec![Backend::Psync, Backend::IoUring],
        Err(error) => {
            println!("without io_uring: {error}");
            vec![Backend::Psync]
        }
    })
}

impl Run {
    fn new(args: &Args, seed: u64) -> Result<Run, Failure> {
        let minutes = args.minutes;
        broken::prepare(format!(
            "the same circumstances, though not the same schedule: \
             cargo xtask soak --minutes {minutes} --seed {seed}"
        ));
        let home = match &args.dir {
            Some(dir) => dir.clone(),
            None => env::temp_dir().join(format!("eventplane-soak-{}", std::process::id())),
        };
        fs::create_dir_all(&home)?;
        let backends = backends(&home)?;
        let board = Board::open(&home.join(BOARD))?;
        Ok(Run {
            is_temporary: args.dir.is_none(),
            board,
            ledger: Ledger::new(seed),
            backends,
            plant: args.plant,
            metered: Metered::install()?,
            memory_before: watch::memory_bytes(),
            lives: BTreeMap::new(),
            home,
        })
    }

    fn life(&mut self, is_last: bool) -> Result<(), Failure> {
        let ledger = &mut self.ledger;
        let mut plan = Plan::of(ledger.seed, ledger.life, &self.backends);
        if is_last {
            plan.end = End::Settled;
        }
        if self.plant.is_some() {
            plan.lasts /= 4;
        }
        broken::in_life(plan.summary());
        if plan::is_first_of_log(ledger.life) {
            ledger.begin_log(&self.home, &self.board)?;
        }
        ledger.begin_life(&self.board);
        let (left, floors) = match plan.end {
            End::Killed => (Left::default(), self.killed(&plan)?),
            _ => (self.here(&plan)?, vec![0; CAST.len()]),
        };
        let left = match plan.end {
            End::Killed => Left { came: u64::MAX, ..left },
            _ => left,
        };
        let ended = Ended { plan: &plan, left, floors, plant: self.plant };
        between::check(&mut self.ledger, &self.board, &ended);
        *self.lives.entry(plan.end).or_default() += 1;
        self.ledger.life += 1;
        Ok(())
    }

    /// A life in this process, which must leave nothing behind.
    fn here(&mut self, plan: &Plan) -> Result<Left, Failure> {
        let before = watch::held();
        let end_at_open = self.ledger.end;
        let board = Board::open(&self.home.join(BOARD))?;
        let world = world(&self.ledger, plan, board, self.plant);
        let left = life::live(&world, &self.ledger.dir, self.memory_before);
        drop(world);
        self.check_held(before)?;
        let committed = self.board.get(Slot::Attempted) - end_at_open;
        self.metered.check(left.clean.then_some(committed));
        Ok(left)
    }

    fn check_held(&self, before: Held) -> Result<(), Failure> {
        if self.plant == Some(Plant::Thread) {
            thread::spawn(|| thread::sleep(Duration::from_secs(60)));
        }
        if self.plant == Some(Plant::File) {
            std::mem::forget(fs::File::open(self.home.join(BOARD))?);
        }
        let after = watch::settled(before);
        if after.threads > before.threads || after.files > before.files {
            broken::promise(format!("before a life {before:?}, after it {after:?}"));
        }
        Ok(())
    }

    /// A life in a process of its own, killed somewhere. Returns what each consumer had processed
    /// so long before that its checkpoint must be there.
    fn killed(&mut self, plan: &Plan) -> Result<Vec<u64>, Failure> {
        self.ledger.save(&self.home.join(LEDGER))?;
        let mut command = Command::new(env::current_exe()?);
        command.arg("--child").arg(&self.home).stdin(Stdio::null());
        let mut child = command.spawn()?;
        let (mut samples, begun) = (VecDeque::new(), Instant::now());
        let mut ready_at = None;
        // Half of them are killed while they begin, or soon after.
        let lasts = if plan.life.is_multiple_of(2) { plan.lasts * 2 } else { plan.lasts / 2 };
        while ready_at.is_none_or(|at: Instant| at.elapsed() < lasts) {
            if let Some(status) = child.try_wait()? {
                ended_by_itself(status);
            }
            if ready_at.is_none() && self.board.get(Slot::Ready) == 1 {
                ready_at = Some(Instant::now());
            }
            if ready_at.is_none() && begun.elapsed() > READY_WITHIN {
                broken::promise("a life is not ready to be killed: it hangs");
            }
            let nexts: Vec<_> = (0..CAST.len()).map(|place| self.board.next(place)).collect();
            samples.push_back((Instant::now(), nexts));
            thread::sleep(SAMPLE_EVERY);
        }
        child.kill()?;
        let killed_at = Instant::now();
        let status = child.wait()?;
        if status.code().is_some() {
            ended_by_itself(status);
        }
        let due = plan.checkpoint_interval + FLUSH_SLACK;
        let known = samples.iter().rfind(|(at, _)| killed_at - *at > due);
        Ok(known.map_or(vec![0; CAST.len()], |(_, nexts)| nexts.clone()))
    }
}

/// It has said why.
fn ended_by_itself(status: ExitStatus) -> ! {
    broken::promise(format!("a life that was to be killed ended by itself: {status}"));
}

fn world(ledger: &Ledger, plan: &Plan, board: Board, plant: Option<Plant>) -> Arc<World> {
    let content = ledger.content(plan);
    Arc::new(World::new(plan.clone(), board, content, plant, (ledger.first, ledger.end)))
}

/// The part of `killed` that is killed.
pub(crate) fn child(home: &Path) -> Result<(), Failure> {
    let ledger = Ledger::load(&home.join(LEDGER))?;
    broken::prepare(format!("in life {} of the run with seed {}", ledger.life, ledger.seed));
    let backends = backends(&home.join("child"))?;
    let mut plan = Plan::of(ledger.seed, ledger.life, &backends);
    plan.lasts = Duration::from_secs(3_600);
    broken::in_life(plan.summary());
    let board = Board::open(&home.join(BOARD))?;
    let world = world(&ledger, &plan, board, None);
    life::live(&world, &ledger.dir, watch::memory_bytes());
    Ok(())
}
