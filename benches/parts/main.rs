//! What the parts cost, and how that grows: with the size of a record, of a batch, with the number
//! of consumers, of segments. Beside what one would pick instead: see `benches/peers`.
//!
//! `cargo bench --bench parts` measures all of it, `cargo bench --bench parts -- deliver` a part;
//! with `-- --test` everything runs once.

mod read;
mod write;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Few seconds each: there are many, and each is a curve of several points.
fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
}

criterion_group! {
    name = parts;
    config = short();
    targets = write::append_by_size, write::append_by_batch, write::commit, write::producers,
        read::deliver_by_size, read::deliver_by_batch, read::deliver_by_consumers, read::lease,
        read::replay, read::switch, read::open_by_segments
}
criterion_main!(parts);
