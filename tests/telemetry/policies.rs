//! `deploy/policies`: each call to AWS in an adapter's code is allowed by the adapter's policy, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use support::emulator::repository;

/// Source files or folders, and the policies whose holder runs their calls. `POLICY#SID` is one statement of a
/// policy.
const ADAPTERS: &[(&str, &[&str])] = &[
    (
        "src/aws/shard_list.rs",
        &["consumer", "operator", "replay-from-kinesis"],
    ),
    (
        "src/aws/shard_pages.rs",
        &["operator", "rehydrate", "replay-from-kinesis"],
    ),
    (
        "src/aws/table/time_to_live.rs",
        &["idempotency-dynamodb", "replay-ledger-dynamodb"],
    ),
    (
        "src/aws/table/existence.rs",
        &[
            "checkpoints-dynamodb#Leases",
            "checkpoints-dynamodb#Workers",
            "checkpoints-dynamodb#Leader",
            "idempotency-dynamodb",
            "replay-ledger-dynamodb",
        ],
    ),
    (
        "src/aws/table/pages.rs",
        &["checkpoints-dynamodb#Leases", "checkpoints-dynamodb#Workers"],
    ),
    (
        "src/aws/table",
        &[
            "checkpoints-dynamodb#Leases",
            "idempotency-dynamodb",
            "replay-ledger-dynamodb",
        ],
    ),
    (
        "src/checkpoint/dynamodb/workers.rs",
        &["checkpoints-dynamodb#Workers"],
    ),
    (
        "src/checkpoint/dynamodb/leader.rs",
        &["checkpoints-dynamodb#Leader"],
    ),
    ("src/checkpoint", &["checkpoints-dynamodb#Leases"]),
    ("src/consumer/read/fan_out.rs", &["consumer-fan-out"]),
    ("src/consumer/read/registration.rs", &["consumer-fan-out"]),
    ("src/consumer", &["consumer"]),
    ("src/dead_letter/kinesis", &["dead-letters-kinesis"]),
    ("src/dead_letter/s3", &["dead-letters-s3"]),
    ("src/dead_letter/sns", &["dead-letters-sns"]),
    ("src/dead_letter/sqs", &["dead-letters-sqs"]),
    ("src/idempotency", &["idempotency-dynamodb"]),
    ("src/operator", &["operator"]),
    ("src/replay/ledger", &["replay-ledger-dynamodb"]),
    ("src/replay/rehydrate", &["rehydrate"]),
    ("src/replay/source/kinesis.rs", &["replay-from-kinesis"]),
    ("src/replay/source/s3.rs", &["replay-from-s3"]),
    ("src/replay/source/sqs.rs", &["replay-from-sqs"]),
    ("src/telemetry/alert", &["alerts-sns"]),
    ("src/telemetry/cloudwatch.rs", &["metrics-cloudwatch"]),
    // The command asks for the URL of a queue by its name, and for the table that it is given.
    ("cli/src", &["replay-from-sqs", "checkpoints-dynamodb#Leases"]),
    // The server for tests is no service of AWS.
    ("src/testing", &[]),
];

/// The policy of the calls that read an index.
const BY_INDEX: &[&str] = &["checkpoints-dynamodb#LeasesByOwner"];

