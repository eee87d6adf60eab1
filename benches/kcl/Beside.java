import java.lang.management.ManagementFactory;
import java.net.URI;
import java.util.concurrent.atomic.AtomicLong;

import com.sun.management.OperatingSystemMXBean;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.common.KinesisClientUtil;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * An application of KCL that counts the records of a stream, each once: says when the first and the last has come, and
 * how much CPU time this process has had until then.
 *
 * usage: Beside KINESIS DYNAMODB APPLICATION STREAM RECORDS
 */
public final class Beside {
    /** As redrive: all that came since is repeated after a crash. */
    private static final long CHECKPOINT_AFTER_MILLIS = 5_000;

    private static final AtomicLong seen = new AtomicLong();
    private static final AtomicLong bytes = new AtomicLong();
    private static long records;

    public static void main(String[] arguments) throws Exception {
        String application = arguments[2];
        String stream = arguments[3];
        records = Long.parseLong(arguments[4]);
        KinesisAsyncClient kinesis = KinesisClientUtil.createKinesisAsyncClient(
                KinesisAsyncClient.builder().region(Region.US_EAST_1).endpointOverride(URI.create(arguments[0])));
        DynamoDbAsyncClient dynamo = DynamoDbAsyncClient.builder()
                .region(Region.US_EAST_1).endpointOverride(URI.create(arguments[1])).build();
        // No metrics are sent.
        CloudWatchAsyncClient cloudWatch = CloudWatchAsyncClient.builder().region(Region.US_EAST_1).build();
        SingleStreamTracker tracker = new SingleStreamTracker(stream,
                InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON));
        ConfigsBuilder configs = new ConfigsBuilder(
                tracker, application, kinesis, dynamo, cloudWatch, "beside", Counter::new);
        // The shortest interval that KCL takes, which is what Kinesis allows.
        PollingConfig polling = new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(200);
        Scheduler scheduler = new Scheduler(
                configs.checkpointConfig(),
                configs.coordinatorConfig(),
                configs.leaseManagementConfig(),
                configs.lifecycleConfig(),
                configs.metricsConfig().metricsFactory(new NullMetricsFactory()),
                configs.processorConfig(),
                configs.retrievalConfig().retrievalSpecificConfig(polling));
        Thread thread = new Thread(scheduler);
        thread.setDaemon(true);
        thread.start();
        // Until nobody holds the other end.
        while (System.in.read() >= 0) {
        }
        System.exit(0);
    }

    private static void say(String what) {
        OperatingSystemMXBean system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        System.out.println(what + " " + system.getProcessCpuTime() / 1e9);
    }

    private static final class Counter implements ShardRecordProcessor {
        private long stored = System.currentTimeMillis();

        @Override
        public void initialize(InitializationInput input) {
        }

        @Override
        public void processRecords(ProcessRecordsInput input) {
            int count = input.records().size();
            if (count > 0) {
                long before = seen.getAndAdd(count);
                if (before == 0) {
                    say("first");
                }
                long length = 0;
                for (KinesisClientRecord record : input.records()) {
                    length += record.data().remaining();
                }
                bytes.addAndGet(length);
                if (before + count == records) {
                    say("last");
                }
            }
            long now = System.currentTimeMillis();
            if (now - stored >= CHECKPOINT_AFTER_MILLIS) {
                stored = now;
                try {
                    input.checkpointer().checkpoint();
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            }
        }

        @Override
        public void leaseLost(LeaseLostInput input) {
        }

        @Override
        public void shardEnded(ShardEndedInput input) {
        }

        @Override
        public void shutdownRequested(ShutdownRequestedInput input) {
        }
    }
}
