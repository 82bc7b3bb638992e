//! A reader that stops reading, a producer that floods, and both at once between the same two ends: nobody deadlocks,
//! nobody else notices, and the broker's memory stays bounded.
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwater_client::{Client, NewTopic, PartitionId, ProducerRecord, StartAt};
use highwater_protocol::api::{ApiKey, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::Frame;
use highwater_protocol::ids::TopicId;
use highwater_protocol::messages::{
    Goodbye, HandshakeReply, Isolation, MetadataRequest, ProduceReply, ProduceRequest, Push, SubscribeRequest,
};
use highwater_tests::cluster::{BrokerProcess, Options};
use highwater_tests::oracle::{Pass, Record};
use highwater_tests::peer::{self, PeerReader, PeerWriter};
use highwater_tests::proxy::Proxy;
use highwater_tests::wait;
use highwater_tests::workload;

const LIMIT: Duration = Duration::from_secs(120);
const PARTITION: PartitionId = PartitionId(0);
const BATCH_RECORDS: u64 = 2_000;
/// What a broker may hold for one bad peer and a few good ones: windows, queues and the program itself.
const RESIDENT_BYTES_MAX: u64 = 200 << 20;

/// A broker with a topic, and a raw connection to it.
struct Scene {
    broker: BrokerProcess,
    client: Client,
    topic: TopicId,
    writer: PeerWriter,
    reader: PeerReader,
    handshake: HandshakeReply,
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let broker = BrokerProcess::start(Options::default())?;
        let client = Client::builder([broker.bootstrap()]).connect().await?;
        client.admin().create_topic(NewTopic::new(name).partitions(1).config("durability", "os")).await?;
        let (mut writer, mut reader, handshake) =
            peer::connect(broker.addresses().listen, "bare hands").await?;
        let topic = peer::topic_id(&mut writer, &mut reader, name).await?;
        Ok(Self { broker, client, topic, writer, reader, handshake })
    }

    /// Asks for everything from offset 0, without ever being asked to slow down.
    async fn subscribe(&mut self) -> Result<()> {
        let request = SubscribeRequest {
            id: 1,
            topic_id: Some(self.topic.into()),
            partition: PARTITION.0,
            credit: u64::MAX / 2,
            isolation: Isolation::Committed.into(),
            ..SubscribeRequest::default()
        };
        self.writer.request(&request, &[]).await.map(drop)
    }

    /// Sends batch `number`; the reply is left for later.
    async fn produce(&mut self, number: u64) -> Result<usize> {
        let batch = peer::batch(self.topic, PARTITION, 1, number * BATCH_RECORDS, BATCH_RECORDS)?;
        let request = peer::produce(self.topic, PARTITION, number, &batch)?;
        self.writer.request(&request, std::slice::from_ref(&batch)).await?;
        Ok(batch.len())
    }

    /// Others produce and consume in the meantime, as if nothing were wrong.
    async fn others_go_on(&self, count: u64) -> Result<()> {
        let producer = self.client.producer().build();
        let name = "others";
        self.client.admin().create_topic(NewTopic::new(name).partitions(1)).await?;
        let mut consumer = self.client.consumer(name).from(StartAt::Earliest).build().await?;
        for number in 0..count {
            let value = workload::value_of(Record { producer: 9, number });
            let delivery = producer.send(ProducerRecord::new(name).value(&value)).await?;
            wait::within("another producer is acknowledged", LIMIT, delivery).await??;
            let record = wait::within("another consumer gets it", LIMIT, consumer.next_record()).await?;
            let record = record.context("the stream ended")??;
            ensure!(record.value.as_deref() == Some(value.as_slice()), "another record than was sent");
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<()> {
        let usage = self.broker.usage()?;
        ensure!(usage.anonymous_bytes < RESIDENT_BYTES_MAX, "the broker holds too much: {usage:?}");
        Ok(())
    }
}

/// Everything that one connection has received.
#[derive(Default)]
struct Received {
    acknowledged: u64,
    pass: Pass,
    goodbye: Option<ErrorCode>,
}

impl Received {
    fn take(&mut self, frame: &Frame) -> Result<()> {
        match frame.header.api {
            ApiKey::PUSH => {
                frame.decode_body::<Push>()?;
                self.take_batches(&frame.attachment)
            }
            ApiKey::GOODBYE => {
                self.goodbye = Some(ErrorCode::from_code(frame.decode_body::<Goodbye>()?.code));
                Ok(())
            }
            api if api == ProduceRequest::API => {
                let reply: ProduceReply = peer::reply_to::<ProduceRequest>(frame)?;
                for result in reply.results {
                    ensure!(ErrorCode::from_code(result.error).is_none(), "refused: {}", result.message);
                    ensure!(
                        result.base_offset == self.acknowledged * BATCH_RECORDS,
                        "order of one connection is kept"
                    );
                    self.acknowledged += 1;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_batches(&mut self, attachment: &bytes::Bytes) -> Result<()> {
        let mut rest = attachment.clone();
        while !rest.is_empty() {
            let header = highwater_protocol::batch::BatchHeader::decode(&rest)?;
            let batch = rest.split_to(header.length());
            let records = highwater_protocol::batch::Records::open(header, &batch)?;
            for record in records.iter() {
                let record = record?;
                let name = workload::record_of(record.value.context("no value")?)?;
                ensure!(record.offset.0 == self.pass.len() as u64, "pushed in order and once");
                self.pass.push((record.offset.0, name));
            }
        }
        Ok(())
    }

    /// Reads until all `batches` are acknowledged and have been pushed, as far as asked.
    async fn read_until(&mut self, reader: &mut PeerReader, acknowledged: u64, pushed: u64) -> Result<()> {
        let reading = async {
            while self.acknowledged < acknowledged || (self.pass.len() as u64) < pushed * BATCH_RECORDS {
                let frame = reader.next().await?.context("the broker closed the connection")?;
                self.take(&frame)?;
            }
            Ok(())
        };
        wait::within("everything arrives", LIMIT, reading).await?
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_delays_nobody_and_gets_everything_later() {
    let mut scene = Scene::new("stopped").await.unwrap();
    let batches = 100;
    let mut received = Received::default();
    for number in 0..batches {
        scene.produce(number).await.unwrap();
        received.read_until(&mut scene.reader, number + 1, 0).await.unwrap();
    }
    // Some 20 MB are on their way to somebody who does not look.
    scene.subscribe().await.unwrap();
    scene.others_go_on(200).await.unwrap();
    scene.check_memory().unwrap();
    received.read_until(&mut scene.reader, batches, batches).await.unwrap();
    scene.broker.check_log(&[]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_floods_without_reading_harms_nobody() {
    let mut scene = Scene::new("flooded").await.unwrap();
    // Far more than one window, and no reply or credit is looked at meanwhile. The broker takes what it keeps up with,
    // or sends the producer away.
    let flood = scene.handshake.produce_window * 16;
    let (mut sent, mut number) = (0, 0);
    let flooding = async {
        while sent < flood {
            match scene.produce(number).await {
                Ok(length) => sent += length as u64,
                Err(_) => break,
            }
            number += 1;
        }
    };
    wait::within("the flood ends", LIMIT, flooding).await.unwrap();
    scene.check_memory().unwrap();
    scene.others_go_on(50).await.unwrap();
    // What it took is in the log, whole and in order.
    let pass = workload::read(&scene.client, "flooded", PARTITION, None).await.unwrap();
    assert!(!pass.is_empty() && (pass.len() as u64).is_multiple_of(BATCH_RECORDS), "{} records", pass.len());
    assert!(pass.iter().enumerate().all(|(index, (_, record))| record.number == index as u64), "in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_asks_and_never_reads_the_answers_is_sent_away() {
    let mut scene = Scene::new("unread").await.unwrap();
    let request = MetadataRequest { all_topics: true, ..MetadataRequest::default() };
    let frame = peer::encode(MetadataRequest::API, 0, 1, &request, &[]).unwrap();
    let many: Vec<u8> = frame.iter().copied().cycle().take(frame.len() * 1000).collect();
    let asking = async { while scene.writer.send_bytes(&many).await.is_ok() {} };
    wait::within("the broker ends the connection", LIMIT, asking).await.unwrap();
    scene.check_memory().unwrap();
    scene.others_go_on(50).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flooding_and_not_reading_at_once_is_no_deadlock() {
    let mut scene = Scene::new("both").await.unwrap();
    let mut received = Received::default();
    // First more than all socket buffers hold, so that the pushes of it stand still half way.
    let first = 100;
    for number in 0..first {
        scene.produce(number).await.unwrap();
        received.read_until(&mut scene.reader, number + 1, 0).await.unwrap();
    }
    scene.subscribe().await.unwrap();
    // Now this end writes and does not read, while the broker has more to write than this end takes. Half a window is
    // always allowed, and is taken, because the broker's reader waits for nobody.
    let half = usize::try_from(scene.handshake.produce_window / 2).unwrap();
    let (mut sent, mut number) = (0, first);
    let flooding = async {
        while sent < half {
            sent += scene.produce(number).await.unwrap();
            number += 1;
        }
    };
    wait::within("half a window is taken", LIMIT, flooding).await.unwrap();
    scene.others_go_on(50).await.unwrap();
    received.read_until(&mut scene.reader, number, number).await.unwrap();
    scene.check_memory().unwrap();
    scene.broker.check_log(&[]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_produces_without_consuming_gets_everything_over_a_link_that_pauses() {
    let mut broker = BrokerProcess::start(Options { keeps_port: true, ..Options::default() }).unwrap();
    let proxy = Proxy::start(broker.addresses().listen).await.unwrap();
    broker.terminate().unwrap();
    broker.set_arguments(vec!["--advertise".to_owned(), proxy.address().to_string()]);
    broker.start_again().unwrap();
    let client = Client::builder([proxy.address().to_string()]).connect().await.unwrap();
    client.admin().create_topic(NewTopic::new("paused").config("durability", "os")).await.unwrap();
    let builder = client.consumer("paused").from(StartAt::Earliest).memory_bytes(256 << 10);
    let mut consumer = builder.build().await.unwrap();
    let producer = client.producer().memory_bytes(1 << 20).build();
    let count = 100_000_u64;
    let pausing = async {
        // Whatever is under way stands still for a while, several times.
        for _ in 0..5 {
            proxy.pause();
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.resume();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let producing = async {
        let mut deliveries = Vec::new();
        for number in 0..count {
            let value = workload::value_of(Record { producer: 1, number });
            deliveries.push(producer.send(ProducerRecord::new("paused").value(&value)).await.unwrap());
        }
        for delivery in deliveries {
            delivery.await.unwrap();
        }
    };
    let both = async { tokio::join!(producing, pausing) };
    wait::within("everything is produced while nobody consumes", LIMIT, both).await.unwrap();
    let consuming = async {
        let mut pass = Pass::new();
        while (pass.len() as u64) < count {
            workload::note(&consumer.next_batch().await.unwrap().unwrap(), &mut pass).unwrap();
        }
        pass
    };
    let pass = wait::within("everything is consumed", LIMIT, consuming).await.unwrap();
    assert!(
        pass.iter()
            .enumerate()
            .all(|(index, (offset, record))| { (*offset, record.number) == (index as u64, index as u64) })
    );
    broker.check_log(&[]).unwrap();
}
