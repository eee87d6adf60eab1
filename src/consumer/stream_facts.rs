//! Facts about the stream, as Kinesis describes it at the start and while the consumer runs.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::types::StreamDescriptionSummary;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep, timeout};

use crate::aws::{Located, stream_summary};
use crate::checkpoint::Checkpoint;
use crate::consumer::calls::ANSWER_TIMEOUT;
use crate::consumer::data_loss::{CLOCK_SKEW, SHORTEST_RETENTION};
use crate::failure::BoxError;
use crate::failure::classify::StandardClassifier;
use crate::observer::{Event, Interest, Observers, StreamEvent};
use crate::protection::{Backoff, Jitter};
use crate::record::StreamId;
use crate::record::{Position, ShardId};
use crate::retention::Retention;
use crate::wall_clock;

/// The known facts about a stream.
#[derive(Debug)]
pub(in crate::consumer) struct StreamFacts {
    client: Located<Client>,
    stream: StreamId,
    /// True if a shard was read since the consumer started.
    has_read: AtomicBool,
    retention: Retention,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    created: Option<SystemTime>,
    open_shards: Option<usize>,
    /// The time at which Kinesis last described the stream, or refused to.
    asked: Option<Instant>,
    /// True if Kinesis described the stream at that time.
    is_described: bool,
    /// Shards that the stream does not have any more. A shard that was trimmed does not come back.
    absent: HashSet<ShardId>,
}

/// The time since which a stream has all records.
#[derive(Debug, Clone, Copy)]
pub(in crate::consumer) struct Horizon {
    pub(in crate::consumer) since: SystemTime,
    /// True if Kinesis has just stated the retention. Otherwise the shortest one is assumed, as the retention
    /// may have been lowered.
    pub(in crate::consumer) is_known: bool,
}

/// The reason why the stream could not be described.
pub(in crate::consumer) enum NotDescribed {
    /// The stream does not exist.
    NotFound(BoxError),
    /// A retry may succeed.
    Passing(BoxError),
    /// Kinesis refuses the call: the permission is missing.
    Refused(BoxError),
}

/// The maximum difference between two answers with the same creation time: JSON has it as a floating-point
/// number.
const PRECISION: Duration = Duration::from_secs(1);
/// The maximum age of the answer with which a page of a shard that is far behind is checked.
const RECENT: Duration = Duration::from_secs(5);
/// The maximum age of the answer that discovery uses.
const FRESH: Duration = Duration::from_secs(60);

/// Returns the time since which a stream with this retention has all records.
fn horizon(retention: Duration) -> SystemTime {
    let horizon = wall_clock::now().checked_sub(retention);
    horizon.unwrap_or(SystemTime::UNIX_EPOCH)
}

impl StreamFacts {
    pub(in crate::consumer) fn new(client: Located<Client>, stream: StreamId) -> Self {
        StreamFacts {
            client,
            stream,
            has_read: AtomicBool::new(false),
            retention: Retention::default(),
            known: Mutex::default(),
        }
    }

    /// Notes that a shard was read: the permissions exist.
    pub(in crate::consumer) fn note_read(&self) {
        self.has_read.store(true, Ordering::Relaxed);
    }

    pub(in crate::consumer) fn has_read(&self) -> bool {
        self.has_read.load(Ordering::Relaxed)
    }

    pub(in crate::consumer) fn retention(&self) -> &Retention {
        &self.retention
    }

    /// Returns the creation time of the stream, which distinguishes it from a deleted stream of the same
    /// name.
    pub(in crate::consumer) fn created(&self) -> Option<SystemTime> {
        self.known().created
    }

    /// Returns the number of open shards in the last description.
    pub(in crate::consumer) fn open_shards(&self) -> Option<usize> {
        self.known().open_shards
    }

    /// Returns whether a checkpoint belongs to an earlier stream of this name.
    pub(in crate::consumer) fn is_outdated(&self, checkpoint: &Checkpoint) -> bool {
        // A timestamp is a position in any stream.
        let is_time = matches!(checkpoint.position(), Position::AtTimestamp { .. });
        let read_until = checkpoint.read_until().filter(|_| !is_time);
        self.is_another_stream(checkpoint.stream_created(), read_until)
    }

