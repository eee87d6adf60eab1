//! Rows that are not needed any more: shards that have ended, and whose children are being read.

use std::collections::HashMap;

use crate::checkpoint::SharedLease;
use crate::record::{Position, ShardId};

/// Returns true if the row of a shard may be deleted, by KCL's rule: the shard has ended, all its children have
/// rows and have made progress, and the rows of its parents are gone. `rows`: at least the rows of the shard's
/// children and parents.
pub(super) fn is_finished(lease: &SharedLease, rows: &HashMap<&ShardId, &SharedLease>) -> bool {
    let progresses = |child: &ShardId| {
        let row = rows.get(child);
        row.is_some_and(|row| {
            let position = row.checkpoint.position();
            !matches!(position, Position::TrimHorizon | Position::AtTimestamp { .. })
        })
    };
    *lease.checkpoint.position() == Position::ShardEnd
        && !lease.children.is_empty()
        && lease.children.iter().all(progresses)
        && !lease.parents.iter().any(|parent| rows.contains_key(parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, ShardKey};

    fn row(name: &str, position: Position, parents: &[&str], children: &[&str]) -> SharedLease {
        let key = ShardKey::new("billing", "orders", name.into());
        SharedLease {
            parents: parents.iter().map(|&name| name.into()).collect(),
            children: children.iter().map(|&name| name.into()).collect(),
            ..SharedLease::new(key, Checkpoint::at(position))
        }
    }

    fn finished(rows: &[SharedLease]) -> bool {
        let by_shard = rows.iter().map(|row| (&row.key.shard, row)).collect();
        is_finished(&rows[0], &by_shard)
    }

    #[test]
    fn row_stays_until_its_children_progress_and_its_parents_are_gone() {
        let read = || Position::Record {
            sequence_number: 7.into(),
            sub_sequence_number: 0,
        };
        let ended = || row("b", Position::ShardEnd, &["a"], &["c", "d"]);
        let (c, d) = (
            row("c", read(), &["b"], &[]),
            row("d", Position::ShardEnd, &["b"], &[]),
        );
        assert!(finished(&[ended(), c.clone(), d.clone()]));
        let parent = row("a", Position::ShardEnd, &[], &["b"]);
        assert!(!finished(&[ended(), c.clone(), d.clone(), parent]));
        let open = row("b", read(), &["a"], &["c", "d"]);
        assert!(!finished(&[open, c.clone(), d.clone()]));
        assert!(!finished(&[ended(), c.clone()]), "a child has no row");
        let new = row("d", Position::TrimHorizon, &["b"], &[]);
        assert!(!finished(&[ended(), c, new]), "a child has made no progress");
        let childless = row("b", Position::ShardEnd, &[], &[]);
        assert!(!finished(&[childless]));
    }
}
