"""Makes a CloudFormation stack and prints the statuses of its resources as JSON. Usage: stack.py ENDPOINT TEMPLATE_FILE."""

import json
import sys

import boto3

endpoint, template = sys.argv[1], open(sys.argv[2]).read()
client = boto3.client(
    "cloudformation",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
client.validate_template(TemplateBody=template)
client.create_stack(StackName="alarms", TemplateBody=template)
client.get_waiter("stack_create_complete").wait(
    StackName="alarms", WaiterConfig={"Delay": 1, "MaxAttempts": 60}
)
resources = client.describe_stack_resources(StackName="alarms")["StackResources"]
print(json.dumps({it["LogicalResourceId"]: it["ResourceStatus"] for it in resources}))
