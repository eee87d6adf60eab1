use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn record() -> Record {
    let number = "49590338271490256608559692538361571095921575989136588898";
    Record::builder(
        "orders",
        "shardId-000000000003".into(),
        number.parse().expect("digits"),
    )
    .sub_sequence_number(7)
    .partition_key("customer-1")
    .payload(&b"{\"total\":\n1}\0\xff"[..])
    .build()
}

fn letter() -> DeadLetter {
    DeadLetter::new("billing", &record(), Reason::Permanent, &Failure::permanent("no"))
}

fn encoded(letter: &DeadLetter) -> String {
    String::from_utf8_lossy(&letter.encode()).into_owned()
}

#[derive(Debug)]
struct Link(String, Option<Box<Link>>);

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Link {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_deref().map(|link| link as _)
    }
}

/// Returns a failure whose chain has these texts, outermost first.
fn failure_of(texts: Vec<String>) -> Failure {
    let chain = texts
        .into_iter()
        .rev()
        .fold(None, |source, text| Some(Link(text, source.map(Box::new))));
    Failure::transient(chain.unwrap_or_else(|| Link(String::new(), None)))
}

fn text() -> impl Strategy<Value = String> {
    // Plain text, and characters that grow or break when they are escaped.
    prop_oneof![".{0,40}", "[\\x00-\\x1f\"\\\\\u{7f}\u{2028}🦀é]{0,40}"]
}

fn time() -> impl Strategy<Value = SystemTime> {
    // Times up to the year 9999, with nanoseconds.
    (0u64..253_402_300_799, 0u32..1_000_000_000)
        .prop_map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos))
}

prop_compose! {
    fn letters()(
        names in [text(), text(), text(), text(), text()],
        shard in text(),
        key in prop::option::of(text()),
        sequence in "0|[1-9][0-9]{0,128}",
        sub in any::<u64>(),
        arrival in prop::option::of(time()),
        payload in prop::collection::vec(any::<u8>(), 0..400),
        chain in prop::collection::vec(text(), 1..6),
        codes in prop::collection::vec(prop::option::of(text()), 0..14),
        reason in prop::sample::select(vec![
            Reason::Permanent, Reason::AttemptsExhausted, Reason::TimeExhausted, Reason::Panicked,
            Reason::Expiring, Reason::CrashLoop,
        ]),
        trace in prop::option::of(text()),
        redrives in any::<u32>(),
    ) -> DeadLetter {
        let [application, stream, error_type, processor, version] = names;
        let mut record = Record::builder(stream, shard.into(), sequence.parse().expect("digits"))
            .sub_sequence_number(sub)
            .payload(payload);
        if let Some(key) = key {
            record = record.partition_key(key);
        }
        if let Some(arrival) = arrival {
            record = record.arrival(arrival);
        }
        let mut attempts = Attempts::default();
        for code in codes {
            let failure = Failure::transient("busy");
            let failure = match code {
                Some(code) => failure.with_code(code),
                None => failure,
            };
            attempts.push(Duration::from_millis(1_500), &failure, true);
        }
        let mut letter = DeadLetter::new(&application, &record.build(), reason, &failure_of(chain))
            .with_attempts(attempts, &error_type, &processor, Some(&version));
        letter.trace_context = trace;
        letter.redrive_count = redrives;
        letter
    }
}

#[test]
fn arrival_times_keep_their_stored_names() {
    let mut letter = letter();
    letter.arrival = Some(UNIX_EPOCH);
    letter.first_arrival = Some(UNIX_EPOCH);
    let text = encoded(&letter);
    for name in ["\"arrived_at\":\"1970-", "\"first_arrived_at\":\"1970-"] {
        assert!(text.contains(name), "{text}");
    }
}

