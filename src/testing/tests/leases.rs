//! Leases with a fault.

use super::caught;
use super::lease_table::{Fault, table};
use crate::{checkpoint_conformance, lease_conformance};

checkpoint_conformance!(store_without_a_fault, async { table(Fault::None) });
lease_conformance!(without_a_fault, async { table(Fault::None) });

caught! { leases, table,
    shared_name_is_caught: Fault::AllWorkersHaveOneName => shard_has_one_owner, "the shard has an owner";
    two_owners_are_caught: Fault::TakesInTwoSteps => one_of_many_workers_takes_a_shard, "owners of a shard";
    write_without_a_lease_is_caught: Fault::WritesWithoutALease => only_the_owner_writes, "a write without the lease";
    child_named_without_a_lease_is_caught: Fault::NamesChildrenWithoutALease => only_the_owner_writes, "a write without the lease";
    foreign_give_up_is_caught: Fault::GivesUpForOthers => only_the_owner_writes, "given up by another store";
    lost_checkpoint_is_caught: Fault::StartsAtTheHorizon => taken_shard_continues_at_its_checkpoint, "a new row";
    kept_lease_is_caught: Fault::KeepsWhatIsGivenUp => given_up_shard_is_taken_at_once, "the shard is given up";
    ignored_renewal_is_caught: Fault::IgnoresRenewals => owner_that_renews_keeps_its_shard, "the shard has a living owner";
    save_without_a_sign_is_caught: Fault::SavesWithoutASign => save_counts_as_a_renewal, "the shard has a living owner";
    early_takeover_is_caught: Fault::TakesAtFirstSight => silent_owner_loses_its_shard, "the shard has a living owner";
    missing_takeover_is_caught: Fault::NeverTakesOver => silent_owner_loses_its_shard, "the owner does nothing";
    holders_that_take_are_caught: Fault::HoldersTake => holders_are_reported_and_not_taken, "nothing has changed";
    holders_that_do_not_count_are_caught: Fault::HoldersDoNotCount => holders_counts_as_a_first_call, "the owner does nothing";
    overwritten_row_is_caught: Fault::CreateOverwrites => existing_row_is_kept, "the row is kept";
    child_before_its_parent_is_caught: Fault::CreatesChildrenFirst => rows_of_parents_come_first, "the row of a child has no parent";
    taken_ended_shard_is_caught: Fault::TakesEndedShards => ended_shard_is_not_taken, "the shard is ended";
    row_created_by_take_is_caught: Fault::TakeCreatesRows => missing_row_is_reported, "no row";
    refused_seizure_is_caught: Fault::SeizeRespectsOwners => seize_takes_a_shard_from_a_living_owner, "the shard is seized";
    refused_seizure_of_an_end_is_caught: Fault::SeizeRefusesEndedShards => seize_takes_an_ended_shard, "an ended shard";
    late_write_is_caught: Fault::WritesLate => late_write_of_a_former_owner_changes_nothing, "a late write took effect";
    reversed_results_are_caught: Fault::ReversesResults => lease_results_follow_the_order_of_the_request, "in the order of the shards";
}
