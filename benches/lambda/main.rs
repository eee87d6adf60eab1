//! The cost of an invocation compared with the batch processor of Powertools for Python:
//! `cargo bench -p redrive-benches --bench lambda`.
//!
//! Both process the same event of 100 records of 200 bytes in one thread, with a processor that reads the
//! length of the payload. The bench measures the process's CPU time per record: from the parsed event to the
//! response, and from the event's bytes to the response's bytes. Runs alternate, and the results are the
//! medians. The bench needs Python, and the network at first use.

use std::error::Error;
use std::hint::black_box;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bench::median;
use bench::report::Table;
use redrive::lambda::{Event, Function};
use redrive::processor::Attempt;
use redrive::{Record, RecordProcessor, Resilient, dead_letter};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use support::python;
use tokio::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const RECORDS: usize = 100;
const PAYLOAD_BYTES: usize = 200;
/// The minimum factors of Powertools' CPU time to redrive's: from the parsed event, and from the bytes.
const TARGETS: [f64; 2] = [5.0, 3.0];

fn event() -> Value {
    let records = (0..RECORDS).map(|number| {
        let sequence_number = format!("4959033827149025660855969253836157109592157{number:013}");
        json!({
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": format!("customer-{number:06}"),
                "sequenceNumber": sequence_number,
                "data": BASE64.encode([b'x'; PAYLOAD_BYTES]),
                "approximateArrivalTimestamp": 1_545_084_650.987,
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": format!("shardId-000000000006:{sequence_number}"),
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": "arn:aws:iam::123456789012:role/lambda-role",
            "awsRegion": "us-east-2",
            "eventSourceARN": "arn:aws:kinesis:us-east-2:123456789012:stream/orders",
        })
    });
    json!({ "Records": records.collect::<Vec<_>>() })
}

struct Looks;

impl RecordProcessor for Looks {
    type Error = io::Error;

    async fn process(&self, record: &Record, _: &Attempt<'_>) -> io::Result<()> {
        black_box(record.payload().len());
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let (rounds, runs) = if bench::is_bench() { (2_000, 7) } else { (2, 1) };
    let bytes = serde_json::to_vec(&event())?;
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lambda-event.json");
    std::fs::write(&file, &bytes)?;
    let python = match bench::is_bench() {
        true => python::with("benches/lambda/powertools/requirements.txt"),
        false => None,
    };
    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..runs {
        let times = [parsed(&bytes, rounds).await?, whole(&bytes, rounds).await?];
        for (all, time) in ours.iter_mut().zip(times) {
            all.push(time);
        }
        if let Some(python) = &python {
            let arguments = [file.to_str().ok_or("a path")?, &(rounds / 10).to_string()];
            let said = python::ask(
                python,
                "benches/lambda/powertools/answer.py",
                &arguments,
                String::new(),
            );
            for (all, time) in theirs.iter_mut().zip(said.split_whitespace()) {
                all.push(time.parse()?);
            }
        }
    }
    let mut table = Table::new(
        "lambda",
        &[
            "measured             ",
            "redrive per record",
            "Powertools per record",
            "Powertools, compared with redrive",
        ],
    );
    let mut missed = false;
    for (index, what) in ["from the parsed event", "from bytes to bytes"]
        .iter()
        .enumerate()
    {
        let ours = median(&mut ours[index]);
        table.bar("CPU per record in ns", format!("redrive, {what}"), ours);
        let [theirs, times] = match &mut theirs[index][..] {
            // Without Python.
            [] => ["not measured", "not measured"].map(str::to_owned),
            theirs => {
                let theirs = median(theirs);
                let times = theirs / ours;
                table.bar("CPU per record in ns", format!("Powertools, {what}"), theirs);
                missed |= times < TARGETS[index];
                [format!("{theirs:.0} ns"), format!("{times:.1} times")]
            }
        };
        table.row([(*what).to_owned(), format!("{ours:.0} ns"), theirs, times]);
    }
    table.note(format!(
        "An event of {RECORDS} records of {PAYLOAD_BYTES} bytes, {} bytes in all, medians of {runs} runs.",
        bytes.len()
    ));
    table.finish();
    if bench::is_bench() && missed {
        println!("below the target factors {TARGETS:?}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn function() -> Result<Function<Looks>> {
    let resilient = Resilient::builder("bench", Looks)
        .dead_letters(dead_letter::Memory::new())
        .build()?;
    Ok(Function::new(resilient).partial_responses(true))
}

/// Measures from the parsed event to the response.
async fn parsed(bytes: &[u8], rounds: usize) -> Result<f64> {
    let (function, event) = (function()?, Event::from_slice(bytes)?);
    measure(rounds, async || {
        let answer = function
            .settle(event.clone(), Instant::now() + Duration::from_secs(60))
            .await?;
        assert!(black_box(answer).first_unsettled().is_none());
        Ok(())
    })
    .await
}

/// Measures from the bytes of the event to the bytes of the response.
async fn whole(bytes: &[u8], rounds: usize) -> Result<f64> {
    let function = function()?;
    measure(rounds, async || {
        let event = Event::from_slice(black_box(bytes))?;
        let answer = function
            .settle(event, Instant::now() + Duration::from_secs(60))
            .await?;
        black_box(serde_json::to_vec(&answer)?);
        Ok(())
    })
    .await
}

async fn measure(rounds: usize, work: impl AsyncFn() -> Result<()>) -> Result<f64> {
    work().await?;
    let start = cpu_time();
    for _ in 0..rounds {
        work().await?;
    }
    Ok((cpu_time() - start).as_nanos() as f64 / (rounds * RECORDS) as f64)
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
