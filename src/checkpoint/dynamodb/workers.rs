//! The announcements of workers: rows of KCL's table of worker metrics (`WorkerMetricStats`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use tokio::time::sleep;

use super::cpu::CpuMeter;
use super::layout::Layout;
use super::row::{self, Item, numeral, string, text};
use crate::aws;
use crate::aws::table::attribute::{number, seconds};
use crate::aws::table::{Table, is_condition_failure};
use crate::checkpoint::{AnnouncedWorker, CheckpointError};
use crate::wall_clock;

const WORKER: &str = "wid";
/// The kind of an announcement among rows of other kinds.
const ENTITY: &str = "WORKER_METRIC_STATS";
/// The time of the last announcement, in seconds since 1970.
const UPDATED: &str = "lut";
/// The recent values of each metric.
const STATS: &str = "sts";
/// The operating range of each metric.
const RANGES: &str = "opr";
/// The metric that KCL reports on EC2, ECS and EKS: the use of the CPU in percent.
const CPU: &str = "C";
/// The highest use of the CPU that is wanted, in percent (KCL's value).
const MOST_WANTED: f64 = 100.0;
const PROPERTIES: &str = "properties";
/// redrive's own property: the version of this crate.
const VERSION: &str = "redrive";
/// redrive's own property: the maximum number of leases.
const MAX_LEASES: &str = "redriveMaxLeases";

/// The age at which an announcement is too old. KCL uses twice the interval of its reports, which is 30 s.
const RECENT: Duration = Duration::from_secs(60);
/// The age at which the leader deletes an announcement, as KCL's leader does.
const GONE: Duration = Duration::from_secs(24 * 60 * 60);

/// The table of announcements, as one worker uses it.
#[derive(Debug)]
pub(super) struct Workers {
    table: Table,
    layout: Layout,
    worker: Arc<str>,
    max_leases: usize,
    cpu: Mutex<CpuMeter>,
}

impl Workers {
    pub(super) fn new(
        client: &Client,
        leases: &str,
        layout: Layout,
        worker: &Arc<str>,
        max_leases: usize,
        failover_time: Duration,
    ) -> Self {
        let client = aws::dynamodb::without_retries(client, failover_time / 3);
        Workers {
            table: layout.table(client, leases, "-WorkerMetricStats", WORKER),
            layout,
            worker: worker.clone(),
            max_leases,
            cpu: Mutex::new(CpuMeter::start()),
        }
    }

    /// Writes the announcement, with the metrics that this leader compares.
    pub(super) async fn announce(&self, leader: Option<&str>) -> Result<(), CheckpointError> {
        self.table.ready().await?;
        let compares_cpu = match leader {
            Some(leader) => self.compares_cpu(leader).await?,
            None => false,
        };
        let values = self.cpu_values(compares_cpu).await;
        // Without metrics KCL balances a worker by its throughput.
        let (stats, ranges) = match compares_cpu && !values.is_empty() {
            true => (metric(values), metric(vec![MOST_WANTED])),
            false => (HashMap::new(), HashMap::new()),
        };
        let mut properties = HashMap::from([(VERSION.to_owned(), string(env!("CARGO_PKG_VERSION")))]);
        if self.max_leases < usize::MAX {
            properties.insert(MAX_LEASES.to_owned(), string(&self.max_leases.to_string()));
        }
        let mut columns = vec![
            (UPDATED, numeral(seconds(wall_clock::now()))),
            (STATS, AttributeValue::M(stats)),
            (RANGES, AttributeValue::M(ranges)),
            (PROPERTIES, AttributeValue::M(properties)),
        ];
        if self.layout == Layout::LeaseTable {
            columns.push((row::ENTITY, string(ENTITY)));
        }
        let call = self.table.client().update_item().table_name(self.table.name());
        let mut call = call.key(self.key(), string(&self.worker));
        let mut set = Vec::with_capacity(columns.len());
        for (column, value) in columns {
            call = call
                .expression_attribute_names(format!("#{column}"), column)
                .expression_attribute_values(format!(":{column}"), value);
            set.push(format!("#{column} = :{column}"));
        }
        match call
            .update_expression(format!("SET {}", set.join(", ")))
            .send()
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => Err(self.table.failed("write to", "dynamodb:UpdateItem", error).into()),
        }
    }

    /// Returns true if this leader is a worker of KCL that compares the workers by their use of the CPU.
    async fn compares_cpu(&self, leader: &str) -> Result<bool, CheckpointError> {
        let call = self.table.client().get_item().table_name(self.table.name());
        let reply = call.key(self.key(), string(leader)).send().await;
        let reply = reply.map_err(|error| self.table.failed("read", "dynamodb:GetItem", error))?;
        Ok(reply.item.is_some_and(|item| reports_cpu(&item)))
    }

    /// Measures the use of the CPU since the last announcement. Returns the latest values, oldest first. A value
    /// that is needed for the first announcement takes a second.
    async fn cpu_values(&self, is_needed: bool) -> Vec<f64> {
        if is_needed {
            let remaining = self.cpu().remaining();
            sleep(remaining).await;
        }
        self.cpu().values()
    }

    fn cpu(&self) -> MutexGuard<'_, CpuMeter> {
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn withdraw(&self) -> Result<(), CheckpointError> {
        let call = self.table.client().delete_item().table_name(self.table.name());
        match call.key(self.key(), string(&self.worker)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self
                .table
                .failed("delete from", "dynamodb:DeleteItem", error)
                .into()),
        }
    }

    fn key(&self) -> &'static str {
        match self.layout {
            Layout::OwnTables => WORKER,
            Layout::LeaseTable => row::KEY,
        }
    }

    pub(super) async fn forget(&self, worker: &AnnouncedWorker) -> Result<(), CheckpointError> {
        let call = self.table.client().delete_item().table_name(self.table.name());
        let call = call
            .key(self.key(), string(&worker.name))
            .condition_expression("#updated = :seen")
            .expression_attribute_names("#updated", UPDATED)
            .expression_attribute_values(":seen", numeral(worker.sign));
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) if is_condition_failure(&error) => Ok(()),
            Err(error) => Err(self
                .table
                .failed("delete from", "dynamodb:DeleteItem", error)
                .into()),
        }
    }

    pub(super) async fn list(&self) -> Result<Vec<AnnouncedWorker>, CheckpointError> {
        // An operator who lists the workers must not create the table.
        if !self.table.exists().await? {
            return Ok(Vec::new());
        }
        let now = seconds(wall_clock::now());
        let mut found = Vec::new();
        let announced = |item: Item| {
            let is_announcement = match self.layout {
                Layout::LeaseTable => text(&item, row::ENTITY) == Some(ENTITY),
                Layout::OwnTables => true,
            };
            is_announcement.then(|| worker(&item, self.key(), now)).flatten()
        };
        self.table
            .scan(false, |item| found.extend(announced(item)))
            .await?;
        Ok(found)
    }
}

