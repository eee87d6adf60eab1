//! One shard, as the daemon gives it to its child.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::message::{Incoming, IncomingRecord, Outgoing, beginning};
use crate::checkpoint::Checkpoint;
use crate::failure::BoxError;
use crate::observer::{Event, Interest};
use crate::pipeline::{Batch, Finished, Pipeline, Progress, Published, ShardHalted};
use crate::processor::RecordProcessor;
use crate::record::{Position, Source};
use crate::resilient::Resilient;

/// A processor as the daemon's child.
///
/// | setting | default |
/// |---|---|
/// | [`pipeline`](Worker::pipeline) | [`Pipeline::default`] |
/// | [`checkpoint_interval`](Worker::checkpoint_interval) | 5 s |
#[derive(Debug)]
#[must_use]
pub struct Worker<P: RecordProcessor> {
    resilient: Resilient<P>,
    stream: Arc<str>,
    pipeline: Pipeline,
    checkpoint_interval: Duration,
}

/// Why a child has ended before its standard input did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultiLangError {
    /// The daemon cannot be read, or written to.
    #[error("the daemon cannot be reached by standard input and output")]
    Io(#[from] io::Error),
    /// It said what it must not.
    #[error("the daemon said what is not understood, or not now")]
    Protocol(#[source] BoxError),
}

/// Runs the processor as a child of the daemon, by standard input and output, with the defaults of [`Worker`]. `stream`
/// is the name of the stream that the daemon reads, which it does not say. Returns when standard input ends.
pub async fn run<P: RecordProcessor + 'static>(
    resilient: Resilient<P>,
    stream: impl Into<Arc<str>>,
) -> Result<(), MultiLangError> {
    Worker::new(resilient, stream).run().await
}

