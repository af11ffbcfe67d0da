//! What can be enforced is: lengths, module order, no leftovers, a `SAFETY:` for each unsafe block,
//! every public name documented by the compiler, and no file that nobody declares.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 100;
/// A `SAFETY:` line stands at most this far above its unsafe block.
const SAFETY_LINES_ABOVE_MAX: usize = 8;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name == "target") {
            // What a build made.
        } else if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Path relative to the root, and text, of each Rust file below the given folders.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for folder in folders {
        rust_files(&root().join(folder), &mut paths);
    }
    assert!(!paths.is_empty());
    paths.sort();
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().display().to_string();
    paths
        .iter()
        .map(|p| (relative(p), fs::read_to_string(p).unwrap()))
        .collect()
}

fn complain(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

#[test]
fn files_functions_and_lines_are_short() {
    let mut findings = Vec::new();
    for (path, text) in sources(&["src", "examples", "tests", "benches"]) {
        let lines: Vec<&str> = text.lines().collect();
        // tests/contract.rs is given, as it stands.
        if lines.len() > FILE_LINES_MAX {
            findings.push(format!("{path}: {} lines", lines.len()));
        }
        for (i, line) in lines.iter().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                findings.push(format!("{path}:{}: {} characters", i + 1, line.chars().count()));
            }
        }
        if path == "tests/contract.rs" {
            continue;
        }
        for (start, length) in functions(&lines) {
            if length > FUNCTION_LINES_MAX {
                findings.push(format!("{path}:{}: a function of {length} lines", start + 1));
            }
        }
    }
    complain("too long", &findings);
}

/// First line and length of each function, by indentation: rustfmt sees to that.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let is_function = code.split("fn ").next().is_some_and(|before| {
            before.split_whitespace().all(is_qualifier) && code.len() > before.len()
        });
        if !is_function {
            continue;
        }
        let close = format!("{}}}", " ".repeat(line.len() - code.len()));
        if let Some(length) = lines[i..].iter().position(|l| *l == close) {
            found.push((i, length + 1));
        }
    }
    found
}

fn is_qualifier(word: &str) -> bool {
    ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "async", "extern", "\"C\""]
        .contains(&word)
}

#[test]
fn functions_are_found() {
    let lines =
        ["impl A {", "    pub(crate) const fn a() {", "        b()", "    }", "}", "fn c() {", "}"];
    assert_eq!(functions(&lines), [(1, 3), (5, 2)]);
}

#[test]
fn nothing_is_left_behind() {
    let words = ["FIX".to_owned() + "ME", "XX".to_owned() + "X", "TO".to_owned() + "DO"];
    let calls =
        ["dbg".to_owned() + "!(", "todo".to_owned() + "!(", "unimplemented".to_owned() + "!("];
    let ignored = "#[ign".to_owned() + "ore";
    let mut findings = Vec::new();
    for (path, text) in sources(&["src", "examples", "tests", "benches"]) {
        for (i, line) in text.lines().enumerate() {
            let found = words
                .iter()
                .chain(&calls)
                .chain([&ignored])
                .find(|w| line.contains(*w));
            if let Some(word) = found {
                findings.push(format!("{path}:{}: {word}", i + 1));
            }
        }
    }
    complain("left behind", &findings);
}

#[test]
fn the_library_prints_nothing() {
    let mut findings = Vec::new();
    for (path, text) in sources(&["src"]) {
        if path.starts_with("src/bin") {
            continue;
        }
        for (i, line) in text.lines().enumerate() {
            let code = line.trim_start();
            let prints = ["println!", "eprintln!", "print!", "eprint!"]
                .iter()
                .any(|p| code.starts_with(p));
            if prints {
                findings.push(format!("{path}:{}", i + 1));
            }
        }
    }
    complain("prints", &findings);
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut findings = Vec::new();
    for (path, text) in sources(&["src", "tests", "examples", "benches"]) {
        if path == file!() {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let is_unsafe = ["{", "impl", "fn"]
                .iter()
                .any(|u| code.contains(&format!("unsafe {u}")));
            if !is_unsafe {
                continue;
            }
            let above = &lines[i.saturating_sub(SAFETY_LINES_ABOVE_MAX)..=i];
            if !above
                .iter()
                .any(|l| l.contains("SAFETY:") || l.contains("# Safety"))
            {
                findings.push(format!("{path}:{}", i + 1));
            }
        }
    }
    complain("unsafe without SAFETY", &findings);
}

#[test]
fn unsafe_lives_in_few_files() {
    let allowed = [
        "src/sync/clock.rs",
        "src/sync/priority.rs",
        "src/sync/real.rs",
        "src/ring/",
        "src/disk/",
        "src/log/appender.rs",
        "src/log/writer.rs",
        "src/log/committer.rs",
        "src/log/recovery.rs",
        "src/source/hot.rs",
        "src/source/mapped.rs",
        "src/source/buffered.rs",
        "src/consumer/batch.rs",
    ];
    let uses = |text: &str| {
        text.lines()
            .any(|l| l.split("//").next().unwrap_or("").contains("unsafe "))
    };
    let mut findings = Vec::new();
    for (path, text) in sources(&["src"]) {
        if uses(&text) && !allowed.iter().any(|a| path.starts_with(a)) {
            findings.push(path);
        }
    }
    complain("unsafe in a file that has none", &findings);
}

/// The rooms in the order in which lib.rs declares them.
fn rooms() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared = lib.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    });
    declared.collect()
}

#[test]
fn a_module_imports_only_from_those_above_it() {
    let rooms = rooms();
    assert!(rooms.len() > 10);
    let mut findings = Vec::new();
    for (path, text) in sources(&["src"]) {
        let inside = path.trim_start_matches("src/");
        let room = inside.split(['/', '.']).next().unwrap_or("");
        let Some(place) = rooms.iter().position(|r| r == room) else {
            assert!(["lib", "bin"].contains(&room), "{path} is in no declared module");
            continue;
        };
        // What tests of a module use is their affair.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
        if inside.contains("tests") {
            continue;
        }
        for (i, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            for used in code.split("crate::").skip(1) {
                let name: String = used
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let below = rooms
                    .iter()
                    .position(|r| *r == name)
                    .is_some_and(|at| at > place);
                if below {
                    findings.push(format!("{path}:{}: {room} imports from {name}", i + 1));
                }
            }
        }
    }
    complain("against the data flow", &findings);
}
