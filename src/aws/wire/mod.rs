//! The requests and answers of the calls that read records, written and read by this crate.
//!
//! The SDK reads JSON byte by byte, which is most of what a consumer spends. Kinesis also speaks CBOR, which the AWS
//! SDK for Java uses by default. The protocols of [`ShardRecords`] take the place of the SDK's own for one call: the
//! client's connections, credentials, retries, timeouts and interceptors stay.

mod answer;
mod cbor;
mod failure;
mod json;
mod keys;
mod page;
mod request;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::http::{Headers, Request, Response};
use aws_smithy_schema::codec::{DynCodec, PayloadSerializer};
use aws_smithy_schema::protocol::{
    ClientProtocolInner, ServiceShapeName, SharedClientProtocol, apply_http_endpoint,
};
use aws_smithy_schema::serde::{SerdeError, SerializableStruct, ShapeDeserializer};
use aws_smithy_schema::{Schema, ShapeId, shape_id};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::endpoint::Endpoint;
use aws_smithy_types::error::metadata::Builder as ErrorMetadataBuilder;

use self::answer::Answer;
use self::cbor::Cbor;
use self::failure::Envelope;
use self::json::Json;
use self::page::Page;
use self::request::Body;
use crate::record::{Record, Source};

/// The encoding of a request. Kinesis answers in the same one; some emulators answer in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Cbor,
}

/// The protocols of the calls that read one shard, and the records of the last answer.
///
/// The SDK sees answers without records: reading them into its types, and from there into those of this crate, takes
/// two more allocations for each record.
#[derive(Debug)]
pub(crate) struct ShardRecords {
    json: SharedClientProtocol,
    cbor: SharedClientProtocol,
    page: Arc<Page>,
}

impl ShardRecords {
    /// Creates the protocols for the calls that read this shard.
    pub(crate) fn new(shard: Arc<Source>) -> Self {
        let page = Arc::new(Page::new(shard));
        let protocol = |encoding| {
            SharedClientProtocol::new(RecordsProtocol {
                encoding,
                page: page.clone(),
            })
        };
        ShardRecords {
            json: protocol(Encoding::Json),
            cbor: protocol(Encoding::Cbor),
            page: page.clone(),
        }
    }

    /// Returns the protocol of GetRecords in this encoding. SubscribeToShard is answered in JSON only.
    pub(crate) fn protocol(&self, encoding: Encoding) -> &SharedClientProtocol {
        match encoding {
            Encoding::Json => &self.json,
            Encoding::Cbor => &self.cbor,
        }
    }

    /// Takes the records of the last answer or event.
    pub(crate) fn take(&self) -> Vec<Record> {
        self.page.take()
    }
}

/// The protocol of GetRecords and, in JSON, of SubscribeToShard.
#[derive(Debug)]
struct RecordsProtocol {
    encoding: Encoding,
    page: Arc<Page>,
}

impl RecordsProtocol {
    fn read<'a>(&self, body: impl source::Source<'a> + Send + 'a) -> Box<dyn ShapeDeserializer + 'a> {
        Box::new(Answer::new(body, &self.page))
    }
}

static JSON: ShapeId<'static> = shape_id!("aws.protocols", "awsJson1_1");
static CBOR: ShapeId<'static> = shape_id!("redrive", "awsCbor1_1");

const EMPTY: &[u8] = b"{}";

/// A body, by its first bytes.
enum Format<'a> {
    Cbor(Cbor<'a>),
    Json(Json<'a>),
    Other,
}

impl<'a> Format<'a> {
    fn of(body: &'a [u8]) -> Self {
        // `{` as CBOR begins a text with a length of 8 bytes, and never a map.
        if Json::is_map(body) {
            Format::Json(Json::new(body))
        } else if Cbor::is_map(body) {
            Format::Cbor(Cbor::new(body))
        } else {
            Format::Other
        }
    }

    fn envelope(self) -> Option<Envelope<'a>> {
        match self {
            Format::Cbor(body) => Envelope::read(body).ok(),
            Format::Json(body) => Envelope::read(body).ok(),
            Format::Other => None,
        }
    }
}

impl ClientProtocolInner for RecordsProtocol {
    type Request = Request;
    type Response = Response;

