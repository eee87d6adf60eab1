//! Where the workers of an application keep the leader and their announcements.
//!
//! KCL before 3.5 has a table for each. KCL 3.5 keeps both in the lease table if the application had no table of
//! coordinator states when it started for the first time, and writes nothing to say so. Workers of KCL 2 and of
//! 3.0 to 3.4 fail on rows in the lease table that are no leases: redrive writes such rows only where they exist.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;

use super::leader::{COORDINATOR, ENTITY, KEY, LEADER};
use super::row::{self, string, text};
use crate::aws::table::{Kind, Table};
use crate::aws::{self, Located};
use crate::checkpoint::CheckpointError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Each has a table of its own.
    OwnTables,
    /// The lease table holds both.
    LeaseTable,
}

impl Layout {
    /// Returns the layout of the application with this lease table. Creates no table.
    pub(super) async fn find(
        client: &Client,
        leases: &Arc<str>,
        failover_time: Duration,
    ) -> Result<Self, CheckpointError> {
        let client = aws::dynamodb::without_retries(client, failover_time / 3);
        let own = Layout::OwnTables.table(client.clone(), leases, COORDINATOR, KEY);
        if own.exists().await? {
            return Ok(Layout::OwnTables);
        }
        let shared = Layout::LeaseTable.table(client, leases, "", row::KEY);
        if !shared.exists().await? {
            return Ok(Layout::OwnTables);
        }
        let call = shared.client().get_item().table_name(shared.name());
        let call = call.key(row::KEY, string(LEADER)).consistent_read(true);
        let reply = call.send().await;
        let reply = reply.map_err(|error| shared.failed("read", "dynamodb:GetItem", error))?;
        let is_there = reply
            .item
            .is_some_and(|item| text(&item, row::ENTITY) == Some(ENTITY));
        Ok(match is_there {
            true => Layout::LeaseTable,
            false => Layout::OwnTables,
        })
    }

    /// Returns the table whose own name would end with `suffix`, and have this key.
    pub(super) fn table(
        self,
        client: Located<Client>,
        leases: &str,
        suffix: &str,
        key: &'static str,
    ) -> Table {
        let kind = |what, key| Kind {
            what,
            key,
            expiration: None,
            index: None,
        };
        match self {
            Layout::OwnTables => {
                let what = match suffix {
                    COORDINATOR => "table of coordinator states",
                    _ => "table of worker metrics",
                };
                Table::new(client, format!("{leases}{suffix}").into(), kind(what, key))
            }
            Layout::LeaseTable => Table::new(client, leases.into(), kind("lease table", row::KEY)),
        }
    }
}
