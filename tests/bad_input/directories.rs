//! Directories that are no log, not ours at the moment, or not to be written to.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use eventplane::ErrorKind;

use super::bed::{
    Bed, RING, SEGMENT, SLAB, backend_name, backend_of, backends, child_of, commit, in_child,
    refuses, reopens, set_mode, tree,
};

#[test]
fn a_directory_of_another_program_is_left_alone() {
    for backend in backends() {
        for names in [&["holiday.jpg"][..], &["LOCK", "CURRENT"], &["segments/", "notes"]] {
            let bed = Bed::new(backend);
            for name in names {
                let path = bed.path().join(name);
                if name.ends_with('/') {
                    fs::create_dir(path).unwrap();
                } else {
                    fs::write(path, b"theirs").unwrap();
                }
            }
            let last = bed.path().join(names[names.len() - 1]);
            bed.refuses(ErrorKind::NotALog, &last);
            assert_eq!(
                fs::read_dir(bed.path()).unwrap().count(),
                names.len(),
                "not even a lock"
            );
        }
        // Names that are ours too, and contents that are not.
        let bed = Bed::new(backend);
        fs::create_dir(bed.path().join("segments")).unwrap();
        fs::write(bed.path().join("meta"), [b'm'; 9000]).unwrap();
        bed.refuses(ErrorKind::NotALog, &bed.path().join("meta"));
        fs::remove_dir(bed.path().join("segments")).unwrap();
        bed.refuses(ErrorKind::NotALog, &bed.path().join("meta"));
    }
}

#[test]
fn a_file_where_a_directory_should_be_is_refused() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let file = bed.path().join("file");
        fs::write(&file, b"a file").unwrap();
        let error = refuses(bed.builder(), &file, ErrorKind::NotALog);
        assert_eq!(error.path(), Some(&*file));
        let below = file.join("log");
        let error = bed.builder().open(&below).map(drop).unwrap_err();
        assert!(
            [ErrorKind::NotALog, ErrorKind::Io].contains(&error.kind()),
            "{error:?}"
        );
        assert!(error.path().is_some_and(|path| path.starts_with(&file)));
        assert_eq!(fs::read(&file).unwrap(), b"a file");
        // `segments` is a file in a log.
        let bed = Bed::new(backend);
        bed.by_hand().close().unwrap();
        let segments = bed.path().join("segments");
        fs::rename(&segments, bed.path().join("cut")).unwrap();
        fs::write(&segments, b"a file").unwrap();
        let error = refuses(bed.builder(), bed.path(), ErrorKind::Io);
        assert_eq!(error.path(), Some(&*segments));
    }
}

#[test]
fn the_parts_of_a_log_may_not_be_missing() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        commit(&bus.writer(), &mut model, 100);
        bus.close().unwrap();
        let image = bed.image();
        fs::remove_dir_all(image.path().join("segments")).unwrap();
        image.refuses(ErrorKind::MissingSegment, &image.path().join("segments"));
        let image = bed.image();
        fs::remove_file(image.path().join("meta")).unwrap();
        image.refuses(ErrorKind::Corrupt, &image.path().join("meta"));
        // Nothing but the lock: nothing was ever there.
        let empty = Bed::new(backend);
        fs::write(empty.path().join("LOCK"), b"").unwrap();
        reopens(&empty, &mut Vec::new());
        reopens(&bed, &mut model);
    }
}

#[test]
fn a_log_is_opened_once_in_one_process() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        commit(&bus.writer(), &mut Vec::new(), 100);
        for wait in [Duration::ZERO, Duration::from_millis(20)] {
            let builder = bed.builder().lock_timeout(wait);
            let error = refuses(builder, bed.path(), ErrorKind::Locked);
            assert_eq!(error.path(), Some(bed.path()));
            assert!(error.is_transient());
        }
        bus.close().unwrap();
        bed.open().close().unwrap();
    }
}

