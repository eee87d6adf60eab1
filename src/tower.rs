//! [tower](https://docs.rs/tower) services as processors, and a resilient processor as a service.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use redrive::{Record, Resilient, Settled, dead_letter};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! // A service over records, with layers of its own…
//! let store = ServiceBuilder::new()
//!     .concurrency_limit(8)
//!     .service(service_fn(async |record: Record| -> Result<(), std::io::Error> { Ok(()) }));
//! // …as a processor.
//! let mut orders = Resilient::builder("billing", redrive::tower::processor_service(store))
//!     .dead_letters(dead_letter::Memory::new())
//!     .build()?;
//!
//! // The resilient processor is a service again.
//! let record = Record::builder("orders", "shardId-000000000000".into(), 1.into()).build();
//! assert_eq!(orders.ready().await?.call(record).await?, Settled::Processed);
//! # Ok(())
//! # }
//! ```

use std::any::type_name;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use crate::engine::{Resilient, ResilientBuilder};
use crate::failure::BoxError;
use crate::processor::{Attempt, Handler, RecordProcessor};
use crate::record::Record;
use crate::settlement::{Settled, Unsettled};

/// Makes a processor from a service over records. Each attempt clones the service and waits until it is
/// ready; that wait counts towards the attempt's time.
pub fn processor_service<S>(service: S) -> ProcessorService<S>
where
    S: Service<Record> + Clone + Send + Sync,
    S::Future: Send,
    S::Error: Into<BoxError> + Send + 'static,
{
    ProcessorService(service)
}

/// A processor made by [`processor_service`].
#[derive(Clone, Copy)]
pub struct ProcessorService<S>(S);

impl<S> RecordProcessor for ProcessorService<S>
where
    S: Service<Record> + Clone + Send + Sync,
    S::Future: Send,
    S::Error: Into<BoxError> + Send + 'static,
{
    type Error = S::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> Result<(), S::Error> {
        let mut service = self.0.clone();
        poll_fn(|cx| service.poll_ready(cx)).await?;
        let response = service.call(record.clone());
        // The service's response is not needed.
        response.await.map(drop)
    }
}

impl<S> fmt::Debug for ProcessorService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessorService")
            .field(&type_name::<S>())
            .finish()
    }
}

/// Settles a record, like [`Resilient::settle`]. The service is always ready; the caller limits concurrency.
impl<P: Handler + 'static> Service<Record> for Resilient<P> {
    type Response = Settled;
    type Error = Unsettled;
    type Future = Pin<Box<dyn Future<Output = Result<Settled, Unsettled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unsettled>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, record: Record) -> Self::Future {
        let resilient = self.clone();
        Box::pin(async move { resilient.settle(&record).await })
    }
}

/// A layer that makes the inner service resilient.
///
/// ```
/// use redrive::{Record, dead_letter, tower::ResilientLayer};
/// use tower::{ServiceBuilder, service_fn};
///
/// let orders = ServiceBuilder::new()
///     .layer(ResilientLayer::new("billing", |builder| {
///         builder.dead_letters(dead_letter::Memory::new()).build().expect("valid settings")
///     }))
///     .service(service_fn(async |record: Record| -> Result<(), std::io::Error> { Ok(()) }));
/// ```
#[derive(Clone)]
pub struct ResilientLayer<F> {
    application: String,
    build: F,
}

impl<F> ResilientLayer<F> {
    /// Creates a layer for this application. `build` sets the sink and other settings, and builds the
    /// processor.
    pub fn new<S>(application: impl Into<String>, build: F) -> Self
    where
        F: Fn(ResilientBuilder<ProcessorService<S>>) -> Resilient<ProcessorService<S>>,
        ProcessorService<S>: RecordProcessor,
    {
        ResilientLayer {
            application: application.into(),
            build,
        }
    }
}

impl<F, S> Layer<S> for ResilientLayer<F>
where
    F: Fn(ResilientBuilder<ProcessorService<S>>) -> Resilient<ProcessorService<S>>,
    ProcessorService<S>: RecordProcessor,
{
    type Service = Resilient<ProcessorService<S>>;

    fn layer(&self, inner: S) -> Self::Service {
        (self.build)(Resilient::builder(
            self.application.clone(),
            ProcessorService(inner),
        ))
    }
}

impl<F> fmt::Debug for ResilientLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResilientLayer")
            .field("application", &self.application)
            .finish_non_exhaustive()
    }
}
