//! Keeping leases and unleased tokens alive, one script call a shard.

use turnmill_schema::scripts::Call;

use super::{Beat, BrokerError, Lease, ReadyToken, RedisBroker};

impl RedisBroker {
    pub(super) async fn beat(&self, held: &[Lease], unleased: &[ReadyToken]) -> Result<Beat, BrokerError> {
        let mut lost = Vec::new();
        for keys in self.queue.all_keys() {
            let leases: Vec<&Lease> = held.iter().filter(|lease| lease.token.shard == keys.shard()).collect();
            let tokens: Vec<&ReadyToken> =
                unleased.iter().filter(|token| token.shard == keys.shard()).collect();
            let leased = leases.iter().map(|lease| (&lease.token, lease.epoch.to_string()));
            let all: Vec<_> = leased.chain(tokens.iter().map(|token| (*token, String::new()))).collect();
            if all.is_empty() {
                continue;
            }
            let mut call = Call::new(&keys);
            call.text(&self.settings.worker);
            for (token, epoch) in &all {
                call.keys([keys.agent(&token.agent)]);
                call.text(&token.entry).text(token.priority.as_str()).text(epoch);
            }
            let (now_ms, kept): (u64, Vec<bool>) = self.server.run(&self.steps.heartbeat, &call).await?;
            self.held.clock().set(now_ms);
            // A token lost before its lease is found out by the lease; by now it may be ours again.
            for (lease, _) in leases.iter().zip(&kept).filter(|(_, kept)| !**kept) {
                self.held.give_up(lease);
                lost.push(lease.turn);
            }
        }
        Ok(Beat { lost })
    }
}
