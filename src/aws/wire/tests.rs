//! Reads the same pages with the readers of this crate and with that of the SDK.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::get_records::{GetRecordsError, GetRecordsOutput};
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{self, ShardIteratorType, StartingPosition, SubscribeToShardEvent};
use aws_sdk_kinesis::{Client, Config};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeSerializationInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::source::Source as _;
use super::*;

type Failed = Box<SdkError<GetRecordsError, Response>>;
/// The content type and the body of each request.
type Asked = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A server that gives the same answer to each call.
#[derive(Debug, Clone, Default)]
struct Server {
    status: u16,
    error: Option<&'static str>,
    body: Vec<u8>,
    asked: Asked,
}

impl HttpConnector for Server {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let kind = request
            .headers()
            .get("content-type")
            .unwrap_or_default()
            .to_owned();
        let body = request.body().bytes().unwrap_or_default().to_vec();
        self.asked.lock().expect("no panic").push((kind, body));
        let status = self.status.try_into().expect("a status");
        let mut response = Response::new(status, SdkBody::from(self.body.clone()));
        if let Some(error) = self.error {
            response.headers_mut().insert("x-amzn-ErrorType", error);
        }
        HttpConnectorFuture::ready(Ok(response))
    }
}

fn ok(body: impl Into<Vec<u8>>) -> Server {
    Server {
        status: 200,
        body: body.into(),
        ..Server::default()
    }
}

fn client(server: Server) -> Client {
    let connector = SharedHttpConnector::new(server);
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .allow_no_auth()
        .retry_config(RetryConfig::disabled())
        .http_client(http_client_fn(move |_, _| connector.clone()));
    Client::from_conf(config.build())
}

fn block_on<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(call)
}

/// The answer to a call, and the records that were read.
#[derive(Debug, PartialEq)]
struct Answered<T> {
    without_records: T,
    records: Vec<Fields>,
}

/// The sequence number, the partition key, the arrival and the payload of a record.
type Fields = (String, Option<String>, Option<SystemTime>, Bytes);

fn shard() -> Arc<Source> {
    Arc::new(Source {
        stream: "orders".into(),
        shard: "shardId-000000000000".into(),
    })
}

fn fields(records: Vec<Record>) -> Vec<Fields> {
    let fields = |record: Record| {
        (
            record.sequence_number().to_string(),
            record.partition_key().map(str::to_owned),
            record.arrival(),
            record.payload().clone(),
        )
    };
    records.into_iter().map(fields).collect()
}

/// Returns the fields of records that the SDK has read.
fn sdk_fields(records: &mut Vec<types::Record>) -> Vec<Fields> {
    let records = std::mem::take(records).into_iter().map(|mut record| {
        // Its reader of JSON loses a part of a millisecond.
        let time = &mut record.approximate_arrival_timestamp;
        *time =
            time.map(|time| DateTime::from_millis((time.as_nanos() + 500_000).div_euclid(1_000_000) as i64));
        crate::aws::shard_pages::record(&shard(), record).expect("a valid number")
    });
    fields(records.collect())
}

/// Calls GetRecords with this protocol, or with that of the SDK.
async fn call(server: Server, protocol: Option<&SharedClientProtocol>) -> Result<GetRecordsOutput, Failed> {
    let call = client(server).get_records();
    let mut call = call.shard_iterator("it\"erator").limit(10_000).customize();
    if let Some(protocol) = protocol {
        let mut config = Config::builder();
        config.set_protocol(Some(protocol.clone()));
        call = call.config_override(config);
    }
    call.send().await.map_err(Box::new)
}

/// Calls GetRecords; `None`: with the protocol of the SDK.
fn get_records(server: Server, encoding: Option<Encoding>) -> Result<Answered<GetRecordsOutput>, Failed> {
    let own = ShardRecords::new(shard());
    let protocol = encoding.map(|encoding| own.protocol(encoding));
    let mut without_records = block_on(call(server, protocol))?;
    let records = match protocol {
        Some(_) => fields(own.take()),
        None => sdk_fields(&mut without_records.records),
    };
    assert!(without_records.records.is_empty(), "records for the SDK");
    Ok(Answered {
        without_records,
        records,
    })
}

