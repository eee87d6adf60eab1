"""Powertools' batch processor on an event, many times: prints nanoseconds of CPU a record, from the parsed event and from its bytes.

usage: answer.py EVENT ROUNDS
"""

import json
import sys
import time

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response


def handle(record):
    len(record.kinesis.data_as_bytes())


def answer(event):
    processor = BatchProcessor(event_type=EventType.KinesisDataStreams)
    return process_partial_response(event=event, record_handler=handle, processor=processor, context=None)


def measure(rounds, count, work):
    work()
    start = time.process_time_ns()
    for _ in range(rounds):
        work()
    return (time.process_time_ns() - start) / (rounds * count)


def main():
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    rounds = int(sys.argv[2])
    event = json.loads(data)
    count = len(event["Records"])
    assert answer(event) == {"batchItemFailures": []}
    parsed = measure(rounds, count, lambda: answer(event))
    raw = measure(rounds, count, lambda: json.dumps(answer(json.loads(data))).encode())
    print(parsed, raw)


if __name__ == "__main__":
    main()
