//! The requests and answers of GetRecords, written and read by this crate.
//!
//! The SDK reads JSON byte by byte, which is most of what a consumer spends. Kinesis also speaks CBOR, which the AWS
//! SDK for Java uses by default. [`GetRecords`] takes the place of the SDK's own protocol for one call: the client's
//! connections, credentials, retries, timeouts and interceptors stay.

mod answer;
mod cbor;
mod failure;
mod json;
mod request;
mod source;
#[cfg(test)]
mod tests;

use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::http::{Request, Response};
use aws_smithy_schema::protocol::{ClientProtocolInner, ServiceShapeName, apply_http_endpoint};
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
use self::request::Body;

/// The encoding of a request. Kinesis answers in the same one; some emulators answer in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Cbor,
}

/// The protocol of GetRecords.
#[derive(Debug)]
pub(crate) struct GetRecords {
    pub(crate) encoding: Encoding,
}

static JSON: ShapeId<'static> = shape_id!("aws.protocols", "awsJson1_1");
static CBOR: ShapeId<'static> = shape_id!("redrive", "awsCbor1_1");

/// A body, by its first bytes.
enum Format<'a> {
    Cbor(Cbor<'a>),
    Json(Json<'a>),
    Other,
}

impl<'a> Format<'a> {
    fn of(response: &'a Response) -> Self {
        let body = response.body().bytes().unwrap_or_default();
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

impl ClientProtocolInner for GetRecords {
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
        match Format::of(response) {
            Format::Cbor(body) => Ok(Box::new(Answer::new(body))),
            Format::Json(body) => Ok(Box::new(Answer::new(body))),
            Format::Other => Err(SerdeError::invalid_input("the answer is neither CBOR nor JSON")),
        }
    }

    fn parse_error_metadata(
        &self,
        response: &Response,
        _: &ConfigBag,
    ) -> Result<ErrorMetadataBuilder, SerdeError> {
        // A proxy may answer with HTML, or with nothing.
        let envelope = Format::of(response).envelope().unwrap_or_default();
        Ok(envelope.metadata(response.headers()))
    }

    fn deserialize_error_response<'a>(
        &self,
        response: &'a Response,
        cfg: &'a ConfigBag,
    ) -> Result<Box<dyn ShapeDeserializer + 'a>, SerdeError> {
        match Format::of(response).envelope() {
            Some(_) => self.deserialize_response(response, &aws_smithy_schema::prelude::DOCUMENT, cfg),
            // The code is in the header, and nothing else is known.
            None => Ok(Box::new(Answer::new(Json::new(b"{}")))),
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
}

fn invalid(error: impl std::fmt::Display) -> SerdeError {
    SerdeError::custom(format!("the request cannot be made: {error}"))
}
