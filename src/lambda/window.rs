//! Tumbling windows: the records of a window are folded into a state that Lambda passes from one invocation
//! to the next.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use lambda_runtime::{LambdaEvent, service_fn};
use serde::de::DeserializeOwned;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::function::{Outcome, time_left};
use super::{Event, Function, InvocationError, Response};
use crate::config::ConfigError;
use crate::engine::{Resilient, ResilientBuilder};
use crate::failure::BoxError;
use crate::lambda_event::RawRecords;
use crate::pipeline::{Pipeline, RecordOrder};
use crate::processor::{Attempt, RecordProcessor};
use crate::record::Record;
use crate::rfc3339;

/// Folds the records of a tumbling window into a state, one after the other, and handles the state at the
/// window's end.
///
/// ```
/// use redrive::lambda::{Fold, Window};
/// use redrive::processor::Attempt;
/// use redrive::Record;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Default, Serialize, Deserialize)]
/// struct Volume {
///     orders: u64,
///     bytes: u64,
/// }
///
/// struct Count;
///
/// impl Fold for Count {
///     type State = Volume;
///     type Error = std::io::Error;
///
///     async fn fold(&self, volume: &mut Volume, order: &Record, _: &Attempt<'_>) -> Result<(), Self::Error> {
///         volume.orders += 1;
///         volume.bytes += order.payload().len() as u64;
///         Ok(())
///     }
///
///     async fn finish(&self, window: &Window, volume: &Volume) -> Result<(), Self::Error> {
///         println!("{} orders on {}", volume.orders, window.shard);
///         Ok(())
///     }
/// }
/// ```
pub trait Fold: Send + Sync {
    /// The state that Lambda passes on, as a JSON object of up to 1 MB. A window starts with the default
    /// state. The state is cloned for each attempt.
    type State: Serialize + DeserializeOwned + Clone + Default + Send + Sync;
    /// The error of a failed attempt: any error, also `anyhow::Error` or a boxed one.
    type Error: Into<BoxError> + Send + 'static;

