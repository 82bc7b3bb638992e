//! The client against a broker in the same process, over TCP.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use highwater_broker::Broker;
use highwater_broker::config::Config;
use highwater_broker::env::Env;
use highwater_client::{
    Acks, AlterTopic, Client, Compression, ConfigSource, ErrorKind, NewTopic, Offset, PartitionId,
    ProducerRecord, Stage, StartAt,
};

async fn broker(dir: &Path) -> Broker {
    broker_at(dir, "127.0.0.1:0").await
}

async fn broker_at(dir: &Path, listen: &str) -> Broker {
    let mut config = Config::default();
    config.listen = listen.to_owned();
    config.http = None;
    config.data_dir = dir.to_owned();
    // The temporary directory may be small.
    config.disk_reserve = 0;
    Broker::start(config, Env::real()).await.unwrap()
}

async fn client(broker: &Broker) -> Client {
    Client::builder([broker.address().to_string()]).name("end-to-end").connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_back_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let client = client(&broker).await;
    client.admin().create_topic(NewTopic::new("orders").partitions(4)).await.unwrap();
    let error = client.admin().create_topic(NewTopic::new("orders")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TopicExists);

    for compression in [Compression::None, Compression::Lz4] {
        let producer = client.producer().batch_bytes(4096).compression(compression).build();
        let mut deliveries = Vec::new();
        for number in 0..2000u32 {
            let (key, value) = (format!("key {}", number % 50), format!("value {number}"));
            let headers = [("number", Some(value.as_bytes())), ("nothing", None)];
            let record = ProducerRecord::new("orders").key(&key).value(&value).headers(&headers);
            deliveries.push(producer.send(record).await.unwrap());
        }
        let mut next = HashMap::new();
        for delivery in deliveries {
            let receipt = delivery.await.unwrap();
            assert_eq!((receipt.stage, receipt.replicas_counted), (Stage::Flushed, 1));
            let before = next.insert(receipt.partition, receipt.offset);
            assert!(before.is_none_or(|before| before < receipt.offset), "in the order of admission");
        }
        producer.close().await.unwrap();
    }

    let consumer = client.consumer("orders").from(StartAt::Earliest).build().await.unwrap();
    let records: Vec<_> = consumer.take(4000).map(Result::unwrap).collect().await;
    let mut of_key: HashMap<String, Vec<u32>> = HashMap::new();
    for record in &records {
        let text =
            |bytes: &Option<bytes::Bytes>| String::from_utf8(bytes.as_ref().unwrap().to_vec()).unwrap();
        let value = text(&record.value);
        assert_eq!(record.headers[0].value.as_deref(), Some(value.as_bytes()));
        assert_eq!(record.headers[1].value, None);
        of_key.entry(text(&record.key)).or_default().push(value["value ".len()..].parse().unwrap());
    }
    assert_eq!(of_key.len(), 50);
    for numbers in of_key.values() {
        // Twice 40 numbers, in order each time.
        let (first, second) = numbers.split_at(40);
        assert!(first.is_sorted() && first == second, "{numbers:?}");
    }
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_say_how_far_the_records_came() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let client = client(&broker).await;
    let topic = NewTopic::new("fast").partitions(1).config("durability", "os");
    client.admin().create_topic(topic).await.unwrap();
    for (acks, least) in
        [(Acks::All, Stage::Written), (Acks::Leader, Stage::Written), (Acks::None, Stage::Accepted)]
    {
        let producer = client.producer().acks(acks).build();
        let delivery = producer.send(ProducerRecord::new("fast").value("a")).await.unwrap();
        let receipt = delivery.await.unwrap();
        assert!(receipt.stage >= least, "{acks:?}: {:?}", receipt.stage);
        producer.close().await.unwrap();
    }
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_found_by_offset_and_time_and_can_be_sought() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let client = client(&broker).await;
    let admin = client.admin();
    admin.create_topic(NewTopic::new("times").partitions(1)).await.unwrap();
    let producer = client.producer().batch_bytes(200).build();
    let values: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let records = values
        .iter()
        .zip(0..)
        .map(|(value, number)| ProducerRecord::new("times").value(value).timestamp(1_000_000 + 10 * number));
    let receipt = producer.send_batch("times", None, records).await.unwrap().await.into_result().unwrap();
    assert_eq!(receipt.acknowledged_count(), 100);

    let at = admin.list_offsets("times", &[], StartAt::Time(1_000_405)).await.unwrap();
    assert_eq!((at[0].offset, at[0].timestamp_ms), (Offset(41), Some(1_000_410)));
    assert_eq!(admin.list_offsets("times", &[], StartAt::Latest).await.unwrap()[0].offset, Offset(100));
    let p0 = PartitionId(0);
    let mut consumer = client.consumer("times").from(StartAt::Time(1_000_405)).build().await.unwrap();
    assert_eq!(consumer.next_record().await.unwrap().unwrap().offset, Offset(41));
    consumer.seek(p0, StartAt::Offset(Offset(97))).await.unwrap();
    let mut rest = Vec::new();
    for _ in 97..100 {
        rest.push(consumer.next_record().await.unwrap().unwrap().value.unwrap());
    }
    assert_eq!(rest, ["97", "98", "99"]);
    assert_eq!(consumer.position(p0), Some(Offset(100)));
    let waiting = tokio::time::timeout(Duration::from_millis(50), consumer.next_record()).await;
    assert!(waiting.is_err(), "at the end it waits");
    consumer.seek(p0, StartAt::Offset(Offset(500))).await.unwrap();
    let error = consumer.next_record().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(consumer.next_record().await.is_none());

    let read = admin.read("times", p0, Offset(99), 1 << 20).await.unwrap();
    let last = read.batches.last().unwrap().iter().last().unwrap().unwrap();
    assert_eq!((last.offset, last.value, read.high_watermark), (Offset(99), Some(&b"99"[..]), Offset(100)));
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_described_altered_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let client = client(&broker).await;
    let admin = client.admin();
    admin.create_topic(NewTopic::new("b").partitions(2)).await.unwrap();
    admin.create_topic(NewTopic::new("a")).await.unwrap();
    let names: Vec<_> = admin.list_topics().await.unwrap().into_iter().map(|topic| topic.name).collect();
    assert_eq!(names, ["a", "b"]);
    let change = AlterTopic::new("b").set("retention_bytes", "1MiB").partitions(3);
    assert_eq!(admin.alter_topic(change).await.unwrap().partitions, 3);
    let described = admin.describe_topics(&["b"]).await.unwrap().remove(0);
    assert_eq!((described.partition_count, described.partitions.len()), (3, 3));
    let setting = described.config.iter().find(|setting| setting.name == "retention_bytes").unwrap();
    assert_eq!((setting.value.as_str(), setting.source), ("1048576", ConfigSource::Topic));
    let unknown = AlterTopic::new("b").set("no_such_setting", "1");
    assert_eq!(admin.alter_topic(unknown).await.unwrap_err().kind(), ErrorKind::InvalidArgument);

    let producer = client.producer().build();
    producer.send(ProducerRecord::new("b").value("x")).await.unwrap().await.unwrap();
    let mut consumer = client.consumer("b").from(StartAt::Earliest).build().await.unwrap();
    consumer.next_record().await.unwrap().unwrap();
    admin.delete_topic("b").await.unwrap();
    assert_eq!(admin.describe_topics(&["b"]).await.unwrap_err().kind(), ErrorKind::UnknownTopic);
    let ended = consumer.next_record().await.unwrap().unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::UnknownTopic);
    let failed = match producer.send(ProducerRecord::new("b").value("y")).await {
        Ok(delivery) => delivery.await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(failed.kind(), ErrorKind::UnknownTopic);
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producer_and_consumer_outlive_a_restart_of_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path()).await;
    let address = first.address().to_string();
    let client = client(&first).await;
    client.admin().create_topic(NewTopic::new("orders").partitions(1)).await.unwrap();
    let producer = client.producer().build();
    let mut consumer = client.consumer("orders").from(StartAt::Earliest).build().await.unwrap();
    let send =
        async |value: &str| producer.send(ProducerRecord::new("orders").value(value)).await.unwrap().await;
    send("before").await.unwrap();
    assert_eq!(consumer.next_record().await.unwrap().unwrap().value.unwrap(), "before");
    first.shutdown().await.unwrap();
    let meanwhile = producer.send(ProducerRecord::new("orders").value("meanwhile")).await.unwrap();
    let second = broker_at(dir.path(), &address).await;
    let receipt = meanwhile.await.unwrap();
    assert_eq!(receipt.offset, Offset(1), "sent when the broker was back, once");
    assert_eq!(consumer.next_record().await.unwrap().unwrap().value.unwrap(), "meanwhile");
    send("after").await.unwrap();
    assert_eq!(consumer.next_record().await.unwrap().unwrap().value.unwrap(), "after");
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_are_written_and_read_at_once() {
    const PARTITIONS: u32 = 300;
    const RECORDS: u32 = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let client = client(&broker).await;
    let topic = NewTopic::new("wide").partitions(PARTITIONS).config("durability", "os");
    client.admin().create_topic(topic).await.unwrap();
    let mut consumer =
        client.consumer("wide").from(StartAt::Earliest).memory_bytes(4 << 20).build().await.unwrap();

    let producer = client.producer().build();
    let texts: Vec<_> =
        (0..RECORDS).map(|number| (format!("key {}", number % 3000), number.to_string())).collect();
    let records = texts.iter().map(|(key, value)| ProducerRecord::new("wide").key(key).value(value));
    let delivery = producer.send_batch("wide", None, records).await.unwrap();
    let receipt = delivery.await.into_result().unwrap();
    assert_eq!(receipt.acknowledged_count(), RECORDS as usize);

    let mut last_of_key: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut partitions = HashMap::new();
    let mut seen = 0;
    while seen < RECORDS {
        let batch = tokio::time::timeout(Duration::from_secs(60), consumer.next_batch())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        for record in &batch {
            let record = record.unwrap();
            let number: u32 = std::str::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
            let before = last_of_key.insert(record.key.unwrap().to_vec(), number);
            assert!(before.is_none_or(|before| before < number), "in order of the key");
            let next = partitions.insert(batch.partition(), record.offset.get() + 1);
            assert_eq!(next.unwrap_or(0), record.offset.get(), "nothing is passed over");
            seen += 1;
        }
    }
    assert_eq!((last_of_key.len(), partitions.len()), (3000, PARTITIONS as usize));
    producer.close().await.unwrap();
    broker.shutdown().await.unwrap();
}