    /// Returns whether the stream is another one than the stream with this creation time, from which
    /// everything was read up to this time.
    pub(in crate::consumer) fn is_another_stream(
        &self,
        of: Option<SystemTime>,
        read_until: Option<SystemTime>,
    ) -> bool {
        let Some(created) = self.created() else {
            return false;
        };
        match (of, read_until) {
            (Some(of), _) => of
                .max(created)
                .duration_since(of.min(created))
                .is_ok_and(|apart| apart > PRECISION),
            // Everything that arrived before `read_until` was read, which is impossible if the stream was
            // created later. 1970 stands for an unknown time.
            (None, Some(read_until)) => {
                read_until > SystemTime::UNIX_EPOCH && read_until + CLOCK_SKEW < created
            }
            (None, None) => false,
        }
    }

    /// Returns whether Kinesis has described the stream after this time, or refused to. `None`: neither yet.
    pub(in crate::consumer) fn described_since(&self, time: Instant) -> Option<bool> {
        let known = self.known();
        let has_answered = known.asked.is_some_and(|asked| asked > time);
        has_answered.then_some(known.is_described)
    }

    /// Notes that Kinesis does not have the shard any more.
    pub(in crate::consumer) fn note_absent(&self, shard: ShardId) {
        self.known().absent.insert(shard);
    }

    /// Returns true if Kinesis has answered that it does not have the shard.
    pub(in crate::consumer) fn is_absent(&self, shard: &ShardId) -> bool {
        self.known().absent.contains(shard)
    }

    /// Adds to a checkpoint the creation time of its stream, if it is known.
    pub(in crate::consumer) fn tag(&self, checkpoint: Checkpoint) -> Checkpoint {
        match self.created() {
            Some(created) => checkpoint.with_stream_created(created),
            None => checkpoint,
        }
    }

    /// Returns the checkpoint at the oldest record that the stream has now. The loss of earlier records has been
    /// reported. The checkpoint states the time, so that the loss of later ones is noticed.
    pub(in crate::consumer) fn beginning(&self) -> Checkpoint {
        let beginning = self.tag(Checkpoint::at(Position::TrimHorizon));
        match self.kept_since(wall_clock::now()) {
            Some(time) => beginning.with_read_until(time),
            None => beginning,
        }
    }

    /// Makes the next discovery ask Kinesis again.
    pub(in crate::consumer) fn doubt(&self) {
        self.known().asked = None;
    }

    pub(in crate::consumer) fn is_fresh(&self) -> bool {
        self.known().asked.is_some_and(|asked| asked.elapsed() < FRESH)
    }

