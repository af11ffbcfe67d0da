//! Under AddressSanitizer (`--cfg asan`): it reports what it is there for. Elsewhere this is empty.
#![cfg(asan)]

use std::env;
use std::hint::black_box;
use std::process::Command;

const PLANT: &str = "RACES_PLANT";

/// Run by the test below, in a process of its own.
#[test]
fn use_after_free() {
    if env::var(PLANT).is_err() {
        return;
    }
    let bytes = black_box(vec![7_u8; 64]);
    let address = black_box(bytes.as_ptr());
    drop(bytes);
    // SAFETY: none; the sanitizer has to say so.
    println!("read {}", unsafe { address.read_volatile() });
}

#[test]
fn a_use_after_free_is_reported() {
    let this = env::current_exe().expect("the path of this program");
    let arguments = ["--exact", "use_after_free", "--nocapture"];
    let child = Command::new(this)
        .args(arguments)
        .env(PLANT, "1")
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success(), "it passed");
    assert!(said.contains("AddressSanitizer: heap-use-after-free"), "{said}");
    println!("proof asan_control 1");
}