/// Calls to AWS: the method of the SDK's client, and the action that allows the call. All calls of the services, S3's
/// administration of buckets left out.
const CALLS: &[(&str, &str)] = &[
    ("add_tags_to_stream", "kinesis:AddTagsToStream"),
    ("create_channel", "kinesis:CreateChannel"),
    ("create_stream", "kinesis:CreateStream"),
    (
        "decrease_stream_retention_period",
        "kinesis:DecreaseStreamRetentionPeriod",
    ),
    ("delete_channel", "kinesis:DeleteChannel"),
    ("delete_resource_policy", "kinesis:DeleteResourcePolicy"),
    ("delete_stream", "kinesis:DeleteStream"),
    ("deregister_stream_consumer", "kinesis:DeregisterStreamConsumer"),
    ("describe_account_settings", "kinesis:DescribeAccountSettings"),
    ("describe_channel", "kinesis:DescribeChannel"),
    ("describe_limits", "kinesis:DescribeLimits"),
    ("describe_stream", "kinesis:DescribeStream"),
    ("describe_stream_consumer", "kinesis:DescribeStreamConsumer"),
    ("describe_stream_summary", "kinesis:DescribeStreamSummary"),
    ("disable_enhanced_monitoring", "kinesis:DisableEnhancedMonitoring"),
    ("enable_enhanced_monitoring", "kinesis:EnableEnhancedMonitoring"),
    ("get_records", "kinesis:GetRecords"),
    ("get_resource_policy", "kinesis:GetResourcePolicy"),
    ("get_shard_iterator", "kinesis:GetShardIterator"),
    (
        "increase_stream_retention_period",
        "kinesis:IncreaseStreamRetentionPeriod",
    ),
    ("list_channels", "kinesis:ListChannels"),
    ("list_shards", "kinesis:ListShards"),
    ("list_stream_consumers", "kinesis:ListStreamConsumers"),
    ("list_streams", "kinesis:ListStreams"),
    ("list_tags_for_resource", "kinesis:ListTagsForResource"),
    ("list_tags_for_stream", "kinesis:ListTagsForStream"),
    ("merge_shards", "kinesis:MergeShards"),
    ("put_record", "kinesis:PutRecord"),
    ("put_records", "kinesis:PutRecords"),
    ("put_resource_policy", "kinesis:PutResourcePolicy"),
    ("register_stream_consumer", "kinesis:RegisterStreamConsumer"),
    ("remove_tags_from_stream", "kinesis:RemoveTagsFromStream"),
    ("split_shard", "kinesis:SplitShard"),
    ("start_stream_encryption", "kinesis:StartStreamEncryption"),
    ("stop_stream_encryption", "kinesis:StopStreamEncryption"),
    ("subscribe_to_shard", "kinesis:SubscribeToShard"),
    ("tag_resource", "kinesis:TagResource"),
    ("untag_resource", "kinesis:UntagResource"),
    ("update_account_settings", "kinesis:UpdateAccountSettings"),
    ("update_channel", "kinesis:UpdateChannel"),
    ("update_max_record_size", "kinesis:UpdateMaxRecordSize"),
    ("update_shard_count", "kinesis:UpdateShardCount"),
    ("update_stream_mode", "kinesis:UpdateStreamMode"),
    (
        "update_stream_record_distribution_strategy",
        "kinesis:UpdateStreamRecordDistributionStrategy",
    ),
    (
        "update_stream_warm_throughput",
        "kinesis:UpdateStreamWarmThroughput",
    ),
    ("batch_execute_statement", "dynamodb:BatchExecuteStatement"),
    ("batch_get_item", "dynamodb:BatchGetItem"),
    ("batch_write_item", "dynamodb:BatchWriteItem"),
    ("create_backup", "dynamodb:CreateBackup"),
    ("create_global_table", "dynamodb:CreateGlobalTable"),
    ("create_table", "dynamodb:CreateTable"),
    ("delete_backup", "dynamodb:DeleteBackup"),
    ("delete_item", "dynamodb:DeleteItem"),
    ("delete_resource_policy", "dynamodb:DeleteResourcePolicy"),
    ("delete_table", "dynamodb:DeleteTable"),
    ("describe_backup", "dynamodb:DescribeBackup"),
    (
        "describe_continuous_backups",
        "dynamodb:DescribeContinuousBackups",
    ),
    (
        "describe_contributor_insights",
        "dynamodb:DescribeContributorInsights",
    ),
    ("describe_endpoints", "dynamodb:DescribeEndpoints"),
    ("describe_export", "dynamodb:DescribeExport"),
    ("describe_global_table", "dynamodb:DescribeGlobalTable"),
    (
        "describe_global_table_settings",
        "dynamodb:DescribeGlobalTableSettings",
    ),
    ("describe_import", "dynamodb:DescribeImport"),
    (
        "describe_kinesis_streaming_destination",
        "dynamodb:DescribeKinesisStreamingDestination",
    ),
    ("describe_limits", "dynamodb:DescribeLimits"),
    ("describe_table", "dynamodb:DescribeTable"),
    (
        "describe_table_replica_auto_scaling",
        "dynamodb:DescribeTableReplicaAutoScaling",
    ),
    ("describe_time_to_live", "dynamodb:DescribeTimeToLive"),
    (
        "disable_kinesis_streaming_destination",
        "dynamodb:DisableKinesisStreamingDestination",
    ),
    (
        "enable_kinesis_streaming_destination",
        "dynamodb:EnableKinesisStreamingDestination",
    ),
    ("execute_statement", "dynamodb:ExecuteStatement"),
    ("execute_transaction", "dynamodb:ExecuteTransaction"),
    (
        "export_table_to_point_in_time",
        "dynamodb:ExportTableToPointInTime",
    ),
    ("get_item", "dynamodb:GetItem"),
    ("get_resource_policy", "dynamodb:GetResourcePolicy"),
    ("import_table", "dynamodb:ImportTable"),
    ("list_backups", "dynamodb:ListBackups"),
    ("list_contributor_insights", "dynamodb:ListContributorInsights"),
    ("list_exports", "dynamodb:ListExports"),
    ("list_global_tables", "dynamodb:ListGlobalTables"),
    ("list_imports", "dynamodb:ListImports"),
    ("list_tables", "dynamodb:ListTables"),
    ("list_tags_of_resource", "dynamodb:ListTagsOfResource"),
    ("put_item", "dynamodb:PutItem"),
    ("put_resource_policy", "dynamodb:PutResourcePolicy"),
    ("query", "dynamodb:Query"),
    ("restore_table_from_backup", "dynamodb:RestoreTableFromBackup"),
    (
        "restore_table_to_point_in_time",
        "dynamodb:RestoreTableToPointInTime",
    ),
    ("scan", "dynamodb:Scan"),
    ("search_vectors", "dynamodb:SearchVectors"),
    ("tag_resource", "dynamodb:TagResource"),
    ("transact_get_items", "dynamodb:TransactGetItems"),
    ("transact_write_items", "dynamodb:TransactWriteItems"),
    ("untag_resource", "dynamodb:UntagResource"),
    ("update_continuous_backups", "dynamodb:UpdateContinuousBackups"),
    (
        "update_contributor_insights",
        "dynamodb:UpdateContributorInsights",
    ),
    ("update_global_table", "dynamodb:UpdateGlobalTable"),
    (
        "update_global_table_settings",
        "dynamodb:UpdateGlobalTableSettings",
    ),
    ("update_item", "dynamodb:UpdateItem"),
    (
        "update_kinesis_streaming_destination",
        "dynamodb:UpdateKinesisStreamingDestination",
    ),
    ("update_table", "dynamodb:UpdateTable"),
    (
        "update_table_replica_auto_scaling",
        "dynamodb:UpdateTableReplicaAutoScaling",
    ),
    ("update_time_to_live", "dynamodb:UpdateTimeToLive"),
    ("add_permission", "sqs:AddPermission"),
    ("cancel_message_move_task", "sqs:CancelMessageMoveTask"),
    ("change_message_visibility", "sqs:ChangeMessageVisibility"),
    ("change_message_visibility_batch", "sqs:ChangeMessageVisibility"),
    ("create_queue", "sqs:CreateQueue"),
    ("delete_message", "sqs:DeleteMessage"),
    ("delete_message_batch", "sqs:DeleteMessage"),
    ("delete_queue", "sqs:DeleteQueue"),
    ("get_queue_attributes", "sqs:GetQueueAttributes"),
    ("get_queue_url", "sqs:GetQueueUrl"),
    ("list_dead_letter_source_queues", "sqs:ListDeadLetterSourceQueues"),
    ("list_message_move_tasks", "sqs:ListMessageMoveTasks"),
    ("list_queue_tags", "sqs:ListQueueTags"),
    ("list_queues", "sqs:ListQueues"),
    ("purge_queue", "sqs:PurgeQueue"),
    ("receive_message", "sqs:ReceiveMessage"),
    ("remove_permission", "sqs:RemovePermission"),
    ("send_message", "sqs:SendMessage"),
    ("send_message_batch", "sqs:SendMessage"),
    ("set_queue_attributes", "sqs:SetQueueAttributes"),
    ("start_message_move_task", "sqs:StartMessageMoveTask"),
    ("tag_queue", "sqs:TagQueue"),
    ("untag_queue", "sqs:UntagQueue"),
    ("add_permission", "sns:AddPermission"),
    (
        "check_if_phone_number_is_opted_out",
        "sns:CheckIfPhoneNumberIsOptedOut",
    ),
    ("confirm_subscription", "sns:ConfirmSubscription"),
    ("create_platform_application", "sns:CreatePlatformApplication"),
    ("create_platform_endpoint", "sns:CreatePlatformEndpoint"),
    (
        "create_sms_sandbox_phone_number",
        "sns:CreateSmsSandboxPhoneNumber",
    ),
    ("create_topic", "sns:CreateTopic"),
    ("delete_endpoint", "sns:DeleteEndpoint"),
    ("delete_platform_application", "sns:DeletePlatformApplication"),
    (
        "delete_sms_sandbox_phone_number",
        "sns:DeleteSmsSandboxPhoneNumber",
    ),
    ("delete_topic", "sns:DeleteTopic"),
    ("get_data_protection_policy", "sns:GetDataProtectionPolicy"),
    ("get_endpoint_attributes", "sns:GetEndpointAttributes"),
    (
        "get_platform_application_attributes",
        "sns:GetPlatformApplicationAttributes",
    ),
    ("get_sms_attributes", "sns:GetSmsAttributes"),
    ("get_sms_sandbox_account_status", "sns:GetSmsSandboxAccountStatus"),
    ("get_subscription_attributes", "sns:GetSubscriptionAttributes"),
    ("get_topic_attributes", "sns:GetTopicAttributes"),
    (
        "list_endpoints_by_platform_application",
        "sns:ListEndpointsByPlatformApplication",
    ),
    ("list_origination_numbers", "sns:ListOriginationNumbers"),
    ("list_phone_numbers_opted_out", "sns:ListPhoneNumbersOptedOut"),
    ("list_platform_applications", "sns:ListPlatformApplications"),
    ("list_sms_sandbox_phone_numbers", "sns:ListSmsSandboxPhoneNumbers"),
    ("list_subscriptions", "sns:ListSubscriptions"),
    ("list_subscriptions_by_topic", "sns:ListSubscriptionsByTopic"),
    ("list_tags_for_resource", "sns:ListTagsForResource"),
    ("list_topics", "sns:ListTopics"),
    ("opt_in_phone_number", "sns:OptInPhoneNumber"),
    ("publish", "sns:Publish"),
    ("publish_batch", "sns:Publish"),
    ("put_data_protection_policy", "sns:PutDataProtectionPolicy"),
    ("remove_permission", "sns:RemovePermission"),
    ("set_endpoint_attributes", "sns:SetEndpointAttributes"),
    (
        "set_platform_application_attributes",
        "sns:SetPlatformApplicationAttributes",
    ),
    ("set_sms_attributes", "sns:SetSmsAttributes"),
    ("set_subscription_attributes", "sns:SetSubscriptionAttributes"),
    ("set_topic_attributes", "sns:SetTopicAttributes"),
    ("subscribe", "sns:Subscribe"),
    ("tag_resource", "sns:TagResource"),
    ("unsubscribe", "sns:Unsubscribe"),
    ("untag_resource", "sns:UntagResource"),
    (
        "verify_sms_sandbox_phone_number",
        "sns:VerifySmsSandboxPhoneNumber",
    ),
    ("abort_multipart_upload", "s3:AbortMultipartUpload"),
    ("complete_multipart_upload", "s3:CompleteMultipartUpload"),
    ("copy_object", "s3:CopyObject"),
    ("create_bucket", "s3:CreateBucket"),
    ("create_multipart_upload", "s3:CreateMultipartUpload"),
    ("delete_object", "s3:DeleteObject"),
    ("delete_objects", "s3:DeleteObject"),
    (
        "get_bucket_lifecycle_configuration",
        "s3:GetBucketLifecycleConfiguration",
    ),
    ("get_bucket_location", "s3:GetBucketLocation"),
    ("get_bucket_versioning", "s3:GetBucketVersioning"),
    ("get_object", "s3:GetObject"),
    ("get_object_attributes", "s3:GetObjectAttributes"),
    ("get_object_tagging", "s3:GetObjectTagging"),
    ("head_bucket", "s3:ListBucket"),
    ("head_object", "s3:GetObject"),
    ("list_buckets", "s3:ListBuckets"),
    ("list_multipart_uploads", "s3:ListMultipartUploads"),
    ("list_object_versions", "s3:ListObjectVersions"),
    ("list_objects", "s3:ListBucket"),
    ("list_objects_v2", "s3:ListBucket"),
    ("put_object", "s3:PutObject"),
    ("put_object_tagging", "s3:PutObjectTagging"),
    ("select_object_content", "s3:SelectObjectContent"),
    ("upload_part", "s3:UploadPart"),
    ("associate_dataset_kms_key", "cloudwatch:AssociateDatasetKmsKey"),
    (
        "create_resource_metrics_configuration",
        "cloudwatch:CreateResourceMetricsConfiguration",
    ),
    ("delete_alarm_mute_rule", "cloudwatch:DeleteAlarmMuteRule"),
    ("delete_alarms", "cloudwatch:DeleteAlarms"),
    ("delete_anomaly_detector", "cloudwatch:DeleteAnomalyDetector"),
    ("delete_dashboards", "cloudwatch:DeleteDashboards"),
    ("delete_insight_rules", "cloudwatch:DeleteInsightRules"),
    ("delete_metric_stream", "cloudwatch:DeleteMetricStream"),
    (
        "delete_resource_metrics_configuration",
        "cloudwatch:DeleteResourceMetricsConfiguration",
    ),
    (
        "describe_alarm_contributors",
        "cloudwatch:DescribeAlarmContributors",
    ),
    ("describe_alarm_history", "cloudwatch:DescribeAlarmHistory"),
    ("describe_alarms", "cloudwatch:DescribeAlarms"),
    ("describe_alarms_for_metric", "cloudwatch:DescribeAlarmsForMetric"),
    (
        "describe_anomaly_detectors",
        "cloudwatch:DescribeAnomalyDetectors",
    ),
    ("describe_insight_rules", "cloudwatch:DescribeInsightRules"),
    ("disable_alarm_actions", "cloudwatch:DisableAlarmActions"),
    ("disable_insight_rules", "cloudwatch:DisableInsightRules"),
    (
        "disassociate_dataset_kms_key",
        "cloudwatch:DisassociateDatasetKmsKey",
    ),
    ("enable_alarm_actions", "cloudwatch:EnableAlarmActions"),
    ("enable_insight_rules", "cloudwatch:EnableInsightRules"),
    ("get_alarm_mute_rule", "cloudwatch:GetAlarmMuteRule"),
    ("get_dashboard", "cloudwatch:GetDashboard"),
    ("get_dataset", "cloudwatch:GetDataset"),
    ("get_insight_rule_report", "cloudwatch:GetInsightRuleReport"),
    ("get_metric_data", "cloudwatch:GetMetricData"),
    ("get_metric_statistics", "cloudwatch:GetMetricStatistics"),
    ("get_metric_stream", "cloudwatch:GetMetricStream"),
    ("get_metric_widget_image", "cloudwatch:GetMetricWidgetImage"),
    ("get_o_tel_enrichment", "cloudwatch:GetOTelEnrichment"),
    (
        "get_resource_metrics_configuration",
        "cloudwatch:GetResourceMetricsConfiguration",
    ),
    ("list_alarm_mute_rules", "cloudwatch:ListAlarmMuteRules"),
    ("list_dashboards", "cloudwatch:ListDashboards"),
    ("list_managed_insight_rules", "cloudwatch:ListManagedInsightRules"),
    ("list_metric_streams", "cloudwatch:ListMetricStreams"),
    ("list_metrics", "cloudwatch:ListMetrics"),
    ("list_tags_for_resource", "cloudwatch:ListTagsForResource"),
    ("put_alarm_mute_rule", "cloudwatch:PutAlarmMuteRule"),
    ("put_anomaly_detector", "cloudwatch:PutAnomalyDetector"),
    ("put_composite_alarm", "cloudwatch:PutCompositeAlarm"),
    ("put_dashboard", "cloudwatch:PutDashboard"),
    ("put_insight_rule", "cloudwatch:PutInsightRule"),
    ("put_log_alarm", "cloudwatch:PutLogAlarm"),
    ("put_managed_insight_rules", "cloudwatch:PutManagedInsightRules"),
    ("put_metric_alarm", "cloudwatch:PutMetricAlarm"),
    ("put_metric_data", "cloudwatch:PutMetricData"),
    ("put_metric_stream", "cloudwatch:PutMetricStream"),
    ("set_alarm_state", "cloudwatch:SetAlarmState"),
    ("start_metric_streams", "cloudwatch:StartMetricStreams"),
    ("start_o_tel_enrichment", "cloudwatch:StartOTelEnrichment"),
    ("stop_metric_streams", "cloudwatch:StopMetricStreams"),
    ("stop_o_tel_enrichment", "cloudwatch:StopOTelEnrichment"),
    ("tag_resource", "cloudwatch:TagResource"),
    ("untag_resource", "cloudwatch:UntagResource"),
    ("update_o_tel_enrichment", "cloudwatch:UpdateOTelEnrichment"),
    (
        "update_resource_metrics_configuration",
        "cloudwatch:UpdateResourceMetricsConfiguration",
    ),
];