#[test]
fn a_log_is_opened_once_on_a_machine() {
    const NAME: &str = "directories::a_log_is_opened_once_on_a_machine";
    if let Some(dir) = child_of(NAME) {
        let dir = PathBuf::from(dir);
        for backend in backends() {
            let bed = Bed::new(backend);
            let builder = bed.builder().lock_timeout(Duration::from_millis(20));
            let error = refuses(builder, &dir, ErrorKind::Locked);
            assert_eq!(error.path(), Some(&*dir));
        }
        return;
    }
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        commit(&bus.writer(), &mut model, 100);
        in_child(NAME, bed.path());
        // It goes on as if nobody had asked.
        commit(&bus.writer(), &mut model, 100);
        bus.close().unwrap();
        reopens(&bed, &mut model);
    }
}

/// What the child is given: the backend, and the directory with the two logs.
#[test]
fn a_directory_that_cannot_be_written_to_is_refused() {
    const NAME: &str = "directories::a_directory_that_cannot_be_written_to_is_refused";
    if let Some(argument) = child_of(NAME) {
        let argument = argument.into_string().unwrap();
        let (backend, dir) = argument.split_once(' ').unwrap();
        if become_nobody() {
            refuse_read_only(&Bed::new(backend_of(&backend.into())), &PathBuf::from(dir));
        } else {
            println!("SKIP read-only directories: root may write to all, and stays root");
        }
        return;
    }
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        commit(&bus.writer(), &mut model, 100);
        bus.close().unwrap();
        let files = tree(bed.path())
            .into_iter()
            .filter(|(_, bytes)| bytes.is_some());
        files.for_each(|(name, _)| set_mode(&bed.path().join(name), 0o444));
        set_mode(&bed.path().join("LOCK"), 0o444);
        let dirs = [bed.path().join("segments"), bed.path().to_owned()];
        dirs.iter().for_each(|dir| set_mode(dir, 0o555));
        let said = in_child(
            NAME,
            format!("{} {}", backend_name(backend), bed.path().display()),
        );
        said.lines()
            .filter(|line| line.starts_with("SKIP"))
            .for_each(|line| println!("{line}"));
        dirs.iter().for_each(|dir| set_mode(dir, 0o755));
        let files = tree(bed.path())
            .into_iter()
            .filter(|(_, bytes)| bytes.is_some());
        files.for_each(|(name, _)| set_mode(&bed.path().join(name), 0o644));
        set_mode(&bed.path().join("LOCK"), 0o644);
        reopens(&bed, &mut model);
    }
}

/// Gives up root's right to write everywhere. False if root cannot.
fn become_nobody() -> bool {
    const NOBODY: u32 = 65_534;
    // SAFETY: no memory is involved; the process is a child made for this test.
    unsafe {
        libc::geteuid() != 0
            || (libc::setgroups(0, std::ptr::null()) == 0
                && libc::setgid(NOBODY) == 0
                && libc::setuid(NOBODY) == 0)
    }
}

fn refuse_read_only(bed: &Bed, dir: &std::path::Path) {
    let error = refuses(bed.builder(), dir, ErrorKind::Io);
    assert!(
        error.path().is_some_and(|path| path.starts_with(dir)),
        "{error:?}"
    );
    let source = std::error::Error::source(&error)
        .expect("what the system said")
        .to_string();
    assert!(
        source.contains("ermission denied") || source.contains("ead-only"),
        "{source}"
    );
    // A new log below it.
    let before = tree(dir);
    let error = bed.builder().open(dir.join("new")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error.path().is_some_and(|path| path.starts_with(dir)),
        "{error:?}"
    );
    assert!(tree(dir) == before);
}

#[test]
fn other_sizes_than_at_creation_are_refused() {
    for backend in backends() {
        let bed = Bed::sized(backend, 2 * SLAB, 2 * SEGMENT);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        commit(&bus.writer(), &mut model, 100);
        bus.close().unwrap();
        for (slab_bytes, segment_bytes, name) in [
            (SLAB, 2 * SEGMENT, "slab_bytes"),
            (2 * SLAB, 4 * SEGMENT, "segment_bytes"),
            (SLAB, SEGMENT, "slab_bytes"),
        ] {
            let builder = bed
                .builder()
                .slab_bytes(slab_bytes)
                .segment_bytes(segment_bytes);
            let builder = builder.ring_bytes(4 * RING);
            let error = refuses(builder, bed.path(), ErrorKind::InvalidOption);
            assert_eq!(error.path(), Some(bed.path()));
            assert!(error.to_string().contains(name), "{error}");
        }
        reopens(&bed, &mut model);
    }
}
