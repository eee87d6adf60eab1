//! `redrive shards skip`: moves a checkpoint past unsettled records.

use std::num::NonZeroUsize;

use crate::address::Address;
use clap::Args;
use redrive::operator;
use redrive::{BoxError, Record, ShardId};
use serde_json::{Value, json};

use super::list::position;
use super::place::At;
use super::{How, Whose};
use crate::Ended;
use crate::clients::Clients;
use crate::output;

/// Skip a shard's next unsettled records and write them as dead letters
///
/// Skips the first unsettled record, or several with --records. Each record inside an aggregated record
/// counts as one. Once all dead letters (reason: operator) are confirmed, the checkpoint moves past the
/// records. Otherwise nothing is moved.
#[derive(Debug, Args)]
pub(crate) struct Skip {
    /// Shard id
    shard: String,
    #[command(flatten)]
    whose: Whose,
    /// Address for the dead letters: file:PATH, kinesis:STREAM, sqs:QUEUE, sns:TOPIC_ARN or s3:BUCKET/PREFIX
    #[arg(long, value_name = "ADDRESS")]
    dead_letters: Address,
    /// Maximum number of records to skip
    #[arg(long, default_value = "1", value_name = "COUNT")]
    records: NonZeroUsize,
    /// Skip only if the first unsettled record is this one, so that a script never skips two
    #[arg(long, value_name = "SEQUENCE[/SUB]")]
    at: Option<At>,
    #[command(flatten)]
    how: How,
}

impl Skip {
    pub(super) async fn run(self, json: bool) -> Result<Ended, BoxError> {
        let clients = Clients::default();
        let shard = ShardId::from(&*self.shard);
        let shards = self.whose.shards_to_move(&clients, &shard, &self.how).await?;
        let skip = shards.skip(&shard, self.records).await?;
        let first = &skip.records()[0];
        if let Some(At(at)) = &self.at
            && *at != first.position()
        {
            eprintln!(
                "nothing skipped: the first unsettled record is {}",
                first.position()
            );
            return Ok(Ended::Left);
        }
        self.tell(&skip, json);
        if self.how.dry_run {
            return Ok(Ended::Done);
        }
        let question = format!(
            "Write {} dead letters to {} and move {shard} past their records?",
            skip.records().len(),
            self.dead_letters
        );
        if !output::confirm(&question, self.how.yes)? {
            return Ok(Ended::Interrupted);
        }
        let sink = clients.sink(&self.dead_letters).await?;
        let skipped = skip.carry_out(&*sink).await?;
        for warning in &skipped.warnings {
            eprintln!(
                "{}",
                output::escaped(&format!("{}: {}", warning.message, warning.remedy))
            );
        }
        let to = skipped.to.position();
        for (letter, receipt) in &skipped.letters {
            match json {
                true => {
                    output::json_line(&json!({ "letter": letter.to_string(), "place": receipt.location }))
                }
                false => output::line(format_args!(
                    "dead letter {letter} written to {}",
                    receipt.location
                )),
            };
        }
        match json {
            true => output::json_line(&json!({ "shard": self.shard, "position": to.to_string() })),
            false => output::line(format_args!("{shard} is now at {}", position(to))),
        };
        Ok(Ended::Done)
    }

    fn tell(&self, skip: &operator::Skip<'_>, json: bool) {
        if skip.is_trimmed() {
            eprintln!(
                "warning: the stream no longer holds the record at {}; unsettled records after it may also be lost, and their loss cannot be detected once the checkpoint has moved",
                position(skip.from().position())
            );
        }
        if !json {
            let from = position(skip.from().position());
            output::line(format_args!(
                "{} is at {from}; its next unsettled records are:",
                self.shard
            ));
        }
        for record in skip.records() {
            match json {
                true => output::json_line(&as_json(record)),
                false => output::line(as_text(record)),
            };
        }
    }
}

fn as_text(record: &Record) -> String {
    format!(
        "  {}  {}  arrived {}  {} B",
        record.position(),
        record
            .key_hash()
            .map_or_else(|| "no key".to_owned(), |hash| format!("key hash {hash}")),
        record
            .arrival()
            .map_or_else(|| "at an unknown time".to_owned(), output::time),
        record.payload().len(),
    )
}

/// Formats a record as JSON, without the record's content.
fn as_json(record: &Record) -> Value {
    json!({
        "sequence_number": record.sequence_number().as_str(),
        "sub_sequence_number": record.sub_sequence_number(),
        "key_hash": record.key_hash().map(|hash| hash.to_string()),
        "arrived_at": record.arrival().map(output::time),
        "payload_bytes": record.payload().len(),
    })
}
