//! The encoding of GetRecords, for all shards of a consumer.

use std::env;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{self, Builder};
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::http::Response;
use aws_smithy_schema::protocol::SharedClientProtocol;
use aws_smithy_schema::serde::SerdeError;

use crate::aws::wire::{Encoding, GetRecords};

/// The encoding in which a [`Consumer`](crate::Consumer) asks for records.
///
/// It applies to GetRecords. All other calls, and the events of
/// [enhanced fan-out](crate::consumer::Retrieval::FanOut), are JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Wire {
    /// JSON, read by the SDK.
    #[default]
    Json,
    /// CBOR, the default of the AWS SDK for Java and so of KCL. It takes less CPU time and fewer bytes than JSON.
    ///
    /// An endpoint that does not know CBOR, or whose answer cannot be decoded, is asked in JSON from then on
    /// ([`CborRefused`](crate::observer::StreamEvent::CborRefused)). JSON is also used if the client has a
    /// [protocol](aws_sdk_kinesis::config::Builder::protocol) of its own, if `AWS_CBOR_DISABLE` is set to anything
    /// but `false` or `0`, and if `CBOR_ENABLED` is `false` or `0`: the AWS SDKs for Java read these environment
    /// variables.
    Cbor,
}

/// The encoding that a consumer uses now.
#[derive(Debug)]
pub(in crate::consumer) struct ActiveWire {
    /// `None`: the client's own protocol.
    protocol: Option<SharedClientProtocol>,
    is_refused: AtomicBool,
}

impl ActiveWire {
    pub(in crate::consumer) fn new(wire: Wire, client: &Client) -> Self {
        let has_protocol = client.config().protocol().is_some();
        let uses_cbor = wire == Wire::Cbor && !has_protocol && !is_disabled(|name| env::var(name).ok());
        let protocol = || {
            SharedClientProtocol::new(GetRecords {
                encoding: Encoding::Cbor,
            })
        };
        ActiveWire {
            protocol: uses_cbor.then(protocol),
            is_refused: AtomicBool::new(false),
        }
    }

    /// Returns the settings of a call in another protocol than the client's.
    pub(in crate::consumer) fn config(&self) -> Option<Builder> {
        let protocol = self.protocol.as_ref()?;
        if self.is_refused.load(Ordering::Relaxed) {
            return None;
        }
        let mut config = config::Config::builder();
        config.set_protocol(Some(protocol.clone()));
        Some(config)
    }

    /// Uses the client's own protocol from now on. Returns true for the first call.
    pub(in crate::consumer) fn refuse(&self) -> bool {
        !self.is_refused.swap(true, Ordering::Relaxed)
    }
}

/// Returns true if users of the AWS SDKs for Java have turned CBOR off.
fn is_disabled(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_false = |value: &str| value == "0" || value.eq_ignore_ascii_case("false");
    variable("AWS_CBOR_DISABLE").is_some_and(|value| !value.is_empty() && !is_false(&value))
        || variable("CBOR_ENABLED").is_some_and(|value| is_false(&value))
}

/// Returns true if a call in CBOR failed because of the encoding: the endpoint does not know it, or its answer
/// cannot be decoded.
pub(in crate::consumer) fn is_of_encoding<E>(error: &SdkError<E, Response>) -> bool
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    match (status, error.code()) {
        (_, Some("SerializationException" | "UnknownOperationException")) => true,
        (Some(404 | 415), None) => true,
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

    #[test]
    fn protocol_of_the_client_stays() {
        let version = aws_sdk_kinesis::config::BehaviorVersion::latest();
        let config = config::Config::builder().behavior_version(version);
        let plain = Client::from_conf(config.clone().build());
        assert!(ActiveWire::new(Wire::Cbor, &plain).protocol.is_some());
        assert!(ActiveWire::new(Wire::Json, &plain).protocol.is_none());
        let protocol = GetRecords {
            encoding: Encoding::Json,
        };
        let own = Client::from_conf(config.protocol(protocol).build());
        assert!(ActiveWire::new(Wire::Cbor, &own).protocol.is_none());
    }

    #[test]
    fn refused_encoding_is_not_used_again() {
        let version = aws_sdk_kinesis::config::BehaviorVersion::latest();
        let config = config::Config::builder().behavior_version(version);
        let wire = ActiveWire::new(Wire::Cbor, &Client::from_conf(config.build()));
        assert!(wire.config().is_some());
        assert!(wire.refuse());
        assert!(!wire.refuse(), "reported once");
        assert!(wire.config().is_none());
    }
}
