//! Alerts passed to a function of the user.

use std::any::type_name;
use std::fmt;
use std::future::Future;

use async_trait::async_trait;

use super::{Alert, AlertSink};
use crate::failure::BoxError;

/// Calls a function with each alert, for example to post to a chat or a pager with your HTTP client.
///
/// ```
/// use redrive::telemetry::alert::{Alert, Webhook};
///
/// let chat = Webhook::new(async |alert: Alert| -> Result<(), std::io::Error> {
///     let body = format!("{{\"text\": {:?}}}", alert.to_string());
///     // client.post(url).body(body).send().await?;
///     Ok(())
/// });
/// ```
pub struct Webhook<F>(F);

impl<F, Fut, E> Webhook<F>
where
    F: Fn(Alert) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError>,
{
    /// Creates a sink that calls this function.
    pub fn new(call: F) -> Self {
        Webhook(call)
    }
}

#[async_trait]
impl<F, Fut, E> AlertSink for Webhook<F>
where
    F: Fn(Alert) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError>,
{
    async fn send(&self, alert: &Alert) -> Result<(), BoxError> {
        (self.0)(alert.clone()).await.map_err(Into::into)
    }
}

impl<F> fmt::Debug for Webhook<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Webhook").field(&type_name::<F>()).finish()
    }
}
