"""The KPL's format as the public Python implementation has it.

usage: aggregation.py aggregate MAX_BYTES | deaggregate | time ROUNDS

aggregate:    lines [partition key, explicit hash key or null, base64 data] become lines [key, hash key, base64]
deaggregate:  lines of base64 become one line each, a list of [key, hash key or null, sub-sequence, base64]
time:         lines of base64; prints how many records a second it takes out of them, the best of ROUNDS
"""

import base64
import json
import sys
import time

from aws_kinesis_agg import aggregator, deaggregator


def aggregate(lines, max_bytes):
    collected = aggregator.RecordAggregator(max_size=max_bytes)

    def put(full):
        if full is not None:
            key, hash_key, data = full.get_contents()
            print(json.dumps([key, hash_key, base64.b64encode(data).decode()]))

    for line in lines:
        key, hash_key, data = json.loads(line)
        put(collected.add_user_record(key, base64.b64decode(data), hash_key))
    put(collected.clear_and_get())


def event(data):
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "sequenceNumber": "49590338271490256608559692538361571095921575989136588898",
            "approximateArrivalTimestamp": 1545084650.987,
            "partitionKey": "outer",
            "data": data,
        }
    }


def records(data):
    for record in deaggregator.deaggregate_records([event(data)]):
        inside = record["kinesis"]
        yield [
            inside["partitionKey"],
            inside.get("explicitHashKey") or None,
            inside.get("subSequenceNumber"),
            inside["data"].decode(),
        ]


def deaggregate(lines):
    for line in lines:
        print(json.dumps(list(records(line.strip()))))


def best(lines, rounds):
    lines = [line.strip() for line in lines]
    rates = []
    for _ in range(rounds):
        events = [event(line) for line in lines]
        start = time.perf_counter()
        count = len(deaggregator.deaggregate_records(events))
        rates.append(count / (time.perf_counter() - start))
    print(max(rates))


command, *arguments = sys.argv[1:]
if command == "aggregate":
    aggregate(sys.stdin, int(arguments[0]))
elif command == "deaggregate":
    deaggregate(sys.stdin)
else:
    best(sys.stdin, int(arguments[0]))
