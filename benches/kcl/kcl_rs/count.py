"""Counts the records of a stream with kcl-rs. Prints the CPU time of this process at the first and at the last record.

usage: count.py KINESIS DYNAMODB APPLICATION STREAM RECORDS
"""

import os
import sys
import threading
import time

from kcl_rs import RecordProcessorBase, Scheduler

# As in the other clients.
CHECKPOINT_AFTER_SECONDS = 5.0

lock = threading.Lock()
seen = 0


def say(what):
    print(what, time.process_time(), flush=True)


class Counter(RecordProcessorBase):
    def __init__(self):
        self.stored = time.monotonic()

    def initialize(self, initialize_input):
        pass

    def process_records(self, process_records_input):
        global seen
        records = process_records_input.records
        for record in records:
            len(record.data)
        if records:
            with lock:
                before, seen = seen, seen + len(records)
            if before == 0:
                say("first")
            if before + len(records) == wanted:
                say("last")
        if time.monotonic() - self.stored >= CHECKPOINT_AFTER_SECONDS:
            self.stored = time.monotonic()
            process_records_input.checkpointer.checkpoint()

    def lease_lost(self, lease_lost_input):
        pass

    def shard_ended(self, shard_ended_input):
        shard_ended_input.checkpointer.checkpoint()

    def shutdown_requested(self, shutdown_requested_input):
        pass


if __name__ == "__main__":
    kinesis, dynamodb, application, stream, wanted = sys.argv[1:6]
    wanted = int(wanted)
    os.environ["AWS_ENDPOINT_URL_KINESIS"] = kinesis
    os.environ["AWS_ENDPOINT_URL_DYNAMODB"] = dynamodb
    # Its metrics reach no service, and cannot be switched off.
    os.environ["AWS_ENDPOINT_URL_CLOUDWATCH"] = kinesis
    scheduler = Scheduler(
        stream_name=stream,
        application_name=application,
        record_processor_factory=Counter,
        worker_identifier="count",
        region="us-east-1",
        initial_position="TRIM_HORIZON",
        retrieval_mode="POLLING",
        idle_time_between_reads_millis=200,
    )
    scheduler.start()
    # Until nobody holds the other end.
    sys.stdin.read()
    os._exit(0)
