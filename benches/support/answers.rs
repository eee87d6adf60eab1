//! A server that confirms every batch call, with the answers of Kinesis, SQS, SNS and S3.

use std::error::Error;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, Method};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::net::TcpListener;

/// The answers to a sink's checks of its target: a stream, a queue that accepts large messages, and a topic
/// with a subscription.
const STREAM: &str = r#"{"StreamDescriptionSummary":{"StreamName":"letters","StreamARN":"arn:aws:kinesis:us-east-1:123456789012:stream/letters","StreamStatus":"ACTIVE","RetentionPeriodHours":168,"StreamCreationTimestamp":1790000000,"EnhancedMonitoring":[],"OpenShardCount":1}}"#;
const QUEUE: &str = r#"{"Attributes":{"MaximumMessageSize":"1048576","MessageRetentionPeriod":"1209600"}}"#;
const SUBSCRIPTIONS: &str = "<ListSubscriptionsByTopicResponse><ListSubscriptionsByTopicResult><Subscriptions><member><SubscriptionArn>arn:aws:sns:us-east-1:123456789012:letters:1</SubscriptionArn></member></Subscriptions></ListSubscriptionsByTopicResult></ListSubscriptionsByTopicResponse>";

const SEQUENCE_NUMBER: &str = "49590338271490256608559692538361571095921575989136588898";
const MESSAGE: &str = "5fea7756-0ea4-451a-a703-a558b933e274";
/// An arbitrary digest. No client checks it against the message.
const MD5: &str = "fafb00f5732ab283681e124bf8747ed1";

/// Starts the server and returns its endpoint.
pub async fn start() -> Result<String, Box<dyn Error + Send + Sync>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let router = Router::new().fallback(answer).layer(DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(endpoint)
}

async fn answer(method: Method, headers: HeaderMap, body: Bytes) -> String {
    match headers.get("x-amz-target").map(|operation| operation.as_bytes()) {
        Some(b"Kinesis_20131202.DescribeStreamSummary") => STREAM.to_owned(),
        Some(b"Kinesis_20131202.PutRecords") => put_records(&body),
        Some(b"AmazonSQS.GetQueueAttributes") => QUEUE.to_owned(),
        Some(b"AmazonSQS.SendMessageBatch") => send_message_batch(&body),
        // SNS uses the older query protocol, which names the operation in the form.
        None if body.starts_with(b"Action=ListSubscriptionsByTopic&") => SUBSCRIPTIONS.to_owned(),
        None if body.starts_with(b"Action=PublishBatch&") => publish_batch(&String::from_utf8_lossy(&body)),
        // S3 answers a successful call with an empty body.
        None if method == Method::HEAD || method == Method::PUT => String::new(),
        _ => panic!("no answer to {method} {headers:?}"),
    }
}

fn put_records(body: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        records: Vec<IgnoredAny>,
    }
    let request: Request = serde_json::from_slice(body).expect("a PutRecords request");
    let record = format!(r#"{{"SequenceNumber":"{SEQUENCE_NUMBER}","ShardId":"shardId-000000000000"}}"#);
    let records = vec![record; request.records.len()].join(",");
    format!(r#"{{"FailedRecordCount":0,"Records":[{records}]}}"#)
}

fn send_message_batch(body: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request<'a> {
        #[serde(borrow)]
        entries: Vec<Entry<'a>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry<'a> {
        id: &'a str,
    }
    let request: Request<'_> = serde_json::from_slice(body).expect("a SendMessageBatch request");
    let sent = request
        .entries
        .iter()
        .map(|Entry { id }| format!(r#"{{"Id":"{id}","MessageId":"{MESSAGE}","MD5OfMessageBody":"{MD5}"}}"#));
    let sent = sent.collect::<Vec<_>>().join(",");
    format!(r#"{{"Successful":[{sent}],"Failed":[]}}"#)
}

fn publish_batch(form: &str) -> String {
    let fields = form.split('&').filter_map(|field| field.split_once('='));
    let ids = fields.filter_map(|(name, value)| name.ends_with(".Id").then_some(value));
    let sent: String = ids
        .map(|id| format!("<member><Id>{id}</Id><MessageId>{MESSAGE}</MessageId></member>"))
        .collect();
    format!(
        r#"<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishBatchResult><Failed/><Successful>{sent}</Successful></PublishBatchResult></PublishBatchResponse>"#
    )
}
