//! The screen of the dashboard.

use std::sync::Arc;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use redrive::consumer::{Health, ShardState};
use redrive::protection::CircuitBreakerState;
use redrive::{CircuitBreaker, DeadLetterGuard, RetryBudget};

use crate::bank::Bank;
use crate::feed::{Feed, Second};

/// The sources of everything that the screen shows.
pub(crate) struct View {
    pub(crate) health: Health,
    pub(crate) breaker: Option<CircuitBreaker>,
    pub(crate) guard: Option<DeadLetterGuard>,
    pub(crate) budget: Option<RetryBudget>,
    pub(crate) bank: Arc<Bank>,
    pub(crate) feed: Arc<Feed>,
}

impl View {
    fn breaker(&self) -> (&'static str, Color) {
        match self.breaker.as_ref().map(CircuitBreaker::state) {
            Some(CircuitBreakerState::Open) => ("OPEN", Color::Red),
            Some(CircuitBreakerState::HalfOpen) => ("HALF-OPEN", Color::Yellow),
            Some(_) => ("closed", Color::Green),
            None => ("none", Color::DarkGray),
        }
    }

    /// Returns a one-line summary of the last second, for a log.
    pub(crate) fn line(&self) -> String {
        let second = self.feed.seconds().last().copied().unwrap_or_default();
        let report = self.health.report();
        let oldest = report
            .shards
            .iter()
            .filter_map(|shard| shard.oldest)
            .max()
            .unwrap_or_default();
        format!(
            "bank {}, breaker {}, {} processed/s, {} failed/s, {} dead letters, oldest unsettled {} ms",
            if self.bank.is_broken() { "down" } else { "up" },
            self.breaker().0,
            second.processed,
            second.failed_transient + second.failed_permanent,
            self.feed.letters().len(),
            oldest.as_millis(),
        )
    }

    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let [top, middle, bottom, keys] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Fill(1),
            Constraint::Length(11),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.states(frame, top);
        let [shards, rates] =
            Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(middle);
        self.shards(frame, shards);
        self.rates(frame, rates);
        self.letters(frame, bottom);
        let help = " b break or repair the bank   p put 20 malformed orders   q quit ";
        frame.render_widget(Paragraph::new(help).style(Style::new().fg(Color::DarkGray)), keys);
    }

    fn states(&self, frame: &mut Frame<'_>, area: Rect) {
        let (breaker, color) = self.breaker();
        let bank = match self.bank.is_broken() {
            true => Span::from("down").fg(Color::Red).bold(),
            false => Span::from("up").fg(Color::Green),
        };
        let budget = self
            .budget
            .as_ref()
            .map_or_else(String::new, |budget| budget.state().to_string());
        let stopped = self.guard.as_ref().map_or(0, |guard| guard.state().len());
        let report = self.health.report();
        let line = Line::from(vec![
            Span::from(" bank "),
            bank,
            Span::from("    breaker "),
            Span::from(breaker).fg(color).bold(),
            Span::from(format!("    retry budget {budget}")),
            Span::from(format!("    shards stopped by the guard {stopped}")),
            Span::from(format!("    live {}  ready {}", report.live, report.ready)),
            Span::from(format!("    settled {}", self.feed.total())).bold(),
        ]);
        let block = Block::bordered().title(" redrive: billing on orders ");
        frame.render_widget(Paragraph::new(line).block(block), area);
    }

    fn shards(&self, frame: &mut Frame<'_>, area: Rect) {
        let report = self.health.report();
        let rows = report.shards.iter().map(|shard| {
            let color = match shard.state {
                ShardState::Running => Color::Green,
                ShardState::Full(_) => Color::Yellow,
                _ => Color::Red,
            };
            Row::new(vec![
                Span::from(shard.shard.to_string()),
                Span::from(format!("{:?}", shard.state)).fg(color),
                Span::from(shard.lag.map_or_else(|| "?".to_owned(), millis)),
                Span::from(shard.in_flight.to_string()),
                Span::from(shard.oldest.map_or_else(|| "-".to_owned(), millis)),
                Span::from(millis(shard.since_progress)),
            ])
        });
        let widths = [
            Constraint::Length(20),
            Constraint::Length(10),
            Constraint::Length(8),
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Length(9),
        ];
        let head = Row::new(["shard", "state", "lag", "in flight", "oldest", "progress"]).bold();
        let table = Table::new(rows, widths).header(head);
        frame.render_widget(table.block(Block::bordered().title(" shards ")), area);
    }

    fn rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let seconds = self.feed.seconds();
        let rows: [(&str, Color, Of); 4] = [
            ("processed/s", Color::Green, |second| second.processed),
            ("transient failures/s", Color::Yellow, |second| {
                second.failed_transient
            }),
            ("permanent failures/s", Color::Red, |second| {
                second.failed_permanent
            }),
            ("retries/s", Color::Cyan, |second| second.retries),
        ];
        let areas: [Rect; 4] = Layout::vertical([Constraint::Fill(1); 4]).areas(area);
        for ((title, color, of), area) in rows.into_iter().zip(areas) {
            let values: Vec<u64> = seconds.iter().map(of).collect();
            let now = values.last().copied().unwrap_or(0);
            let most = values.iter().max().copied().unwrap_or(0);
            let block = Block::bordered().title(format!(" {title}: {now} (peak {most}) "));
            let line = Sparkline::default().data(values).style(Style::new().fg(color));
            frame.render_widget(line.block(block), area);
        }
    }

    fn letters(&self, frame: &mut Frame<'_>, area: Rect) {
        let letters = self.feed.letters();
        let rows = letters.iter().map(|letter| {
            Row::new(vec![
                format!("{} ago", millis(letter.at.elapsed())),
                letter.id[..12].to_owned(),
                letter.reason.to_owned(),
                letter.place.clone(),
            ])
        });
        let widths = [
            Constraint::Length(12),
            Constraint::Length(14),
            Constraint::Length(20),
            Constraint::Fill(1),
        ];
        let head = Row::new(["when", "dead letter", "reason", "record"]).bold();
        let block = Block::bordered().title(" last dead letters ");
        frame.render_widget(Table::new(rows, widths).header(head).block(block), area);
    }
}

/// Selects the count of a second to show.
type Of = fn(&Second) -> u64;

/// Formats a duration in milliseconds, or from 1 s on in tenths of a second.
fn millis(time: Duration) -> String {
    match time.as_millis() {
        short @ ..1_000 => format!("{short} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
