//! The directory of a run: `log/` is the bus's, `state/` beside it the subscribers'.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::args::Args;
use crate::input::Input;
use crate::store;

/// What a run is about: a resumed one must be about the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    records: u64,
    input_lines: u64,
    input_checksum: u32,
}

pub(crate) struct Home {
    dir: PathBuf,
    pub(crate) resumed: bool,
    /// Removed when dropped.
    _temporary: Option<TempDir>,
}

const MANIFEST: &str = "run.json";

impl Home {
    /// Makes the directory of a new run, or finds that of an interrupted one.
    pub(crate) fn open(args: &Args, input: &Input) -> Result<Home, String> {
        let manifest = Manifest {
            records: args.records,
            input_lines: input.len(),
            input_checksum: input.checksum(),
        };
        let home = match &args.dir {
            None => {
                let temporary = TempDir::with_prefix("eventplane-tiers-")
                    .map_err(|e| format!("cannot make a temporary directory: {e}"))?;
                let dir = temporary.path().to_owned();
                Home { dir, resumed: false, _temporary: Some(temporary) }
            }
            Some(dir) => Home { dir: dir.clone(), resumed: args.resume, _temporary: None },
        };
        let path = home.dir.display();
        if home.resumed {
            home.find(manifest).map_err(|e| format!("{path}: {e}"))?;
        } else {
            home.make(manifest).map_err(|e| format!("{path}: {e}"))?;
        }
        Ok(home)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.dir.join("state").join(name)
    }

    fn make(&self, manifest: Manifest) -> Result<(), String> {
        let words = |e: std::io::Error| e.to_string();
        fs::create_dir_all(&self.dir).map_err(words)?;
        if fs::read_dir(&self.dir).map_err(words)?.next().is_some() {
            let advice = if is_run(&self.dir) { "--resume goes on with it" } else { "not ours" };
            return Err(format!("the directory is not empty ({advice})"));
        }
        fs::create_dir(self.state("")).map_err(words)?;
        store::save(&self.state(MANIFEST), &manifest).map_err(words)
    }

    fn find(&self, manifest: Manifest) -> Result<(), String> {
        let found: Option<Manifest> = store::load(&self.state(MANIFEST))
            .map_err(|e| format!("its state cannot be read: {e}"))?;
        let Some(found) = found else {
            return Err("there is no run of this example to resume".to_owned());
        };
        if found != manifest {
            return Err(format!(
                "it is a run of {} records of {} lines: --records and --input must be the same",
                found.records, found.input_lines
            ));
        }
        Ok(())
    }
}

fn is_run(dir: &Path) -> bool {
    dir.join("state").join(MANIFEST).exists()
}
