//! Fleets with a fault.

use super::caught;
use super::lease_table::{Fault, table};
use crate::sharing_conformance;

sharing_conformance!(without_a_fault, async { table(Fault::None) });

caught! { sharing, table,
    unfound_shard_is_caught: Fault::FindsNoShards => assigned_shard_is_found_and_adopted, "assigned: []";
    assignment_without_effect_is_caught: Fault::AssignsNothing => assigned_shard_is_found_and_adopted, "assigned: []";
    adopted_free_shard_is_caught: Fault::AdoptsAnyShard => unassigned_shard_is_not_adopted, "the shard is not this worker's";
    refused_ended_shard_is_caught: Fault::AdoptsNoEndedShards => ended_shard_is_adopted, "an ended shard";
    early_adoption_is_caught: Fault::AdoptsDuringHandOvers => requested_shard_is_adopted_after_it_is_given_up, "the shard is not this worker's";
    ignored_request_is_caught: Fault::IgnoresRequests => requested_shard_is_adopted_after_it_is_given_up, "the shard is requested";
    request_in_the_name_of_the_owner_is_caught: Fault::RequestsAsTheOwner => request_is_no_sign_of_life, "the owner did nothing";
    stale_request_is_caught: Fault::RequestsAgain => stale_request_changes_nothing, "the shard has another owner";
    stale_assignment_is_caught: Fault::AssignsOldRows => stale_assignment_changes_nothing, "a renewal has changed the row";
    two_assignments_are_caught: Fault::AssignsInTwoSteps => one_of_two_leaders_assigns_a_shard, "two leaders assign a row";
    open_hand_over_is_caught: Fault::LeavesHandOversOpen => stuck_hand_over_is_finished, "without the lease";
    deleted_changed_row_is_caught: Fault::DeletesChangedRows => changed_row_is_not_deleted, "the row has changed";
    kept_row_is_caught: Fault::DeletesNothing => deleted_row_is_missing, "the row is deleted";
    lost_parents_are_caught: Fault::ForgetsParents => rows_are_complete_and_in_order, "the parents of a shard";
    reversed_rows_are_caught: Fault::ReversesRows => rows_are_complete_and_in_order, "in the order of the shards";
    shared_name_is_caught: Fault::AllWorkersHaveOneName => announced_worker_is_listed, "a name of its own";
    missing_announcement_is_caught: Fault::AnnouncesNothing => announced_worker_is_listed, "a name of its own";
    kept_announcement_is_caught: Fault::WithdrawsNothing => withdrawn_worker_is_not_listed, "one has withdrawn";
    forgotten_living_worker_is_caught: Fault::ForgetsNewAnnouncements => announcement_is_forgotten_if_unchanged, "announced since it was read";
    second_leader_is_caught: Fault::ManyLead => fleet_has_one_leader, "another worker leads";
    many_leaders_are_caught: Fault::LeadsInTwoSteps => one_of_many_workers_becomes_the_leader, "leaders";
    leader_that_stays_is_caught: Fault::ResignsNever => resigned_leader_is_followed_at_once, "the leader has resigned";
    leader_for_ever_is_caught: Fault::LeadsForEver => failed_leader_is_followed, "the leader has failed";
    leader_that_is_never_late_is_caught: Fault::IsNeverLate => failed_leader_is_followed, "the leader is late";
    leader_that_is_always_late_is_caught: Fault::IsAlwaysLate => leader_that_calls_stays, "the leader is in time";
    lost_leadership_is_caught: Fault::LeadsTooBriefly => leader_that_calls_stays, "another worker leads";
    impatient_worker_is_caught: Fault::HasNoPatience => free_leadership_is_left_to_others, "is left to others";
}