/// A page, as a test writes it.
#[derive(Debug, Clone)]
struct Page {
    records: Vec<Written>,
    next: Option<String>,
    behind: Option<i64>,
    children: Vec<Child>,
    /// In JSON, what is absent or empty is `null`.
    has_nulls: bool,
}

#[derive(Debug, Clone)]
struct Written {
    number: String,
    millis: Option<i64>,
    data: Vec<u8>,
    key: Option<String>,
    is_encrypted: bool,
}

#[derive(Debug, Clone)]
struct Child {
    shard: String,
    parents: Vec<String>,
    keys: (String, String),
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9-]{0,40}",
        "\\PC{0,20}",
        vec(any::<char>(), 0..20).prop_map(String::from_iter),
    ]
}

fn page() -> impl Strategy<Value = Page> {
    let data = prop_oneof![vec(any::<u8>(), 0..300), vec(any::<u8>(), 250..70_000)];
    let record = (
        "[1-9][0-9]{0,128}",
        proptest::option::of(1_300_000_000_000..4_000_000_000_000_i64),
        data,
        proptest::option::of(text()),
        any::<bool>(),
    );
    let record = record.prop_map(|(number, millis, data, key, is_encrypted)| Written {
        number,
        millis,
        data,
        key,
        is_encrypted,
    });
    let child = (
        "shardId-[0-9]{12}",
        vec(text(), 0..3),
        ("[0-9]{1,39}", "[0-9]{1,39}"),
    );
    let child = child.prop_map(|(shard, parents, keys)| Child { shard, parents, keys });
    let behind = proptest::option::of(prop_oneof![0..1_000_i64, 0..i64::MAX]);
    let parts = (
        vec(record, 0..8),
        proptest::option::of(text()),
        behind,
        vec(child, 0..3),
        any::<bool>(),
    );
    parts.prop_map(|(records, next, behind, children, has_nulls)| Page {
        records,
        next,
        behind,
        children,
        has_nulls,
    })
}

impl Page {
    fn to_json(&self) -> Vec<u8> {
        self.to_json_with("NextShardIterator")
    }

    /// Writes the page as an event of a subscription.
    fn to_event(&self) -> Vec<u8> {
        self.to_json_with("ContinuationSequenceNumber")
    }

    fn to_json_with(&self, next_name: &str) -> Vec<u8> {
        use base64::Engine as _;
        let encode = |data: &[u8]| base64::engine::general_purpose::STANDARD.encode(data);
        let add = |to: &mut Value, name: &str, value: Option<Value>| match value {
            Some(value) => to[name] = value,
            None if self.has_nulls => to[name] = Value::Null,
            None => {}
        };
        // An empty list is written as such without nulls: each list but the one of child shards is required.
        let list = |items: Vec<Value>| (!(items.is_empty() && self.has_nulls)).then(|| json!(items));
        let records = self.records.iter().map(|record| {
            let mut written = json!({"Data": encode(&record.data), "SequenceNumber": record.number});
            let arrival = record.millis.map(|millis| json!(millis as f64 / 1_000.0));
            add(
                &mut written,
                "PartitionKey",
                record.key.as_ref().map(|key| json!(key)),
            );
            add(&mut written, "ApproximateArrivalTimestamp", arrival);
            add(
                &mut written,
                "EncryptionType",
                record.is_encrypted.then(|| json!("KMS")),
            );
            written
        });
        let records = records.collect();
        let children = self.children.iter().map(|child| {
            let mut written = json!({
                "ShardId": child.shard,
                "HashKeyRange": {"StartingHashKey": child.keys.0, "EndingHashKey": child.keys.1},
            });
            let parents = child.parents.iter().map(|parent| json!(parent)).collect();
            add(&mut written, "ParentShards", list(parents));
            written
        });
        let children: Vec<Value> = children.collect();
        let mut page = json!({});
        add(&mut page, "Records", list(records));
        add(&mut page, next_name, self.next.as_ref().map(|next| json!(next)));
        add(
            &mut page,
            "MillisBehindLatest",
            self.behind.map(|behind| json!(behind)),
        );
        add(
            &mut page,
            "ChildShards",
            (!children.is_empty()).then(|| json!(children)),
        );
        page.to_string().into_bytes()
    }