    /// Adds a record to the state. If the attempt fails, the state stays unchanged, and the engine retries or
    /// dead-letters the record like any other. A dead-lettered record is not in the state.
    fn fold(
        &self,
        state: &mut Self::State,
        record: &Record,
        attempt: &Attempt<'_>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Handles the state at the end of the window, once all records are settled. If this fails, the
    /// invocation fails and Lambda repeats it, so `finish` may run more than once.
    fn finish(
        &self,
        window: &Window,
        state: &Self::State,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// A tumbling window of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Window {
    /// The start of the window.
    pub start: SystemTime,
    /// The end of the window.
    pub end: SystemTime,
    /// The shard of the window.
    pub shard: String,
    /// True if this is the last invocation of the window.
    pub is_final: bool,
    /// True if Lambda ended the window early, because its state had grown too large.
    pub is_terminated_early: bool,
}

/// A processor of tumbling windows as a Lambda function. Records are folded in the shard's order, one after
/// the other. Folding stops at the first record that is not settled.
pub struct Windowed<F: Fold> {
    function: Function<Folding<F>>,
    /// Lets invocations run one at a time, because the state belongs to one invocation.
    turn: tokio::sync::Mutex<()>,
}

/// The processor inside a [`Windowed`]. Only [`Windowed::build`] creates it.
pub struct Folding<F: Fold> {
    fold: F,
    state: Mutex<F::State>,
}

const TOO_LONG: &str =
    "`finish` did not end before the invocation's deadline; raise the function's timeout, or do less work";

impl<F: Fold> Folding<F> {
    fn state(&self) -> MutexGuard<'_, F::State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Fold> RecordProcessor for Folding<F> {
    type Error = F::Error;

    async fn process(&self, record: &Record, attempt: &Attempt<'_>) -> Result<(), F::Error> {
        let mut state = self.state().clone();
        self.fold.fold(&mut state, record, attempt).await?;
        *self.state() = state;
        Ok(())
    }
}

impl<F: Fold> Windowed<F> {
    /// Creates a function with the application's name and the settings of the builder, such as dead letters
    /// and retries.
    ///
    /// An idempotency store is an error, because a record that the store knows would be missing in the state.
    ///
    /// ```
    /// # use redrive::lambda::{Fold, Window, Windowed};
    /// # use redrive::processor::Attempt;
    /// # use redrive::{Record, dead_letter};
    /// # struct Count;
    /// # impl Fold for Count {
    /// #     type State = std::collections::BTreeMap<String, u64>;
    /// #     type Error = std::io::Error;
    /// #     async fn fold(&self, _: &mut Self::State, _: &Record, _: &Attempt<'_>) -> Result<(), Self::Error> { Ok(()) }
    /// #     async fn finish(&self, _: &Window, _: &Self::State) -> Result<(), Self::Error> { Ok(()) }
    /// # }
    /// # fn example() -> Result<(), redrive::ConfigError> {
    /// let volumes = Windowed::build("volumes", Count, |builder| {
    ///     builder.dead_letters(dead_letter::Memory::new()) // a sink of yours
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn build(
        application: impl Into<String>,
        fold: F,
        settings: impl FnOnce(ResilientBuilder<Folding<F>>) -> ResilientBuilder<Folding<F>>,
    ) -> Result<Self, ConfigError> {
        let folding = Folding {
            fold,
            state: Mutex::default(),
        };
        let resilient = settings(Resilient::builder(application, folding)).build()?;
        if resilient.remembers() {
            return Err(ConfigError::new(
                "idempotency",
                "must not be set for a tumbling window: records that the store knows would be missing in its state",
            ));
        }
        let pipeline = Pipeline::builder().ordering(RecordOrder::Shard).build()?;
        Ok(Windowed {
            function: Function::new(resilient).pipeline(pipeline),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Sets partial responses; see [`Function::partial_responses`].
    #[must_use]
    pub fn partial_responses(mut self, on: bool) -> Self {
        self.function = self.function.partial_responses(on);
        self
    }

    /// Sets the reserve; see [`Function::reserve`]. The [end](Fold::finish) of a window also runs within the
    /// reserve.
    #[must_use]
    pub fn reserve(mut self, time: std::time::Duration) -> Self {
        self.function = self.function.reserve(time);
        self
    }

    /// Handles invocations until the process ends.
    ///
    /// # Panics
    ///
    /// `lambda_runtime` panics outside of Lambda, where Lambda's environment variables are missing.
    pub async fn run(self) -> Result<(), BoxError>
    where
        F: 'static,
    {
        lambda_runtime::run(service_fn(|event| self.handle(event))).await
    }

    /// Handles one invocation, for `lambda_runtime`'s own `run`.
    pub async fn handle(
        &self,
        invocation: LambdaEvent<WindowEvent>,
    ) -> Result<WindowResponse<F::State>, InvocationError> {
        let left = time_left(invocation.context.deadline, SystemTime::now());
        self.settle(invocation.payload, Instant::now() + left).await
    }

    /// Folds the records that can be folded before the deadline.
    pub async fn settle(
        &self,
        event: WindowEvent,
        deadline: Instant,
    ) -> Result<WindowResponse<F::State>, InvocationError> {
        let _turn = self.turn.lock().await;
        let answer = self.fold(event, deadline).await;
        self.function.flush();
        answer
    }

    async fn fold(
        &self,
        event: WindowEvent,
        deadline: Instant,
    ) -> Result<WindowResponse<F::State>, InvocationError> {
        let WindowEvent { event, window, state } = event;
        let finish_by = self.function.within(deadline).finish_by;
        let folding = self.function.processor();
        *folding.state() = match state {
            Some(state) => {
                serde_json::from_value(state).map_err(|error| InvocationError::State(error.into()))?
            }
            None => F::State::default(),
        };
        let outcome = self.function.settle_all(event, deadline).await?;
        let state = std::mem::take(&mut *folding.state());
        if window.is_final && matches!(outcome, Outcome::Settled) {
            let finished = timeout_at(finish_by, folding.fold.finish(&window, &state));
            let finished = finished
                .await
                .map_err(|_| InvocationError::Finish(TOO_LONG.into()))?;
            finished.map_err(|error| InvocationError::Finish(error.into()))?;
        }
        Ok(WindowResponse {
            response: self.function.answer(outcome)?,
            state,
        })
    }
}

impl<F: Fold> fmt::Debug for Windowed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windowed")
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}

impl<F: Fold> fmt::Debug for Folding<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folding").finish_non_exhaustive()
    }
}

/// The event of an invocation by a mapping with `TumblingWindowInSeconds`: a batch of records, the window and
/// its state.
#[derive(Debug, Clone)]
pub struct WindowEvent {
    event: Event,
    window: Window,
    /// The state from the previous invocation; `None` in the first invocation of the window.
    state: Option<Value>,
}

impl WindowEvent {
    /// Returns the window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the window's records in this invocation.
    pub fn records(&self) -> &[Record] {
        self.event.records()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawWindowEvent<'a> {
    #[serde(rename = "Records", borrow, default)]
    records: RawRecords<'a>,
    window: RawWindow,
    #[serde(default)]
    state: Value,
    #[serde(default)]
    shard_id: String,
    #[serde(default)]
    is_final_invoke_for_window: bool,
    #[serde(default)]
    is_window_terminated_early: bool,
}

#[derive(Deserialize)]
struct RawWindow {
    #[serde(with = "rfc3339")]
    start: SystemTime,
    #[serde(with = "rfc3339")]
    end: SystemTime,
}

impl<'de> Deserialize<'de> for WindowEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawWindowEvent::deserialize(deserializer)?;
        let begins = match &raw.state {
            Value::Null => true,
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        Ok(WindowEvent {
            event: raw.records.try_into().map_err(de::Error::custom)?,
            window: Window {
                start: raw.window.start,
                end: raw.window.end,
                shard: raw.shard_id,
                is_final: raw.is_final_invoke_for_window,
                is_terminated_early: raw.is_window_terminated_early,
            },
            state: (!begins).then_some(raw.state),
        })
    }
}

/// The answer of a function to a batch, and the state for the next invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowResponse<S> {
    response: Response,
    state: S,
}

impl<S> WindowResponse<S> {
    /// Returns the answer: the first record that Lambda must send again, if any.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// Returns the state, which contains all records before the first that Lambda must send again.
    pub fn state(&self) -> &S {
        &self.state
    }
}

impl<S: Serialize> Serialize for WindowResponse<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let mut response = serializer.serialize_struct("WindowResponse", 2)?;
        response.serialize_field("state", &self.state)?;
        response.serialize_field("batchItemFailures", self.response.failures())?;
        response.end()
    }
}
