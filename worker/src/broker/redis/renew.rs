//! Keeping leases and unleased tickets alive, one script call a shard.

use turnmill_schema::scripts::Call;

use super::{BrokerError, Lease, RedisBroker, Renewal, Ticket};

impl RedisBroker {
    pub(super) async fn renew_all(
        &self,
        held: &[Lease],
        unleased: &[Ticket],
    ) -> Result<Renewal, BrokerError> {
        let mut lost = Vec::new();
        for keys in self.queue.all_keys() {
            let leases: Vec<&Lease> =
                held.iter().filter(|lease| lease.ticket.shard == keys.shard()).collect();
            let tickets: Vec<&Ticket> =
                unleased.iter().filter(|ticket| ticket.shard == keys.shard()).collect();
            let leased = leases.iter().map(|lease| (&lease.ticket, lease.epoch.to_string()));
            let all: Vec<_> = leased.chain(tickets.iter().map(|ticket| (*ticket, String::new()))).collect();
            if all.is_empty() {
                continue;
            }
            let mut call = Call::new(&keys);
            call.text(&self.settings.worker);
            for (ticket, epoch) in &all {
                call.keys([keys.agent(&ticket.agent)]);
                call.text(&ticket.entry).text(ticket.priority.as_str()).text(epoch);
            }
            let (now_ms, kept): (u64, Vec<bool>) = self.server.run(&self.steps.renew, &call).await?;
            self.held.clock().set(now_ms);
            // A ticket lost before its lease is found out by the lease; by now it may be ours again.
            for (lease, _) in leases.iter().zip(&kept).filter(|(_, kept)| !**kept) {
                self.held.forget(lease);
                lost.push(lease.turn);
            }
        }
        Ok(Renewal { lost })
    }
}
