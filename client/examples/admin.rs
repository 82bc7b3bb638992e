//! Creates a topic if it is not there, and prints what there is.
//!
//! `cargo run -p highwater-client --example admin -- TOPIC [ADDRESS]`

#![allow(clippy::print_stdout, reason = "a program for the command line")]

use std::error::Error;

use highwater_client::{Client, ErrorKind, NewTopic};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: admin TOPIC [ADDRESS]")?;
    let address = arguments.next().unwrap_or_else(|| String::from("127.0.0.1:9470"));

    let client = Client::builder([address]).name("admin-example").connect().await?;
    let admin = client.admin();
    match admin.create_topic(NewTopic::new(&name).partitions(4).config("durability", "fsync")).await {
        Ok(created) => println!("created {name} with {} partitions", created.partitions),
        Err(error) if error.kind() == ErrorKind::TopicExists => println!("{name} is there already"),
        Err(error) => return Err(error.into()),
    }
    for topic in admin.describe_topics(&[&name]).await? {
        for setting in &topic.config {
            println!("  {} = {}", setting.name, setting.value);
        }
        for partition in &topic.partitions {
            let (start, end) = (partition.log_start, partition.high_watermark);
            println!("  partition {}: records {start} to {end}", partition.metadata.partition);
        }
    }
    Ok(())
}
