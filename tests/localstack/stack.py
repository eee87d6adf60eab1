"""Creates a CloudFormation stack and prints the statuses of its resources as JSON.

usage: stack.py ENDPOINT NAME TEMPLATE_FILE [PARAMETER=VALUE...]
"""

import json
import sys
from pathlib import Path

import boto3

endpoint, name, file, *parameters = sys.argv[1:]
template = Path(file).read_text()
client = boto3.client(
    "cloudformation",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
pairs = [parameter.split("=", 1) for parameter in parameters]
client.validate_template(TemplateBody=template)
client.create_stack(
    StackName=name,
    TemplateBody=template,
    Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in pairs],
)
client.get_waiter("stack_create_complete").wait(
    StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
)
resources = client.describe_stack_resources(StackName=name)["StackResources"]
print(json.dumps({it["LogicalResourceId"]: it["ResourceStatus"] for it in resources}))
