//! A Kinesis API server in this process that fails as a test scripts it.
//!
//! Clients reach the server without a socket. A test with a paused clock therefore never waits for one, and
//! no timeout fires early.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Builder, Config, Credentials, Region};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::DefaultBodyLimit;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ferrokinesis::store::StoreOptions;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt as _;

/// The server and the calls that it received.
#[derive(Clone)]
pub struct Faulty {
    server: Router,
    script: Arc<Mutex<Script>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

type Script = Box<dyn FnMut(&Call) -> Fault + Send>;

/// A call as the server receives it.
#[derive(Debug, Clone)]
pub struct Call {
    /// The name of the operation, such as `PutRecords`.
    pub operation: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    pub at: Instant,
}

/// The outcome of a call.
pub enum Fault {
    None,
    /// The server does not write these entries of a PutRecords call, and reports this error code for them.
    Entries(BTreeSet<usize>, &'static str),
    /// The server refuses the call with this status, error code and message.
    Refused(u16, &'static str, String),
    /// This response is returned, and the server does not receive the call.
    Answered(Value),
    /// The server executes the call, and its response is lost.
    ResponseLost,
    /// The server executes the call and never responds.
    Silence,
    /// The response is changed before the client receives it.
    Changed(Box<dyn FnOnce(&mut Value) + Send>),
}

impl Call {
    pub fn keys(&self) -> Vec<&str> {
        let records = self.body["Records"].as_array().expect("a PutRecords call");
        records
            .iter()
            .map(|record| record["PartitionKey"].as_str().expect("a key"))
            .collect()
    }

    pub fn data(&self) -> Vec<Vec<u8>> {
        let records = self.body["Records"].as_array().expect("a PutRecords call");
        records
            .iter()
            .map(|record| {
                BASE64
                    .decode(record["Data"].as_str().expect("data"))
                    .expect("base64")
            })
            .collect()
    }
}

impl Default for Faulty {
    fn default() -> Self {
        Faulty::new()
    }
}

impl Faulty {
    pub fn new() -> Self {
        let (server, _store) = ferrokinesis::create_app(StoreOptions {
            create_stream_ms: 0,
            delete_stream_ms: 0,
            update_stream_ms: 0,
            shard_limit: 1_000,
            ..StoreOptions::default()
        });
        Faulty {
            server: server.layer(DefaultBodyLimit::max(64 * 1024 * 1024)),
            script: Arc::new(Mutex::new(Box::new(|_| Fault::None))),
            calls: Arc::default(),
        }
    }

    /// Replaces the script that decides the outcome of each call.
    pub fn on_call(&self, script: impl FnMut(&Call) -> Fault + Send + 'static) {
        *self.script.lock().expect("no test panicked with it") = Box::new(script);
    }

    /// Returns the calls of this operation so far.
    pub fn calls(&self, operation: &str) -> Vec<Call> {
        let calls = self.calls.lock().expect("no test panicked with it");
        calls
            .iter()
            .filter(|call| call.operation == operation)
            .cloned()
            .collect()
    }

    /// Creates a client whose calls run through the script.
    pub fn client(&self) -> Client {
        Client::from_conf(self.config().build())
    }

    /// Returns the configuration of [`client`](Self::client), for changes.
    pub fn config(&self) -> Builder {
        let connector = SharedHttpConnector::new(Connector {
            faulty: Some(self.clone()),
            server: self.server.clone(),
        });
        config(connector)
    }

    /// Creates a client that bypasses the script. Its calls are not recorded.
    pub fn direct(&self) -> Client {
        let connector = SharedHttpConnector::new(Connector {
            faulty: None,
            server: self.server.clone(),
        });
        Client::from_conf(config(connector).build())
    }

    async fn meet(&self, request: Request) -> Result<Answer, ConnectorError> {
        let call = Call {
            operation: request.operation.clone(),
            headers: request.headers.clone(),
            body: serde_json::from_slice(&request.body).expect("a JSON body"),
            at: Instant::now(),
        };
        let fault = (self.script.lock().expect("no test panicked with it"))(&call);
        self.calls
            .lock()
            .expect("no test panicked with it")
            .push(call.clone());
        match fault {
            Fault::None => Ok(answer(&self.server, request).await),
            Fault::Entries(failed, code) => Ok(self.without(request, call.body, &failed, code).await),
            Fault::Refused(status, code, message) => Ok(Answer {
                status,
                body: json!({"__type": code, "message": message}).to_string().into(),
            }),
            Fault::Answered(body) => Ok(Answer {
                status: 200,
                body: body.to_string().into(),
            }),
            Fault::ResponseLost => {
                answer(&self.server, request).await;
                Err(ConnectorError::io("the connection was reset".into()))
            }
            Fault::Silence => {
                answer(&self.server, request).await;
                std::future::pending().await
            }
            Fault::Changed(change) => {
                let mut answer = answer(&self.server, request).await;
                let mut body = serde_json::from_slice(&answer.body).expect("a JSON body");
                change(&mut body);
                answer.body = body.to_string().into();
                Ok(answer)
            }
        }
    }

    /// Sends all but the failed entries to the server, and returns an answer for all entries.
    async fn without(
        &self,
        mut request: Request,
        mut body: Value,
        failed: &BTreeSet<usize>,
        code: &str,
    ) -> Answer {
        let records = body["Records"].as_array_mut().expect("a PutRecords call");
        let count = records.len();
        let mut at = 0..;
        records.retain(|_| at.next().is_some_and(|at| !failed.contains(&at)));
        let mut written = Vec::new();
        if !records.is_empty() {
            request.body = body.to_string().into();
            let answer = answer(&self.server, request).await;
            let answer: Value = serde_json::from_slice(&answer.body).expect("a JSON body");
            written = answer["Records"].as_array().expect("entries").clone();
        }
        let mut written = written.into_iter();
        let entries: Vec<Value> = (0..count)
            .map(|at| match failed.contains(&at) {
                true => json!({"ErrorCode": code, "ErrorMessage": "on cue"}),
                false => written.next().expect("an entry for each record"),
            })
            .collect();
        Answer {
            status: 200,
            body: json!({"FailedRecordCount": failed.len(), "Records": entries})
                .to_string()
                .into(),
        }
    }
}

fn config(connector: SharedHttpConnector) -> Builder {
    Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "static"))
        .endpoint_url("http://in-process")
        .http_client(http_client_fn(move |_, _| connector.clone()))
}

struct Request {
    operation: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

async fn answer(server: &Router, request: Request) -> Answer {
    let mut http = axum::http::Request::post("/");
    for (name, value) in request.headers {
        http = http.header(name, value);
    }
    let http = http.body(Body::from(request.body)).expect("a request");
    let response = server
        .clone()
        .oneshot(http)
        .await
        .expect("the server never fails");
    Answer {
        status: response.status().as_u16(),
        body: to_bytes(response.into_body(), usize::MAX)
            .await
            .expect("a body")
            .into(),
    }
}

struct Connector {
    faulty: Option<Faulty>,
    server: Router,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let headers: Vec<(String, String)> = request
            .headers()
            .iter()
            // A changed body has a different length.
            .filter(|(name, _)| *name != "content-length")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let request = Request {
            operation: target.rsplit('.').next().unwrap_or_default().to_owned(),
            headers,
            body: request.body().bytes().expect("a body in memory").to_vec(),
        };
        let (faulty, server) = (self.faulty.clone(), self.server.clone());
        HttpConnectorFuture::new(async move {
            let answer = match faulty {
                Some(faulty) => faulty.meet(request).await?,
                None => answer(&server, request).await,
            };
            let mut response = HttpResponse::new(
                StatusCode::try_from(answer.status).expect("a status"),
                SdkBody::from(answer.body),
            );
            response
                .headers_mut()
                .insert("content-type", "application/x-amz-json-1.1");
            Ok(response)
        })
    }
}
