//! A limit on the size of files. Beyond it the kernel does not only fail a write: it kills.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use eventplane::{Backend, Builder, Bus, ErrorKind};

use super::proof;
use super::rerun::{case_of, in_child, passes_in_child};

const ROW: &str = "file_size_limit";
const SEGMENT: u64 = 256 << 10;

fn builder(io_uring: bool, direct_io: bool) -> Builder {
    Bus::builder()
        .slab_bytes(64 << 10)
        .segment_bytes(SEGMENT)
        .ring_bytes(2 * SEGMENT)
        .catchup_window_bytes(4 * SEGMENT)
        .backend(if io_uring { Backend::IoUring } else { Backend::Psync })
        .direct_io(direct_io)
}

/// From here on, with the signal at its default, which is death.
fn limit_files(bytes: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is there for the kernel to fill and to read.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[track_caller]
fn is_refused(builder: Builder, dir: &Path) {
    let error = builder
        .open(dir)
        .map(drop)
        .expect_err("no segment may be written");
    let says = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Io, "{says}");
    assert!(
        says.contains("RLIMIT_FSIZE") && says.contains(&SEGMENT.to_string()),
        "{says}"
    );
    assert!(error.path().is_some(), "{says}");
}

fn write(bus: &Bus, records: u64) {
    let writer = bus.writer();
    for key in 0..records {
        writer.append(0, key, &[7; 5_000]).unwrap();
    }
}

fn run(case: &str) {
    let [kind, io_uring, direct_io] = case.split(' ').collect::<Vec<_>>()[..] else {
        panic!("no case: {case}")
    };
    let builder = || builder(io_uring == "true", direct_io == "true");
    let room = tempfile::tempdir().unwrap();
    let dir = room.path().join("log");
    match kind {
        "new" => {
            limit_files(SEGMENT - 1);
            is_refused(builder(), &dir);
            let left = fs::read_dir(dir.join("segments")).unwrap().count();
            assert_eq!(left, 0, "of a segment that could not be made");
            // Nothing of it is in the way once the limit is raised.
            limit_files(SEGMENT);
            write(&builder().open(&dir).unwrap(), 10);
        }
        "existing" => {
            let bus = builder().open(&dir).unwrap();
            write(&bus, 150);
            bus.close().unwrap();
            limit_files(SEGMENT - 1);
            is_refused(builder(), &dir);
            limit_files(SEGMENT);
            assert_eq!(builder().open(&dir).unwrap().recovery().records, 150);
        }
        // Exactly what is needed, through several segments.
        "enough" => {
            limit_files(SEGMENT);
            let bus = builder().open(&dir).unwrap();
            write(&bus, 150);
            bus.close().unwrap();
        }
        // The control.
        "unasked" => {
            limit_files(SEGMENT - 1);
            let file = fs::File::create(room.path().join("file")).unwrap();
            panic!("{:?}", file.set_len(SEGMENT));
        }
        _ => panic!("no case: {case}"),
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_not_death() {
    const NAME: &str = "size_limit::a_limit_on_the_size_of_files_is_an_error_and_not_death";
    if let Some(case) = case_of(NAME) {
        return run(&case);
    }
    let mut executed = 0;
    for kind in ["new", "existing", "enough"] {
        for bits in 0..4 {
            let (io_uring, direct_io) = (bits & 1 == 0, bits & 2 == 0);
            passes_in_child(NAME, &format!("{kind} {io_uring} {direct_io}"));
            executed += 1;
        }
    }
    // The control: who does not ask before dies, and is seen to.
    let (child, text) = in_child(NAME, "unasked false false");
    assert_eq!(
        child.status.signal(),
        Some(libc::SIGXFSZ),
        "{}\n{text}",
        child.status
    );
    proof::executed(ROW, executed);
}
