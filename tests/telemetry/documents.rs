//! The README and `docs/`: their program is an example that compiles, their links lead somewhere, their length is bounded.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use redrive::dead_letter::{AttemptReport, DeadLetter, Reason};
use redrive::{Class, Failure, Record, Scope};
use serde_json::{Value, json};
use support::emulator::repository;

/// The README says everything that a newcomer needs, and nothing else.
const MOST_LINES: usize = 220;

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The code block that follows this line.
fn block<'a>(text: &'a str, line: &str) -> &'a str {
    let (_, rest) = text
        .split_once(&format!("\n{line}\n"))
        .expect("the line is there");
    let (_, rest) = rest.split_once("```").expect("a code block follows");
    let (_, code) = rest.split_once('\n').expect("it has a first line");
    code.split_once("```").expect("it ends").0
}

/// The names of the dependencies in a manifest, or in a part of one.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let (_, rest) = manifest
        .split_once("[dependencies]\n")
        .expect("there are dependencies");
    let lines = rest.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names.map(str::to_owned).collect()
}

#[test]
fn the_program_of_the_readme_is_an_example() {
    let readme = read("README.md");
    assert_eq!(
        block(&readme, "`src/main.rs`:"),
        read("examples/service/src/main.rs")
    );
    let manifest = read("examples/service/Cargo.toml");
    assert_eq!(
        dependencies(block(&readme, "`Cargo.toml`:")),
        dependencies(&manifest)
    );
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= MOST_LINES, "{lines} lines");
}

/// The names by which a heading can be linked.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let root = repository();
    let mut documents: Vec<String> = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in fs::read_dir(root.join("docs")).expect("it is there") {
        let name = entry.expect("readable").file_name().into_string().expect("UTF-8");
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    let mut links = 0;
    for document in documents {
        let text = read(&document);
        let folder = Path::new(&document).parent().expect("a folder");
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.contains("://") || link.contains("::") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = match file {
                "" => root.join(&document),
                file => root.join(folder).join(file),
            };
            assert!(file.exists(), "{document}: {link}");
            if !heading.is_empty() {
                let text = fs::read_to_string(&file).expect("a document");
                assert!(anchors(&text).contains(heading), "{document}: {link}");
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links} links");
}

/// Adds the names of all fields of a JSON value.
fn fields(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                names.insert(name.clone());
                fields(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, names)),
        _ => {}
    }
}

/// The text constants of a source file, such as the names of attributes.
fn constants(path: &str) -> Vec<String> {
    let source = read(path);
    let lines = source
        .lines()
        .filter(|line| line.contains("const ") && line.contains(": &str = \""));
    let texts = lines.filter_map(|line| line.split('"').nth(1));
    texts.map(str::to_owned).collect()
}

#[test]
fn stored_names_and_values_are_documented() {
    let record = Record::builder("orders", "shardId-000000000001".into(), 7_u64.into()).build();
    let mut letter = DeadLetter::new("billing", &record, Reason::Permanent, &Failure::permanent("bad"));
    let call: AttemptReport = serde_json::from_value(json!({
        "number": 1, "ended_at": "2026-01-01T00:00:00Z", "duration_ms": 1, "class": "transient", "code": null,
    }))
    .expect("an attempt");
    letter.attempts.probes = 1;
    letter.attempts.first = vec![call];
    letter.first_arrival = Some(letter.dead_lettered_at);
    (letter.redacted, letter.suspect) = (true, true);
    letter.payload_at = Some("s3://bucket/key".to_owned());
    letter.payload_sha256 = Some("00".to_owned());
    let json = serde_json::from_slice(&letter.to_json_line()).expect("JSON");
    let mut names = BTreeSet::new();
    fields(&json, &mut names);
    assert!(names.len() >= 35, "{} fields", names.len());
    names.extend(Reason::ALL.iter().map(|reason| reason.as_str().to_owned()));
    names.extend([Class::Transient, Class::Permanent].map(|class| class.as_str().to_owned()));
    names.extend([Scope::Record, Scope::Dependency, Scope::Unknown].map(|scope| scope.as_str().to_owned()));
    for path in [
        "src/checkpoint/dynamodb/row.rs",
        "src/idempotency/dynamodb.rs",
        "src/replay/ledger/dynamodb.rs",
    ] {
        let found = constants(path);
        assert!(found.len() >= 4, "{path}: {found:?}");
        names.extend(found);
    }
    // The codes that the engine itself gives to failures.
    for path in ["src/engine/classifiers.rs", "src/engine/retry.rs"] {
        let source = read(path);
        let codes = source.split(".with_code(\"").skip(1);
        names.extend(codes.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    assert!(names.contains("payload_mismatch"), "{names:?}");
    let page = read("docs/formats.md");
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in docs/formats.md: {missing:?}");
}
