//! Produces the lines of standard input, one record each, and says how safe they are.
//!
//! `cargo run -p highwater-client --example produce -- TOPIC [ADDRESS] < FILE`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::collections::VecDeque;
use std::error::Error;
use std::io::BufRead;

use highwater_client::{Client, Delivery, ErrorKind, ProducerRecord};

/// Deliveries to keep before the oldest is awaited: the acknowledgement of one does not hold up the next record.
const WINDOW: usize = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().ok_or("usage: produce TOPIC [ADDRESS]")?;
    let address = arguments.next().unwrap_or_else(|| String::from("127.0.0.1:9470"));

    let client = Client::builder([address]).name("produce-example").connect().await?;
    let producer = client.producer().build();
    let mut counts = Counts::default();
    let mut deliveries = VecDeque::with_capacity(WINDOW);
    for line in std::io::stdin().lock().lines() {
        // Waits only while the producer's memory is full.
        deliveries.push_back(producer.send(ProducerRecord::new(&topic).value(&line?)).await?);
        if deliveries.len() == WINDOW
            && let Some(oldest) = deliveries.pop_front()
        {
            counts.add(oldest).await;
        }
    }
    for delivery in deliveries {
        counts.add(delivery).await;
    }
    producer.close().await?;
    println!("{} acknowledged, {} unknown, {} failed", counts.acknowledged, counts.unknown, counts.failed);
    Ok(())
}

#[derive(Default)]
struct Counts {
    acknowledged: u64,
    unknown: u64,
    failed: u64,
}

impl Counts {
    async fn add(&mut self, delivery: Delivery) {
        match delivery.await {
            Ok(_) => self.acknowledged += 1,
            // Sent, but never acknowledged: it may be there or not.
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => self.unknown += 1,
            Err(error) => {
                eprintln!("{error}");
                self.failed += 1;
            }
        }
    }
}