/// Source files with their text, without the tests in them.
fn sources(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.ends_with("tests.rs") {
            // Calls of tests need no policy.
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            let text = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default()
                .to_owned();
            let name = path.strip_prefix(repository()).expect("below the root");
            found.insert(name.display().to_string(), text);
        }
    }
}

/// The statements of a policy: the name of each, and the actions that it allows. A statement with a `Sid` is
/// named `POLICY#SID`.
fn statements(policy: &str) -> BTreeMap<String, BTreeSet<String>> {
    let path = repository().join(format!("deploy/policies/{policy}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{policy}: {error}"));
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for statement in document["Statement"].as_array().expect("statements") {
        let name = match statement["Sid"].as_str() {
            Some(sid) => format!("{policy}#{sid}"),
            None => policy.to_owned(),
        };
        let actions = statement["Action"].as_array().expect("actions");
        let actions = actions.iter().map(|it| it.as_str().expect("text").to_owned());
        found.entry(name).or_default().extend(actions);
    }
    found
}

/// The actions that a policy, or a statement of one, allows.
fn allowed(name: &str) -> BTreeSet<String> {
    let (policy, _) = name.split_once('#').unwrap_or((name, ""));
    statements(policy)
        .remove(name)
        .unwrap_or_else(|| panic!("no statement {name}"))
}

