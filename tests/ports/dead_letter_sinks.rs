//! Tests of the dead-letter sinks: the conformance suite for all sinks, and tests specific to the file sink.
//! The tests specific to the Kinesis sink are in `kinesis_sink.rs`.

use std::fs;
use std::path::PathBuf;

use redrive::dead_letter::{
    DeadLetter, DeadLetterSink, DecodeError, File, FileError, Kinesis, Memory, ReadError, SinkError,
};
use redrive::sink_conformance;
use redrive::testing::kinesis::{KinesisServer, create_stream};
use redrive::testing::sinks::{Harness, confirmed, letter};
use support::stream;
use tempfile::TempDir;

sink_conformance!(memory, async { InMemory(Memory::new()) });
sink_conformance!(file, async { InFile::new() });
sink_conformance!(kinesis, OnStream::new());

struct InMemory(Memory);

impl Harness for InMemory {
    type Sink = Memory;

    fn sink(&self) -> &Memory {
        &self.0
    }

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        self.0.letters()
    }
}

struct InFile {
    sink: File,
    path: PathBuf,
    _folder: TempDir,
}

impl InFile {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("letters.jsonl");
        InFile {
            sink: File::open(&path).expect("the file opens"),
            path,
            _folder: folder,
        }
    }
}

impl Harness for InFile {
    type Sink = File;

    fn sink(&self) -> &File {
        &self.sink
    }

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        read(&self.path)
    }
}

struct OnStream {
    sink: Kinesis,
    server: KinesisServer,
}

impl OnStream {
    async fn new() -> Self {
        let server = KinesisServer::start().await.expect("the server starts");
        create_stream(&server.client(), "letters", 3)
            .await
            .expect("the stream is created");
        OnStream {
            sink: Kinesis::new(server.client(), "letters"),
            server,
        }
    }
}

impl Harness for OnStream {
    type Sink = Kinesis;

    fn sink(&self) -> &Kinesis {
        &self.sink
    }

    async fn read_back(&self, _is_complete: impl Fn(&[DeadLetter]) -> bool) -> Vec<DeadLetter> {
        stream::read(&self.server.client(), "letters")
            .await
            .into_iter()
            .map(|record| DeadLetter::decode(&record.data.into()).expect("the dead letter reads back"))
            .collect()
    }

    fn longest_key(&self) -> String {
        // Kinesis counts characters, but the embedded server (ferrokinesis) counts bytes.
        "🦀".repeat(64)
    }
}

fn read(path: &PathBuf) -> Vec<DeadLetter> {
    File::read(path)
        .map(|letter| letter.expect("the dead letter reads back"))
        .collect()
}

mod file_only {
    use super::*;

