//! Pairs of runs, and what is printed of them.

use std::cell::RefCell;

/// What a ratio is required to be.
#[derive(Clone, Copy)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Reported, nothing is required.
    None,
}

impl Bar {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Bar::AtMost(limit) => ratio <= limit,
            Bar::AtLeast(limit) => ratio >= limit,
            Bar::None => true,
        }
    }

    fn text(self) -> String {
        match self {
            Bar::AtMost(limit) => format!("<={limit}"),
            Bar::AtLeast(limit) => format!(">={limit}"),
            Bar::None => "none".into(),
        }
    }
}

/// One of two that are compared: what it is called, and how to run it once. A run returns its
/// figure; the unit is the pair's.
pub struct Side<'a> {
    pub label: String,
    pub run: Box<dyn FnMut() -> anyhow::Result<f64> + 'a>,
}

impl<'a> Side<'a> {
    pub fn new(
        label: impl Into<String>,
        run: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Side<'a> {
        Side { label: label.into(), run: Box::new(run) }
    }
}

/// Runs the sides in turn, `rounds` times each: one list of figures a side.
pub fn alternate(rounds: usize, sides: &mut [Side<'_>]) -> anyhow::Result<Vec<Vec<f64>>> {
    let mut figures = vec![Vec::with_capacity(rounds); sides.len()];
    for _ in 0..rounds {
        for (side, figures) in sides.iter_mut().zip(&mut figures) {
            figures.push((side.run)()?);
        }
    }
    Ok(figures)
}

/// Median, smallest and largest.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(figures: &[f64]) -> Spread {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        Spread { median: at(sorted.len() / 2), min: at(0), max: at(sorted.len().saturating_sub(1)) }
    }
}

/// What was printed, for the summary.
#[derive(Default)]
pub struct Report {
    missed: RefCell<Vec<String>>,
    /// Rows some of whose pairs are on the other side of the bar: another run may say otherwise.
    close: RefCell<Vec<String>>,
    rows: RefCell<usize>,
}

impl Report {
    /// Runs two sides in turn and prints `ours ÷ theirs`.
    pub fn pair(
        &self,
        rounds: usize,
        (name, unit, bar): (&str, &str, Bar),
        ours: Side<'_>,
        theirs: Side<'_>,
    ) -> anyhow::Result<()> {
        let figures = self.sides(rounds, (name, unit), &mut [ours, theirs])?;
        self.ratio(name, &divide(&figures[0], &figures[1]), bar);
        Ok(())
    }

    /// Runs sides in turn and prints their figures.
    pub fn sides(
        &self,
        rounds: usize,
        (name, unit): (&str, &str),
        sides: &mut [Side<'_>],
    ) -> anyhow::Result<Vec<Vec<f64>>> {
        let figures = alternate(rounds, sides)?;
        for (side, figures) in sides.iter().zip(&figures) {
            self.figure(name, &format!("{}, {unit}", side.label), figures);
        }
        Ok(figures)
    }

    /// Prints the figures behind a ratio.
    pub fn sample(&self, name: &str, unit: &str, ours: (&str, &[f64]), theirs: (&str, &[f64])) {
        for (label, figures) in [ours, theirs] {
            self.figure(name, &format!("{label}, {unit}"), figures);
        }
    }

    /// Prints a figure without a bar.
    pub fn figure(&self, name: &str, what: &str, figures: &[f64]) {
        let Spread { median, min, max } = Spread::of(figures);
        println!("  {name}: {what}: {median:.4} [{min:.4} .. {max:.4}] n={}", figures.len());
    }

    /// Prints the row of a ratio: its median decides.
    pub fn ratio(&self, name: &str, ratios: &[f64], bar: Bar) {
        let Spread { median, min, max } = Spread::of(ratios);
        let met = bar.is_met(median);
        println!("  {name}: ratio of each pair: [{min:.3} .. {max:.3}]");
        let word = if met { "ok" } else { "MISSED" };
        println!("ratio {name} {median:.3} bar {} {word}", bar.text());
        *self.rows.borrow_mut() += 1;
        if !met {
            self.missed.borrow_mut().push(name.into());
        }
        if bar.is_met(min) != bar.is_met(max) {
            self.close.borrow_mut().push(name.into());
        }
    }

    /// A row that this machine cannot measure, and why.
    pub fn skip(&self, name: &str, why: &str) {
        println!("SKIP {name}: {why}");
    }

    pub fn finish(&self) {
        let missed = self.missed.borrow();
        println!("\n{} rows, {} missed: {}", self.rows.borrow(), missed.len(), missed.join(" "));
        println!("pairs on both sides of the bar: {}", self.close.borrow().join(" "));
    }
}

/// Pair by pair.
pub fn divide(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(a, b)| a / b).collect()
}
