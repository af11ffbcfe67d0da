//! What a life is like: options, how it ends, how long it takes. All of it follows from the seed.

use std::time::Duration;

use eventplane::{Backend, Builder, Bus, ConsumerLabels, Durability, ReadMode, Retention};
use fastrand::Rng;

const KIB: u64 = 1 << 10;
/// Lives of one log; then comes another one, with other sizes.
const LIVES_PER_LOG: u64 = 12;

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum End {
    /// Everybody caught up, then closed.
    Settled,
    /// Closed in the middle of everything.
    Closed,
    Dropped,
    /// Closed while a callback hangs.
    Hung,
    /// Faults until the log is poisoned or the time is over, then closed.
    Faulty,
    /// A child, killed.
    Killed,
}

impl End {
    pub(crate) const ALL: [End; 6] =
        [End::Settled, End::Closed, End::Dropped, End::Hung, End::Faulty, End::Killed];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            End::Settled => "settled",
            End::Closed => "closed",
            End::Dropped => "dropped",
            End::Hung => "hung",
            End::Faulty => "faulty",
            End::Killed => "killed",
        }
    }
}

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) slab_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) ring_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) life: u64,
    pub(crate) end: End,
    pub(crate) lasts: Duration,
    pub(crate) geometry: Geometry,
    pub(crate) durability: Durability,
    pub(crate) retention: Retention,
    /// A slow consumer may lose records.
    pub(crate) may_lose: bool,
    pub(crate) pin_budget_bytes: u64,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) stall_after: Duration,
    /// Bytes a second that all producers together write, about; bursts are on top.
    pub(crate) bytes_per_second: u64,
    pub(crate) producers: usize,
    pub(crate) readers: usize,
    backend: Backend,
    direct_io: bool,
    read_mode: ReadMode,
    catchup_window_bytes: u64,
    readahead_bytes: u64,
    tick: Duration,
    dwell: Duration,
    watermark_idle: Duration,
    cold_bytes_per_second: Option<u64>,
    cold_replays_max: usize,
    idle_spins: u32,
}

pub(crate) fn rng(seed: u64, life: u64, what: u64) -> Rng {
    Rng::with_seed(crate::content::mix(seed ^ life << 20 ^ what << 8))
}

/// The log in whose first life this is one.
pub(crate) fn log_of(life: u64) -> u64 {
    life / LIVES_PER_LOG
}

pub(crate) fn is_first_of_log(life: u64) -> bool {
    life.is_multiple_of(LIVES_PER_LOG)
}

/// In any six lives in a row that begin at a multiple of six, each end once.
fn end_of(seed: u64, life: u64) -> End {
    let round = End::ALL.len() as u64;
    let mut ends = End::ALL;
    rng(seed, life / round, 1).shuffle(&mut ends);
    match ends[(life % round) as usize] {
        // There must be a log before something happens to it: the next one is killed instead.
        End::Killed if is_first_of_log(life) => End::Closed,
        end => end,
    }
}

fn geometry(seed: u64, log: u64) -> Geometry {
    let mut rng = rng(seed, log, 2);
    let slab_bytes = KIB * [64, 64, 64, 128, 256, 1_024][rng.usize(..6)];
    let segment_bytes = slab_bytes * [2, 2, 4, 8][rng.usize(..4)];
    Geometry { slab_bytes, segment_bytes, ring_bytes: segment_bytes * [2, 2, 4][rng.usize(..3)] }
}

fn millis(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from..=to))
}

impl Plan {
    pub(crate) fn of(seed: u64, life: u64, backends: &[Backend]) -> Plan {
        let rng = &mut rng(seed, life, 3);
        let geometry = geometry(seed, log_of(life));
        let (retention, may_lose) = retention(rng, geometry.segment_bytes);
        let interval = millis(rng, 1, 30);
        let deferred = Durability::Deferred { interval, bytes: (4 * KIB) << rng.u32(0..8) };
        Plan {
            life,
            end: end_of(seed, life),
            lasts: millis(rng, 700, 3_000),
            geometry,
            durability: if rng.u32(0..3) == 0 { deferred } else { Durability::Synced },
            retention,
            may_lose,
            pin_budget_bytes: geometry.slab_bytes * [4, 8, 16][rng.usize(..3)],
            checkpoint_interval: millis(rng, 5, 150),
            stall_after: millis(rng, 20, 250),
            bytes_per_second: (1 << 20) << rng.u32(1..6),
            producers: rng.usize(1..=4),
            readers: rng.usize(0..=2),
            backend: backends[rng.usize(..backends.len())],
            direct_io: rng.u32(0..3) > 0,
            read_mode: if rng.bool() { ReadMode::Map } else { ReadMode::Pread },
            catchup_window_bytes: geometry.ring_bytes * [2, 2, 4, 8][rng.usize(..4)],
            readahead_bytes: (64 * KIB) << rng.u32(0..3),
            tick: millis(rng, 1, 10),
            dwell: millis(rng, 1, 60),
            watermark_idle: millis(rng, 1, 50),
            cold_bytes_per_second: rng.bool().then_some(16 << 20),
            cold_replays_max: rng.usize(1..=3),
            idle_spins: [0, 64, 4_096][rng.usize(..3)],
        }
    }

