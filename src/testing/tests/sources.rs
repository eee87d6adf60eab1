//! Sources of dead letters with a fault.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use super::caught;
use crate::dead_letter::DeadLetter;
use crate::replay::DeadLetterSource;
use crate::replay::source::{Handle, Message, SourceError};
use crate::source_conformance;
use crate::testing::sources::Harness;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    SkipsAMessage,
    ReversesTheOrder,
    ReadsWhatIsWrittenMeanwhile,
    RemovesWhatIsRead,
    KeepsWhatIsRemoved,
    RemovesWithFewerResults,
    HasANameOfItsOwn,
    ReturnsMessagesWithoutAnEnd,
}

type Messages = Arc<Mutex<Vec<(u64, Bytes)>>>;

#[derive(Debug, Clone)]
struct Storage {
    messages: Messages,
    fault: Fault,
}

fn harness(fault: Fault) -> Storage {
    Storage {
        messages: Arc::default(),
        fault,
    }
}

impl Harness for Storage {
    type Source = Source;

    async fn write(&self, letters: &[DeadLetter]) {
        let mut messages = self.messages.lock().expect("no panic while locked");
        for letter in letters {
            let number = messages.last().map_or(0, |(number, _)| number + 1);
            messages.push((number, letter.to_json_line().into()));
        }
    }

    async fn open(&self) -> Source {
        Source {
            messages: self.messages.clone(),
            at: 0,
            end: None,
            fault: self.fault,
        }
    }
}

#[derive(Debug)]
struct Source {
    messages: Messages,
    /// The number of the next message.
    at: u64,
    /// The number behind the last message of the storage when the source was read first.
    end: Option<u64>,
    fault: Fault,
}

const PAGE: usize = 7;

#[async_trait]
impl DeadLetterSource for Source {
    async fn read(&mut self) -> Result<Vec<Message>, SourceError> {
        let mut messages = self.messages.lock().expect("no panic while locked");
        let last = messages.last().map_or(0, |(number, _)| number + 1);
        let end = match self.fault {
            Fault::ReadsWhatIsWrittenMeanwhile => last,
            _ => *self.end.get_or_insert(last),
        };
        if self.fault == Fault::ReturnsMessagesWithoutAnEnd && self.at >= end {
            self.at = 0;
        }
        let range = self.at..end;
        let mut page: Vec<_> = messages
            .iter()
            .filter(|(number, _)| range.contains(number))
            .take(PAGE)
            .cloned()
            .collect();
        self.at = page.last().map_or(end, |(number, _)| number + 1);
        match self.fault {
            Fault::SkipsAMessage => page.truncate(PAGE - 1),
            Fault::ReversesTheOrder => page.reverse(),
            Fault::RemovesWhatIsRead => messages.retain(|message| !page.contains(message)),
            _ => {}
        }
        let message = |(number, body): (u64, Bytes)| {
            Message::new(format!("message {number}"), body, Handle(number.to_string()))
        };
        Ok(page.into_iter().map(message).collect())
    }

    async fn remove(&mut self, handles: &[Handle]) -> Vec<Result<(), SourceError>> {
        let mut messages = self.messages.lock().expect("no panic while locked");
        if self.fault != Fault::KeepsWhatIsRemoved {
            messages.retain(|(number, _)| !handles.contains(&Handle(number.to_string())));
        }
        let mut results: Vec<_> = handles.iter().map(|_| Ok(())).collect();
        if self.fault == Fault::RemovesWithFewerResults {
            results.pop();
        }
        results
    }

    fn removes(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        match self.fault {
            Fault::HasANameOfItsOwn => format!("memory:{:p}", std::ptr::from_ref(self)),
            _ => "memory:letters".to_owned(),
        }
    }
}

source_conformance!(without_a_fault, async { harness(Fault::None) });

caught! { sources, harness,
    skipped_message_is_caught: Fault::SkipsAMessage => every_dead_letter_is_read, "dead letters are missing";
    wrong_order_is_caught: Fault::ReversesTheOrder => order_per_key_is_kept, "the order of k";
    source_without_an_end_is_caught: Fault::ReturnsMessagesWithoutAnEnd => messages_that_stay_are_read_again, "the source does not end";
    endless_reading_is_caught: Fault::ReadsWhatIsWrittenMeanwhile => source_ends_while_letters_are_written, "the source does not end";
    removal_by_reading_is_caught: Fault::RemovesWhatIsRead => messages_that_stay_are_read_again, "messages are missing";
    removal_of_a_page_is_caught: Fault::RemovesWhatIsRead => partly_read_source_is_read_again, "messages are missing";
    unconfirmed_removal_is_caught: Fault::KeepsWhatIsRemoved => removed_messages_are_gone, "20 of 16 messages are left";
    missing_result_is_caught: Fault::RemovesWithFewerResults => results_of_a_removal_follow_the_request, "one result for each message";
    name_of_its_own_is_caught: Fault::HasANameOfItsOwn => name_identifies_the_storage, "the name of the same storage";
}
