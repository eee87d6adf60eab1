//! Tests of error classification that need other crates.

use std::error::Error;

use redrive::{
    Class, Classify, Scope,
    classify::{StandardClassifier, Verdict},
};

mod aws;
mod client;
mod drift;
mod layers;
mod marks;

const TRANSIENT: (Class, Scope) = (Class::Transient, Scope::Dependency);
const MENDABLE: (Class, Scope) = (Class::Permanent, Scope::Dependency);
const RECORD: (Class, Scope) = (Class::Permanent, Scope::Record);

fn pair(verdict: &Verdict) -> (Class, Scope) {
    (verdict.class(), verdict.scope())
}

fn standard(error: &(dyn Error + 'static)) -> Option<Verdict> {
    StandardClassifier::new().classify(error)
}
