//! The shard that this process reads.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, debug_span};

use super::MultiLangError;
use super::daemon::Daemon;
use super::message::{IncomingRecord, Outgoing};
use crate::checkpoint::Checkpoint;
use crate::engine::Resilient;
use crate::failure::BoxError;
use crate::observer::{Event, Interest, ShardEvent};
use crate::pipeline::{Batch, Finished, NoGate, Pipeline, Progress, Published, ShardHalted};
use crate::processor::Handler;
use crate::record::{Position, Source};

/// The shard that this process reads.
pub(super) struct Shard {
    source: Arc<Source>,
    /// The sender of batches to the pipeline; `None` once no more batches follow.
    batches: Option<mpsc::Sender<Batch>>,
    progress: Arc<Progress>,
    latest: watch::Receiver<Option<Published>>,
    stop: CancellationToken,
    task: Option<AbortOnDropHandle<Result<Finished, Box<ShardHalted>>>>,
    /// The last position that KCL has stored.
    stored: Position,
    stored_at: Instant,
}

impl Shard {
    /// Starts the shard after this position.
    pub(super) fn begin<P: Handler + 'static>(
        resilient: Resilient<P>,
        pipeline: Pipeline,
        source: Source,
        from: Position,
    ) -> Self {
        let source = Arc::new(source);
        let (sender, batches) = mpsc::channel(1);
        let (progress, stop) = (Arc::new(Progress::new()), CancellationToken::new());
        let latest = progress.subscribe();
        progress.want_urgent();
        if resilient.observers().want(Interest::SHARDS) {
            resilient.observers().tell(&Event::Shard {
                stream: &source.stream,
                shard: &source.shard,
                event: ShardEvent::Started { position: &from },
            });
        }
        let task = tokio::spawn({
            let (progress, stop) = (progress.clone(), stop.clone());
            let from = Checkpoint::at(from.clone());
            async move {
                let batches = Batches(batches);
                let stopped = stop.cancelled();
                let result = pipeline
                    .run_from(&resilient, batches, from, &NoGate, &progress, stopped)
                    .await;
                let checkpoint = match &result {
                    Ok(finished) => finished.checkpoint.clone(),
                    Err(halted) => halted.checkpoint.clone(),
                };
                progress.finish(checkpoint);
                result
            }
        });
        Shard {
            source,
            batches: Some(sender),
            progress,
            latest,
            stop,
            task: Some(AbortOnDropHandle::new(task)),
            stored: from,
            stored_at: Instant::now(),
        }
    }

    /// Sends records to the pipeline. Waits while the window is full, and forever if the shard has halted.
    pub(super) async fn take_in(&mut self, records: Vec<IncomingRecord>) -> Result<(), BoxError> {
        if records.is_empty() {
            return Ok(());
        }
        let records = records.into_iter().map(|record| record.into_record(&self.source));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let span = debug_span!(
            "batch",
            stream = &*self.source.stream,
            shard = self.source.shard.as_str(),
            records = records.len(),
        );
        let batch = Batch::from(records);
        let sent = match &self.batches {
            Some(batches) => batches.send(batch).instrument(span).await.is_ok(),
            None => false,
        };
        if !sent {
            // The shard has halted, which was reported. No further checkpoint is sent.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Waits until all records are settled, and forever if the shard has halted.
    pub(super) async fn settle_all(&mut self) -> Result<(), BoxError> {
        self.batches = None;
        if let Some(task) = self.task.take() {
            let is_complete = matches!(task.await, Ok(Ok(finished)) if finished.complete);
            if !is_complete {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }

    /// Starts no further attempts, and waits for running ones to end.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        self.batches = None;
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }

    /// Sends the watermark to KCL, if it has moved and a checkpoint is due.
    pub(super) async fn checkpoint<I, O>(
        &mut self,
        daemon: &mut Daemon<I, O>,
        interval: Duration,
    ) -> Result<(), MultiLangError>
    where
        I: AsyncBufRead + Unpin,
        O: AsyncWrite + Unpin,
    {
        let published = self.latest.borrow_and_update().clone();
        if self.stored_at.elapsed() >= interval {
            self.progress.want_any();
        }
        let Some(position) = published.map(|published| published.checkpoint.position().clone()) else {
            return Ok(());
        };
        let Position::Record {
            sequence_number,
            sub_sequence_number,
        } = &position
        else {
            return Ok(());
        };
        if position == self.stored {
            return Ok(());
        }
        let message = Outgoing::Checkpoint {
            sequence_number: Some(sequence_number.as_str()),
            sub_sequence_number: Some(*sub_sequence_number),
        };
        if daemon.store(&message).await?.is_none() {
            self.stored = position;
            self.stored_at = Instant::now();
        }
        self.progress.want_urgent();
        Ok(())
    }

    /// Asks KCL to store the end of the shard, so that its child shards can start. Retries until KCL has
    /// stored it or the lease is lost.
    pub(super) async fn end<I, O>(&mut self, daemon: &mut Daemon<I, O>) -> Result<(), MultiLangError>
    where
        I: AsyncBufRead + Unpin,
        O: AsyncWrite + Unpin,
    {
        let message = Outgoing::Checkpoint {
            sequence_number: None,
            sub_sequence_number: None,
        };
        while let Some(error) = daemon.store(&message).await? {
            // The lease is lost. The new owner stores the end.
            if error == "ShutdownException" || error == "InvalidStateException" {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }
}

/// The batches as a stream, in order of arrival.
struct Batches(mpsc::Receiver<Batch>);

impl Stream for Batches {
    type Item = Batch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        self.0.poll_recv(cx)
    }
}