    /// Asks Kinesis for the description of the stream, and keeps the answer.
    pub(in crate::consumer) async fn describe(&self) -> Result<StreamDescriptionSummary, NotDescribed> {
        let (name, arn) = self.stream.name_or_arn();
        let call = self.client.describe_stream_summary();
        let call = call.set_stream_name(name).set_stream_arn(arn).send();
        let reply = match timeout(ANSWER_TIMEOUT, call).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                let is_not_found = error.code() == Some("ResourceNotFoundException");
                let is_passing = StandardClassifier::is_passing(&error);
                let task = format!("describe the stream {:?}", self.stream.to_string());
                let action = "kinesis:DescribeStreamSummary";
                let failed = self.client.failed(task, action, error).into();
                return Err(if is_not_found {
                    NotDescribed::NotFound(failed)
                } else if is_passing {
                    NotDescribed::Passing(failed)
                } else {
                    let mut known = self.known();
                    (known.asked, known.is_described) = (Some(Instant::now()), false);
                    NotDescribed::Refused(failed)
                });
            }
            Err(_) => {
                let silent = "Kinesis did not answer DescribeStreamSummary in time";
                return Err(NotDescribed::Passing(silent.into()));
            }
        };
        let stream = stream_summary(reply).map_err(|incomplete| NotDescribed::Passing(incomplete.into()))?;
        let hours = u64::try_from(stream.retention_period_hours).unwrap_or_default();
        self.retention.set(Duration::from_secs(hours * 60 * 60));
        let mut known = self.known();
        (known.asked, known.is_described) = (Some(Instant::now()), true);
        let created = SystemTime::try_from(stream.stream_creation_timestamp).ok();
        let created = created.filter(|created| *created > SystemTime::UNIX_EPOCH);
        if known.created != created {
            // Another stream may have shards with the same names.
            known.absent.clear();
        }
        known.created = created;
        known.open_shards = usize::try_from(stream.open_shard_count).ok();
        drop(known);
        Ok(stream)
    }

    /// Returns the same as [`horizon`](StreamFacts::horizon), but uses an answer of Kinesis if one is at most
    /// 5 s old. Also returns whether the answer was given after `page`: the retention may have been lowered
    /// between an earlier answer and the page.
    pub(in crate::consumer) async fn recent_horizon(
        &self,
        page: Instant,
        tries: u32,
        observers: &Observers,
    ) -> (Horizon, bool) {
        let asked = self.known().asked;
        match asked.filter(|asked| asked.elapsed() < RECENT) {
            Some(asked) => (self.known_horizon(), asked > page),
            None => (self.horizon(tries, observers).await, true),
        }
    }

    /// Returns the time since which the stream still has all records. Asks Kinesis up to `tries` times.
    pub(in crate::consumer) async fn horizon(&self, tries: u32, observers: &Observers) -> Horizon {
        for failures in 0..tries {
            let error = match self.describe().await {
                Ok(_) => return self.known_horizon(),
                Err(NotDescribed::NotFound(error) | NotDescribed::Refused(error)) => {
                    self.report(&error, observers);
                    break;
                }
                Err(NotDescribed::Passing(error)) => error,
            };
            self.report(&error, observers);
            if failures + 1 < tries {
                sleep(Backoff::exponential().delay(failures)).await;
            }
        }
        Horizon {
            since: horizon(SHORTEST_RETENTION),
            is_known: false,
        }
    }

    /// Returns the time since which the stream has all records, now and a little later. Returns `None` if it
    /// is unknown.
    pub(in crate::consumer) fn kept_since(&self, now: SystemTime) -> Option<SystemTime> {
        let (created, retention) = (self.created()?, self.retention.get()?);
        let horizon = now.checked_sub(retention)? + CLOCK_SKEW;
        Some(horizon.max(created))
    }

    /// Returns the horizon according to the last answer.
    fn known_horizon(&self) -> Horizon {
        let retention = self.retention.get().filter(|_| self.known().is_described);
        Horizon {
            since: horizon(retention.unwrap_or(SHORTEST_RETENTION)),
            is_known: retention.is_some(),
        }
    }

    /// Asks Kinesis again at intervals, for as long as this future is polled.
    pub(in crate::consumer) async fn keep_fresh(
        &self,
        interval: Duration,
        observers: &Observers,
        mut rng: SmallRng,
    ) {
        let interval = Backoff::exponential().base(interval).cap(interval);
        loop {
            sleep(Jitter::Equal.delay(&interval, 0, Duration::ZERO, &mut rng)).await;
            self.refresh(observers).await;
        }
    }

    /// Asks Kinesis once. A failure is reported, and the known facts stay.
    pub(in crate::consumer) async fn refresh(&self, observers: &Observers) {
        if let Err(
            NotDescribed::NotFound(error) | NotDescribed::Passing(error) | NotDescribed::Refused(error),
        ) = self.describe().await
        {
            self.report(&error, observers);
        }
    }

    pub(in crate::consumer) fn report(&self, error: &BoxError, observers: &Observers) {
        if observers.want(Interest::SHARDS) {
            observers.tell(&Event::Stream {
                stream: self.stream.name(),
                event: StreamEvent::NotDescribed { error: &**error },
            });
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
