//! Connections: handshake, what is refused, what ends them, and how a broker stops.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, Splitter};
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::messages::{
    Acks, AuthenticateRequest, CreateTopicRequest, Credit, DeleteTopicRequest, ErrorReply, Goodbye,
    HandshakeRequest, MetadataRequest, PingRequest, Uuid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{LIMIT, Peer, batch, broker, code, handshake, produce_request};

#[tokio::test]
async fn the_handshake_tells_what_a_client_needs() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 64 << 10).await;
    let told = peer.handshake.clone();
    assert_eq!((told.version, told.node_id, told.principal.as_str()), (1, 1, "anonymous"));
    assert!(told.produce_window > 0 && told.max_in_flight > 0 && told.idle_timeout_ms > 0);
    assert!(told.authentication_methods.is_empty());
    // A second one is refused, and so is authentication that nobody asked for; the connection goes on.
    let refused = peer.call(&handshake(), &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::InvalidRequest);
    let request = AuthenticateRequest { method: "password".to_owned(), payload: Bytes::from_static(b"x") };
    let refused = peer.call(&request, &[]).await.unwrap_err();
    assert!(refused.message.contains("not needed"), "{}", refused.message);
    peer.call(&PingRequest {}, &[]).await.unwrap();
    // Whoever expects this cluster gets on, whoever expects another one does not.
    let mut same = Peer::link(&broker, 64 << 10);
    same.call(&HandshakeRequest { cluster_id: told.cluster_id, ..handshake() }, &[]).await.unwrap();
    let mut other = Peer::link(&broker, 64 << 10);
    other.send(&HandshakeRequest { cluster_id: Some(Uuid { high: 1, low: 2 }), ..handshake() }, &[]).await;
    assert_eq!(other.goodbye().await, Some(ErrorCode::WrongCluster));
}

#[tokio::test]
async fn a_connection_that_starts_wrongly_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let cases = [
        (HandshakeRequest { version_min: 2, version_max: 3, ..handshake() }, ErrorCode::UnsupportedVersion),
        (HandshakeRequest { namespace: "other".to_owned(), ..handshake() }, ErrorCode::InvalidRequest),
        (HandshakeRequest { client_name: "x".repeat(300), ..handshake() }, ErrorCode::InvalidRequest),
    ];
    for (request, expected) in cases {
        let mut peer = Peer::link(&broker, 64 << 10);
        peer.send(&request, &[]).await;
        assert_eq!(peer.goodbye().await, Some(expected));
    }
    let mut early = Peer::link(&broker, 64 << 10);
    early.send(&MetadataRequest::default(), &[]).await;
    assert_eq!(early.goodbye().await, Some(ErrorCode::NotAuthenticated));
    let mut early = Peer::link(&broker, 64 << 10);
    early.tell(&Credit { id: 1, limit: 1 }).await;
    assert_eq!(early.goodbye().await, Some(ErrorCode::NotAuthenticated));
    // Before the handshake even a legal frame may not be large.
    let mut large = Peer::link(&broker, 1 << 20);
    large.send(&HandshakeRequest { client_version: "x".repeat(100_000), ..handshake() }, &[]).await;
    assert_eq!(large.goodbye().await, Some(ErrorCode::FrameTooLarge));
    let mut http = Peer::link(&broker, 64 << 10);
    http.link.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(http.goodbye().await, Some(ErrorCode::MalformedFrame));
}

#[tokio::test]
async fn silence_ends_a_connection_and_a_ping_keeps_it() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |config| {
        config.handshake_timeout = Duration::from_millis(50);
        config.idle_timeout = Duration::from_secs(1);
    })
    .await;
    let mut silent = Peer::link(&broker, 64 << 10);
    assert_eq!(silent.goodbye().await, Some(ErrorCode::IdleTimeout));
    let mut idle = Peer::connect(&broker, 64 << 10).await;
    let mut kept = Peer::connect(&broker, 64 << 10).await;
    let keep = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            kept.call(&PingRequest {}, &[]).await.unwrap();
        }
    };
    let ended = tokio::select! {
        ended = idle.goodbye() => ended,
        () = keep => unreachable!("it goes on until the other one has ended"),
    };
    assert_eq!(ended, Some(ErrorCode::IdleTimeout));
    kept.call(&PingRequest {}, &[]).await.unwrap();
}

