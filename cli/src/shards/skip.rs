//! `redrive shards skip`: a shard goes on behind its next record.

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

/// Skip a shard's next records, making dead letters of them
///
/// These are the first that are not settled, one unless --records says more; records inside an aggregated one count each.
/// Once all letters (reason: operator) are confirmed the position moves past them; otherwise nothing moves.
#[derive(Debug, Args)]
pub(crate) struct Skip {
    /// The shard
    shard: String,
    #[command(flatten)]
    whose: Whose,
    /// Where the letters go: file:PATH, kinesis:STREAM, sqs:QUEUE, sns:TOPIC_ARN or s3:BUCKET/PREFIX
    #[arg(long, value_name = "ADDRESS")]
    dead_letters: Address,
    /// So many at most
    #[arg(long, default_value = "1", value_name = "COUNT")]
    records: NonZeroUsize,
    /// Only if the first of them is this one, so that a script never skips two
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
            eprintln!("the first record that is not settled is {}", first.position());
            return Ok(Ended::Left);
        }
        self.tell(&skip, json);
        if self.how.dry_run {
            return Ok(Ended::Done);
        }
        let question = format!(
            "Write {} of these to {} and move {shard} past them?",
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
                false => output::line(format_args!("letter {letter} is at {}", receipt.location)),
            };
        }
        match json {
            true => output::json_line(&json!({ "shard": self.shard, "position": to.to_string() })),
            false => output::line(format_args!("{shard} stands at {}", position(to))),
        };
        Ok(Ended::Done)
    }

    fn tell(&self, skip: &operator::Skip<'_>, json: bool) {
        if skip.is_trimmed() {
            eprintln!(
                "the record at {} is gone from the stream, and maybe others behind it that were not settled: nothing will tell of those once the position has moved",
                position(skip.from().position())
            );
        }
        if !json {
            let from = position(skip.from().position());
            output::line(format_args!(
                "{} stands at {from}; not settled behind it are:",
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

/// Nothing of the record's content.
fn as_json(record: &Record) -> Value {
    json!({
        "sequence_number": record.sequence_number().as_str(),
        "sub_sequence_number": record.sub_sequence_number(),
        "key_hash": record.key_hash().map(|hash| hash.to_string()),
        "arrived_at": record.arrival().map(output::time),
        "payload_bytes": record.payload().len(),
    })
}