    pub(crate) fn builder(&self) -> Builder {
        Bus::builder()
            .slab_bytes(self.geometry.slab_bytes)
            .segment_bytes(self.geometry.segment_bytes)
            .ring_bytes(self.geometry.ring_bytes)
            .pin_budget_bytes(self.pin_budget_bytes)
            .catchup_window_bytes(self.catchup_window_bytes)
            .readahead_bytes(self.readahead_bytes)
            .consumers_max(64)
            .durability(self.durability)
            .retention(self.retention)
            .backend(self.backend)
            .direct_io(self.direct_io)
            .read_mode(self.read_mode)
            .labels(ConsumerLabels::Group)
            .append_timeout(Duration::from_secs(60))
            .watermark_idle(self.watermark_idle)
            .checkpoint_interval(self.checkpoint_interval)
            .tick(self.tick)
            .dwell(self.dwell)
            .stall_after(self.stall_after)
            .cold_replays_max(self.cold_replays_max)
            .cold_bytes_per_second(self.pace())
            .idle_spins(self.idle_spins)
            .shed_backoff(Duration::from_millis(1), Duration::from_millis(50))
            .flapping(3, Duration::from_secs(1))
            .deadline(Duration::from_secs(30))
    }

    /// Where everybody is waited for, what other lives left is not to take minutes.
    fn pace(&self) -> Option<u64> {
        let settles = matches!(self.end, End::Settled | End::Faulty);
        self.cold_bytes_per_second.map(|pace| if settles { 16 * pace } else { pace })
    }

    /// What the bus may hold in memory, whatever consumers do: the ring, the budget of leases, the
    /// pool of cold reads, and a slab and what is being handed over for each consumer.
    pub(crate) fn memory_bytes_max(&self, consumers: usize) -> u64 {
        let Geometry { slab_bytes, ring_bytes, .. } = self.geometry;
        ring_bytes + self.pin_budget_bytes + (8 << 20) + slab_bytes * (consumers as u64 + 8)
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let Geometry { slab_bytes, segment_bytes, ring_bytes } = self.geometry;
        let deferred = matches!(self.durability, Durability::Deferred { .. });
        format!(
            "life {}, to be {}: slab {} KiB, segment {} KiB, ring {} KiB, {:?}{}, {}, {:?}, \
             {} producers",
            self.life,
            self.end.name(),
            slab_bytes / KIB,
            segment_bytes / KIB,
            ring_bytes / KIB,
            self.backend,
            if self.direct_io { " direct" } else { "" },
            if deferred { "deferred" } else { "synced" },
            self.read_mode,
            self.producers,
        )
    }
}

/// And whether it may take from a consumer what it has not seen.
fn retention(rng: &mut Rng, segment_bytes: u64) -> (Retention, bool) {
    let bytes = segment_bytes * rng.u64(4..24);
    match rng.u32(0..8) {
        0 => (Retention::keep_all(), false),
        1 => (Retention::consumed(), false),
        2 => (Retention::bytes(bytes), false),
        3 => (Retention::age(millis(rng, 50, 1_000)).or_bytes(bytes), false),
        4 | 5 => (Retention::consumed().hard_cap_bytes(bytes), true),
        _ => (Retention::bytes(bytes).hard_cap_bytes(bytes + 4 * segment_bytes), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_comes_and_every_option_is_legal() {
        for seed in 0..20 {
            let lives = (0..48).map(|life| Plan::of(seed, life, &[Backend::Psync]));
            let lives: Vec<_> = lives.collect();
            for end in End::ALL {
                assert!(lives.iter().any(|plan| plan.end == end), "seed {seed}: no {end:?}");
            }
            assert!(lives.iter().all(|plan| plan.life % 12 != 0 || plan.end != End::Killed));
            let dir = tempfile::tempdir().expect("a directory");
            lives[0].builder().open(dir.path()).expect("legal").close().expect("closed");
        }
    }
}