/// Reads an announcement; `None` if it is malformed.
fn worker(item: &Item, key: &str, now: u64) -> Option<AnnouncedWorker> {
    let updated = number(item, UPDATED).ok()??;
    let properties = item.get(PROPERTIES).and_then(|properties| properties.as_m().ok());
    let property = |name| properties.and_then(|properties| text(properties, name));
    Some(AnnouncedWorker {
        name: text(item, key)?.to_owned(),
        sign: updated,
        max_leases: property(MAX_LEASES).and_then(|most| most.parse().ok()),
        is_recent: now.saturating_sub(updated) <= RECENT.as_secs(),
        is_gone: now.saturating_sub(updated) > GONE.as_secs(),
        is_stopping: is_stopping(item),
        is_native: property(VERSION).is_some(),
    })
}

/// Returns the attribute of a metric.
fn metric(values: Vec<f64>) -> HashMap<String, AttributeValue> {
    let values = values
        .into_iter()
        .map(|value| AttributeValue::N(value.to_string()));
    HashMap::from([(CPU.to_owned(), AttributeValue::L(values.collect()))])
}

/// Returns true if this is the announcement of a worker of KCL that reports its use of the CPU.
fn reports_cpu(item: &Item) -> bool {
    let stats = item.get(STATS).and_then(|stats| stats.as_m().ok());
    let properties = item.get(PROPERTIES).and_then(|properties| properties.as_m().ok());
    let is_native = properties.is_some_and(|properties| properties.contains_key(VERSION));
    !is_native && stats.is_some_and(|stats| stats.contains_key(CPU))
}

/// Returns true if the newest value of a metric is negative: the worker is about to stop, or cannot measure
/// itself. KCL assigns nothing to such a worker.
fn is_stopping(item: &Item) -> bool {
    let metrics = item.get(STATS).and_then(|stats| stats.as_m().ok());
    let mut values = metrics.into_iter().flat_map(HashMap::values);
    values.any(|values| {
        let newest = values.as_l().ok().and_then(|values| values.last());
        let newest = newest.and_then(|value| value.as_n().ok());
        newest.is_some_and(|value| value.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(updated: u64, newest: &str) -> Item {
        let values = ["50", newest].map(|value| AttributeValue::N(value.into()));
        let stats = HashMap::from([("C".to_owned(), AttributeValue::L(values.into()))]);
        Item::from([
            (WORKER.into(), string("worker")),
            (UPDATED.into(), numeral(updated)),
            (STATS.into(), AttributeValue::M(stats)),
        ])
    }

    #[test]
    fn announcement_of_kcl_is_read() {
        let read = worker(&item(1_000, "60"), WORKER, 1_060).expect("well formed");
        assert_eq!((read.name.as_str(), read.sign), ("worker", 1_000));
        assert!(read.is_recent && !read.is_native);
        assert_eq!(read.max_leases, None);
    }

    #[test]
    fn old_and_stopping_workers_are_recognised() {
        assert!(
            !worker(&item(1_000, "60"), WORKER, 1_061)
                .expect("well formed")
                .is_recent
        );
        assert!(
            worker(&item(1_000, "-1"), WORKER, 1_000)
                .expect("well formed")
                .is_stopping
        );
        let is_gone = |age| {
            worker(&item(1_000, "60"), WORKER, 1_000 + age)
                .expect("well formed")
                .is_gone
        };
        assert!(!is_gone(GONE.as_secs()) && is_gone(GONE.as_secs() + 1));
        // The clock of the worker is ahead of ours.
        assert!(
            worker(&item(1_000, "60"), WORKER, 900)
                .expect("well formed")
                .is_recent
        );
    }

    #[test]
    fn malformed_announcement_is_ignored() {
        let mut row = item(1_000, "60");
        row.insert(UPDATED.into(), string("yesterday"));
        assert_eq!(worker(&row, WORKER, 1_000), None);
    }
}
