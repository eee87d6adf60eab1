//! Alarms as a CloudFormation template.

use serde_json::{Map, Value, json};

use super::{Alarm, Alarms, LooksAt};

impl Alarms {
    /// A CloudFormation template that makes them.
    pub fn cloudformation(&self) -> Value {
        let resources: Map<String, Value> = self
            .all()
            .iter()
            .map(|alarm| (alarm.name.to_owned(), self.resource(alarm)))
            .collect();
        json!({
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": format!("Alarms of {} on {}", self.application, self.stream),
            "Resources": resources,
        })
    }

    fn resource(&self, alarm: &Alarm) -> Value {
        let mut properties = json!({
            "AlarmName": format!("{}-{}-{}", self.application, self.stream, alarm.name),
            "AlarmDescription": alarm.description,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": alarm.above,
            "EvaluationPeriods": alarm.of_periods,
            "DatapointsToAlarm": alarm.must_be_above,
            "TreatMissingData": if alarm.missing_is_bad { "breaching" } else { "notBreaching" },
        });
        let period = alarm.period.as_secs();
        match &alarm.looks_at {
            LooksAt::Metric {
                metric,
                statistic,
                of_stream,
            } => {
                properties["Namespace"] = json!(self.namespace);
                properties["MetricName"] = json!(metric.name());
                properties["Dimensions"] = self.dimensions(*of_stream);
                properties["Statistic"] = json!(statistic);
                properties["Period"] = json!(period);
            }
            LooksAt::Expression { expression, metrics } => {
                let mut queries = vec![json!({ "Id": "e", "Expression": expression, "ReturnData": true })];
                queries.extend(metrics.iter().enumerate().map(|(place, (metric, statistic))| {
                    json!({
                        "Id": format!("m{place}"),
                        "ReturnData": false,
                        "MetricStat": {
                            "Metric": {
                                "Namespace": self.namespace,
                                "MetricName": metric.name(),
                                "Dimensions": self.dimensions(true),
                            },
                            "Period": period,
                            "Stat": statistic,
                        },
                    })
                }));
                properties["Metrics"] = json!(queries);
            }
            LooksAt::Service {
                namespace,
                metric,
                statistic,
                dimension: (name, value),
            } => {
                properties["Namespace"] = json!(namespace);
                properties["MetricName"] = json!(metric);
                properties["Dimensions"] = json!([{ "Name": name, "Value": value }]);
                properties["Statistic"] = json!(statistic);
                properties["Period"] = json!(period);
            }
        }
        if !self.topics.is_empty() {
            properties["AlarmActions"] = json!(self.topics);
            properties["OKActions"] = json!(self.topics);
        }
        json!({ "Type": "AWS::CloudWatch::Alarm", "Properties": properties })
    }

    fn dimensions(&self, of_stream: bool) -> Value {
        let mut dimensions = vec![json!({ "Name": "Application", "Value": self.application })];
        if of_stream {
            dimensions.push(json!({ "Name": "Stream", "Value": self.stream }));
        }
        json!(dimensions)
    }
}