    /// Writes the page in CBOR, in one of its many forms.
    fn to_cbor(&self, forms: Forms) -> Vec<u8> {
        let mut cbor = Writer {
            bytes: Vec::new(),
            forms,
        };
        if cbor.forms.draw(4) == 0 {
            // The tag of CBOR itself.
            cbor.bytes.extend([0xd9, 0xd9, 0xf7]);
        }
        cbor.map(|page| {
            match self.records.is_empty() && page.forms.draw(2) == 0 {
                true => page.absent("Records"),
                false => page.member("Records", |page| {
                    page.list(self.records.len(), |page, index| {
                        page.record(&self.records[index])
                    });
                }),
            }
            match &self.next {
                Some(next) => page.member("NextShardIterator", |page| page.text(next)),
                None => page.absent("NextShardIterator"),
            }
            match self.behind {
                Some(behind) => page.member("MillisBehindLatest", |page| page.integer(behind)),
                None => page.absent("MillisBehindLatest"),
            }
            if !self.children.is_empty() {
                page.member("ChildShards", |page| {
                    page.list(self.children.len(), |page, index| {
                        page.child(&self.children[index])
                    });
                });
            }
        });
        cbor.bytes
    }
}

/// Draws the forms of values.
#[derive(Debug, Clone)]
struct Forms(u64);

impl Forms {
    fn draw(&mut self, below: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % below
    }
}

/// Writes CBOR.
struct Writer {
    bytes: Vec<u8>,
    forms: Forms,
}

impl Writer {
    fn head(&mut self, major: u8, argument: u64) {
        let smallest = match argument {
            0..24 => 0,
            24..=0xff => 1,
            0x100..=0xffff => 2,
            0x1_0000..=0xffff_ffff => 4,
            _ => 8,
        };
        // A longer form than necessary is valid.
        let width = match self.forms.draw(8) {
            0 => 8,
            1 => smallest.max(4),
            2 => smallest.max(2),
            3 => smallest.max(1),
            _ => smallest,
        };
        let info = match width {
            0 => argument as u8,
            1 => 24,
            2 => 25,
            4 => 26,
            _ => 27,
        };
        self.bytes.push(major << 5 | info);
        self.bytes.extend_from_slice(&argument.to_be_bytes()[8 - width..]);
    }

    fn string(&mut self, major: u8, bytes: &[u8], is_boundary: impl Fn(usize) -> bool) {
        if self.forms.draw(5) > 0 {
            self.head(major, bytes.len() as u64);
            self.bytes.extend_from_slice(bytes);
            return;
        }
        self.bytes.push(major << 5 | 31);
        let mut start = 0;
        while start < bytes.len() {
            let mut end = (start + 1 + self.forms.draw(200) as usize).min(bytes.len());
            while !is_boundary(end) {
                end += 1;
            }
            self.head(major, (end - start) as u64);
            self.bytes.extend_from_slice(&bytes[start..end]);
            start = end;
        }
        self.bytes.push(0xff);
    }

    fn text(&mut self, text: &str) {
        self.string(3, text.as_bytes(), |index| text.is_char_boundary(index));
    }

    fn data(&mut self, data: &[u8]) {
        match self.forms.draw(8) {
            0 => {
                use base64::Engine as _;
                self.text(&base64::engine::general_purpose::STANDARD.encode(data));
            }
            _ => self.string(2, data, |_| true),
        }
    }

    fn integer(&mut self, integer: i64) {
        match integer < 0 {
            true => self.head(1, !integer as u64),
            false => self.head(0, integer as u64),
        }
    }

    fn float(&mut self, float: f64) {
        self.bytes.push(0xfb);
        self.bytes.extend_from_slice(&float.to_be_bytes());
    }

    fn time(&mut self, millis: i64) {
        if self.forms.draw(2) == 0 {
            self.bytes.push(0xc1);
        }
        match self.forms.draw(4) {
            0 => self.float(millis as f64 / 1_000.0),
            1 if millis % 1_000 == 0 => self.integer(millis / 1_000),
            _ => self.integer(millis),
        }
    }

