//! A proxy in front of a Kinesis server that makes calls fail as a test scripts it.

use std::io::{self, Error, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::Response;
use redrive::StreamId;
use redrive::testing::kinesis;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::wire;

/// A running proxy. Dropping it stops the proxy.
#[derive(Debug)]
pub struct Proxy {
    endpoint: String,
    desk: Arc<Desk>,
    server: JoinHandle<()>,
}

/// A call on its way to the server.
#[derive(Debug, Clone)]
pub struct Call {
    /// The operation, such as `GetRecords`.
    pub target: String,
    /// The number of this call among the calls of its operation, from 1.
    pub number: usize,
    pub content_type: String,
    /// The body, or null if it is neither JSON nor CBOR.
    pub body: Value,
    pub at: Instant,
}

/// The outcome of a call.
pub enum Fault {
    /// The call passes unchanged.
    None,
    /// The proxy responds with this status and body in place of the server.
    Reply(u16, Value),
    /// The proxy never responds.
    Hang,
    /// The server receives this body in place of the call's own.
    Forward(Value),
    /// The call passes after this delay.
    Delay(Duration),
    /// The connection closes, and the server never receives the call.
    Drop,
    /// The server executes the call, and the connection closes without a response.
    LoseReply,
    /// The server executes the call, and the connection breaks in the middle of the response.
    CutReply,
    /// The events of a subscription pass for this time; then its connection breaks.
    BreakAfter(Duration),
    /// The events of a subscription pass for this time; then no more events arrive.
    SilentAfter(Duration),
    /// The subscription is accepted and ends without an event.
    EndAtOnce,
    /// The call passes, and this function changes the response.
    Rewrite(Box<dyn FnOnce(&mut Value) + Send>),
}

impl Fault {
    /// Creates an error response of the service, such as `ProvisionedThroughputExceededException`.
    pub fn error(status: u16, name: &str) -> Self {
        Fault::Reply(status, json!({"__type": name, "message": "as the test wants it"}))
    }
}

/// Creates a script that requires calls to name the stream by this ARN. The embedded server takes only names
/// in most of its calls, so that it receives the name.
pub fn by_arn(arn: &str) -> impl FnMut(&Call) -> Fault + Send + 'static {
    let stream = StreamId::from(arn);
    move |call| {
        let given = call.body["StreamARN"].as_str();
        let is_named = call.body.get("StreamName").is_some();
        // An iterator and a token of a page identify the stream.
        let needs_none = call.target == "GetRecords" || call.body.get("NextToken").is_some();
        if is_named || given.map_or(!needs_none, |given| Some(given) != stream.arn()) {
            return Fault::error(400, "InvalidArgumentException");
        }
        let mut body = call.body.clone();
        let fields = body.as_object_mut().expect("a call has an object as its body");
        if fields.remove("StreamARN").is_some() && call.target != "GetRecords" {
            fields.insert("StreamName".to_owned(), stream.name().into());
        }
        Fault::Forward(body)
    }
}

type Script = Box<dyn FnMut(&Call) -> Fault + Send>;

