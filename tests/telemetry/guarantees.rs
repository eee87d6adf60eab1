//! `docs/guarantees.md` names, for each guarantee, tests that exist.

use std::fs;

use support::emulator::repository;

/// Returns the names in backquotes of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let root = repository();
    let text = fs::read_to_string(root.join("docs/guarantees.md")).expect("docs/guarantees.md exists");
    let guarantees: Vec<&str> = text.split("\n## ").skip(1).collect();
    assert!(guarantees.len() >= 9, "the design has nine promises");
    for (number, guarantee) in guarantees.iter().enumerate() {
        assert!(guarantee.starts_with(&format!("{}. ", number + 1)), "{guarantee}");
        let (_, tests) = guarantee.split_once("\nTests: ").expect("tests are named");
        // The format is "`one` and `other` in `file`".
        let mut waiting = Vec::new();
        let mut found = 0;
        for name in quoted(tests) {
            if !name.ends_with(".rs") {
                waiting.push(name);
                continue;
            }
            let code = fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            for test in waiting.drain(..) {
                let head = format!("fn {test}() {{");
                let (before, _) = code
                    .split_once(&head)
                    .unwrap_or_else(|| panic!("{name} has no test {test}"));
                let attributes = before.rsplit("\n\n").next().unwrap_or_default();
                assert!(attributes.contains("test"), "{test} in {name} is no test");
                found += 1;
            }
        }
        assert!(
            found > 0 && waiting.is_empty(),
            "tests without a file: {waiting:?}"
        );
    }
}