    fn map(&mut self, members: impl FnOnce(&mut Writer)) {
        // The length is not known before the members are written, so the definite form is written afterwards.
        let before = std::mem::take(&mut self.bytes);
        members(self);
        let written = std::mem::replace(&mut self.bytes, before);
        match self.forms.draw(2) {
            0 => {
                self.bytes.push(0xbf);
                self.bytes.extend(&written);
                self.bytes.push(0xff);
            }
            _ => {
                let mut reader = Cbor::new(&written);
                let mut values = 0;
                while reader.end().is_err() {
                    reader.skip(0).expect("written by this test");
                    values += 1;
                }
                self.head(5, values / 2);
                self.bytes.extend(&written);
            }
        }
    }

    fn list(&mut self, length: usize, item: impl Fn(&mut Writer, usize)) {
        let is_marked = self.forms.draw(2) == 0;
        match is_marked {
            true => self.bytes.push(0x9f),
            false => self.head(4, length as u64),
        }
        (0..length).for_each(|index| item(self, index));
        if is_marked {
            self.bytes.push(0xff);
        }
    }

    fn member(&mut self, name: &str, value: impl FnOnce(&mut Writer)) {
        if self.forms.draw(6) == 0 {
            self.unknown();
        }
        self.text(name);
        value(self);
    }

    /// Writes a member that no version of the SDK knows.
    fn unknown(&mut self) {
        let name = format!("Unknown{}", self.bytes.len());
        self.text(&name);
        match self.forms.draw(7) {
            0 => self.bytes.extend([0xf9, 0x3c, 0x00]),
            1 => self.bytes.push(0xf5),
            2 => self.list(2, |list, _| list.data(b"payload")),
            3 => self.map(|map| {
                map.text("Inner");
                map.integer(-7);
            }),
            4 => self.bytes.extend([0xfa, 0x47, 0xc3, 0x50, 0x00]),
            5 => self.bytes.extend([0xf8, 0xff]),
            _ => self.text("value"),
        }
    }

    /// Writes a member without a value, or nothing.
    fn absent(&mut self, name: &str) {
        match self.forms.draw(3) {
            0 => {
                self.text(name);
                self.bytes.push(0xf6);
            }
            1 => {
                self.text(name);
                self.bytes.push(0xf7);
            }
            _ => {}
        }
    }

    fn record(&mut self, record: &Written) {
        self.map(|written| {
            match record.millis {
                Some(millis) => written.member("ApproximateArrivalTimestamp", |it| it.time(millis)),
                None => written.absent("ApproximateArrivalTimestamp"),
            }
            written.member("Data", |it| it.data(&record.data));
            match &record.key {
                Some(key) => written.member("PartitionKey", |it| it.text(key)),
                None => written.absent("PartitionKey"),
            }
            written.member("SequenceNumber", |it| it.text(&record.number));
            if record.is_encrypted {
                written.member("EncryptionType", |it| it.text("KMS"));
            }
        });
    }

    fn child(&mut self, child: &Child) {
        self.map(|written| {
            written.member("ShardId", |it| it.text(&child.shard));
            match child.parents.is_empty() && written.forms.draw(2) == 0 {
                true => written.absent("ParentShards"),
                false => written.member("ParentShards", |it| {
                    it.list(child.parents.len(), |it, index| it.text(&child.parents[index]));
                }),
            }
            written.member("HashKeyRange", |it| {
                it.map(|range| {
                    range.member("StartingHashKey", |it| it.text(&child.keys.0));
                    range.member("EndingHashKey", |it| it.text(&child.keys.1));
                });
            });
        });
    }
}

/// Returns the protocol that the SDK uses by itself.
fn protocol_of_the_sdk() -> SharedClientProtocol {
    #[derive(Debug, Clone, Default)]
    struct Capture(Arc<Mutex<Option<SharedClientProtocol>>>);

    #[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
    impl Intercept for Capture {
        fn name(&self) -> &'static str {
            "Capture"
        }

        fn read_before_serialization(
            &self,
            _: &BeforeSerializationInterceptorContextRef<'_>,
            _: &RuntimeComponents,
            cfg: &mut ConfigBag,
        ) -> Result<(), BoxError> {
            *self.0.lock().expect("no panic") = cfg.load::<SharedClientProtocol>().cloned();
            Ok(())
        }
    }

    let capture = Capture::default();
    let call = client(ok("{}")).get_records().customize();
    block_on(call.interceptor(capture.clone()).send()).expect("valid");
    capture.0.lock().expect("no panic").take().expect("a protocol")
}