#[test]
fn each_call_is_allowed_by_a_policy_and_each_policy_is_used() {
    let mut files = BTreeMap::new();
    for folder in ["src", "cli/src"] {
        sources(&repository().join(folder), &mut files);
    }
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, text) in &files {
        for (method, action) in CALLS {
            let is_called = text.match_indices(&format!(".{method}()")).next().is_some();
            // A channel is subscribed to as well, and a topic of SNS only by its owner.
            if !is_called || *method == "subscribe" {
                continue;
            }
            let adapter = ADAPTERS.iter().find(|(path, _)| file.starts_with(path));
            // The index of a table is a resource of its own.
            let by_index = text.contains(".index_name(") && *method == "query";
            let (_, policies) = adapter.unwrap_or_else(|| panic!("{file} calls {method}, and has no policy"));
            let policies = if by_index { BY_INDEX } else { policies };
            for policy in policies {
                // The command uses a part of each.
                if allowed(policy).contains(*action) {
                    used.entry(policy).or_default().insert(action);
                } else {
                    assert!(
                        file.starts_with("cli/"),
                        "{file} calls {method}; {policy} lacks {action}"
                    );
                }
            }
        }
    }
    let mut policies = 0;
    for entry in fs::read_dir(repository().join("deploy/policies")).expect("a folder") {
        let name = entry.expect("readable").file_name().into_string().expect("UTF-8");
        let name = name.trim_end_matches(".json");
        for (name, allowed) in statements(name) {
            let used: BTreeSet<String> = used
                .get(&*name)
                .into_iter()
                .flatten()
                .map(|it| it.to_string())
                .collect();
            assert_eq!(allowed, used, "{name}");
        }
        policies += 1;
    }
    assert!(policies > 10, "{policies} policies");
}
