//! One turn of one agent: enqueue it, and print the reply as it is made.
//!
//!     cargo run --package turnmill-client --example one_turn -- "What is the capital of France?"

use turnmill_client::{Client, Event, NewTurn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let question = std::env::args().nth(1).unwrap_or_else(|| "What is the capital of France?".to_owned());
    let client = Client::builder("redis://127.0.0.1:6379").connect().await?;

    // The agent's name is all it takes to have an agent. Its next turn goes on from here.
    let enqueued = client.enqueue(NewTurn::user(question).agent("ada".parse()?)).await?;

    let mut events = client.follow(enqueued.turn, None);
    while let Some(followed) = events.next().await {
        match followed?.event {
            Event::Begin(_) => {}
            Event::Delta(delta) => print!("{}", delta.content()),
            Event::End(end) => println!("\n{}, {} tokens", end.outcome.as_str(), end.usage.completion_tokens),
        }
    }
    Ok(())
}
