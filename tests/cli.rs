//! The command as a user runs it: exit statuses, text, JSON.

mod small_logs;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use small_logs::{Sample, builder, flip, images, read_all, segment_file};

const CLEAN: i32 = 0;
const FINDINGS: i32 = 1;
const USAGE: i32 = 2;
const UNREADABLE: i32 = 3;

fn run(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_eventplane"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn on(command: &str, dir: &Path, more: &[&str]) -> (i32, String) {
    let dir = dir.to_str().unwrap();
    let (status, stdout, _) = run([command, dir].iter().chain(more));
    (status, stdout)
}

/// The status, and what it printed as one JSON value.
fn json(command: &str, dir: &Path, more: &[&str]) -> (i32, Value) {
    let more: Vec<&str> = more.iter().copied().chain(["--json"]).collect();
    let (status, stdout) = on(command, dir, &more);
    (status, serde_json::from_str(&stdout).expect(&stdout))
}

#[test]
fn info_says_what_the_log_is() {
    let sample = Sample::with_checkpoint(40, "orders");
    let (status, info) = json("info", &sample.dir, &[]);
    assert_eq!(status, CLEAN);
    assert_eq!(info["records"], 40);
    assert_eq!((&info["first_lsn"], &info["last_lsn"]), (&1.into(), &40.into()));
    assert_eq!(info["segment_bytes"], small_logs::SEGMENT_BYTES);
    assert_eq!(info["log_id"].as_str().unwrap().len(), 32);
    assert_eq!(info["checkpoints"][0]["name"], "orders");
    assert_eq!(info["checkpoints"][0]["lag_records"], 0);
    let (status, text) = on("info", &sample.dir, &[]);
    assert_eq!(status, CLEAN);
    for part in ["records         40\n", "1..40", "orders: LSN 40, 0 records behind"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn segments_has_one_line_each() {
    let sample = Sample::unclosed(40);
    let (status, listed) = json("segments", &sample.dir, &[]);
    assert_eq!(status, CLEAN);
    let listed = listed["segments"].as_array().unwrap();
    let records: u64 = listed.iter().map(|s| s["records"].as_u64().unwrap()).sum();
    assert_eq!(records, 40);
    assert_eq!(
        (&listed[0]["state"], &listed[0]["first_lsn"]),
        (&"sealed".into(), &1.into())
    );
    assert_eq!(listed.last().unwrap()["state"], "prepared");
    let (_, text) = on("segments", &sample.dir, &[]);
    assert_eq!(text.lines().count(), listed.len() + 1);
}

#[test]
fn dump_prints_the_records_asked_for() {
    let sample = Sample::small(&[b"one", b"two\n", b"\xFF\x00", b"four"]);
    let (status, text) = on("dump", &sample.dir, &["--from", "2", "--to", "3"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((status, lines.len()), (CLEAN, 2));
    assert!(lines[0].starts_with("2 ") && lines[0].ends_with("kind 2 key 20 \"two\\n\""));
    assert!(lines[1].ends_with("kind 3 key 30 ff00"));

    let (_, text) = on("dump", &sample.dir, &["--json"]);
    let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        (&rows[0]["text"], &rows[2]["hex"]),
        (&"one".into(), &"ff00".into())
    );
    assert_eq!(
        (rows.len(), &rows[3]["lsn"], &rows[3]["key"]),
        (4, &4.into(), &40.into())
    );

    let (_, text) = on(
        "dump",
        &sample.dir,
        &["--limit", "1", "--kind", "3", "--kind", "4"],
    );
    assert!(text.starts_with("3 ") && text.lines().count() == 1, "{text}");
    assert_eq!(on("dump", &sample.dir, &["--limit", "0"]), (CLEAN, String::new()));
    assert_eq!(on("dump", &sample.dir, &["--from", "5"]), (CLEAN, String::new()));
}

#[test]
fn dump_ends_at_damage_and_says_so() {
    let sample = Sample::new(40);
    let block = sample.blocks()[20];
    flip(&segment_file(&sample.dir, block.segment), block.offset + 100, 0);
    let (status, stdout, stderr) = run(["dump", sample.dir.to_str().unwrap()]);
    assert_eq!((status, stdout.lines().count()), (FINDINGS, 20));
    assert!(stderr.contains("the records end here"), "{stderr}");
    assert_eq!(on("dump", &sample.dir, &["--to", "20"]).0, CLEAN);
    assert_eq!(on("dump", &sample.dir, &["--to", "21"]).0, FINDINGS);
}

#[test]
fn verify_lists_what_is_wrong() {
    let sample = Sample::new(40);
    let (status, report) = json("verify", &sample.dir, &[]);
    assert_eq!((status, &report["records"]), (CLEAN, &40.into()));
    let block = sample.blocks()[20];
    let path = segment_file(&sample.dir, block.segment);
    flip(&path, block.offset + 100, 0);
    let (status, report) = json("verify", &sample.dir, &[]);
    let finding = &report["findings"][0];
    assert_eq!((status, &finding["kind"]), (FINDINGS, &"Corrupt".into()));
    assert_eq!(
        (&finding["first_lsn"], &finding["last_lsn"]),
        (&21.into(), &21.into())
    );
    assert_eq!(
        (&finding["segment"], &finding["offset"]),
        (&block.segment.into(), &block.offset.into())
    );
    assert_eq!(finding["path"], path.to_str().unwrap());
    let (status, text) = on("verify", &sample.dir, &[]);
    assert!(status == FINDINGS && text.contains("LSN 21"), "{text}");
}

#[test]
fn repair_writes_only_when_told_to() {
    let sample = Sample::new(40);
    let before = images(&sample.dir);
    assert_eq!(json("repair", &sample.dir, &["--write"]).1["done"], false);
    assert_eq!(images(&sample.dir), before, "there was nothing to repair");

    let block = sample.blocks()[20];
    flip(&segment_file(&sample.dir, block.segment), block.offset + 100, 0);
    let before = images(&sample.dir);
    let (status, plan) = json("repair", &sample.dir, &[]);
    assert_eq!(
        (status, &plan["done"], &plan["needed"]),
        (FINDINGS, &false.into(), &true.into())
    );
    assert_eq!(
        (&plan["lost_end"]["first_lsn"], &plan["lost_end"]["records"]),
        (&21.into(), &20.into())
    );
    assert!(
        on("repair", &sample.dir, &[])
            .1
            .contains("LSNs 21 to 40, 20 records")
    );
    assert_eq!(images(&sample.dir), before, "a dry run changed something");

    let (status, text) = on("repair", &sample.dir, &["--write"]);
    assert!(status == CLEAN && text.contains("generation 1"), "{text}");
    assert_eq!(on("verify", &sample.dir, &[]).0, CLEAN);
    assert_eq!(
        on("repair", &sample.dir, &["--write"]),
        (CLEAN, "nothing to repair\n".into())
    );
    assert_eq!(read_all(&sample.dir), sample.records[..20]);
}

#[test]
fn a_log_that_is_open_is_refused() {
    let sample = Sample::new(3);
    let bus = builder().open(&sample.dir).unwrap();
    for command in ["info", "segments", "dump", "verify", "repair"] {
        let (status, stdout, stderr) = run([command, sample.dir.to_str().unwrap()]);
        assert_eq!((status, &*stdout), (UNREADABLE, ""), "{command}");
        assert!(stderr.contains("open elsewhere"), "{stderr}");
    }
    bus.close().unwrap();
    assert_eq!(on("info", &sample.dir, &[]).0, CLEAN);
}

#[test]
fn looking_changes_nothing() {
    let sample = Sample::unclosed(40);
    let before = images(&sample.dir);
    for command in ["info", "segments", "dump", "verify", "repair"] {
        assert_eq!(on(command, &sample.dir, &[]).0, CLEAN, "{command}");
    }
    assert_eq!(images(&sample.dir), before);
}

#[test]
fn what_is_no_log_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["info", "segments", "dump", "verify", "repair"] {
        let (status, _, stderr) = run([command, dir.path().to_str().unwrap()]);
        assert_eq!(status, UNREADABLE);
        assert!(stderr.contains("holds no log"), "{stderr}");
    }
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "something was created"
    );
    let missing = dir.path().join("missing");
    assert_eq!(on("verify", &missing, &[]).0, UNREADABLE);
    assert!(!missing.exists());
}

#[test]
fn wrong_usage_is_told_from_a_wrong_log() {
    for args in [&["info"][..], &["mend", "x"], &["dump", "x", "--from", "y"], &[]] {
        assert_eq!(run(args).0, USAGE, "{args:?}");
    }
    assert_eq!(run(["--help"]).0, CLEAN);
}

/// A reader that has gone took the finding along.
#[test]
fn what_is_found_is_in_the_status_also_where_nobody_reads_on() {
    for (damaged, expected) in [(false, CLEAN), (true, FINDINGS)] {
        let sample = Sample::new(40);
        if damaged {
            let block = sample.blocks()[20];
            flip(&segment_file(&sample.dir, block.segment), block.offset + 100, 0);
        }
        for command in ["info", "segments", "verify", "repair"] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let mut run = Command::new(env!("CARGO_BIN_EXE_eventplane"));
            let status = run
                .arg(command)
                .arg(&sample.dir)
                .stdout(writer)
                .status()
                .unwrap();
            let read = on(command, &sample.dir, &[]).0;
            assert_eq!((status.code(), read), (Some(read), read), "{command}");
            if command == "verify" {
                assert_eq!(read, expected);
            }
        }
    }
}
