"""A record processor as KCL's MultiLangDaemon runs one for each shard: notes what it is given, and checkpoints it.

usage: processor.py NOTES [WORKER]

Each record becomes a line of NOTES: its shard, sequence number, sub-sequence number and data, with tabs between.
Ends of shards and lost leases are noted too. Each line starts with WORKER, if that is given. The protocol: one JSON object a line on standard input and output,
as in `software.amazon.kinesis.multilang.messages`.
"""

import base64
import json
import sys


def say(message):
    sys.stdout.write("\n" + json.dumps(message) + "\n")
    sys.stdout.flush()


def messages():
    for line in sys.stdin:
        if line.strip():
            yield json.loads(line)


def checkpoint(incoming, sequence=None, sub=None):
    say({"action": "checkpoint", "sequenceNumber": sequence, "subSequenceNumber": sub})
    answer = next(incoming)
    return answer.get("error")


def main():
    notes = open(sys.argv[1], "a", encoding="utf-8")
    worker = sys.argv[2:]
    shard = None
    incoming = messages()

    def note(*columns):
        notes.write("\t".join(map(str, [*worker, *columns])) + "\n")
        notes.flush()

    for message in incoming:
        action = message["action"]
        if action == "initialize":
            shard = message["shardId"]
            note("began", shard, message["sequenceNumber"], message["subSequenceNumber"])
        elif action == "processRecords":
            for record in message["records"]:
                data = base64.b64decode(record["data"]).decode()
                note("record", shard, record["sequenceNumber"], record["subSequenceNumber"], data)
            if message["records"]:
                note("checkpoint", shard, checkpoint(incoming))
        elif action in ("shardEnded", "shutdownRequested"):
            note(action, shard, checkpoint(incoming))
        elif action == "leaseLost":
            note(action, shard)
        say({"action": "status", "responseFor": action})


if __name__ == "__main__":
    main()
