//! Many agents at once. Each has its turns in order; no agent waits for another.
//!
//!     cargo run --package turnmill-client --example many_agents

use turnmill_client::{AgentName, Client, NewTurn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder("redis://127.0.0.1:6379").connect().await?;

    let mut turns = Vec::new();
    for number in 1..=20 {
        let agent: AgentName = format!("agent-{number}").parse()?;
        turns.push(NewTurn::user(format!("Remember the number {number}.")).agent(agent.clone()));
        turns.push(NewTurn::user("Which number was it?").agent(agent));
    }

    // One reader waits for all of them, however many there are.
    let mut ends = client.wait_many();
    for enqueued in client.enqueue_batch(turns).await? {
        ends.add(enqueued.turn);
    }
    while let Some((turn, result)) = ends.next().await {
        match result {
            Ok(result) => println!("{turn} {}: {:?}", result.outcome.as_str(), result.text),
            Err(error) => eprintln!("{turn} {error}"),
        }
    }
    Ok(())
}
