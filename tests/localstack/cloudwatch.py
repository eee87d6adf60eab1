"""CloudWatch as today's SDKs speak to it (RPC v2 CBOR), in front of a LocalStack that knows only the older protocol.

Usage: cloudwatch.py PORT ENDPOINT. Each call is made again by boto3, whose models the answers follow.
"""

import sys
from datetime import timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import cbor2
from botocore import xform_name
from botocore.exceptions import ClientError

port, endpoint = int(sys.argv[1]), sys.argv[2]
client = boto3.client(
    "cloudwatch",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        operation = self.path.rsplit("/", 1)[-1]
        try:
            answer = getattr(client, xform_name(operation))(**(cbor2.loads(body) if body else {}))
            answer.pop("ResponseMetadata", None)
            status = 200
        except ClientError as error:
            answer = {"__type": error.response["Error"]["Code"], "message": str(error)}
            status = 400
        reply = cbor2.dumps(answer, datetime_as_timestamp=True, timezone=timezone.utc)
        self.send_response(status)
        self.send_header("Content-Type", "application/cbor")
        self.send_header("smithy-protocol", "rpc-v2-cbor")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


print(f"listens on {port}", flush=True)
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
