//! The encoding of the calls that read records, for all shards of a consumer.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{self, Builder};
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::types;
use aws_smithy_runtime_api::http::Response;
use aws_smithy_schema::serde::SerdeError;

use crate::aws::shard_pages::record;
use crate::aws::wire::{Encoding, ShardRecords};
use crate::record::{ParseSequenceNumberError, Record, Source};

/// The encoding in which a [`Consumer`](crate::Consumer) asks for records.
///
/// It applies to GetRecords. All other calls, and the events of
/// [enhanced fan-out](crate::consumer::Retrieval::FanOut), are JSON.
///
/// The consumer writes and reads these calls itself: that takes less CPU time than the SDK. The client's connections,
/// retries, timeouts and interceptors stay, but an interceptor sees the answers without their records. Records that an
/// interceptor puts into an answer take the place of those that Kinesis sent. A client with a
/// [protocol](aws_sdk_kinesis::config::Builder::protocol) of its own keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Wire {
    /// JSON.
    #[default]
    Json,
    /// CBOR, the default of the AWS SDK for Java and so of KCL. It takes less CPU time and fewer bytes than JSON.
    ///
    /// An endpoint that does not know CBOR, or whose answer cannot be decoded, is asked in JSON from then on
    /// ([`CborRefused`](crate::observer::StreamEvent::CborRefused)). JSON is also used if `AWS_CBOR_DISABLE` is set
    /// to anything but `false` or `0`, and if `CBOR_ENABLED` is `false` or `0`: the AWS SDKs for Java read these
    /// environment variables.
    Cbor,
}

/// The encoding that a consumer uses now.
#[derive(Debug)]
pub(in crate::consumer) struct ActiveWire {
    has_own_protocol: bool,
    is_cbor: AtomicBool,
}

impl ActiveWire {
    pub(in crate::consumer) fn new(wire: Wire, client: &Client) -> Self {
        let has_own_protocol = client.config().protocol().is_some();
        let is_cbor = wire == Wire::Cbor && !has_own_protocol && !is_disabled(|name| env::var(name).ok());
        ActiveWire {
            has_own_protocol,
            is_cbor: AtomicBool::new(is_cbor),
        }
    }
}

/// The calls that read one shard, and the records in their answers.
pub(in crate::consumer) struct ShardWire {
    active: Arc<ActiveWire>,
    shard: Arc<Source>,
    /// `None`: the client has a protocol of its own.
    own: Option<ShardRecords>,
}

impl ShardWire {
    pub(in crate::consumer) fn new(active: &Arc<ActiveWire>, shard: Source) -> Self {
        let shard = Arc::new(shard);
        ShardWire {
            own: (!active.has_own_protocol).then(|| ShardRecords::new(shard.clone())),
            active: active.clone(),
            shard,
        }
    }

    /// Returns true if the next page is asked for in CBOR.
    pub(in crate::consumer) fn is_cbor(&self) -> bool {
        self.active.is_cbor.load(Ordering::Relaxed)
    }

    /// Asks for the pages of all shards in JSON from now on. Returns true for the first call.
    pub(in crate::consumer) fn refuse_cbor(&self) -> bool {
        self.active.is_cbor.swap(false, Ordering::Relaxed)
    }

    /// Returns the settings of a call of GetRecords.
    pub(in crate::consumer) fn of_pages(&self, is_cbor: bool) -> Builder {
        self.settings(if is_cbor { Encoding::Cbor } else { Encoding::Json })
    }

    /// Returns the settings of a call of SubscribeToShard, which Kinesis answers in JSON only.
    pub(in crate::consumer) fn of_events(&self) -> Builder {
        self.settings(Encoding::Json)
    }

    fn settings(&self, encoding: Encoding) -> Builder {
        let mut settings = config::Config::builder();
        if let Some(own) = &self.own {
            settings.set_protocol(Some(own.protocol(encoding).clone()));
        }
        settings
    }

    /// Returns the records of the last answer or event. `from_sdk` has those of the SDK's answer: all of them if the
    /// client has a protocol of its own, and otherwise none, unless an interceptor has put its own answer there.
    pub(in crate::consumer) fn records(
        &self,
        from_sdk: Vec<types::Record>,
    ) -> Result<Vec<Record>, ParseSequenceNumberError> {
        match &self.own {
            Some(own) if from_sdk.is_empty() => Ok(own.take()),
            _ => from_sdk
                .into_iter()
                .map(|read| record(&self.shard, read))
                .collect(),
        }
    }
}

