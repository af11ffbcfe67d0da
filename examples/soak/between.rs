//! Between two lives nobody has the log open: it is verified as it lies, and what is stored in it
//! is compared with what was seen.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use eventplane::ErrorKind;
use eventplane::offline::{Info, LogDir};
use serde::{Deserialize, Serialize};

use crate::board::{Board, Slot};
use crate::broken;
use crate::cast::CAST;
use crate::content::{Content, Eras};
use crate::life::Left;
use crate::plan::{self, End, Plan};
use crate::plant::Plant;

const UNLOCKED_WITHIN: Duration = Duration::from_secs(10);

/// What is known of the log when nobody has it open.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) seed: u64,
    pub(crate) life: u64,
    pub(crate) dir: PathBuf,
    pub(crate) eras: Eras,
    pub(crate) first: u64,
    pub(crate) end: u64,
}

impl Ledger {
    pub(crate) fn new(seed: u64) -> Ledger {
        Ledger { seed, ..Ledger::default() }
    }

    /// For another log, in a directory of its own.
    pub(crate) fn begin_log(&mut self, home: &Path, board: &Board) -> io::Result<()> {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        self.dir = home.join(format!("log-{}", plan::log_of(self.life)));
        (self.eras, self.first, self.end) = (Eras::default(), 1, 0);
        for slot in [Slot::Acknowledged, Slot::Attempted, Slot::Seen] {
            board.set(slot, 0);
        }
        (0..CAST.len()).for_each(|place| board.set_next(place, 1));
        Ok(())
    }

    /// The life begins: what is in the log is durable, and what it writes is told from what others
    /// wrote.
    pub(crate) fn begin_life(&mut self, board: &Board) {
        self.eras.begin(self.end + 1, self.life as u16);
        board.set(Slot::Acknowledged, self.end);
        board.set(Slot::Attempted, self.end);
        board.set(Slot::Seen, self.end);
        board.set(Slot::Ready, 0);
    }

    pub(crate) fn content(&self, plan: &Plan) -> Content {
        // As the documentation of `slab_bytes` says.
        let payload_bytes_max = plan.geometry.slab_bytes as usize / 2 - 80;
        Content { seed: self.seed, eras: self.eras.clone(), payload_bytes_max }
    }

    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
    }

    pub(crate) fn load(path: &Path) -> io::Result<Ledger> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }
}

/// How a life ended, for those who look at what it left.
pub(crate) struct Ended<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) left: Left,
    /// What each consumer had certainly stored, by its place; 0 if nothing is known.
    pub(crate) floors: Vec<u64>,
    pub(crate) plant: Option<Plant>,
}

/// The kernel may keep the lock of a process that was killed until its writes are done.
fn look_at(dir: &Path) -> LogDir {
    let deadline = Instant::now() + UNLOCKED_WITHIN;
    loop {
        match LogDir::open(dir) {
            Ok(log) => return log,
            Err(e) if e.kind() == ErrorKind::Locked && Instant::now() < deadline => {}
            Err(e) => broken::promise(format!("the log cannot be looked at: {e}")),
        }
    }
}

/// Verifies the log, and sets what is due next.
pub(crate) fn check(ledger: &mut Ledger, board: &Board, ended: &Ended<'_>) {
    let log = look_at(&ledger.dir);
    let look = || Ok((log.verify()?, log.info()?));
    let (report, info) = look().unwrap_or_else(|e: eventplane::Error| {
        broken::promise(format!("the log cannot be verified: {e}"));
    });
    if let Some(finding) = report.findings.first().or(info.findings.first()) {
        broken::promise(format!("the offline check finds: {finding}"));
    }
    if report.records != info.records {
        let (verified, told) = (report.records, info.records);
        broken::promise(format!("{verified} records were verified, {told} are told"));
    }
    check_end(board, &info, ended);
    let content = ledger.content(ended.plan);
    for place in 0..CAST.len() {
        check_checkpoint(&content, board, &info, ended, place);
    }
    (ledger.first, ledger.end) = (info.first_lsn.get(), info.last_lsn.get());
}

fn check_end(board: &Board, info: &Info, ended: &Ended<'_>) {
    let forgets = ended.plant == Some(Plant::Forget);
    let end = info.last_lsn.get();
    let acknowledged = board.get(Slot::Acknowledged).max(u64::from(forgets) * (end + 1));
    let (seen, attempted) = (board.get(Slot::Seen), board.get(Slot::Attempted));
    if end < acknowledged {
        broken::promise(format!(
            "LSNs {} to {acknowledged} were acknowledged and are not in the log",
            end + 1
        ));
    }
    if end < seen {
        broken::promise(format!("LSN {seen} was seen by a consumer, the log ends at {end}"));
    }
    if end > attempted {
        broken::promise(format!("the log ends at {end}, nobody wrote behind {attempted}"));
    }
    if ended.left.clean && end != attempted {
        broken::promise(format!("closed with {attempted} records, there are {end}"));
    }
}

/// A checkpoint is never ahead of what was processed; after a close it is not behind; after a kill
/// it is behind by the flush interval at most.
fn check_checkpoint(
    content: &Content,
    board: &Board,
    info: &Info,
    ended: &Ended<'_>,
    place: usize,
) {
    let role = CAST[place];
    let stored = info.checkpoints.iter().find(|checkpoint| checkpoint.name == role.name);
    let Some(stored) = stored else {
        // Who is forgotten and does not come again has none.
        if role.is_guest() {
            return;
        }
        broken::promise(format!("{} has no checkpoint", role.name));
    };
    let is_planted = ended.plant == Some(Plant::Checkpoint);
    let (stored, next) = (stored.lsn.get() + u64::from(is_planted), board.next(place));
    if stored > info.last_lsn.get() {
        broken::promise(format!("the checkpoint of {}, {stored}, lies beyond the end", role.name));
    }
    // Somebody who seeks may be anywhere, and somebody new begins anywhere.
    if role.seeks || role.is_guest() {
        board.set_next(place, stored + 1);
        return;
    }
    let wanted = |lsn: &u64| role.want.wants(content.shape(*lsn));
    if let Some(skipped) = (next..=stored).find(wanted) {
        broken::promise(format!(
            "the checkpoint of {} is {stored}, and it has not processed {skipped}",
            role.name
        ));
    }
    let repeats = (stored + 1..next).filter(wanted).count() as u64;
    let was_there = ended.left.came >> place & 1 == 1;
    let exact_end = if was_there {
        // A fault may have kept the checkpoint of somebody who left from being stored.
        let told_failure = ended.plan.end == End::Faulty && role.leaves;
        ended.left.clean && ended.left.hung != Some(place) && !told_failure
    } else {
        !role.exact
    };
    if repeats > 0 && exact_end {
        broken::promise(format!(
            "{} has processed everything before {next}, its checkpoint after a close is {stored}",
            role.name
        ));
    }
    if stored + 1 < ended.floors[place] {
        broken::promise(format!(
            "{} had processed everything before {} when the flush before last was due, its \
             checkpoint is {stored}",
            role.name, ended.floors[place]
        ));
    }
    if !role.exact {
        board.add(Slot::Repeated, repeats);
        board.raise(Slot::RepeatedMost, repeats);
        board.set_next(place, stored + 1);
    }
}