#[tokio::test]
async fn what_the_broker_does_not_know_is_refused_and_the_connection_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 64 << 10).await;
    let unknown = ApiKey(999);
    peer.send_frame(unknown, 0, CorrelationId(77), &PingRequest {}, &[]).await;
    let frame = peer.next_of(unknown).await;
    assert_eq!(frame.header.flags, FLAG_REPLY | FLAG_ERROR);
    assert_eq!(frame.header.correlation_id, CorrelationId(77));
    assert_eq!(code(frame.decode_body::<ErrorReply>().unwrap().code), ErrorCode::UnknownApi);
    peer.send_frame(ApiKey(998), FLAG_ONE_WAY, CorrelationId(0), &PingRequest {}, &[]).await;
    peer.call(&PingRequest {}, &[]).await.unwrap();
    // Nonsense where a body should be ends it.
    peer.send_frame(ApiKey::METADATA, 0, CorrelationId(1), &Credit { id: 5, limit: 5 }, &[]).await;
    assert_eq!(peer.goodbye().await, Some(ErrorCode::MalformedFrame));
    let mut peer = Peer::connect(&broker, 64 << 10).await;
    peer.send_frame(ApiKey::PING, FLAG_REPLY, CorrelationId(1), &PingRequest {}, &[]).await;
    assert_eq!(peer.goodbye().await, Some(ErrorCode::MalformedFrame));
    let mut peer = Peer::connect(&broker, 64 << 10).await;
    peer.send(&PingRequest {}, &[Bytes::from_static(b"attached")]).await;
    assert_eq!(peer.goodbye().await, Some(ErrorCode::MalformedFrame));
}

#[tokio::test]
async fn topics_are_made_changed_and_removed_with_clear_answers() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&broker, 64 << 10).await;
    let create = |name: &str| CreateTopicRequest { name: name.to_owned(), ..CreateTopicRequest::default() };
    let validated = peer.call(&CreateTopicRequest { validate_only: true, ..create("t") }, &[]).await.unwrap();
    assert_eq!((validated.topic_id, validated.partitions, validated.replication), (None, 1, 1));
    let first = peer.create("t", 3, "fsync").await;
    let refused = peer.call(&create("t"), &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::TopicExists);
    let refused = peer.call(&create("a/b"), &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::InvalidTopicName);
    let named = MetadataRequest { names: vec!["t".to_owned(), "u".to_owned()], ..MetadataRequest::default() };
    let metadata = peer.call(&named, &[]).await.unwrap();
    assert_eq!(metadata.brokers[0].address, broker.address().to_string());
    assert_eq!(metadata.topics[0].partitions.len(), 3);
    assert!(
        metadata.topics[0].partitions.iter().all(|p| p.leader == 1 && p.in_sync == [1] && p.replicas == [1])
    );
    assert_eq!(code(metadata.topics[1].error), ErrorCode::UnknownTopic);
    peer.call(&DeleteTopicRequest { name: "t".to_owned(), topic_id: None }, &[]).await.unwrap();
    let refused =
        peer.call(&DeleteTopicRequest { name: "t".to_owned(), topic_id: None }, &[]).await.unwrap_err();
    assert_eq!(code(refused.code), ErrorCode::UnknownTopic);
    // The same name is another topic: what was meant for the first one does not end up in it.
    let second = peer.create("t", 1, "fsync").await;
    assert_ne!(first, second);
    let result = peer.produce(first, 0, batch(first, 1, 10), Acks::All).await;
    assert_eq!(code(result.error), ErrorCode::UnknownPartition);
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let first = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&first, 4 << 20).await;
    let topic = peer.create("t", 1, "fsync").await;
    for number in 0..50 {
        let batch = batch(topic, 10, 1000);
        peer.send(&produce_request(topic, number, &batch, Acks::All), &[batch]).await;
    }
    let (stopped, (answered, goodbye)) = tokio::join!(first.shutdown(), async {
        let mut answered = 0;
        let mut refused = 0;
        loop {
            let Some(frame) = peer.next().await else { return ((answered, refused), None) };
            match frame.header.api {
                ApiKey::PRODUCE if frame.header.flags & FLAG_ERROR != 0 => refused += 1,
                ApiKey::PRODUCE => answered += 1,
                ApiKey::GOODBYE => return ((answered, refused), Some(())),
                _ => {}
            }
        }
    });
    stopped.unwrap();
    assert_eq!(answered.0 + answered.1, 50, "every request is answered: {answered:?}");
    assert!(goodbye.is_some());
    assert!(directory.path().join("clean").exists());
    let second = broker(directory.path(), |_| {}).await;
    let mut peer = Peer::connect(&second, 64 << 10).await;
    let subscribed = peer.subscribe(1, topic, 0, 0).await.unwrap();
    assert_eq!(subscribed.high_watermark, answered.0 * 10, "what was acknowledged is there, nothing else");
}

