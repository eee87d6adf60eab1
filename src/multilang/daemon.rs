//! The daemon at the other end of the pipes.

use std::io;
use std::pin::pin;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use super::MultiLangError;
use super::message::{Incoming, Outgoing};
use crate::failure::BoxError;

/// The other end of the pipes.
pub(super) struct Daemon<I, O> {
    pub(super) input: I,
    pub(super) output: O,
}

impl<I: AsyncBufRead + Unpin, O: AsyncWrite + Unpin> Daemon<I, O> {
    /// What it says next; none: it is gone.
    pub(super) async fn read(&mut self) -> Result<Option<Incoming>, MultiLangError> {
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

    pub(super) async fn say(&mut self, message: &Outgoing<'_>) -> Result<(), MultiLangError> {
        let mut line = serde_json::to_vec(message).map_err(|error| MultiLangError::Protocol(error.into()))?;
        // A line of its own, whatever was written before.
        line.insert(0, b'\n');
        line.push(b'\n');
        self.output.write_all(&line).await?;
        self.output.flush().await?;
        Ok(())
    }

    /// Waits for this, which may take long; none: the daemon is gone, which says nothing while it waits for an answer.
    pub(super) async fn unless_gone<T>(
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

    /// Sends a checkpoint and waits for its answer: what went wrong, by its name in Java.
    pub(super) async fn store(
        &mut self,
        checkpoint: &Outgoing<'_>,
    ) -> Result<Option<String>, MultiLangError> {
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
