//! The running tasks of shards.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use crate::consumer::shard::shard_end::ShardEnd;
use crate::record::ShardId;

/// The tasks, and the shards that they were started for.
#[derive(Default)]
pub(super) struct ShardTasks {
    tasks: JoinSet<ShardEnd>,
    started: HashMap<Id, StartedShard>,
}

#[derive(Debug, Clone)]
pub(super) struct StartedShard {
    pub(super) shard: ShardId,
    pub(super) since: Instant,
}

impl ShardTasks {
    pub(super) fn start(&mut self, shard: ShardId, task: impl Future<Output = ShardEnd> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        let since = Instant::now();
        self.started.insert(id, StartedShard { shard, since });
    }

    /// Returns true if the shard has a task.
    pub(super) fn contains(&self, shard: &ShardId) -> bool {
        self.started.values().any(|started| started.shard == *shard)
    }

    /// Returns true if no task runs.
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for the end of a task. Returns `None` if no task runs. Nothing is lost if the future is dropped.
    pub(super) async fn next_end(&mut self) -> Option<(Id, ShardEnd)> {
        Some(match self.tasks.join_next_with_id().await? {
            Ok(ended) => ended,
            Err(broken) => (broken.id(), ShardEnd::broken(&broken)),
        })
    }

    /// Returns the shard of a task that has ended.
    pub(super) fn get(&self, id: Id) -> Option<&StartedShard> {
        self.started.get(&id)
    }

    /// Removes a shard, which may be started again.
    pub(super) fn remove(&mut self, id: Id) -> Option<StartedShard> {
        self.started.remove(&id)
    }

    pub(super) fn abort_all(&mut self) {
        self.tasks.abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shard_stays_started_until_it_is_removed() {
        let mut tasks = ShardTasks::default();
        tasks.start("a".into(), async { ShardEnd::Stopped });
        let (id, end) = tasks.next_end().await.expect("a task runs");
        assert!(matches!(end, ShardEnd::Stopped));
        assert!(tasks.contains(&"a".into()) && !tasks.contains(&"b".into()));
        assert_eq!(tasks.remove(id).map(|started| started.shard), Some("a".into()));
        assert!(!tasks.contains(&"a".into()));
        assert!(tasks.next_end().await.is_none());
    }

    #[tokio::test]
    async fn task_that_panics_is_known_by_its_shard() {
        let mut tasks = ShardTasks::default();
        tasks.start("a".into(), async { panic!("a bug") });
        let (id, end) = tasks.next_end().await.expect("a task runs");
        assert!(matches!(end, ShardEnd::Failed(_)));
        assert_eq!(tasks.get(id).map(|started| &started.shard), Some(&"a".into()));
    }
}
