//! Reads of many items, page by page.

use aws_sdk_dynamodb::error::ProvideErrorMetadata;

use super::attribute::string;
use super::{Item, Table, TableError};

/// The items with this value in the partition key of this index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    pub(crate) index: &'a str,
    pub(crate) key: &'a str,
    pub(crate) value: &'a str,
}

/// The position in a list of pages.
#[derive(Default)]
struct Pages {
    from: Option<Item>,
}

impl Table {
    /// Passes each item of the table to this function. `consistent`: the items contain every write that was
    /// confirmed before.
    pub(crate) async fn scan(&self, consistent: bool, mut each: impl FnMut(Item)) -> Result<(), TableError> {
        let mut pages = Pages::default();
        loop {
            let call = self.client.scan().table_name(&*self.name);
            let call = call.consistent_read(consistent);
            let reply = call.set_exclusive_start_key(pages.from.clone()).send().await;
            let reply = reply.map_err(|error| self.failed("read", "dynamodb:Scan", error))?;
            reply.items.unwrap_or_default().into_iter().for_each(&mut each);
            if !pages.follow(reply.last_evaluated_key, "Scan")? {
                return Ok(());
            }
        }
    }

    /// Passes each item of the query to this function. Returns false if the table has no such index, or if the
    /// index is being created.
    pub(crate) async fn query(
        &self,
        query: Query<'_>,
        mut each: impl FnMut(Item),
    ) -> Result<bool, TableError> {
        let mut pages = Pages::default();
        loop {
            let call = self.client.query().table_name(&*self.name);
            let call = call
                .index_name(query.index)
                .key_condition_expression("#key = :value")
                .expression_attribute_names("#key", query.key)
                .expression_attribute_values(":value", string(query.value));
            let reply = match call.set_exclusive_start_key(pages.from.clone()).send().await {
                Ok(reply) => reply,
                // No code and no documented message tells this error from other invalid queries.
                Err(error) if error.code() == Some("ValidationException") => return Ok(false),
                Err(error) => return Err(self.failed("query", "dynamodb:Query", error)),
            };
            reply.items.unwrap_or_default().into_iter().for_each(&mut each);
            if !pages.follow(reply.last_evaluated_key, "Query")? {
                return Ok(true);
            }
        }
    }
}

impl Pages {
    /// Moves to the next page. Returns false if there is none.
    fn follow(&mut self, last: Option<Item>, call: &str) -> Result<bool, TableError> {
        let next = last.filter(|last| !last.is_empty());
        if next.is_some() && next == self.from {
            let error = format!("{call} returned the same key twice");
            return Err(TableError::Unavailable(error.into()));
        }
        self.from = next;
        Ok(self.from.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Option<Item> {
        Some(Item::from([("leaseKey".to_owned(), string(name))]))
    }

    #[test]
    fn pages_end_without_a_key_and_never_repeat() {
        let mut pages = Pages::default();
        assert!(pages.follow(key("a"), "Scan").expect("another key"));
        assert!(pages.follow(key("b"), "Scan").expect("another key"));
        let repeated = pages.follow(key("b"), "Scan");
        assert_eq!(
            repeated.expect_err("the same key").to_string(),
            "Scan returned the same key twice"
        );
        assert!(!pages.follow(Some(Item::new()), "Scan").expect("the end"));
        assert!(!Pages::default().follow(None, "Scan").expect("the end"));
    }
}