struct Desk {
    upstream: String,
    under_way: AtomicUsize,
    calls: Mutex<Vec<Call>>,
    script: Mutex<Script>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts a proxy in front of the server at this endpoint. At first all calls pass unchanged.
    pub async fn start(endpoint: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = format!("http://{}", listener.local_addr()?);
        let desk = Arc::new(Desk {
            upstream: endpoint.trim_start_matches("http://").to_owned(),
            under_way: AtomicUsize::new(0),
            calls: Mutex::new(Vec::new()),
            script: Mutex::new(Box::new(|_| Fault::None)),
        });
        let app = Router::new().fallback(handle).with_state(desk.clone());
        let app = app.layer(DefaultBodyLimit::disable());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the proxy stopped: {error}");
            }
        });
        Ok(Proxy {
            endpoint: own,
            desk,
            server,
        })
    }

    /// Replaces the script that decides the outcome of each call.
    pub fn script(&self, script: impl FnMut(&Call) -> Fault + Send + 'static) {
        *self.desk.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// Returns the calls of this operation so far.
    pub fn calls(&self, target: &str) -> Vec<Call> {
        let calls = self.desk.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let of_target = calls.iter().filter(|call| call.target == target);
        of_target.cloned().collect()
    }

    /// Returns the number of calls without a response, including those that never get one.
    pub fn under_way(&self) -> usize {
        self.desk.under_way.load(Ordering::Relaxed)
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Creates a client that connects through the proxy.
    pub fn client(&self) -> Client {
        kinesis::client(&self.endpoint)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(State(desk): State<Arc<Desk>>, headers: HeaderMap, mut body: Bytes) -> Response {
    let target = headers
        .get("x-amz-target")
        .and_then(|target| target.to_str().ok());
    let target = target.expect("a Kinesis call names its target");
    let operation = target
        .rsplit_once('.')
        .map_or(target, |(_, operation)| operation)
        .to_owned();
    let content_type = headers.get("content-type").and_then(|kind| kind.to_str().ok());
    let mut content_type = content_type.expect("a Kinesis call names its content type");
    let _under_way = UnderWay::new(&desk.under_way);
    let mut fault = desk.consult(operation, content_type, &body);
    match fault {
        Fault::None => {}
        Fault::Forward(other) => {
            body = other.to_string().into();
            content_type = "application/x-amz-json-1.1";
            fault = Fault::None;
        }
        Fault::Reply(status, body) => return reply(status, &body),
        Fault::Hang => std::future::pending().await,
        Fault::Delay(time) => tokio::time::sleep(time).await,
        Fault::Drop => close_connection(),
        Fault::LoseReply
        | Fault::CutReply
        | Fault::BreakAfter(_)
        | Fault::SilentAfter(_)
        | Fault::EndAtOnce
        | Fault::Rewrite(_) => {}
    }
    if target.ends_with("SubscribeToShard") {
        return match desk.subscribe(target, content_type, &body, fault).await {
            Ok(events) => events,
            Err(error) => panic!("the server behind the proxy does not respond: {error}"),
        };
    }
    let (status, mut answer) = match desk.forward(target, content_type, &body).await {
        Ok(answered) => answered,
        Err(error) => panic!("the server behind the proxy does not respond: {error}"),
    };
    match fault {
        Fault::LoseReply => close_connection(),
        Fault::CutReply => return cut(status, answer),
        Fault::Rewrite(change) => {
            let mut value = wire::to_json(&answer);
            change(&mut value);
            answer = value.to_string().into_bytes();
        }
        _ => {}
    }
    respond(status, answer.len(), Body::from(answer))
}

/// Counts a call as under way until it is dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Desk {
    fn consult(&self, target: String, content_type: &str, body: &[u8]) -> Fault {
        let call = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let call = Call {
                number: calls.iter().filter(|call| call.target == target).count() + 1,
                target,
                content_type: content_type.to_owned(),
                body: wire::to_json(body),
                at: Instant::now(),
            };
            calls.push(call.clone());
            call
        };
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        script(&call)
    }

    /// Forwards a subscription, whose response is an open stream of events.
    async fn subscribe(
        &self,
        target: &str,
        content_type: &str,
        body: &[u8],
        fault: Fault,
    ) -> io::Result<Response> {
        // The response to an HTTP/1.0 request is not chunked and lasts until the connection closes.
        let mut upstream = self.call("HTTP/1.0", target, content_type, body).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(upstream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status: u16 = status.ok_or_else(|| Error::new(ErrorKind::InvalidData, "no HTTP reply"))?;
        let content_type = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-type")
                .then(|| value.to_owned())
        });
        let ends = match fault {
            Fault::BreakAfter(time) | Fault::SilentAfter(time) => time,
            _ => Duration::from_secs(3_600),
        };
        let is_silent = matches!(fault, Fault::SilentAfter(_));
        let ends_at_once = matches!(fault, Fault::EndAtOnce);
        let ends = tokio::time::Instant::now() + ends;
        let events = futures_util::stream::unfold(Some(upstream), move |upstream| async move {
            let mut upstream = upstream?;
            if ends_at_once {
                return None;
            }
            let mut part = vec![0; 64 * 1024];
            match tokio::time::timeout_at(ends, upstream.read(&mut part)).await {
                Ok(Ok(0)) => None,
                Ok(Ok(length)) => {
                    part.truncate(length);
                    Some((Ok(Bytes::from(part)), Some(upstream)))
                }
                Ok(Err(error)) => Some((Err(error), None)),
                Err(_) if is_silent => std::future::pending().await,
                Err(_) => Some((Err(Error::from(ErrorKind::ConnectionReset)), None)),
            }
        });
        let reply = Response::builder().status(status);
        let reply = reply.header("Content-Type", content_type.unwrap_or_default());
        Ok(reply.body(Body::from_stream(events)).expect("a valid response"))
    }

    /// Forwards one call on its own connection, and returns the status and body of the response.
    async fn forward(&self, target: &str, content_type: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let mut upstream = self.call("HTTP/1.1", target, content_type, body).await?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let head = end.and_then(|end| std::str::from_utf8(&answer[..end]).ok());
        let status = head.and_then(|head| head.split(' ').nth(1)?.parse().ok());
        match (status, end) {
            (Some(status), Some(end)) => Ok((status, answer.split_off(end + 4))),
            _ => Err(Error::new(ErrorKind::InvalidData, "no HTTP reply")),
        }
    }

    async fn call(
        &self,
        version: &str,
        target: &str,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<TcpStream> {
        let mut upstream = TcpStream::connect(&self.upstream).await?;
        let head = format!(
            "POST / {version}\r\nHost: {}\r\nConnection: close\r\nX-Amz-Target: {target}\r\n\
             Content-Type: {content_type}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=test/\
             20250101/us-east-1/kinesis/aws4_request, SignedHeaders=host, Signature=0\r\n\
             X-Amz-Date: 20250101T000000Z\r\nContent-Length: {}\r\n\r\n",
            self.upstream,
            body.len()
        );
        upstream.write_all(head.as_bytes()).await?;
        upstream.write_all(body).await?;
        Ok(upstream)
    }
}

fn reply(status: u16, body: &Value) -> Response {
    let body = body.to_string();
    respond(status, body.len(), Body::from(body))
}

/// Responds with the full content length, but breaks off in the middle of the body.
fn cut(status: u16, answer: Vec<u8>) -> Response {
    let whole = answer.len();
    let half = Bytes::from(answer).slice(..whole / 2);
    let parts = [Ok(half), Err(Error::from(ErrorKind::ConnectionReset))];
    respond(
        status,
        whole,
        Body::from_stream(futures_util::stream::iter(parts)),
    )
}

fn respond(status: u16, length: usize, body: Body) -> Response {
    Response::builder()
        .status(status)
        .header("Content-Type", "application/x-amz-json-1.1")
        .header("Content-Length", length)
        .body(body)
        .expect("a valid response")
}

/// Unwinds the task that serves the connection, which closes the connection. The panic hook does not run.
fn close_connection() -> ! {
    std::panic::resume_unwind(Box::new("the proxy closes the connection"))
}
