//! The screen: lines of text that are drawn again four times per second.

use std::collections::BTreeMap;
use std::io::{self, Stdout, Write as _, stdout};
use std::sync::atomic::Ordering;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use redrive::checkpoint::SharedLease;
use tokio::time::Instant;

use crate::fleet::Fleet;
use crate::news::{number, short};

/// The terminal. Dropping it restores the terminal.
pub(crate) struct Screen {
    out: Stdout,
    /// The time of the last draw, and the records that each worker had processed by then.
    last: (Instant, BTreeMap<String, u64>),
}

impl Screen {
    pub(crate) fn open() -> io::Result<Self> {
        enable_raw_mode()?;
        let mut out = stdout();
        execute!(out, EnterAlternateScreen, Hide)?;
        Ok(Screen {
            out,
            last: (Instant::now(), BTreeMap::new()),
        })
    }

    pub(crate) async fn draw(&mut self, fleet: &Fleet) -> io::Result<()> {
        let shards = fleet.shards().await.unwrap_or_default();
        let leader = fleet.leader().await.unwrap_or_default();
        let rates = self.rates(fleet);
        queue!(self.out, MoveTo(0, 0))?;
        for line in lines(fleet, &shards, leader.as_deref(), &rates) {
            write!(self.out, "{line}")?;
            queue!(self.out, Clear(ClearType::UntilNewLine))?;
            write!(self.out, "\r\n")?;
        }
        queue!(self.out, Clear(ClearType::FromCursorDown))?;
        self.out.flush()
    }

    /// Returns the records per second of each worker since the last draw.
    fn rates(&mut self, fleet: &Fleet) -> BTreeMap<String, f64> {
        let workers = fleet.workers.iter();
        let now: BTreeMap<String, u64> = workers
            .map(|worker| (worker.name.clone(), worker.processed.load(Ordering::Relaxed)))
            .collect();
        let (since, before) = std::mem::replace(&mut self.last, (Instant::now(), now.clone()));
        let rate = |(name, count): (String, u64)| {
            let more = count - before.get(&name).unwrap_or(&0);
            (name, more as f64 / since.elapsed().as_secs_f64())
        };
        now.into_iter().map(rate).collect()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(self.out, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

fn lines(
    fleet: &Fleet,
    shards: &[SharedLease],
    leader: Option<&str>,
    rates: &BTreeMap<String, f64>,
) -> Vec<String> {
    let mut lines = vec![
        "j a worker joins   k the newest is killed   s the oldest stops   q quit".to_owned(),
        String::new(),
        "shard  owner".to_owned(),
    ];
    for shard in shards {
        let owner = shard.owner.as_deref().map_or("none", short);
        let hands_over = shard.handed_over_by.as_deref().map(short);
        let owner = match hands_over {
            Some(from) => format!("{from}, which hands over to {owner}"),
            None => owner.to_owned(),
        };
        lines.push(format!("{:>5}  {owner}", number(&shard.key.shard)));
    }
    lines.push(String::new());
    lines.push("worker  state     shards  records/s".to_owned());
    for worker in &fleet.workers {
        let owned = shards
            .iter()
            .filter(|shard| shard.holder().map(short) == Some(&worker.name));
        let leads = if leader == Some(&worker.name) {
            "  leader"
        } else {
            ""
        };
        lines.push(format!(
            "{:<6}  {:<8}  {:>6}  {:>9.0}{leads}",
            worker.name,
            worker.state(),
            owned.count(),
            rates.get(&worker.name).copied().unwrap_or_default(),
        ));
    }
    let ledger = fleet.ledger();
    lines.push(String::new());
    lines.push(format!(
        "{:.0} records/s   sent {}   waiting {}   processed twice {}   shards handed over {}",
        rates.values().sum::<f64>(),
        ledger.sent(),
        ledger.missing(),
        ledger.repeated(),
        fleet.news().handed_over(),
    ));
    lines.push(String::new());
    lines.extend(fleet.news().lines());
    lines
}
