//! The key of a dead letter's object.

use std::time::SystemTime;

use crate::dead_letter::DeadLetter;
use crate::rfc3339;

/// The number of digits of most sequence numbers. Shorter ones are padded with zeros, so that a listing is in
/// order.
const USUAL_DIGITS: usize = 56;

pub(super) fn of(prefix: &str, letter: &DeadLetter) -> String {
    let DeadLetter {
        stream,
        shard,
        sub_sequence_number,
        id,
        ..
    } = letter;
    let number = letter.sequence_number.as_str();
    let day = letter.arrived_at.map_or_else(|| "unknown".to_owned(), day);
    format!("{prefix}{stream}/{shard}/{day}/{number:0>USUAL_DIGITS$}-{sub_sequence_number:0>10}-{id}")
}

/// Returns the day in UTC, as `year/month/day`.
fn day(time: SystemTime) -> String {
    let time = rfc3339::format(time).to_string();
    let (day, _) = time.split_once('T').unwrap_or((&time, ""));
    day.replace('-', "/")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::dead_letter::Reason;
    use crate::failure::Failure;
    use crate::record::Record;

    fn key(number: &str, sub: u64, arrival: Option<SystemTime>) -> String {
        let number = number.to_owned().try_into().expect("digits");
        let builder = Record::builder("orders", "shardId-000000000001".into(), number);
        let builder = builder.sub_sequence_number(sub);
        let record = match arrival {
            Some(arrival) => builder.arrival(arrival).build(),
            None => builder.build(),
        };
        of(
            "letters/",
            &DeadLetter::new("billing", &record, Reason::Permanent, &Failure::permanent("bad")),
        )
    }

    #[test]
    fn a_letter_is_where_it_says_and_nowhere_else() {
        let arrival = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let number = "49590338271490256608559692538361571095921575989136588898";
        let one = key(number, 3, Some(arrival));
        assert_eq!(one, key(number, 3, Some(arrival)));
        let (place, id) = one.rsplit_once('-').expect("an id");
        assert_eq!(id.len(), 64);
        assert_eq!(
            place,
            format!("letters/orders/shardId-000000000001/2026/09/21/{number}-0000000003")
        );
        assert!(key(number, 0, None).contains("/unknown/"));
    }

    #[test]
    fn a_listing_has_them_in_the_shards_order() {
        let arrival = Some(UNIX_EPOCH + Duration::from_secs(1_790_000_000));
        let keys = [
            ("9", 0),
            ("10", 2),
            ("10", 11),
            ("49590338271490256608559692538361571095921575989136588898", 0),
        ];
        let keys: Vec<String> = keys
            .iter()
            .map(|(number, sub)| key(number, *sub, arrival))
            .collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
}
