//! Prints the records of a topic from the start, and goes on as they come.
//!
//! `cargo run -p highwater-client --example consume -- TOPIC [ADDRESS]`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::error::Error;

use futures_util::StreamExt;
use highwater_client::{Client, ErrorKind, StartAt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().ok_or("usage: consume TOPIC [ADDRESS]")?;
    let address = arguments.next().unwrap_or_else(|| String::from("127.0.0.1:9470"));

    let client = Client::builder([address]).name("consume-example").connect().await?;
    let mut consumer = client.consumer(topic).from(StartAt::Earliest).build().await?;
    while let Some(record) = consumer.next().await {
        let error = match record {
            Ok(record) => {
                let value = record.value.unwrap_or_default();
                println!("{}@{} {}", record.partition, record.offset, String::from_utf8_lossy(&value));
                continue;
            }
            Err(error) => error,
        };
        eprintln!("{error}");
        // What cannot be read is passed over knowingly; everything else ends the program.
        match (error.kind(), error.partition(), error.corrupt_range()) {
            (ErrorKind::CorruptRange, Some(partition), Some(range)) => {
                consumer.seek(partition, StartAt::Offset(range.end)).await?;
            }
            _ => return Err(error.into()),
        }
    }
    Ok(())
}