/// Reads an event of a subscription.
fn event(protocol: &SharedClientProtocol, event: &[u8]) -> Result<SubscribeToShardEvent, SerdeError> {
    let codec = protocol.payload_codec().expect("a codec");
    SubscribeToShardEvent::deserialize(&mut *codec.create_deserializer(event))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn events_are_read_as_by_the_sdk(page in page(), at: prop::sample::Index) {
        let own = ShardRecords::new(shard());
        let json = own.protocol(Encoding::Json);
        let body = page.to_event();
        let mut expected = event(&protocol_of_the_sdk(), &body).expect("valid");
        let records = sdk_fields(&mut expected.records);
        prop_assert_eq!(event(json, &body).expect("valid"), expected);
        prop_assert_eq!(fields(own.take()), records);
        let cut = at.index(body.len());
        prop_assert!(event(json, &body[..cut]).is_err(), "{cut} of {} bytes", body.len());
    }

    #[test]
    fn readers_agree_with_the_sdk(page in page(), forms: u64) {
        let (json, cbor) = (page.to_json(), page.to_cbor(Forms(forms)));
        let expected = get_records(ok(json.clone()), None).expect("valid");
        prop_assert_eq!(expected.records.len(), page.records.len());
        let read = |body: &[u8], encoding| get_records(ok(body), Some(encoding)).expect("valid");
        prop_assert_eq!(&read(&json, Encoding::Json), &expected);
        prop_assert_eq!(&read(&cbor, Encoding::Cbor), &expected);
        // An emulator may answer in the other encoding.
        prop_assert_eq!(&read(&json, Encoding::Cbor), &expected);
        prop_assert_eq!(&read(&cbor, Encoding::Json), &expected);
    }

    #[test]
    fn truncated_answer_is_an_error(page in page(), forms: u64, at: prop::sample::Index) {
        for body in [page.to_json(), page.to_cbor(Forms(forms))] {
            let cut = at.index(body.len());
            let read = get_records(ok(&body[..cut]), Some(Encoding::Cbor));
            prop_assert!(read.is_err(), "{cut} of {} bytes: {read:?}", body.len());
        }
    }

    #[test]
    fn corrupt_answer_is_read_or_refused(
        page in page(),
        forms: u64,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for mut body in [page.to_json(), page.to_cbor(Forms(forms))] {
            for (at, byte) in &changes {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            // Neither a panic nor an endless loop.
            let _ = get_records(ok(body), Some(Encoding::Cbor));
        }
    }
}

#[test]
fn every_prefix_of_a_page_is_an_error() {
    let record = |number: &str| Written {
        number: number.to_owned(),
        millis: Some(1_700_000_000_123),
        data: b"payload".to_vec(),
        key: Some("key \u{1F600} \"".to_owned()),
        is_encrypted: true,
    };
    let page = Page {
        records: vec![record("1"), record("2")],
        next: Some("next".to_owned()),
        behind: Some(5),
        children: Vec::new(),
        has_nulls: false,
    };
    for body in [page.to_json(), page.to_cbor(Forms(1)), page.to_cbor(Forms(2))] {
        assert!(get_records(ok(body.clone()), Some(Encoding::Cbor)).is_ok());
        for cut in 0..body.len() {
            let read = get_records(ok(&body[..cut]), Some(Encoding::Cbor));
            assert!(read.is_err(), "{cut} of {} bytes: {read:?}", body.len());
        }
    }
}

#[test]
fn largest_payload_is_read() {
    let record = Written {
        number: "1".to_owned(),
        millis: None,
        data: (0..10 * 1024 * 1024).map(|index| (index % 251) as u8).collect(),
        key: Some("key".to_owned()),
        is_encrypted: false,
    };
    let page = Page {
        records: vec![record],
        next: None,
        behind: None,
        children: Vec::new(),
        has_nulls: false,
    };
    let expected = get_records(ok(page.to_json()), None).expect("valid");
    for body in [page.to_json(), page.to_cbor(Forms(0))] {
        let read = get_records(ok(body), Some(Encoding::Cbor)).expect("valid");
        assert!(read == expected, "another payload");
    }
}

#[test]
fn record_without_a_number_or_a_payload_is_an_error() {
    for body in [
        r#"{"Records":[{"SequenceNumber":"1","PartitionKey":"key"}]}"#,
        r#"{"Records":[{"Data":"","PartitionKey":"key"}]}"#,
        r#"{"Records":[{"Data":null,"SequenceNumber":"1"}]}"#,
        r#"{"Records":[],"Records":[]}"#,
        r#"{"Records":[]} {}"#,
        r#"{"Records":[,]}"#,
        r#"{"Records":[{"SequenceNumber":"1","Data":"\ud800"}]}"#,
        r#"{"MillisBehindLatest":1.5}"#,
    ] {
        let read = get_records(ok(body), Some(Encoding::Json));
        assert!(read.is_err(), "{body}: {read:?}");
    }
}

#[test]
fn escapes_are_decoded() {
    let body = r#" { "Next\u0053hardIterator" : "\u00e4\n\ud83d\ude00\/" , "MillisBehindLatest" : 1e3 } "#;
    let read = get_records(ok(body), Some(Encoding::Json)).expect("valid");
    assert_eq!(
        read.without_records.next_shard_iterator(),
        Some("\u{e4}\n\u{1f600}/")
    );
    assert_eq!(read.without_records.millis_behind_latest(), Some(1_000));
}

#[test]
fn deeply_nested_answer_is_an_error() {
    let json = format!(r#"{{"Unknown":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(get_records(ok(json), Some(Encoding::Json)).is_err());
    let cbor = [b"\xbf\x61u".as_slice(), &[0x9f; 100_000], &[0xff; 100_001]].concat();
    assert!(get_records(ok(cbor), Some(Encoding::Cbor)).is_err());
}

/// A list that states a length of 2^63 items, and ends.
#[test]
fn wrong_length_reserves_no_memory() {
    for body in [
        b"\xa1\x67Records\x9b\x80\x00\x00\x00\x00\x00\x00\x00".as_slice(),
        b"\xa1\x67Records\x81\xa1\x64Data\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert!(get_records(ok(body), Some(Encoding::Cbor)).is_err());
    }
}

#[test]
fn small_integers_are_seconds_and_large_ones_milliseconds() {
    let time = |value: &[u8]| {
        let record = [
            b"\xa1\x67Records\x81\xa3\x64Data\x40\x6eSequenceNumber\x611\x78\x1bApproximateArrivalTimestamp",
            value,
        ];
        let read = get_records(ok(record.concat()), Some(Encoding::Cbor));
        read.map(|read| read.records[0].2.expect("a time"))
    };
    let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let is = |value: &[u8], millis| assert_eq!(time(value).expect("a time"), at(millis));
    is(b"\x1b\x00\x00\x01\x8b\xcf\xe5\x68\x7b", 1_700_000_000_123);
    is(b"\xc1\x1a\x65\x53\xf1\x00", 1_700_000_000_000);
    is(b"\xfb\x41\xd9\x54\xfc\x40\x07\xdf\x3b", 1_700_000_000_123);
    let in_json = |time: &str| {
        let body = format!(
            r#"{{"Records":[{{"Data":"","SequenceNumber":"1","ApproximateArrivalTimestamp":{time}}}]}}"#
        );
        let read = get_records(ok(body), Some(Encoding::Json)).expect("valid");
        read.records[0].2.expect("a time")
    };
    assert_eq!(in_json("1700000000.123"), at(1_700_000_000_123));
    assert_eq!(in_json("1.700000000123E9"), at(1_700_000_000_123));
    assert_eq!(in_json("1700000000"), at(1_700_000_000_000));
    assert_eq!(in_json("1700000000123"), at(1_700_000_000_123));
    // Some emulators write a text, which the SDK reads too.
    assert_eq!(in_json(r#""2023-11-14T22:13:20.123Z""#), at(1_700_000_000_123));
    assert_eq!(in_json(r#""2023-11-14T23:13:20+01:00""#), at(1_700_000_000_000));
    assert!(time(b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00").is_err(), "infinity");
    assert!(time(b"\xf9\x7e\x00").is_err(), "not a number");
    assert!(time(b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
}

#[test]
fn code_of_an_error_is_read_in_each_form() {
    let failed = |error, body: &[u8]| {
        let server = Server {
            status: 400,
            error,
            body: body.to_vec(),
            ..Server::default()
        };
        get_records(server, Some(Encoding::Cbor)).expect_err("an error")
    };
    const EXPIRED: &str = "ExpiredIteratorException";
    let cbor = b"\xbf\x66__type\x78\x18ExpiredIteratorException\x67message\x63old\xff";
    let json = br#"{"__type":"com.amazonaws.kinesis#ExpiredIteratorException","message":"old"}"#;
    for error in [
        failed(None, cbor),
        failed(None, json),
        failed(Some("Expired:x"), cbor),
    ] {
        assert!(matches!(error.code(), Some(EXPIRED | "Expired")), "{error:?}");
        assert_eq!(error.message(), Some("old"));
    }
    let is_expired = |error: &Failed| {
        let error = error.as_service_error();
        error.is_some_and(GetRecordsError::is_expired_iterator_exception)
    };
    assert!(is_expired(&failed(None, cbor)) && is_expired(&failed(None, json)));
    for body in ["", "<html>", "<Error/>", "{", "\u{bf}", "null"] {
        assert!(is_expired(&failed(Some(EXPIRED), body.as_bytes())), "{body}");
        assert_eq!(failed(None, body.as_bytes()).code(), None, "{body}");
    }
}

/// An answer without records must not bring those of the answer before.
#[test]
fn records_are_returned_once() {
    let own = ShardRecords::new(shard());
    let json = own.protocol(Encoding::Json);
    let with = r#"{"Records":[{"SequenceNumber":"1","Data":""}]}"#;
    block_on(async {
        call(ok(with), Some(json)).await.expect("valid");
        call(ok("{}"), Some(json)).await.expect("valid");
        assert_eq!(own.take().len(), 0);
        call(ok(with), Some(json)).await.expect("valid");
        assert_eq!(own.take().len(), 1);
        assert_eq!(own.take().len(), 0);
    });
}

#[test]
fn requests_are_written_in_each_encoding() {
    let asked = |encoding| {
        let server = ok("{}");
        get_records(server.clone(), encoding).expect("valid");
        server.asked.lock().expect("no panic").remove(0)
    };
    let (kind, cbor) = asked(Some(Encoding::Cbor));
    assert_eq!(kind, "application/x-amz-cbor-1.1");
    assert_eq!(
        cbor,
        b"\xbf\x6dShardIterator\x69it\"erator\x65Limit\x19\x27\x10\xff"
    );
    let (kind, json) = asked(Some(Encoding::Json));
    assert_eq!((kind, json), asked(None));
}

#[test]
fn request_for_a_subscription_is_written_as_by_the_sdk() {
    let asked = |protocol: Option<&SharedClientProtocol>| {
        let server = ok("");
        let from = StartingPosition::builder()
            .r#type(ShardIteratorType::AtTimestamp)
            .timestamp(DateTime::from_millis(1_700_000_000_120));
        let call = client(server.clone()).subscribe_to_shard();
        let call = call
            .consumer_arn("arn:aws:kinesis:us-east-1:123456789012:stream/orders/consumer/billing:1")
            .shard_id("shardId-000000000000");
        let call = call.starting_position(from.build().expect("complete"));
        let mut call = call.customize();
        if let Some(protocol) = protocol {
            let mut config = Config::builder();
            config.set_protocol(Some(protocol.clone()));
            call = call.config_override(config);
        }
        block_on(call.send()).expect("valid");
        server.asked.lock().expect("no panic").remove(0)
    };
    let own = ShardRecords::new(shard());
    assert_eq!(asked(Some(own.protocol(Encoding::Json))), asked(None));
}

/// An exception in a subscription has its code in a header of its frame, and its message in the body.
#[test]
fn message_of_an_exception_is_read() {
    let own = ShardRecords::new(shard());
    let json = own.protocol(Encoding::Json);
    let read = |body: &[u8]| {
        json.parse_event_stream_error_metadata(body)
            .expect("read")
            .build()
    };
    let error = read(br#"{"message":"throttled","__type":"InternalFailureException"}"#);
    assert_eq!(error.message(), Some("throttled"));
    assert_eq!(error.code(), Some("InternalFailureException"));
    assert_eq!(read(b"").message(), None);
}
