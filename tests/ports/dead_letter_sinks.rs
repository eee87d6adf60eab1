//! The dead-letter sinks: the suite that all of them pass, and what the file has of its own.
//! `kinesis_sink.rs` has what the stream has of its own.

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
            sink: File::open(&path).expect("it opens"),
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
        let server = KinesisServer::start().await.expect("it starts");
        create_stream(&server.client(), "letters", 3)
            .await
            .expect("it is made");
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
            .map(|record| DeadLetter::decode(&record.data.into()).expect("it reads back"))
            .collect()
    }

    fn longest_key(&self) -> String {
        // Kinesis counts characters, ferrokinesis bytes.
        "🦀".repeat(64)
    }
}

fn read(path: &PathBuf) -> Vec<DeadLetter> {
    File::read(path)
        .map(|letter| letter.expect("it reads back"))
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
    async fn opened_again_it_appends() {
        let (_folder, path) = in_a_folder();
        let letters = [letter(1, Some("a"), "one"), letter(2, Some("a"), "two")];
        for letter in &letters {
            let sink = File::open(&path).expect("it opens");
            let receipts = confirmed(sink.put(std::slice::from_ref(letter)).await);
            assert_eq!(receipts[0].location, path.display().to_string());
        }
        assert_eq!(read(&path), letters);
    }

    #[tokio::test]
    async fn a_letter_is_one_line_of_json() {
        let (_folder, path) = in_a_folder();
        let sink = File::open(&path).expect("it opens");
        confirmed(
            sink.put(&[letter(1, Some("a"), "x\ny"), letter(2, None, "")])
                .await,
        );
        let text = fs::read_to_string(&path).expect("it is text");
        assert!(text.ends_with('\n'));
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let json: serde_json::Value = serde_json::from_str(line).expect("it is JSON");
            assert_eq!(json["error"]["chain"].as_array().map(Vec::len), Some(1));
        }
    }

    #[tokio::test]
    async fn a_torn_last_line_is_set_aside_and_the_rest_goes_on() {
        let (folder, path) = in_a_folder();
        let whole = [letter(1, Some("a"), "one"), letter(2, Some("a"), "two")];
        confirmed(File::open(&path).expect("it opens").put(&whole).await);
        let torn = &letter(3, Some("a"), "three").to_json_line()[..100];
        let mut text = fs::read(&path).expect("it is there");
        text.extend_from_slice(torn);
        fs::write(&path, text).expect("it is written");

        let sink = File::open(&path).expect("it opens");
        let aside = folder.path().join("letters.jsonl.torn-1");
        assert_eq!(sink.torn(), Some(&*aside));
        assert_eq!(fs::read(&aside).expect("it is there"), torn);
        let last = letter(3, Some("a"), "three");
        confirmed(sink.put(std::slice::from_ref(&last)).await);
        assert_eq!(read(&path), [&whole[..], &[last]].concat());

        drop(sink);
        assert_eq!(File::open(&path).expect("it opens").torn(), None);
    }

    #[tokio::test]
    async fn it_is_locked_until_it_is_dropped() {
        let (_folder, path) = in_a_folder();
        let first = File::open(&path).expect("it opens");
        let error = File::open(&path).expect_err("the first has it");
        assert!(matches!(error, FileError::Locked { .. }), "{error:?}");
        assert!(
            error.to_string().contains("stop the process that holds it"),
            "{error}"
        );
        let clone = first.clone();
        drop(first);
        assert!(
            matches!(File::open(&path), Err(FileError::Locked { .. })),
            "a clone holds it"
        );
        drop(clone);
        File::open(&path).expect("it is free again");
    }

    #[test]
    fn what_cannot_be_opened_is_an_error() {
        let (folder, _) = in_a_folder();
        for path in [
            folder.path().join("none/letters.jsonl"),
            folder.path().to_path_buf(),
        ] {
            let error = File::open(&path).expect_err("it cannot be written to");
            assert!(matches!(error, FileError::Open { .. }), "{error:?}");
        }
        #[cfg(target_os = "linux")]
        assert!(matches!(File::open("/dev/full"), Err(FileError::Open { .. })));
    }

    #[tokio::test]
    async fn reading_goes_on_behind_a_bad_line_and_names_it() {
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
        fs::write(&path, text).expect("it is written");

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
    fn reading_goes_through_the_successors_in_order() {
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
            fs::write(folder.path().join(name), line).expect("it is written");
        }
        assert_eq!(read(&path), letters[..3]);
        fs::remove_file(&path).expect("it was there");
        assert_eq!(read(&path), letters[1..3], "the first may be taken away");
    }

    #[test]
    fn reading_what_is_not_there_is_an_error() {
        let (_folder, path) = in_a_folder();
        let read: Vec<_> = File::read(&path).collect();
        assert!(matches!(read[..], [Err(ReadError::File { .. })]), "{read:?}");
    }

    #[tokio::test]
    #[cfg(unix)]
    async fn letters_in_a_deleted_file_are_not_confirmed() {
        let (_folder, path) = in_a_folder();
        let sink = File::open(&path).expect("it opens");
        let letters = [letter(1, Some("a"), "one"), letter(2, Some("b"), "two")];
        confirmed(sink.put(&letters[..1]).await);
        fs::remove_file(&path).expect("it was there");
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
    async fn letters_wait_until_a_new_file_can_be_made() {
        let (folder, path) = in_a_folder();
        let sink = File::open(&path).expect("it opens");
        fs::remove_dir_all(folder.path()).expect("it was there");
        let letters = [letter(1, Some("a"), "one")];
        for _ in 0..3 {
            let results = sink.put(&letters).await;
            assert!(matches!(results[..], [Err(SinkError::Unavailable(_))]));
        }
        fs::create_dir(folder.path()).expect("it is made again");
        confirmed(sink.put(&letters).await);
        assert_eq!(read(&path), letters);
    }

    /// The put is dropped, its job is not: what it writes is whole, and the next one waits for it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dropped_puts_tear_no_line() {
        let (_folder, path) = in_a_folder();
        let sink = File::open(&path).expect("it opens");
        let letters: Vec<_> = (0..20)
            .map(|i| letter(i, Some("a"), vec![b'x'; 20_000]))
            .collect();
        for _ in 0..20 {
            let mut put = std::pin::pin!(sink.put(&letters));
            let _ = futures_util::poll!(put.as_mut());
        }
        confirmed(sink.put(&letters).await);
        let read = read(&path);
        assert!(read.len() > letters.len(), "some of the dropped puts had begun");
        for (at, letter) in read.iter().enumerate() {
            assert_eq!(letter, &letters[at % 20], "put after put");
        }
    }
}

/// Payloads are for the owner of the process alone, whatever the umask allows.
#[cfg(unix)]
#[test]
fn only_their_owner_reads_the_files_that_are_created() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let _file = File::open(path("letters.jsonl")).expect("it opens");
    let _checkpoints = redrive::checkpoint::Redb::open(path("checkpoints.redb")).expect("it opens");
    let _claims = redrive::idempotency::Redb::open(path("claims.redb")).expect("it opens");
    let _ledger = redrive::replay::ledger::Redb::open(path("ledger.redb")).expect("it opens");
    let entries: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert!(entries.len() >= 4, "{entries:?}");
    for entry in entries {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("its mode").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
    }
}
