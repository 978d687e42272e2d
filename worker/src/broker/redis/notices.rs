//! Hearing of cancelled turns at once. A notice may be lost with its connection; renewals find out what it said.

use futures::StreamExt;
use redis::aio::PubSub;
use turnmill_schema::TurnId;

use super::{BrokerError, RedisBroker};

/// The subscription; absent before the first wait and while one is under way.
#[derive(Default)]
pub(super) struct Notices(Option<PubSub>);

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Notices").field(&self.0.is_some()).finish()
    }
}

impl RedisBroker {
    pub(super) async fn wait_for_notice(&self) -> Result<TurnId, BrokerError> {
        let mut notices = self.notices.lock().await;
        let mut subscription = match notices.0.take() {
            Some(subscription) => subscription,
            None => self.subscribe().await?,
        };
        loop {
            let Some(message) = subscription.on_message().next().await else {
                return Err(self.server.lost("the subscription to notices"));
            };
            // What is no turn id is another version's notice.
            let turn = message.get_payload::<String>().ok().and_then(|text| text.parse().ok());
            if let Some(turn) = turn {
                notices.0 = Some(subscription);
                return Ok(turn);
            }
        }
    }

    async fn subscribe(&self) -> Result<PubSub, BrokerError> {
        let mut subscription = self.server.subscriber().await?;
        for keys in self.queue.all_keys() {
            let subscribed = subscription.subscribe(keys.notices()).await;
            subscribed.map_err(|e| self.server.error("subscribe to notices", &e))?;
        }
        Ok(subscription)
    }
}
