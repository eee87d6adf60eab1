//! The child process of the daemon: handles the daemon's actions one after the other.

use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncWrite, BufReader};

use super::MultiLangError;
use super::daemon::Daemon;
use super::message::{Incoming, Outgoing, beginning};
use super::shard::Shard;
use crate::engine::Resilient;
use crate::pipeline::Pipeline;
use crate::processor::Handler;
use crate::record::{Source, StreamId};

/// A processor as the child process of the daemon.
///
/// | setting | default |
/// |---|---|
/// | [`pipeline`](Worker::pipeline) | [`Pipeline::default`] |
/// | [`checkpoint_interval`](Worker::checkpoint_interval) | 5 s |
#[derive(Debug)]
#[must_use]
pub struct Worker<P: Handler> {
    resilient: Resilient<P>,
    stream: StreamId,
    pipeline: Pipeline,
    checkpoint_interval: Duration,
}

/// Runs the processor as a child process of the daemon, over standard input and output, with the defaults of
/// [`Worker`]. `stream` is the name or ARN of the stream that the daemon reads; the daemon does not send it.
/// Returns when standard input ends.
pub async fn run<P: Handler + 'static>(
    resilient: Resilient<P>,
    stream: impl Into<StreamId>,
) -> Result<(), MultiLangError> {
    Worker::new(resilient, stream).run().await
}

impl<P: Handler + 'static> Worker<P> {
    /// Creates a worker with the defaults, for the stream (its name or ARN) that the daemon reads.
    pub fn new(resilient: Resilient<P>, stream: impl Into<StreamId>) -> Self {
        Worker {
            resilient,
            stream: stream.into(),
            pipeline: Pipeline::default(),
            checkpoint_interval: Duration::from_secs(5),
        }
    }

    /// Sets the order in which records are processed, and the bounds of the window.
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipeline = pipeline;
        self
    }

    /// Sets the minimum time between two checkpoints. After a dead letter, the next batch sends a checkpoint
    /// at once. Any time is valid: with zero, every batch sends a checkpoint.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.checkpoint_interval = interval;
        self
    }

    /// Runs the processor over standard input and output. Returns when standard input ends.
    pub async fn run(self) -> Result<(), MultiLangError> {
        let input = BufReader::with_capacity(64 * 1024, tokio::io::stdin());
        self.run_with(input, tokio::io::stdout()).await
    }

    /// Runs the processor over any other input and output, for tests.
    pub async fn run_with(
        self,
        input: impl AsyncBufRead + Unpin,
        output: impl AsyncWrite + Unpin,
    ) -> Result<(), MultiLangError> {
        self.stream.check("multilang::Worker::new")?;
        let result = self.speak(input, output).await;
        self.resilient.observers().flush();
        result
    }

    async fn speak(
        &self,
        input: impl AsyncBufRead + Unpin,
        output: impl AsyncWrite + Unpin,
    ) -> Result<(), MultiLangError> {
        let mut daemon = Daemon { input, output };
        let mut shard: Option<Shard> = None;
        while let Some(message) = daemon.read().await? {
            let action = message.action();
            match message.meant() {
                Incoming::Initialize {
                    shard_id,
                    sequence_number,
                    sub_sequence_number,
                } => {
                    let from = beginning(sequence_number, sub_sequence_number);
                    let source = Source {
                        stream: self.stream.shared_name(),
                        shard: shard_id.into(),
                    };
                    let (resilient, pipeline) = (self.resilient.clone(), self.pipeline.clone());
                    shard = Some(Shard::begin(resilient, pipeline, source, from));
                }
                Incoming::ProcessRecords { records } => {
                    let shard = begun(&mut shard)?;
                    if daemon.unless_gone(shard.take_in(records)).await?.is_none() {
                        return Ok(());
                    }
                    shard.checkpoint(&mut daemon, self.checkpoint_interval).await?;
                }
                Incoming::ShardEnded => {
                    let shard = begun(&mut shard)?;
                    if daemon.unless_gone(shard.settle_all()).await?.is_none() {
                        return Ok(());
                    }
                    shard.end(&mut daemon).await?;
                }
                Incoming::ShutdownRequested => {
                    let shard = begun(&mut shard)?;
                    shard.stop().await;
                    shard.checkpoint(&mut daemon, Duration::ZERO).await?;
                }
                Incoming::LeaseLost => shard = None,
                Incoming::Checkpoint { .. } | Incoming::Shutdown { .. } => {
                    return Err(MultiLangError::Protocol(
                        "expected an action, got a checkpoint answer or an unknown shutdown reason".into(),
                    ));
                }
            }
            daemon.say(&Outgoing::Status { response_for: action }).await?;
        }
        Ok(())
    }
}

fn begun(shard: &mut Option<Shard>) -> Result<&mut Shard, MultiLangError> {
    let none = || MultiLangError::Protocol("the daemon sent an action, but no shard is initialized".into());
    shard.as_mut().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::processor_fn;

    async fn ok(_: crate::Record) -> Result<(), std::io::Error> {
        Ok(())
    }

    #[test]
    fn the_documented_defaults() {
        let resilient = Resilient::builder("billing", processor_fn(ok)).without_dead_letters();
        let worker = Worker::new(resilient.build().expect("valid"), "orders");
        assert_eq!(worker.checkpoint_interval, Duration::from_secs(5));
        let pipeline = format!("{:?}", worker.pipeline);
        assert_eq!(pipeline, format!("{:?}", Pipeline::default()));
    }
}