/// Returns true if users of the AWS SDKs for Java have turned CBOR off.
fn is_disabled(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_false = |value: &str| value == "0" || value.eq_ignore_ascii_case("false");
    variable("AWS_CBOR_DISABLE").is_some_and(|value| !value.is_empty() && !is_false(&value))
        || variable("CBOR_ENABLED").is_some_and(|value| is_false(&value))
}

/// Returns true if a call in CBOR may have failed because of the encoding: the endpoint does not know it, or its
/// answer cannot be decoded. Kinesis states a code with each error. An error without one is of a proxy or of an
/// emulator, which may reject the body or the content type with almost any status.
pub(in crate::consumer) fn is_of_encoding<E>(error: &SdkError<E, Response>) -> bool
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    match (status, error.code()) {
        (_, Some("SerializationException" | "UnknownOperationException")) => true,
        // Of a busy proxy: the same call may succeed later.
        (Some(408 | 429 | 502..=504), None) => false,
        (Some(400..), None) => true,
        _ => is_undecodable(error),
    }
}

fn is_undecodable(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<SerdeError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::error::ErrorMetadata;
    use aws_sdk_kinesis::operation::get_records::GetRecordsError;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    #[test]
    fn variables_of_the_java_sdks_turn_cbor_off() {
        let disabled = |set: &[(&str, &str)]| {
            is_disabled(|name| {
                let found = set.iter().find(|(set, _)| *set == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!disabled(&[]));
        assert!(disabled(&[("AWS_CBOR_DISABLE", "true")]));
        assert!(disabled(&[("AWS_CBOR_DISABLE", "1")]));
        assert!(!disabled(&[("AWS_CBOR_DISABLE", "false")]));
        assert!(!disabled(&[("AWS_CBOR_DISABLE", "")]));
        assert!(disabled(&[("CBOR_ENABLED", "False")]));
        assert!(!disabled(&[("CBOR_ENABLED", "true")]));
    }

    fn config() -> Builder {
        config::Config::builder().behavior_version(config::BehaviorVersion::latest())
    }

    fn of_client(wire: Wire, client: &Client) -> ShardWire {
        let shard = Source {
            stream: "orders".into(),
            shard: "shardId-000000000000".into(),
        };
        ShardWire::new(&Arc::new(ActiveWire::new(wire, client)), shard)
    }

    #[test]
    fn protocol_of_the_client_stays() {
        let plain = Client::from_conf(config().build());
        assert!(of_client(Wire::Cbor, &plain).is_cbor());
        let json = of_client(Wire::Json, &plain);
        assert!(!json.is_cbor());
        let protocol = json.of_pages(false).build();
        let protocol = protocol.protocol().expect("one of this crate").clone();
        let mut own = config();
        own.set_protocol(Some(protocol));
        let own = of_client(Wire::Cbor, &Client::from_conf(own.build()));
        assert!(!own.is_cbor());
        assert!(own.of_pages(false).build().protocol().is_none());
    }

    /// An interceptor can replace an answer, as mocks of the SDK do.
    #[test]
    fn records_of_an_interceptor_are_returned() {
        let wire = of_client(Wire::Json, &Client::from_conf(config().build()));
        let record = types::Record::builder()
            .sequence_number("7")
            .data(b"payload".to_vec().into())
            .partition_key("key");
        let read = wire
            .records(vec![record.build().expect("complete")])
            .expect("valid");
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].payload(), "payload");
    }

    #[test]
    fn encoding_is_at_fault_without_a_code_unless_a_proxy_is_busy() {
        let failed = |status: u16, code: Option<&str>| {
            let response = Response::new(status.try_into().expect("a status"), SdkBody::empty());
            let meta = ErrorMetadata::builder();
            // As the SDK: an error without a code is not one of the service.
            is_of_encoding(&match code {
                Some(code) => {
                    SdkError::service_error(GetRecordsError::generic(meta.code(code).build()), response)
                }
                None => SdkError::response_error(GetRecordsError::generic(meta.build()), response),
            })
        };
        for status in [400, 403, 404, 406, 415, 500, 501] {
            assert!(failed(status, None), "{status}");
        }
        for status in [408, 429, 502, 503, 504] {
            assert!(!failed(status, None), "{status}");
        }
        assert!(failed(400, Some("SerializationException")));
        for code in [
            "ExpiredIteratorException",
            "InternalFailure",
            "AccessDeniedException",
        ] {
            assert!(!failed(400, Some(code)), "{code}");
        }
    }

    #[test]
    fn refused_encoding_is_not_used_again() {
        let wire = of_client(Wire::Cbor, &Client::from_conf(config().build()));
        assert!(wire.is_cbor());
        assert!(wire.refuse_cbor());
        assert!(!wire.refuse_cbor(), "reported once");
        assert!(!wire.is_cbor());
    }
}
