"""What the Lambda example would be with Powertools, up to its first question for an event."""

import os
import urllib.request

import boto3
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response  # noqa: F401
from aws_lambda_powertools.utilities.idempotency import (  # noqa: F401
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)

letters = boto3.client("kinesis")
seen = DynamoDBPersistenceLayer(table_name=os.environ["SEEN_TABLE"])
config = IdempotencyConfig(event_key_jmespath="id")
processor = BatchProcessor(event_type=EventType.KinesisDataStreams)

api = os.environ["AWS_LAMBDA_RUNTIME_API"]
urllib.request.urlopen(f"http://{api}/2018-06-01/runtime/invocation/next")
