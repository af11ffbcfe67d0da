//! Metrics and tracing.

use std::fs::File;
use std::io;
use std::sync::Mutex;

use metrics_exporter_prometheus::PrometheusBuilder;
use tracing_subscriber::filter::LevelFilter;

use crate::args::Args;

/// In seconds, for all durations.
const BUCKETS: [f64; 12] =
    [1e-6, 1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2, 5e-2, 0.25, 1.0];

/// Traces to a file; warnings to stderr where there is no table to disturb.
pub(crate) fn trace(args: &Args, on_terminal: bool) -> Result<(), String> {
    let subscriber = tracing_subscriber::fmt();
    match &args.log {
        Some(path) => {
            let file = File::create(path)
                .map_err(|e| format!("cannot write the log {}: {e}", path.display()))?;
            let subscriber = subscriber.with_max_level(LevelFilter::INFO).with_ansi(false);
            subscriber.with_writer(Mutex::new(file)).init();
        }
        None if on_terminal => {}
        None => {
            let subscriber = subscriber.with_max_level(LevelFilter::WARN).with_ansi(false);
            subscriber.with_writer(io::stderr).init();
        }
    }
    Ok(())
}

/// Serves the metrics. Before the bus is opened, which makes its handles then.
pub(crate) fn serve(args: &Args) -> Result<(), String> {
    let Some(address) = args.metrics else {
        return Ok(());
    };
    let failed = |e| format!("cannot serve metrics at {address}: {e}");
    let builder = PrometheusBuilder::new().with_http_listener(address);
    builder.set_buckets(&BUCKETS).map_err(failed)?.install().map_err(failed)
}
