//! Ends of turns as consumer groups read them: nobody takes what is another's.

use turnmill::schema::keys::events_group;

use super::*;

const TENANTS: [&str; 2] = ["acme", "umbra"];

/// A reader's flags, the tenant of its group (none: all), and what it is to get, in order.
struct Reader {
    flags: Vec<&'static str>,
    tenant: Option<&'static str>,
    ends: Vec<Value>,
}

impl Reader {
    /// What a run of a consumer prints that asks for `count` ends.
    async fn read(&self, queue: &RedisQueue, group: &str, consumer: &str, count: usize) -> Vec<Value> {
        let count = count.to_string();
        let flags = ["events", "--from", "0", "--json", "--group", group, "--consumer", consumer];
        let ran = done(queue, &[&flags[..], &["--count", &count], &self.flags].concat()).await;
        ran.lines().iter().map(|line| line["turn"].clone()).collect()
    }

    /// Ends that consumers of the group have and did not acknowledge.
    async fn pending(&self, queue: &RedisQueue, group: &str) -> usize {
        pending(queue, &events_group(self.tenant.map(name).as_ref(), &name(group))).await
    }
}

/// Ends that were delivered to consumers of a group of Redis's and not acknowledged.
pub async fn pending(queue: &RedisQueue, group: &str) -> usize {
    let pending: Vec<redis::Value> =
        queue.command(&["XPENDING", &queue.keys().events(), group, "-", "+", "100"]).await;
    pending.len()
}

/// Ends turns, `each` of each tenant, one tenant's among the other's; who is to read what.
async fn readers(queue: &RedisQueue, each: usize) -> [Reader; 3] {
    let worker = queue.worker("w").await;
    let mut ends = Vec::new();
    for number in 0..each * TENANTS.len() {
        let tenant = TENANTS[number % TENANTS.len()];
        submit(queue, "a", &["--tenant", tenant]).await;
        ends.push((tenant, json!(play(&worker, Outcome::Completed).await)));
    }
    let of = |tenant: Option<&str>| {
        let ends = ends.iter().filter(|(of, _)| tenant.is_none_or(|tenant| tenant == *of));
        ends.map(|(_, turn)| turn.clone()).collect()
    };
    let [acme, umbra] = TENANTS.map(|tenant| Reader {
        flags: vec!["--tenant", tenant],
        tenant: Some(tenant),
        ends: of(Some(tenant)),
    });
    [acme, umbra, Reader { flags: vec!["--all-tenants"], tenant: None, ends: of(None) }]
}

#[tokio::test]
async fn groups_of_one_name_do_not_take_ends_of_other_tenants() {
    let queue = RedisQueue::start();
    for reader in readers(&queue, 10).await {
        assert_eq!(
            reader.read(&queue, "g", "c", reader.ends.len()).await,
            reader.ends,
            "{:?}",
            reader.tenant
        );
        assert_eq!(reader.pending(&queue, "g").await, 0, "{:?}", reader.tenant);
    }
}
