"""Creates a CloudFormation stack, and prints the names of the CloudWatch alarms with its name as their prefix, as JSON.

LocalStack lists resources whose condition is false as well, but does not create them.

usage: stack.py ENDPOINT NAME TEMPLATE_FILE [PARAMETER=VALUE...]
"""

import json
import sys
from pathlib import Path

import boto3

endpoint, name, file, *parameters = sys.argv[1:]
template = Path(file).read_text()


def service(kind):
    return boto3.client(
        kind,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


client = service("cloudformation")
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
alarms = service("cloudwatch").get_paginator("describe_alarms").paginate(AlarmNamePrefix=f"{name}-")
print(json.dumps([alarm["AlarmName"] for page in alarms for alarm in page["MetricAlarms"]]))