    fn in_a_folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("letters.jsonl");
        (folder, path)
    }

    #[tokio::test]
    async fn reopened_file_is_appended_to() {
        let (_folder, path) = in_a_folder();
        let letters = [letter(1, Some("a"), "one"), letter(2, Some("a"), "two")];
        for letter in &letters {
            let sink = File::open(&path).expect("the file opens");
            let receipts = confirmed(sink.put(std::slice::from_ref(letter)).await);
            assert_eq!(receipts[0].location, path.display().to_string());
        }
        assert_eq!(read(&path), letters);
    }

    #[tokio::test]
    async fn dead_letter_is_one_line_of_json() {
        let (_folder, path) = in_a_folder();
        let sink = File::open(&path).expect("the file opens");
        confirmed(
            sink.put(&[letter(1, Some("a"), "x\ny"), letter(2, None, "")])
                .await,
        );
        let text = fs::read_to_string(&path).expect("the file is text");
        assert!(text.ends_with('\n'));
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let json: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            assert_eq!(json["error"]["chain"].as_array().map(Vec::len), Some(1));
        }
    }

    #[tokio::test]
    async fn torn_last_line_is_moved_to_another_file() {
        let (folder, path) = in_a_folder();
        let whole = [letter(1, Some("a"), "one"), letter(2, Some("a"), "two")];
        confirmed(File::open(&path).expect("the file opens").put(&whole).await);
        let torn = &letter(3, Some("a"), "three").to_json_line()[..100];
        let mut text = fs::read(&path).expect("the file exists");
        text.extend_from_slice(torn);
        fs::write(&path, text).expect("the file is written");

        let sink = File::open(&path).expect("the file opens");
        let aside = folder.path().join("letters.jsonl.torn-1");
        assert_eq!(sink.torn(), Some(&*aside));
        assert_eq!(fs::read(&aside).expect("the file exists"), torn);
        let last = letter(3, Some("a"), "three");
        confirmed(sink.put(std::slice::from_ref(&last)).await);
        assert_eq!(read(&path), [&whole[..], &[last]].concat());

        drop(sink);
        assert_eq!(File::open(&path).expect("the file opens").torn(), None);
    }

    #[tokio::test]
    async fn file_is_locked_until_all_clones_are_dropped() {
        let (_folder, path) = in_a_folder();
        let first = File::open(&path).expect("the file opens");
        let error = File::open(&path).expect_err("the first sink has the lock");
        assert!(matches!(error, FileError::Locked { .. }), "{error:?}");
        assert!(
            error.to_string().contains("stop the process that holds it"),
            "{error}"
        );
        let clone = first.clone();
        drop(first);
        assert!(
            matches!(File::open(&path), Err(FileError::Locked { .. })),
            "a clone has the lock"
        );
        drop(clone);
        File::open(&path).expect("the lock is released");
    }

    #[test]
    fn unusable_path_is_an_error() {
        let (folder, _) = in_a_folder();
        for path in [
            folder.path().join("none/letters.jsonl"),
            folder.path().to_path_buf(),
        ] {
            let error = File::open(&path).expect_err("the path cannot be opened");
            assert!(matches!(error, FileError::Open { .. }), "{error:?}");
        }
        #[cfg(target_os = "linux")]
        assert!(matches!(File::open("/dev/full"), Err(FileError::Open { .. })));
    }

    #[tokio::test]
    async fn reading_continues_after_a_bad_line_and_reports_it() {
        let (_folder, path) = in_a_folder();
        let letters = [letter(1, Some("a"), "one"), letter(2, Some("a"), "two")];
        let lines = letters.each_ref().map(DeadLetter::to_json_line);
        let text = [
            &lines[0][..],
            b"\nnot a letter\n\n",
            &lines[1],
            b"\n",
            &lines[0][..50],
        ]
        .concat();
        fs::write(&path, text).expect("the file is written");

        let read: Vec<_> = File::read(&path).collect();
        assert_eq!(read.len(), 4);
        assert_eq!(read[0].as_ref().expect("a letter"), &letters[0]);
        assert!(matches!(
            &read[1],
            Err(ReadError::Line { line: 2, source: DecodeError::Foreign, path: at }) if *at == path
        ));
        assert_eq!(read[2].as_ref().expect("a letter"), &letters[1]);
        assert!(matches!(
            &read[3],
            Err(ReadError::Line {
                line: 5,
                source: DecodeError::Header(_),
                ..
            })
        ));
    }

    #[test]
    fn reading_includes_the_successor_files_in_order() {
        let (folder, path) = in_a_folder();
        let letters: Vec<_> = (0..4).map(|i| letter(i, Some("a"), "x")).collect();
        let names = [
            "letters.jsonl",
            "letters.jsonl.2",
            "letters.jsonl.10",
            "letters.jsonl.torn-1",
        ];
        for (name, letter) in names.iter().zip(&letters) {
            let line = [letter.to_json_line(), b"\n".to_vec()].concat();
            fs::write(folder.path().join(name), line).expect("the file is written");
        }
        assert_eq!(read(&path), letters[..3]);
        fs::remove_file(&path).expect("the path exists");
        assert_eq!(read(&path), letters[1..3], "the first file may be removed");
    }

    #[test]
    fn reading_a_missing_file_is_an_error() {
        let (_folder, path) = in_a_folder();
        let read: Vec<_> = File::read(&path).collect();
        assert!(matches!(read[..], [Err(ReadError::File { .. })]), "{read:?}");
    }

    #[tokio::test]
    #[cfg(unix)]
    async fn dead_letters_in_a_deleted_file_are_not_confirmed() {
        let (_folder, path) = in_a_folder();
        let sink = File::open(&path).expect("the file opens");
        let letters = [letter(1, Some("a"), "one"), letter(2, Some("b"), "two")];
        confirmed(sink.put(&letters[..1]).await);
        fs::remove_file(&path).expect("the path exists");
        let results = sink.put(&letters).await;
        assert_eq!(results.len(), 2);
        for result in results {
            assert!(matches!(result, Err(SinkError::Unavailable(_))), "{result:?}");
        }
        let receipts = confirmed(sink.put(&letters).await);
        assert_eq!(receipts[0].location, format!("{}.1", path.display()));
        assert_eq!(read(&path), letters);
        assert!(matches!(File::open(&path), Err(FileError::Locked { .. })));
    }

    #[tokio::test]
    #[cfg(unix)]
    async fn dead_letters_wait_until_a_new_file_can_be_created() {
        let (folder, path) = in_a_folder();
        let sink = File::open(&path).expect("the file opens");
        fs::remove_dir_all(folder.path()).expect("the path exists");
        let letters = [letter(1, Some("a"), "one")];
        for _ in 0..3 {
            let results = sink.put(&letters).await;
            assert!(matches!(results[..], [Err(SinkError::Unavailable(_))]));
        }
        fs::create_dir(folder.path()).expect("the folder is created again");
        confirmed(sink.put(&letters).await);
        assert_eq!(read(&path), letters);
    }

    /// A dropped put still finishes its write. It writes whole lines, and the next put waits for it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dropped_puts_tear_no_line() {
        let (_folder, path) = in_a_folder();
        let sink = File::open(&path).expect("the file opens");
        let letters: Vec<_> = (0..20)
            .map(|i| letter(i, Some("a"), vec![b'x'; 20_000]))
            .collect();
        for _ in 0..20 {
            let mut put = std::pin::pin!(sink.put(&letters));
            let _ = futures_util::poll!(put.as_mut());
        }
        confirmed(sink.put(&letters).await);
        let read = read(&path);
        assert!(
            read.len() > letters.len(),
            "some of the dropped puts have written"
        );
        for (at, letter) in read.iter().enumerate() {
            assert_eq!(letter, &letters[at % 20], "each put is written as a whole");
        }
    }
}

/// Only the owner of the process may read payloads, whatever the umask allows.
#[cfg(unix)]
#[test]
fn created_files_are_readable_only_by_their_owner() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let _file = File::open(path("letters.jsonl")).expect("the file opens");
    let _checkpoints = redrive::checkpoint::Redb::open(path("checkpoints.redb")).expect("the file opens");
    let _claims = redrive::idempotency::Redb::open(path("claims.redb")).expect("the file opens");
    let _ledger = redrive::replay::ledger::Redb::open(path("ledger.redb")).expect("the file opens");
    let entries: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert!(entries.len() >= 4, "{entries:?}");
    for entry in entries {
        let entry = entry.expect("an entry");
        let mode = entry
            .metadata()
            .expect("the metadata of the file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
    }
}
