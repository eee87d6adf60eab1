//! The command `redrive`: inspects and replays dead letters, and moves checkpoints.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use redrive::BoxError;

mod address;
mod clients;
mod filter;
mod list;
mod output;
mod rehydrate;
mod replay;
mod shards;
mod show;
mod stats;
mod stop;

/// Inspect and replay dead letters of Kinesis records.
///
/// Dead letters are read from an ADDRESS: file:PATH, kinesis:STREAM, sqs:QUEUE or s3:BUCKET/PREFIX.
/// Region and credentials come from the environment and the profile (AWS_REGION, AWS_PROFILE,
/// AWS_ENDPOINT_URL, …), as for the aws command.
///
/// Payloads, partition keys and error texts are shown only by "redrive show", with --payload or --raw.
///
/// Exit codes: 0, success; 1, failure (the reason is on standard error); 2, invalid usage; 3, some dead
/// letters need attention; 130, interrupted or not confirmed (run the command again to resume).
#[derive(Debug, Parser)]
#[command(name = "redrive", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON lines instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Stats(stats::Stats),
    Replay(replay::Replay),
    Rehydrate(rehydrate::Rehydrate),
    Shards(shards::Shards),
    /// Print shell completions
    ///
    /// For bash: redrive completions bash > /etc/bash_completion.d/redrive
    Completions {
        /// Shell to print completions for
        shell: clap_complete::Shell,
    },
}

/// The outcome of a command that did not fail.
enum Ended {
    Done,
    /// Some dead letters or shards need attention.
    Left,
    Interrupted,
    /// The shard's owner is alive, so nothing was moved.
    Refused,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, json } = Cli::parse();
    match run(command, json).await {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Left) => ExitCode::from(3),
        Ok(Ended::Refused) => ExitCode::from(4),
        Ok(Ended::Interrupted) => ExitCode::from(130),
        Err(error) => {
            output::error(&*error);
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, json: bool) -> Result<Ended, BoxError> {
    match command {
        Command::List(list) => list.run(json).await,
        Command::Show(show) => show.run(json).await,
        Command::Stats(stats) => stats.run(json).await,
        Command::Replay(replay) => replay.run(json).await,
        Command::Rehydrate(rehydrate) => rehydrate.run(json).await,
        Command::Shards(shards) => shards.run(json).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "redrive", &mut std::io::stdout());
            Ok(Ended::Done)
        }
    }
}
