//! Keeping leases and unleased tokens alive, one script call a shard.

use turnmill_schema::scripts;

use super::{Beat, BrokerError, Lease, ReadyToken, RedisBroker, steps};

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
            let mut call = steps::HEARTBEAT.script.prepare_invoke();
            call.key(&scripts::ready_keys(&keys)).arg(&self.settings.worker);
            for (token, epoch) in &all {
                call.key(keys.agent(&token.agent));
                call.arg(&token.entry).arg(token.priority.as_str()).arg(epoch);
            }
            let (now_ms, kept): (u64, Vec<bool>) = self.server.run(&steps::HEARTBEAT, &call).await?;
            self.held.clock().set(now_ms);
            let (of_leases, of_tokens) = kept.split_at(leases.len().min(kept.len()));
            for (lease, _) in leases.iter().zip(of_leases).filter(|(_, kept)| !**kept) {
                self.held.give_up(&lease.token, lease.turn);
                lost.push(lease.turn);
            }
            for (token, _) in tokens.iter().zip(of_tokens).filter(|(_, kept)| !**kept) {
                self.held.drop_token(token);
            }
        }
        Ok(Beat { lost })
    }
}
