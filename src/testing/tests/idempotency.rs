//! Idempotency stores with a fault.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::caught;
use crate::idempotency::{
    Claim, Claimed, Completion, IdempotencyStore, Key, Memory, Owner, Status, StoreError,
};
use crate::idempotency_conformance;
use crate::testing::idempotency::Harness;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Confirms a completion before it is durable.
    Volatile,
    ReadsTheClock,
    ForgetsEarly,
    ClaimsForAStatus,
    /// Answers each claim of a request as if it were alone.
    GrantsEachClaimOfARequest,
    RefusesARepeatedClaim,
    ReleasesWithFewerAnswers,
    HasANameOfTwoLines,
}

#[derive(Debug, Clone)]
struct Store {
    inner: Memory,
    fault: Fault,
    seen: Arc<Mutex<HashSet<(Key, Owner)>>>,
}

fn harness(fault: Fault) -> Store {
    Store {
        inner: Memory::new(),
        fault,
        seen: Arc::default(),
    }
}

impl Harness for Store {
    type Store = Store;

    async fn open(&self) -> Store {
        match self.fault {
            Fault::Volatile => harness(self.fault),
            _ => self.clone(),
        }
    }
}

#[async_trait]
impl IdempotencyStore for Store {
    async fn claim(&self, claims: &[Claim]) -> Vec<Result<Claimed, StoreError>> {
        let mut claims = claims.to_vec();
        for claim in &mut claims {
            match self.fault {
                Fault::ReadsTheClock => claim.now = SystemTime::now(),
                Fault::ForgetsEarly => claim.now += Duration::from_secs(1),
                _ => {}
            }
        }
        let mut answers = self.inner.claim(&claims).await;
        for (claim, answer) in claims.iter().zip(&mut answers) {
            let is_new = {
                let mut seen = self.seen.lock().expect("no panic while locked");
                seen.insert((claim.key.clone(), claim.owner))
            };
            let repeated = self.fault == Fault::RefusesARepeatedClaim && !is_new;
            match answer {
                Ok(Claimed::Granted { .. }) if repeated => {
                    *answer = Ok(Claimed::InProgress {
                        expires: claim.expires,
                        abandoned: 0,
                    });
                }
                Ok(Claimed::InProgress { .. })
                    if self.fault == Fault::GrantsEachClaimOfARequest && claims.len() > 1 =>
                {
                    *answer = Ok(Claimed::Granted { abandoned: 0 });
                }
                _ => {}
            }
        }
        answers
    }

    async fn complete(&self, claims: &[Claim]) -> Vec<Result<Completion, StoreError>> {
        self.inner.complete(claims).await
    }

    async fn release(&self, claims: &[Claim]) -> Vec<Result<(), StoreError>> {
        let mut answers = self.inner.release(claims).await;
        if self.fault == Fault::ReleasesWithFewerAnswers {
            answers.truncate(1);
        }
        answers
    }

    async fn status(&self, keys: &[Key], now: SystemTime) -> Vec<Result<Option<Status>, StoreError>> {
        let now = match self.fault {
            Fault::ForgetsEarly => now + Duration::from_secs(1),
            _ => now,
        };
        let found = self.inner.status(keys, now).await;
        if self.fault == Fault::ClaimsForAStatus {
            for key in keys {
                let mut claim = Claim::new(key.clone(), Owner::new(99), now);
                claim.expires += Duration::from_secs(60);
                let _ = self.inner.claim(&[claim]).await;
            }
        }
        found
    }

    fn name(&self) -> Cow<'_, str> {
        match self.fault {
            Fault::HasANameOfTwoLines => "one\ntwo".into(),
            _ => self.inner.name(),
        }
    }
}

idempotency_conformance!(without_a_fault, async { harness(Fault::None) });

caught! { idempotency, harness,
    volatile_completion_is_caught: Fault::Volatile => completed_keys_survive_a_restart, "after a restart";
    clock_of_the_store_is_caught: Fault::ReadsTheClock => time_comes_from_the_caller, "by the caller's time";
    early_end_of_a_retention_is_caught: Fault::ForgetsEarly => key_is_kept_until_its_retention_ends, "at the end of the retention";
    claim_for_a_status_is_caught: Fault::ClaimsForAStatus => status_claims_nothing, "an unknown key";
    two_owners_in_a_request_are_caught: Fault::GrantsEachClaimOfARequest => one_of_two_claims_in_a_request_is_granted, "owners of a key";
    refused_repetition_is_caught: Fault::RefusesARepeatedClaim => dropped_request_may_be_repeated, "a repeated claim";
    missing_answer_is_caught: Fault::ReleasesWithFewerAnswers => answers_follow_the_order_of_the_request, "one answer for each claim";
    name_of_two_lines_is_caught: Fault::HasANameOfTwoLines => name_is_fit_for_a_log, "a single line";
}