    fn protocol_id(&self) -> &ShapeId<'static> {
        match self.encoding {
            Encoding::Json => &JSON,
            Encoding::Cbor => &CBOR,
        }
    }

    fn serialize_request(
        &self,
        input: &dyn SerializableStruct,
        _: &Schema<'_>,
        _: &str,
        cfg: &ConfigBag,
    ) -> Result<Request, SerdeError> {
        let body = Body::of(self.encoding, input)?;
        let length = body.len();
        let mut request = Request::new(SdkBody::from(body));
        request.set_method("POST").map_err(invalid)?;
        request.set_uri("/").map_err(invalid)?;
        let headers = request.headers_mut();
        headers.insert(
            "Content-Type",
            match self.encoding {
                Encoding::Json => "application/x-amz-json-1.1",
                Encoding::Cbor => "application/x-amz-cbor-1.1",
            },
        );
        headers.insert("Content-Length", length.to_string());
        let service = cfg.load::<ServiceShapeName>().map(ServiceShapeName::as_str);
        let operation = cfg.load::<Metadata>().map(Metadata::name);
        let (Some(service), Some(operation)) = (service, operation) else {
            return Err(SerdeError::custom("the SDK states no operation"));
        };
        headers.insert("X-Amz-Target", format!("{service}.{operation}"));
        Ok(request)
    }

    fn deserialize_response<'a>(
        &self,
        response: &'a Response,
        _: &Schema<'_>,
        _: &'a ConfigBag,
    ) -> Result<Box<dyn ShapeDeserializer + 'a>, SerdeError> {
        // An answer without records must not return those of the answer before.
        self.page.take();
        // The body of a subscription is the stream of its events, which are read one by one.
        let Some(body) = response.body().bytes() else {
            return Ok(self.read(Json::new(EMPTY)));
        };
        match Format::of(body) {
            Format::Cbor(body) => Ok(self.read(body)),
            Format::Json(body) => Ok(self.read(body)),
            Format::Other => Err(SerdeError::invalid_input("the answer is neither CBOR nor JSON")),
        }
    }

    fn parse_error_metadata(
        &self,
        response: &Response,
        _: &ConfigBag,
    ) -> Result<ErrorMetadataBuilder, SerdeError> {
        // A proxy may answer with HTML, or with nothing.
        let envelope = Format::of(body_of(response)).envelope().unwrap_or_default();
        Ok(envelope.metadata(response.headers()))
    }

    fn deserialize_error_response<'a>(
        &self,
        response: &'a Response,
        cfg: &'a ConfigBag,
    ) -> Result<Box<dyn ShapeDeserializer + 'a>, SerdeError> {
        match Format::of(body_of(response)).envelope() {
            Some(_) => self.deserialize_response(response, &aws_smithy_schema::prelude::DOCUMENT, cfg),
            // The code is in the header, and nothing else is known.
            None => Ok(self.read(Json::new(EMPTY))),
        }
    }

    fn update_endpoint(
        &self,
        request: &mut Request,
        endpoint: &Endpoint,
        cfg: &ConfigBag,
    ) -> Result<(), SerdeError> {
        apply_http_endpoint(request, endpoint, cfg)
    }

    fn payload_codec(&self) -> Option<&dyn DynCodec> {
        Some(self)
    }

    fn event_stream_media_type(&self) -> Option<&str> {
        Some("application/json")
    }

    fn parse_event_stream_error_metadata(&self, payload: &[u8]) -> Result<ErrorMetadataBuilder, SerdeError> {
        let envelope = Format::of(payload).envelope().unwrap_or_default();
        Ok(envelope.metadata(&Headers::new()))
    }
}

/// Reads the events of a subscription, which are JSON.
impl DynCodec for RecordsProtocol {
    fn create_deserializer<'a>(&self, input: &'a [u8]) -> Box<dyn ShapeDeserializer + 'a> {
        self.page.take();
        self.read(Json::new(input))
    }

    fn create_serializer(&self) -> Box<dyn PayloadSerializer + '_> {
        Box::new(Body::new(Encoding::Json))
    }
}

/// Reads the records of a page in either encoding, for a fuzz target. Returns `None` for an error.
#[cfg(fuzzing)]
pub fn read_page(body: &[u8]) -> Option<Vec<Record>> {
    use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;

    let shard = Source {
        stream: "orders".into(),
        shard: "shardId-000000000000".into(),
    };
    let page = Arc::new(Page::new(Arc::new(shard)));
    let mut answer: Box<dyn ShapeDeserializer + '_> = match Format::of(body) {
        Format::Cbor(body) => Box::new(Answer::new(body, &page)),
        Format::Json(body) => Box::new(Answer::new(body, &page)),
        Format::Other => return None,
    };
    GetRecordsOutput::deserialize(&mut *answer).ok()?;
    Some(page.take())
}

fn body_of(response: &Response) -> &[u8] {
    response.body().bytes().unwrap_or_default()
}

fn invalid(error: impl std::fmt::Display) -> SerdeError {
    SerdeError::custom(format!("the request cannot be made: {error}"))
}
