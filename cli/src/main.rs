//! The command line over dead letters and checkpoints.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use redrive::BoxError;

mod address;
mod alarms;
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

/// Look at dead letters of Kinesis records, and drive them again.
///
/// Letters are at an ADDRESS: file:PATH, kinesis:STREAM, sqs:QUEUE or s3:BUCKET/PREFIX.
/// Region and credentials come from the environment and the profile (AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL, …), as
/// for the aws command.
///
/// Payloads, partition keys and error texts are shown only with --payload.
///
/// Exit codes: 0, all was done; 1, it could not go on, and says why; 2, it was called wrongly; 3, some letters need a look;
/// 130, it was interrupted, and goes on where it was when it is started again.
#[derive(Debug, Parser)]
#[command(name = "redrive", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Lines of JSON instead of text
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
    Alarms(alarms::Alarms),
    /// Print a shell's completions
    ///
    /// For bash: redrive completions bash > /etc/bash_completion.d/redrive
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How a command ended, if it did not fail.
enum Ended {
    Done,
    /// Some letters need a look.
    Left,
    Interrupted,
    /// Somebody else is at work there.
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
        Command::Alarms(alarms) => alarms.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "redrive", &mut std::io::stdout());
            Ok(Ended::Done)
        }
    }
}
