//! What is seen while it runs: a live table on a terminal, else a line a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use eventplane::{Bus, Status};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cast;
use crate::producer::{Flow, Percentiles};

const REDRAW: Duration = Duration::from_millis(250);
const LINE: Duration = Duration::from_secs(1);

pub(crate) struct Display {
    begun: Instant,
    records: u64,
    table: Option<Table>,
    last: HashMap<String, (Instant, u64)>,
}

struct Table {
    titles: ProgressBar,
    rows: Vec<ProgressBar>,
    writer: ProgressBar,
    progress: ProgressBar,
}

/// The rest of a row follows its name.
const TITLES: &str = "consumer  tier           lsn  lag records    bytes  seconds  records/s   \
                      pinned  last transition";

impl Display {
    pub(crate) fn new(records: u64, on_terminal: bool) -> Display {
        let table = on_terminal.then(|| Table::new(records));
        Display { begun: Instant::now(), records, table, last: HashMap::new() }
    }

    /// How long until the next look.
    pub(crate) fn interval(&self) -> Duration {
        if self.table.is_some() { REDRAW } else { LINE }
    }

    pub(crate) fn show(&mut self, bus: &Bus, flow: &Flow) {
        let committed = bus.committed_lsn().get();
        let rate = self.rate("", committed);
        let consumers = bus.consumers();
        let rates: Vec<u64> =
            consumers.iter().map(|status| self.rate(&status.name, status.lsn.get())).collect();
        let (p50, p99) = flow.latency_lately();
        let writer = format!("writer {rate}/s, commit p50 {} p99 {}", millis(p50), millis(p99));
        match &self.table {
            Some(table) => table.show(&consumers, &rates, &writer, committed),
            None => self.line(&consumers, &rates, &writer, committed),
        }
    }

    /// Records a second since the last look.
    fn rate(&mut self, name: &str, lsn: u64) -> u64 {
        let now = Instant::now();
        let (then, before) = self.last.insert(name.to_owned(), (now, lsn)).unwrap_or((now, lsn));
        let seconds = (now - then).as_secs_f64();
        if seconds > 0.0 { (lsn.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }

    fn line(&self, consumers: &[Status], rates: &[u64], writer: &str, committed: u64) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut line = format!("{seconds:.1} s, {committed} of {}, {writer}", self.records);
        for (status, rate) in consumers.iter().zip(rates) {
            let Status { name, lsn, lag_records, lag_bytes, lag, pinned_bytes, .. } = status;
            let (tier, lag, last) = (tier(status), lag.as_secs_f64(), transition(status));
            let (bytes, pinned) = (mib(*lag_bytes), mib(*pinned_bytes));
            line += &format!(
                " | {name} {tier} {lsn} lag {lag_records} {bytes} {lag:.2}s {rate}/s \
                 pins {pinned} {last}",
            );
        }
        println!("{}", line.trim_end());
    }

    /// Leaves the table as it is.
    pub(crate) fn finish(&self, (p50, p99): Percentiles) {
        if let Some(table) = &self.table {
            table.finish();
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        println!("finished in {seconds:.1} s, commit p50 {} p99 {}", millis(p50), millis(p99));
    }
}

impl Table {
    fn new(records: u64) -> Table {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let style = |template| ProgressStyle::with_template(template).expect("a valid template");
        let text = || {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(style("{wide_msg}"));
            bar
        };
        let titles = text();
        titles.set_message(TITLES);
        let rows = cast::NAMES.iter().map(|_| text()).collect();
        let writer = text();
        let progress = bars.add(ProgressBar::new(records));
        progress.set_style(style("{wide_bar} {human_pos}/{human_len} {elapsed}"));
        Table { titles, rows, writer, progress }
    }

    fn show(&self, consumers: &[Status], rates: &[u64], writer: &str, committed: u64) {
        for (name, row) in cast::NAMES.iter().zip(&self.rows) {
            let found = consumers.iter().zip(rates).find(|(status, _)| status.name == *name);
            row.set_message(match found {
                Some((status, rate)) => self::row(status, *rate),
                None => format!("{name:<9} not here yet"),
            });
        }
        self.writer.set_message(writer.to_owned());
        self.progress.set_position(committed);
    }

    fn finish(&self) {
        let others = [&self.titles, &self.writer, &self.progress];
        self.rows.iter().chain(others).for_each(ProgressBar::abandon);
    }
}

fn row(status: &Status, rate: u64) -> String {
    let Status { name, lsn, lag_records, lag_bytes, lag, pinned_bytes, .. } = status;
    let (tier, lsn, lag) = (tier(status), lsn.get(), lag.as_secs_f64());
    let (bytes, pinned, last) = (mib(*lag_bytes), mib(*pinned_bytes), transition(status));
    format!(
        "{name:<9} {tier:<9} {lsn:>8} {lag_records:>12} {bytes:>8} {lag:>8.2} {rate:>10} \
         {pinned:>8}  {last}"
    )
}

fn tier(status: &Status) -> &'static str {
    if status.shed { "shed" } else { status.tier.name() }
}

fn transition(status: &Status) -> String {
    let last = status.last_transition.as_ref();
    last.map_or(String::new(), |t| format!("({}>{} {})", t.from, t.to, t.reason))
}

fn mib(bytes: u64) -> String {
    format!("{:.1}M", bytes as f64 / f64::from(1 << 20))
}

fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1e3)
}
