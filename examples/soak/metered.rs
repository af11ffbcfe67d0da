//! The metrics of this process, as a recorder sees them.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::broken;

pub(crate) struct Metered {
    handle: PrometheusHandle,
    appended: u64,
}

impl Metered {
    pub(crate) fn install() -> Result<Metered, String> {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|e| e.to_string())?;
        Ok(Metered { handle, appended: 0 })
    }

    /// After a life in which `committed` records were committed; `None` where it ended with an
    /// error, and nobody knows.
    pub(crate) fn check(&mut self, committed: Option<u64>) {
        self.handle.run_upkeep();
        let text = self.handle.render();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(-1.0)
        };
        let appended = value("eventplane_appended_records_total") as u64;
        let more = appended - self.appended;
        self.appended = appended;
        if committed.is_some_and(|committed| committed != more) {
            broken::promise(format!("{committed:?} records were committed, {more} are counted"));
        }
        let poisoned = value("eventplane_poisoned");
        if poisoned != f64::from(u8::from(committed.is_none())) {
            broken::promise(format!(
                "`eventplane_poisoned` is {poisoned}, committed {committed:?}"
            ));
        }
    }
}
