//! A test that runs itself again in a process of its own, which may then change its limits or die.

use std::env;
use std::process::{Command, Output, Stdio};

const CASE: &str = "EVENTPLANE_CASE";

/// The case that this process is to run, if `test` was started by `in_child`.
pub(crate) fn case_of(test: &str) -> Option<String> {
    let case = env::var(CASE).ok()?;
    let (name, case) = case.split_once(' ')?;
    (name == test).then(|| case.to_owned())
}

/// How `test` ends in a process of its own, where `case_of(test)` is `case`.
pub(crate) fn in_child(test: &str, case: &str) -> (Output, String) {
    let child = Command::new("/proc/self/exe")
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CASE, format!("{test} {case}"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [&child.stdout[..], &child.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (child, text)
}

/// It ends well, having run the test.
#[track_caller]
pub(crate) fn passes_in_child(test: &str, case: &str) {
    let (child, text) = in_child(test, case);
    let passed = child.status.success() && text.contains("1 passed");
    assert!(passed, "{test}, {case}: {}\n{text}", child.status);
}