impl<P: RecordProcessor + 'static> Worker<P> {
    /// With the defaults.
    pub fn new(resilient: Resilient<P>, stream: impl Into<Arc<str>>) -> Self {
        Worker {
            resilient,
            stream: stream.into(),
            pipeline: Pipeline::default(),
            checkpoint_interval: Duration::from_secs(5),
        }
    }

    /// In which order records are processed, and within which bounds.
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipeline = pipeline;
        self
    }

    /// How often the watermark is sent to be stored, at most. After a dead letter it is at the next batch.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.checkpoint_interval = interval;
        self
    }

    /// As the daemon's child: by standard input and output.
    pub async fn run(self) -> Result<(), MultiLangError> {
        let input = BufReader::with_capacity(64 * 1024, tokio::io::stdin());
        self.run_with(input, tokio::io::stdout()).await
    }

    /// The same by any other pair, for tests.
    pub async fn run_with(
        self,
        input: impl AsyncBufRead + Unpin,
        output: impl AsyncWrite + Unpin,
    ) -> Result<(), MultiLangError> {
        let mut daemon = Daemon { input, output };
        let mut shard: Option<Shard> = None;
        while let Some(message) = daemon.read().await? {
            let action = match message {
                Incoming::Initialize {
                    shard_id,
                    sequence_number,
                    sub_sequence_number,
                } => {
                    let from = beginning(sequence_number, sub_sequence_number);
                    shard = Some(self.begin(shard_id, from));
                    "initialize"
                }
                Incoming::ProcessRecords { records } => {
                    let shard = begun(&mut shard)?;
                    if daemon.unless_gone(shard.take_in(records)).await?.is_none() {
                        return Ok(());
                    }
                    shard.checkpoint(&mut daemon, self.checkpoint_interval).await?;
                    "processRecords"
                }
                Incoming::ShardEnded => {
                    let shard = begun(&mut shard)?;
                    if daemon.unless_gone(shard.settle_all()).await?.is_none() {
                        return Ok(());
                    }
                    shard.end(&mut daemon).await?;
                    "shardEnded"
                }
                Incoming::ShutdownRequested => {
                    let shard = begun(&mut shard)?;
                    shard.stop().await;
                    shard.checkpoint(&mut daemon, Duration::ZERO).await?;
                    "shutdownRequested"
                }
                Incoming::LeaseLost => {
                    shard = None;
                    "leaseLost"
                }
                Incoming::Shutdown { reason } if reason.as_deref() == Some("TERMINATE") => {
                    let shard = begun(&mut shard)?;
                    if daemon.unless_gone(shard.settle_all()).await?.is_none() {
                        return Ok(());
                    }
                    shard.end(&mut daemon).await?;
                    "shutdown"
                }
                Incoming::Shutdown { .. } => {
                    shard = None;
                    "shutdown"
                }
                Incoming::Checkpoint { .. } => {
                    return Err(MultiLangError::Protocol(
                        "a checkpoint's answer, and no checkpoint".into(),
                    ));
                }
            };
            daemon.say(&Outgoing::Status { response_for: action }).await?;
        }
        Ok(())
    }

    fn begin(&self, shard: String, from: Position) -> Shard {
        let source = Arc::new(Source {
            stream: self.stream.clone(),
            shard: shard.into(),
        });
        let (sender, batches) = mpsc::channel(1);
        let (progress, stop) = (Arc::new(Progress::new()), CancellationToken::new());
        let latest = progress.subscribe();
        progress.want_urgent();
        let (resilient, pipeline) = (self.resilient.clone(), self.pipeline.clone());
        if resilient.observers().want(Interest::SHARDS) {
            resilient.observers().tell(&Event::ShardStarted {
                stream: &source.stream,
                shard: &source.shard,
                position: &from,
            });
        }
        let task = tokio::spawn({
            let (progress, stop) = (progress.clone(), stop.clone());
            let from = Checkpoint::at(from.clone());
            async move {
                let batches = Batches(batches);
                let result = pipeline
                    .run_from(&resilient, batches, from, &progress, &stop)
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
}

fn begun(shard: &mut Option<Shard>) -> Result<&mut Shard, MultiLangError> {
    let none = || MultiLangError::Protocol("an action, and no shard".into());
    shard.as_mut().ok_or_else(none)
}

/// The other end of the pipes.
struct Daemon<I, O> {
    input: I,
    output: O,
}

impl<I: AsyncBufRead + Unpin, O: AsyncWrite + Unpin> Daemon<I, O> {
    /// What it says next; none: it is gone.
    async fn read(&mut self) -> Result<Option<Incoming>, MultiLangError> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.input.read_until(b'\n', &mut line).await? == 0 {
                return Ok(None);
            }
            if !line.trim_ascii().is_empty() {
                let message = serde_json::from_slice(&line);
                return message
                    .map(Some)
                    .map_err(|error| MultiLangError::Protocol(error.into()));
            }
        }
    }

    async fn say(&mut self, message: &Outgoing<'_>) -> Result<(), MultiLangError> {
        let mut line = serde_json::to_vec(message).map_err(|error| MultiLangError::Protocol(error.into()))?;
        // A line of its own, whatever was written before.
        line.insert(0, b'\n');
        line.push(b'\n');
        self.output.write_all(&line).await?;
        self.output.flush().await?;
        Ok(())
    }

    /// Waits for this, which may take long; none: the daemon is gone, which says nothing while it waits for an answer.
    async fn unless_gone<T>(
        &mut self,
        work: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<Option<T>, MultiLangError> {
        let mut work = pin!(work);
        loop {
            let blank = tokio::select! {
                biased;
                done = &mut work => return done.map(Some).map_err(MultiLangError::Protocol),
                said = self.input.fill_buf() => match said? {
                    [] => return Ok(None),
                    said => said.iter().take_while(|byte| byte.is_ascii_whitespace()).count(),
                },
            };
            if blank == 0 {
                return Err(MultiLangError::Protocol("it does not wait for an answer".into()));
            }
            self.input.consume(blank);
        }
    }
}

/// The shard that this process works on.
struct Shard {
    source: Arc<Source>,
    /// None once no more come.
    batches: Option<mpsc::Sender<Batch>>,
    progress: Arc<Progress>,
    latest: watch::Receiver<Option<Published>>,
    stop: CancellationToken,
    task: Option<AbortOnDropHandle<Result<Finished, Box<ShardHalted>>>>,
    /// The last position that KCL has.
    stored: Position,
    stored_at: Instant,
}

impl Shard {
    /// Gives records to the pipeline. As long as its window is full this waits, and if the shard has halted for ever.
    async fn take_in(&mut self, records: Vec<IncomingRecord>) -> Result<(), BoxError> {
        if records.is_empty() {
            return Ok(());
        }
        let records = records.into_iter().map(|record| record.into_record(&self.source));
        let batch = Batch::from(records.collect::<Result<Vec<_>, _>>()?);
        let sent = match &self.batches {
            Some(batches) => batches.send(batch).await.is_ok(),
            None => false,
        };
        if !sent {
            // What halted it was told; nothing of it is stored.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Waits until all is settled; if the shard has halted for ever.
    async fn settle_all(&mut self) -> Result<(), BoxError> {
        self.batches = None;
        if let Some(task) = self.task.take() {
            let is_complete = matches!(task.await, Ok(Ok(finished)) if finished.complete);
            if !is_complete {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }

    /// Nothing new begins, and what runs may end.
    async fn stop(&mut self) {
        self.stop.cancel();
        self.batches = None;
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }

    /// Sends the watermark to be stored, if it has moved and that is due.
    async fn checkpoint<I, O>(
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

    /// Has the shard's end stored, so that its children may begin.
    async fn end<I, O>(&mut self, daemon: &mut Daemon<I, O>) -> Result<(), MultiLangError>
    where
        I: AsyncBufRead + Unpin,
        O: AsyncWrite + Unpin,
    {
        let message = Outgoing::Checkpoint {
            sequence_number: None,
            sub_sequence_number: None,
        };
        while let Some(error) = daemon.store(&message).await? {
            // The lease is lost: the end is another's to store.
            if error == "ShutdownException" || error == "InvalidStateException" {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }
}

impl<I: AsyncBufRead + Unpin, O: AsyncWrite + Unpin> Daemon<I, O> {
    /// Sends a checkpoint and waits for its answer: what went wrong, by its name in Java.
    async fn store(&mut self, checkpoint: &Outgoing<'_>) -> Result<Option<String>, MultiLangError> {
        self.say(checkpoint).await?;
        match self.read().await? {
            Some(Incoming::Checkpoint { error }) => {
                if let Some(error) = &error {
                    tracing::warn!(error, "KCL has not stored a checkpoint; the next one is sent");
                }
                Ok(error)
            }
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Some(_) => Err(MultiLangError::Protocol("no answer to a checkpoint".into())),
        }
    }
}

/// Batches as they come.
struct Batches(mpsc::Receiver<Batch>);

impl Stream for Batches {
    type Item = Batch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        self.0.poll_recv(cx)
    }
}
