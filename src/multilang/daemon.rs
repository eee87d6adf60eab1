//! The connection to the daemon.

use std::io;
use std::pin::pin;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use super::MultiLangError;
use super::message::{Incoming, Outgoing};
use crate::failure::BoxError;

/// The daemon, connected by an input and an output.
pub(super) struct Daemon<I, O> {
    pub(super) input: I,
    pub(super) output: O,
}

impl<I: AsyncBufRead + Unpin, O: AsyncWrite + Unpin> Daemon<I, O> {
    /// Returns the daemon's next message, or `None` if the daemon has ended.
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
        // Starts a new line, in case other code has written to the output.
        line.insert(0, b'\n');
        line.push(b'\n');
        self.output.write_all(&line).await?;
        self.output.flush().await?;
        Ok(())
    }

    /// Waits for `work`, which may take long. Returns `None` if the daemon ends meanwhile. Any message
    /// meanwhile is an error, because the daemon must wait for an answer.
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
                return Err(MultiLangError::Protocol(
                    "the daemon did not wait for an answer".into(),
                ));
            }
            self.input.consume(blank);
        }
    }

    /// Sends a checkpoint and waits for the answer. Returns the name of the Java exception if KCL did not
    /// store it.
    pub(super) async fn store(
        &mut self,
        checkpoint: &Outgoing<'_>,
    ) -> Result<Option<String>, MultiLangError> {
        self.say(checkpoint).await?;
        match self.read().await? {
            Some(Incoming::Checkpoint { error }) => {
                if let Some(error) = &error {
                    tracing::warn!(
                        error,
                        "checkpoint not stored by KCL; retried unless the lease is lost"
                    );
                }
                Ok(error)
            }
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Some(_) => Err(MultiLangError::Protocol(
                "expected the answer to a checkpoint".into(),
            )),
        }
    }
}
