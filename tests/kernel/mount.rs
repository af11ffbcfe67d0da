//! File systems of our own: an image, a loop device, a mount point, all gone when it is dropped,
//! and what a process that was killed left of them when the next one comes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::LONG;

const PREFIX: &str = "eventplane-kernel-";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }
}

/// A file system on a loop device over an image in memory. Mounted from the start.
pub(crate) struct FileSystem {
    kind: Kind,
    room: PathBuf,
    device: Option<String>,
    mounted: bool,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let said = |out: &Output| String::from_utf8_lossy(&out.stderr).trim().to_owned();
    match Command::new(program).args(arguments).output() {
        Ok(out) if out.status.success() => {
            Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
        }
        Ok(out) => Err(format!("{program} {}: {}", arguments.join(" "), said(&out))),
        Err(e) => Err(format!("{program}: {e}")),
    }
}

/// Where images are: in memory, if there is such a place, for what is cut is not the medium.
fn rooms() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// A directory of ours, with one in it to mount at.
pub(crate) fn new_room() -> Result<PathBuf, String> {
    remove_leftovers();
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let room = rooms().join(format!("{PREFIX}{}-{number}", std::process::id()));
    fs::create_dir_all(room.join("mnt")).map_err(|e| format!("{}: {e}", room.display()))?;
    Ok(room)
}

impl FileSystem {
    /// An error says what this machine lacks.
    pub(crate) fn new(kind: Kind, bytes: u64) -> Result<FileSystem, String> {
        let mut made = FileSystem { kind, room: new_room()?, device: None, mounted: false };
        let image = made.image();
        let file = File::create(&image).map_err(|e| format!("{image}: {e}"))?;
        file.set_len(bytes).map_err(|e| format!("{image}: {e}"))?;
        match kind {
            Kind::Ext4 => run("mkfs.ext4", &["-q", "-F", "-b", "4096", &image])?,
            Kind::Xfs => run("mkfs.xfs", &["-q", "-f", &image])?,
        };
        made.device = Some(run("losetup", &["--find", "--show", &image])?);
        made.mount()?;
        Ok(made)
    }

    fn image(&self) -> String {
        self.room
            .join("image")
            .to_str()
            .expect("a name of ours")
            .to_owned()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.room.join("mnt")
    }

    /// Where a log goes, as text.
    pub(crate) fn log(&self, name: &str) -> String {
        self.path()
            .join(name)
            .to_str()
            .expect("a name of ours")
            .to_owned()
    }

    pub(crate) fn mount(&mut self) -> Result<(), String> {
        let device = self.device.as_deref().ok_or("no device")?;
        let path = self.path();
        run(
            "mount",
            &["-t", self.kind.name(), device, path.to_str().ok_or("a name of ours")?],
        )?;
        self.mounted = true;
        Ok(())
    }

    /// The kernel lets go of the files of a process some time after its end.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        let path = self.path();
        unmount(&path)?;
        self.mounted = false;
        Ok(())
    }

    /// From now on nothing reaches the device any more, neither data nor the journal; what was not
    /// durable is lost.
    pub(crate) fn cut_power(&self) -> io::Result<()> {
        /// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`.
        const SHUTDOWN: libc::c_ulong = 0x8004_587D;
        /// Without flushing the journal.
        const NOLOGFLUSH: u32 = 2;
        let root = File::open(self.path())?;
        // SAFETY: the call reads one u32, which lives until it returns; `root` is open.
        match unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &NOLOGFLUSH) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn unmount(path: &Path) -> Result<(), String> {
    let name = path.to_str().ok_or("a name of ours")?;
    let deadline = Instant::now() + LONG;
    loop {
        match run("umount", &[name]) {
            Err(why) if why.contains("busy") && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done.map(drop),
        }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let path = self.path();
        if self.mounted && unmount(&path).is_err() {
            let _ = run("umount", &["--lazy", path.to_str().unwrap_or_default()]);
        }
        if let Some(device) = &self.device {
            let _ = run("losetup", &["--detach", device]);
        }
        let _ = fs::remove_dir_all(&self.room);
    }
}

/// Mounts, devices and images of processes that are gone.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(rooms()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(owner) = owner else { continue };
        // What has ended and is not gone yet has no program any more.
        let program = fs::read_link(Path::new("/proc").join(owner).join("exe"));
        if !program.is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        let (mount, image) = (entry.path().join("mnt"), entry.path().join("image"));
        // By force: that also ends what waits for a FUSE server that is gone.
        let _ = run("umount", &["--force", "--lazy", &mount.display().to_string()]);
        let devices = run("losetup", &["--associated", &image.display().to_string()]);
        for line in devices.unwrap_or_default().lines() {
            let device = line.split(':').next().unwrap_or_default();
            let _ = run("losetup", &["--detach", device]);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}
