//! A consumer of results: it is told of every turn that ends, also of those that other programs enqueued. Consumers of one group share the turns, and miss
//! none that ends while all of them are away.
//!
//!     cargo run --package turnmill-client --example consumer -- billing-1

use turnmill_client::Client;
use turnmill_client::events::EventsQuery;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "billing-1".to_owned());
    let client = Client::builder("redis://127.0.0.1:6379").connect().await?;

    let mut ends = client.events(EventsQuery::group("billing".parse()?, name.parse()?));
    while let Some(ended) = ends.next().await? {
        let tokens = ended.end.usage.completion_tokens;
        println!("{} {}: {tokens} tokens", ended.turn, ended.end.outcome.as_str());
        // Last: until it is acknowledged, the end is handed out again, also to another consumer if this one dies.
        ends.acknowledge(ended.id).await?;
    }
    Ok(())
}
