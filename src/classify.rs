//! stub
use crate::failure::*;
use std::error::Error;
/// c
pub trait Classify: Send + Sync {
    /// c
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict>;
}
/// c
#[derive(Debug)]
pub struct StandardClassifier;
impl Classify for StandardClassifier {
    fn classify(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        chain(error)
            .find_map(|e| e.downcast_ref::<Marked>())
            .map(|m| m.verdict().clone())
    }
}
