//! A fleet: three workers share the six shards of a stream, in one process and on one screen.
//!
//! ```text
//! cargo run -p fleet              # keys: j a worker joins, k the newest is killed, s the oldest stops, q quit
//! cargo run -p fleet -- --once    # without keys: one joins, one is killed, one stops; ends with a summary
//! ```
//!
//! The stream is in this process. The leases are in DynamoDB, at the address in `AWS_ENDPOINT_URL_DYNAMODB`: of
//! DynamoDB Local or LocalStack, over plain HTTP. Without the variable, the example starts the DynamoDB Local that
//! the tests of this repository have installed (`cargo test --workspace`), which needs Java.
//!
//! A killed worker is dropped in the middle of its work. Its shards wait until their leases expire, and the records
//! after its last checkpoint are processed twice. A worker that stops finishes its records, and its shards continue
//! elsewhere at once. No record is lost either way.

mod dynamodb;
mod fleet;
mod ledger;
mod news;
mod screen;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use redrive::testing::kinesis::{self, KinesisServer};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use fleet::Fleet;
use ledger::Ledger;
use screen::Screen;

#[derive(Debug, Parser)]
struct Arguments {
    /// Run a fixed script without keys, print a summary, and end
    #[arg(long)]
    once: bool,
}

const SHARDS: i32 = 6;
const FRAME: Duration = Duration::from_millis(250);
/// A limit far above the time that a change of the fleet takes.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let dynamo = dynamodb::Server::connect().await?;
    let server = KinesisServer::start().await?;
    let kinesis = server.client();
    kinesis::create_stream(&kinesis, fleet::STREAM, SHARDS).await?;

    let ledger = Arc::new(Ledger::default());
    let stop = CancellationToken::new();
    let producing = tokio::spawn(ledger::produce(kinesis.clone(), ledger.clone(), stop.clone()));
    let mut fleet = Fleet::new(kinesis, dynamo.client(), ledger.clone());
    for _ in 0..3 {
        fleet.join()?;
    }
    let took = match arguments.once {
        true => Some(script(&mut fleet).await?),
        false => by_hand(&mut fleet).await.map(|()| None)?,
    };
    stop.cancel();
    producing.await??;
    if !fleet.workers.iter().any(fleet::Worker::is_running) {
        // One is needed for the records that are left.
        fleet.join()?;
    }
    let lost = ledger.wait_for_all(PATIENCE).await;
    fleet.end().await?;
    if let Some(took) = took {
        println!("{took}");
    }
    println!(
        "sent {}; lost {lost}; processed twice {}; shards handed over {}",
        ledger.sent(),
        ledger.repeated(),
        fleet.news().handed_over(),
    );
    ensure!(lost == 0, "{lost} records were not processed within {PATIENCE:?}");
    Ok(())
}

/// Runs on the terminal, controlled by keys.
async fn by_hand(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut screen = Screen::open().context("no terminal to draw on; use --once")?;
    loop {
        screen.draw(fleet).await?;
        let key = spawn_blocking(|| match event::poll(FRAME) {
            Ok(true) => event::read().map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        });
        let Some(Event::Key(key)) = key.await?? else {
            continue;
        };
        let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
        match key.code {
            _ if key.kind != KeyEventKind::Press => {}
            KeyCode::Char('j') => fleet.join()?,
            KeyCode::Char('k') => fleet.kill(),
            KeyCode::Char('s') => fleet.stop(),
            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
            _ if is_ctrl_c => return Ok(()),
            _ => {}
        }
    }
}

/// Runs without keys. Returns how long each change took.
async fn script(fleet: &mut Fleet) -> anyhow::Result<String> {
    let start = even(fleet, "three workers").await?;
    fleet.join()?;
    let join = even(fleet, "one has joined").await?;
    fleet.kill();
    let kill = even(fleet, "one was killed").await?;
    fleet.stop();
    let stop = even(fleet, "one has stopped").await?;
    Ok(format!(
        "even after: start {start:.1?}, join {join:.1?}, kill {kill:.1?}, stop {stop:.1?}"
    ))
}

/// Waits until the running workers share the shards evenly, and prints the shares. Then waits until all of them work.
/// Returns how long the first part took.
async fn even(fleet: &Fleet, what: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut took = None;
    while took.is_none() || !fleet.all_work() {
        // The table may not exist yet.
        if took.is_none()
            && let Ok(shards) = fleet.shards().await
            && let Some(shares) = fleet.even_shares(&shards)
        {
            println!("{what}, shards: {shares}");
            took = Some(start.elapsed());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{what}: the shards are not read by all workers alike after {PATIENCE:?}"
        );
        sleep(FRAME).await;
    }
    Ok(took.unwrap_or_default())
}
