//! Tests of marked errors behind wrappers, and of errors without a mark.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redrive::{
    BoxError, Classify, Failure,
    classify::{StandardClassifier, Verdict},
};

use super::{RECORD, TRANSIENT, layers, pair, standard};

#[test]
fn a_mark_is_found_behind_every_typed_wrapper() {
    #[derive(Debug, thiserror::Error)]
    enum Handler {
        #[error(transparent)]
        Marked(#[from] Failure),
    }
    let verdict = Verdict::permanent().with_code("card_declined");
    let failure = || Failure::new("declined", verdict.clone());
    let wrapped: [(&str, BoxError); 7] = [
        ("itself", failure().into()),
        ("Box", Box::new(Box::new(failure()))),
        ("Arc", Box::new(Arc::new(failure()))),
        ("transparent", Handler::from(failure()).into()),
        ("io::Error::other", io::Error::other(failure()).into()),
        ("anyhow", anyhow::Error::from(failure()).into()),
        (
            "anyhow with context",
            anyhow::Error::from(failure()).context("charging").into(),
        ),
    ];
    for (wrapper, error) in wrapped {
        assert_eq!(standard(&*error).as_ref(), Some(&verdict), "{wrapper}");
    }
}

#[test]
fn mark_is_found_two_wrappers_deep() {
    for (outer, wrap) in layers::ALL {
        for (inner, wrap_inner) in layers::ALL {
            let marked = wrap(wrap_inner(Failure::permanent("declined").into()));
            assert_eq!(
                standard(&*marked),
                Some(Verdict::permanent()),
                "{outer} of {inner}"
            );
            let unknown = wrap(wrap_inner("declined".into()));
            assert_eq!(standard(&*unknown), None, "{outer} of {inner}");
        }
    }
}

#[test]
fn outermost_mark_wins_over_what_it_wraps() {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    assert_eq!(standard(&refused()).as_ref().map(pair), Some(TRANSIENT));
    let marked = Failure::permanent(refused());
    assert_eq!(standard(&marked).as_ref().map(pair), Some(RECORD));
    let twice = Failure::transient(anyhow::Error::from(marked).context("again"));
    assert_eq!(standard(&twice), Some(Verdict::transient()));
    let behind = io::Error::new(io::ErrorKind::TimedOut, Failure::permanent("bad data"));
    assert_eq!(standard(&behind).as_ref().map(pair), Some(RECORD));
}

#[test]
fn functions_and_closures_are_classifiers() {
    fn never(_: &(dyn Error + 'static)) -> Option<Verdict> {
        None
    }
    let chain: [Arc<dyn Classify>; 3] = [
        Arc::new(never),
        Arc::new(|error: &(dyn Error + 'static)| error.is::<std::fmt::Error>().then(Verdict::permanent)),
        Arc::new(StandardClassifier),
    ];
    let verdict = chain
        .iter()
        .find_map(|classifier| classifier.classify(&std::fmt::Error));
    assert_eq!(verdict, Some(Verdict::permanent()));
}
