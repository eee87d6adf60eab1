//! A dashboard for a running consumer: break the bank that the processor calls, and watch the breaker.
//!
//! ```text
//! cargo run -p dashboard                                   # keys: b bank down or up, p bad orders, q quit
//! cargo run -p dashboard -- --script --svg dashboard.svg   # without keys; writes the last screen to a file
//! ```
//!
//! Everything runs in this process: a Kinesis server, a producer, a consumer of four shards, and the "bank"
//! that its processor calls.

mod bank;
mod feed;
mod screen;
mod svg;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use crossterm::event::{self, KeyCode, KeyEventKind};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use redrive::testing::kinesis::{self, KinesisServer};
use redrive::{Consumer, Resilient, checkpoint, dead_letter, processor_with};
use tokio_util::sync::CancellationToken;

use bank::Bank;
use feed::Feed;
use screen::View;

#[derive(Debug, Parser)]
struct Arguments {
    /// Run without a terminal: break the bank after 15 s, repair it after 30 s, and quit after 50 s
    #[arg(long)]
    script: bool,
    /// Write the last screen to this SVG file
    #[arg(long, requires = "script")]
    svg: Option<PathBuf>,
}

const FRAME: Duration = Duration::from_millis(250);
/// The times of the script's actions, in seconds.
const BREAKS_AT: u64 = 15;
const HEALS_AT: u64 = 30;
const ENDS_AT: u64 = 50;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Rust's panic hook would print over the screen.
    std::panic::set_hook(Box::new(|_| {}));
    let server = KinesisServer::start().await?;
    let kinesis = server.client();
    kinesis::create_stream(&kinesis, "orders", 4).await?;

    let bank = Arc::new(Bank::default());
    let feed = Arc::new(Feed::default());
    let orders = Resilient::builder("billing", processor_with(bank.clone(), bank::bill))
        .dead_letters(dead_letter::Memory::new())
        .observer(feed.clone())
        .build()?;
    let consumer = Consumer::builder(kinesis.clone(), "orders")
        .checkpoints(checkpoint::Memory::new())
        .build()?;
    let view = View {
        health: consumer.health(),
        breaker: orders.breaker().cloned(),
        guard: orders.guard().cloned(),
        budget: orders.retry_budget().cloned(),
        bank: bank.clone(),
        feed,
    };
    let stop = CancellationToken::new();
    let producing = tokio::spawn(bank::produce(kinesis, bank));
    let running = tokio::spawn(consumer.run_until(orders, stop.clone().cancelled_owned()));
    match arguments.script {
        true => script(&view, arguments.svg).await?,
        false => by_hand(&view).await?,
    }
    producing.abort();
    stop.cancel();
    running.await??;
    Ok(())
}

/// Runs on the terminal, controlled by keys.
async fn by_hand(view: &View) -> anyhow::Result<()> {
    let mut terminal = ratatui::init();
    let ended = async {
        loop {
            view.feed.tick();
            terminal.draw(|frame| view.draw(frame))?;
            let key = tokio::task::spawn_blocking(|| match event::poll(FRAME) {
                Ok(true) => event::read().map(Some),
                Ok(false) => Ok(None),
                Err(error) => Err(error),
            });
            if let Some(event::Event::Key(key)) = key.await??
                && key.kind == KeyEventKind::Press
            {
                match key.code {
                    KeyCode::Char('b') => view.bank.toggle(),
                    KeyCode::Char('p') => view.bank.poison(20),
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    _ => {}
                }
            }
        }
    };
    let result = ended.await;
    ratatui::restore();
    result
}

/// Runs the script without a terminal and prints a summary each second.
async fn script(view: &View, svg: Option<PathBuf>) -> anyhow::Result<()> {
    let mut terminal = Terminal::new(TestBackend::new(132, 38))?;
    for second in 0..ENDS_AT {
        match second {
            BREAKS_AT => view.bank.toggle(),
            HEALS_AT => view.bank.toggle(),
            5 => view.bank.poison(5),
            _ => {}
        }
        for _ in 0..4 {
            tokio::time::sleep(FRAME).await;
            view.feed.tick();
        }
        println!("{second:>3} s  {}", view.line());
    }
    terminal.draw(|frame| view.draw(frame))?;
    if let Some(path) = svg {
        std::fs::write(&path, svg::of(terminal.backend().buffer()))?;
        println!("written: {}", path.display());
    }
    Ok(())
}