#[tokio::test]
async fn two_brokers_live_in_one_process() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = broker(one.path(), |_| {}).await;
    let second = broker(two.path(), |_| {}).await;
    let mut peers = (Peer::connect(&first, 64 << 10).await, Peer::connect(&second, 64 << 10).await);
    peers.0.create("only-here", 1, "os").await;
    let all = MetadataRequest { all_topics: true, ..MetadataRequest::default() };
    assert_eq!(peers.0.call(&all, &[]).await.unwrap().topics.len(), 1);
    assert_eq!(peers.1.call(&all, &[]).await.unwrap().topics.len(), 0);
    assert_ne!(peers.0.handshake.cluster_id, peers.1.handshake.cluster_id);
    // The same directory twice is refused.
    let mut config = highwater_broker::config::Config::default();
    config.listen = "127.0.0.1:0".to_owned();
    config.http = None;
    config.data_dir = one.path().to_owned();
    let refused = Box::pin(highwater_broker::Broker::start(config, highwater_broker::env::Env::real())).await;
    assert!(refused.unwrap_err().to_string().contains("in use by another process"));
}

#[tokio::test]
async fn more_connections_than_the_limit_are_told_so_and_places_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |config| config.connections_max = 1).await;
    let first = TcpStream::connect(broker.address()).await.unwrap();
    // The first one has its place once the broker has accepted it; until then the second one may be the first.
    let deadline = tokio::time::Instant::now() + LIMIT;
    while broker.metrics().connections.get() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the first connection is never accepted");
        tokio::task::yield_now().await;
    }
    let mut second = TcpStream::connect(broker.address()).await.unwrap();
    let mut said = Vec::new();
    second.read_to_end(&mut said).await.unwrap();
    let frame = Splitter::default().next(&mut BytesMut::from(&said[..])).unwrap().unwrap();
    let goodbye: Goodbye = frame.decode_body().unwrap();
    assert_eq!(code(goodbye.code), ErrorCode::TooManyConnections);
    drop(first);
    while broker.metrics().connections.get() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the first connection never ends");
        tokio::task::yield_now().await;
    }
    let third = TcpStream::connect(broker.address()).await.unwrap();
    while broker.metrics().connections.get() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the place is not given again");
        tokio::task::yield_now().await;
    }
    drop(third);
}

#[tokio::test]
async fn metrics_and_health_tell_what_the_broker_does() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), |config| config.http = Some("127.0.0.1:0".to_owned())).await;
    let mut peer = Peer::connect(&broker, 64 << 10).await;
    let topic = peer.create("counted", 2, "fsync").await;
    peer.produce(topic, 0, batch(topic, 7, 10), Acks::All).await;
    let http = broker.http_address().unwrap();
    assert!(get(http, "/health/live").await.starts_with("HTTP/1.1 200"));
    assert!(get(http, "/health/ready").await.starts_with("HTTP/1.1 200"));
    let metrics = get(http, "/metrics").await;
    for line in [
        "highwater_connections 1\n",
        "highwater_partitions 2\n",
        "highwater_appended_records_total 7\n",
        "highwater_requests_total{api=\"produce\"} 1\n",
        "highwater_flush_seconds_count 1\n",
        "highwater_topic_log_end{topic=\"counted\"} 7\n",
        "highwater_topic_unflushed{topic=\"counted\"} 0\n",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    broker.shutdown().await.unwrap();
    assert!(TcpStream::connect(http).await.is_err(), "the HTTP port is closed too");
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