proptest! {
    #[test]
    fn both_forms_read_back_as_they_were(letter in letters()) {
        let bytes = letter.encode();
        prop_assert_eq!(&DeadLetter::decode(&bytes).expect("reads back"), &letter);
        let line = letter.to_json_line();
        prop_assert!(!line.contains(&b'\n'), "one line");
        prop_assert_eq!(&DeadLetter::from_json_line(&line).expect("reads back"), &letter);
    }

    #[test]
    fn the_payload_follows_the_first_line_feed_as_it_is(letter in letters()) {
        let bytes = letter.encode();
        let at = bytes.iter().position(|&byte| byte == b'\n').expect("a line feed");
        prop_assert_eq!(&bytes[at + 1..], &letter.payload[..]);
        let header: Value = serde_json::from_slice(&bytes[..at]).expect("JSON");
        prop_assert_eq!(&header["kind"], "redrive.dead_letter");
        prop_assert_eq!(&header["schema_version"], 1);
        prop_assert_eq!(&header["payload_bytes"], letter.payload.len());
    }

    #[test]
    fn a_cut_letter_is_never_read(letter in letters(), cut in any::<prop::sample::Index>()) {
        let bytes = letter.encode();
        let cut = cut.index(bytes.len());
        // A dead letter without a payload is whole even without its line feed.
        prop_assume!(!(letter.payload.is_empty() && cut == bytes.len() - 1));
        prop_assert!(DeadLetter::decode(&bytes.slice(..cut)).is_err());
        let line = letter.to_json_line();
        prop_assert!(DeadLetter::from_json_line(&line[..cut.min(line.len() - 1)]).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(DeadLetter::from_json_line(&bytes).is_err());
        prop_assert!(DeadLetter::decode(&bytes.into()).is_err());
    }

    /// Uses texts that are hard to bound: control characters grow sixfold, and a 4-byte character must not be
    /// cut.
    #[test]
    fn the_envelope_stays_within_its_bound(
        piece in prop::sample::select(vec!["\u{1}", "\"", "\\", "🦀", "é", "x", "\n"]),
        offset in 0usize..4,
        links in 1usize..=64,
        of_each in prop::sample::select(vec![1usize, 100, 1_000, 9_000]),
    ) {
        let long = |count: usize| format!("{}{}", "x".repeat(offset), piece.repeat(count));
        // Neighbours differ, because a text that repeats the one above it is left out.
        let chain = (0..links).map(|i| format!("{i}{}", long(of_each))).collect();
        let failure = failure_of(chain).with_code(long(9_000));
        let mut attempts = Attempts::default();
        for _ in 0..20 {
            attempts.push(Duration::MAX, &failure, true);
        }
        let record = Record::builder(
            "s".repeat(128),
            "shardId-000000000000".into(),
            "9".repeat(129).parse().expect("digits"),
        )
        .sub_sequence_number(u64::MAX)
        .arrival(SystemTime::now())
        .partition_key(piece.repeat(256))
        .payload(vec![0; 100])
        .build();
        let mut letter = DeadLetter::new(&piece.repeat(256), &record, Reason::AttemptsExhausted, &failure)
            .with_attempts(attempts, &long(9_000), &long(9_000), Some(&long(9_000)));
        letter.trace_context = Some("t".repeat(1_024));
        letter.redrive_count = u32::MAX;

        let bytes = letter.encode();
        prop_assert!(bytes.len() - 100 < DeadLetter::MAX_ENVELOPE_BYTES, "{}", bytes.len());
        prop_assert_eq!(&DeadLetter::decode(&bytes).expect("reads back"), &letter);
        let chain = serde_json::to_string(&letter.error.chain).expect("JSON");
        prop_assert!(chain.len() <= ErrorReport::MAX_CHAIN_BYTES, "{}", chain.len());
        let whole = links * (2 + offset + of_each) > ErrorReport::MAX_CHAIN_BYTES;
        prop_assert!(letter.error.truncated || !whole, "a cut chain must be marked");
    }
}

#[test]
fn a_chain_that_fits_is_kept_whole() {
    let texts = ["storing the order", "connection reset", "\"os\" error 104"];
    let failure = failure_of(texts.map(str::to_owned).to_vec());
    let letter = DeadLetter::new("billing", &record(), Reason::AttemptsExhausted, &failure);
    assert_eq!(letter.error.chain, texts);
    assert!(!letter.error.truncated);
}

#[test]
fn the_first_two_and_the_last_eight_attempts_are_kept() {
    let mut attempts = Attempts::default();
    for _ in 0..13 {
        attempts.push(Duration::from_micros(2_700), &Failure::transient("busy"), true);
    }
    let numbers = |reports: &[AttemptReport]| reports.iter().map(|report| report.number).collect::<Vec<_>>();
    assert_eq!(attempts.count, 13);
    assert_eq!(numbers(&attempts.first), [1, 2]);
    assert_eq!(numbers(&attempts.last), [6, 7, 8, 9, 10, 11, 12, 13]);
    assert_eq!(attempts.first[0].duration_ms, 2);
}

/// The ids were computed with Python's hashlib: SHA-256 over each part after its length as 8 bytes,
/// big-endian. Readers skip dead letters by id, so a change would make every dead letter that is not yet read
/// look new.
#[test]
fn ids_are_what_they_always_were() {
    let letter = letter();
    assert_eq!(
        letter.id.to_string(),
        "aa44fb04cfd139f07eef5587466318452b8ae9ff9092131005f12cd45d6bf62f"
    );
    assert_eq!(
        letter.origin.to_string(),
        "f81a407c3c3356697f12ab57ab1c11f6384addf0adcfe615b69c7f91c9fb3eaf"
    );
}

#[test]
fn each_part_makes_another_id() {
    let id = |application: &str, stream: &str, shard: &str, number: u64, sub, count| {
        let record = Record::builder(stream, shard.into(), number.into())
            .sub_sequence_number(sub)
            .build();
        letter_id(application, &record, count)
    };
    let ids = [
        id("a", "s", "0", 1, 0, Some(0)),
        id("b", "s", "0", 1, 0, Some(0)),
        id("a", "t", "0", 1, 0, Some(0)),
        id("a", "s", "1", 1, 0, Some(0)),
        id("a", "s", "0", 2, 0, Some(0)),
        id("a", "s", "0", 1, 1, Some(0)),
        id("a", "s", "0", 1, 0, Some(1)),
        id("a", "s", "0", 1, 0, None),
        // The same characters, split differently.
        id("as", "", "0", 1, 0, Some(0)),
        id("", "as", "0", 1, 0, Some(0)),
        id("a", "s0", "", 1, 0, Some(0)),
        id("a", "s", "", 1, 0, Some(0)),
    ];
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

#[test]
fn payload_key_and_time_are_no_part_of_the_id() {
    let record = Record::builder(
        "orders",
        record().shard().clone(),
        record().sequence_number().clone(),
    )
    .sub_sequence_number(7)
    .arrival(SystemTime::now())
    .build();
    let other = DeadLetter::new("billing", &record, Reason::Panicked, &Failure::transient("x"));
    assert_eq!((other.id, other.origin), (letter().id, letter().origin));
}

#[test]
fn a_newer_schema_is_named_and_not_guessed_at() {
    let text = encoded(&letter()).replace("\"schema_version\":1", "\"schema_version\":2");
    match DeadLetter::decode(&text.into()) {
        Err(DecodeError::NewerSchema {
            found: 2,
            supported: 1,
        }) => {}
        other => panic!("{other:?}"),
    }
    // The error names the version, whatever else the line contains.
    let line = br#"{"kind":"redrive.dead_letter","schema_version":7,"id":[1,2]}"#;
    assert!(matches!(
        DeadLetter::from_json_line(line),
        Err(DecodeError::NewerSchema { found: 7, .. })
    ));
}

#[test]
fn fields_that_a_later_release_adds_are_passed_over() {
    let letter = letter();
    let line = String::from_utf8(letter.to_json_line()).expect("JSON");
    let line = line.replacen('{', "{\"added_later\":{\"x\":1},", 1);
    let read = DeadLetter::from_json_line(line.as_bytes()).expect("reads back");
    assert_eq!(read, letter);
}

#[test]
fn what_redrive_did_not_write_is_foreign() {
    let foreign = [
        "",
        "{}",
        "[]",
        "null",
        "hello",
        r#"{"kind":"other","schema_version":1}"#,
        r#"{"kind":"redrive.dead_letter"}"#,
        r#"{"schema_version":1}"#,
        r#"{"kind":7,"schema_version":1}"#,
        r#"{"version":"1.0","KinesisBatchInfo":{}}"#,
    ];
    for text in foreign {
        assert!(
            matches!(
                DeadLetter::from_json_line(text.as_bytes()),
                Err(DecodeError::Foreign)
            ),
            "{text}"
        );
        assert!(
            matches!(
                DeadLetter::decode(&text.to_owned().into()),
                Err(DecodeError::Foreign)
            ),
            "{text}"
        );
    }
}

#[test]
fn a_torn_letter_is_told_from_a_foreign_text() {
    let line = letter().to_json_line();
    for cut in [40, 200, line.len() - 1] {
        let read = DeadLetter::from_json_line(&line[..cut]);
        assert!(matches!(read, Err(DecodeError::Header(_))), "{read:?}");
    }
}

#[test]
fn a_payload_of_another_length_is_refused() {
    let bytes = letter().encode();
    let longer = Bytes::from([&bytes[..], b"x"].concat());
    for (changed, length) in [(bytes.slice(..bytes.len() - 1), 13), (longer, 15)] {
        match DeadLetter::decode(&changed) {
            Err(DecodeError::PayloadLength { expected: 14, found }) => assert_eq!(found, length),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn damaged_base64_is_told() {
    let line = String::from_utf8(letter().to_json_line()).expect("JSON");
    let damaged = line.replace("\"payload\":\"", "\"payload\":\"*");
    assert!(matches!(
        DeadLetter::from_json_line(damaged.as_bytes()),
        Err(DecodeError::Payload(_))
    ));
}

#[test]
fn decoding_copies_no_payload() {
    let bytes = letter().encode();
    let read = DeadLetter::decode(&bytes).expect("reads back");
    assert!(bytes.as_ptr_range().contains(&read.payload.as_ptr()));
}

#[test]
fn debug_shows_neither_payload_nor_key_nor_error_text() {
    let failure = Failure::permanent("invalid value 4111-1111");
    let record = Record::builder("s", "shardId-0".into(), 1.into())
        .partition_key("alice@example.com")
        .payload("secret")
        .build();
    let text = format!("{:?}", DeadLetter::new("a", &record, Reason::Permanent, &failure));
    for hidden in ["4111", "alice", "secret"] {
        assert!(!text.contains(hidden), "{text}");
    }
}
