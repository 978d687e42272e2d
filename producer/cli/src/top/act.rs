//! Does what somebody confirmed, and says what came of it.

use turnmill_client::operate::Operator;
use turnmill_client::{Cancelled, ClientError};

use super::model::Order;
use crate::words::words;

/// What was done, or why not; a sentence either way.
pub async fn perform(operator: &Operator, order: Order) -> Result<String, String> {
    done(operator, order).await.map_err(|error| format!("it failed: {}", words(&error)))
}

async fn done(operator: &Operator, order: Order) -> Result<String, ClientError> {
    Ok(match order {
        Order::Cancel(turn) => match operator.client().cancel(turn).await? {
            Cancelled::Cancelled => format!("turn {turn} is cancelled"),
            Cancelled::Ended(outcome) => format!("turn {turn} had ended: {}", outcome.as_str()),
        },
        Order::Drain(id, name) => {
            operator.drain_workers(&id).await?;
            format!("worker {name} is told to drain")
        }
        Order::Replay(letter) => {
            let new = operator.replay(&letter).await?;
            format!("replayed as turn {new}")
        }
        Order::Pause => {
            operator.pause_queue().await?;
            "the queue is paused".to_owned()
        }
        Order::Resume => {
            operator.resume_queue().await?;
            "the queue is not paused any more".to_owned()
        }
    })
}
