"""Makes a CloudFormation stack and prints the statuses of its resources as JSON. Usage: stack.py ENDPOINT TEMPLATE_FILE."""

import json
import sys
from pathlib import Path

import boto3

endpoint, file = sys.argv[1], Path(sys.argv[2])
template, name = file.read_text(), file.stem
client = boto3.client(
    "cloudformation",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
client.validate_template(TemplateBody=template)
client.create_stack(StackName=name, TemplateBody=template)
client.get_waiter("stack_create_complete").wait(
    StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
)
resources = client.describe_stack_resources(StackName=name)["StackResources"]
print(json.dumps({it["LogicalResourceId"]: it["ResourceStatus"] for it in resources}))
