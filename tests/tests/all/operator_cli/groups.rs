//! Ends of turns as consumer groups read them: nobody takes what is another's, and nobody keeps what they do not print.

use turnmill_client::events::CLAIM_AFTER;
use turnmill_client::schema::keys::events_group;
use turnmill_redis::steps::{ConsumerGroup, RemoveConsumers};

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

/// Two tenants, two consumers of each, and every number of ends that they may ask for.
#[tokio::test]
async fn consumers_read_what_they_ask_for_and_no_more() {
    const EACH: usize = 5;
    let queue = RedisQueue::start();
    let readers = readers(&queue, EACH).await;
    for asked in 1..=EACH {
        let group = format!("g{asked}");
        let mut read = [const { Vec::new() }; 3];
        for consumer in ["one", "two"].into_iter().cycle().take(2 * EACH) {
            for (reader, read) in readers.iter().zip(&mut read) {
                let asked = asked.min(reader.ends.len() - read.len());
                if asked > 0 {
                    read.extend(reader.read(&queue, &group, consumer, asked).await);
                    let pending = reader.pending(&queue, &group).await;
                    assert_eq!(pending, 0, "{:?} {group} {consumer}: kept from others", reader.tenant);
                }
            }
        }
        for (reader, read) in readers.iter().zip(read) {
            assert_eq!(read, reader.ends, "{:?} {group}", reader.tenant);
        }
    }
}

#[tokio::test]
async fn ends_of_a_consumer_that_never_comes_back_go_to_another() {
    let queue = RedisQueue::start();
    let [acme, ..] = readers(&queue, 4).await;
    let (events, group) = (queue.keys().events(), events_group(Some(&name("acme")), &name("g")));
    assert_eq!(acme.read(&queue, "g", "gone", 1).await, acme.ends[..1]);
    // One of the other tenant, then the second of this one, and both again.
    let taken = ["XREADGROUP", "GROUP", &group, "gone", "COUNT", "4", "STREAMS", &events, ">"];
    let _: redis::Value = queue.command(&taken).await;
    assert_eq!(acme.read(&queue, "g", "two", 1).await, acme.ends[3..], "the others may still come");

    let pending: Vec<(String, String, u64, u64)> =
        queue.command(&["XPENDING", &events, &group, "-", "+", "10"]).await;
    assert_eq!(pending.len(), 4);
    let idle_ms = (CLAIM_AFTER + Duration::from_secs(1)).as_millis().to_string();
    for (entry, ..) in &pending {
        let idle = ["XCLAIM", &events, &group, "gone", "0", entry, "IDLE", &idle_ms, "JUSTID"];
        let _: Vec<String> = queue.command(&idle).await;
    }
    // The third of this tenant is trimmed meanwhile.
    let _: u64 = queue.command(&["XDEL", &events, &pending[3].0]).await;
    assert_eq!(acme.read(&queue, "g", "two", 1).await, acme.ends[1..2]);
    let worker = queue.worker("v").await;
    submit(&queue, "b", &["--tenant", "acme"]).await;
    let last = json!(play(&worker, Outcome::Completed).await);
    assert_eq!(acme.read(&queue, "g", "three", 1).await, [last]);
    assert_eq!(acme.pending(&queue, "g").await, 0);
}

#[tokio::test]
async fn consumers_that_are_gone_are_taken_off_the_list() {
    let queue = RedisQueue::start();
    let [acme, ..] = readers(&queue, 2).await;
    let (events, group) = (queue.keys().events(), events_group(Some(&name("acme")), &name("g")));
    acme.read(&queue, "g", "gone", 1).await;
    let stats: String = queue.command(&["INFO", "commandstats"]).await;
    assert!(stats.contains("cmdstat_xinfo|consumers:"), "a reader looks for them: {stats}");
    let taken = ["XREADGROUP", "GROUP", &group, "busy", "COUNT", "1", "STREAMS", &events, ">"];
    let _: redis::Value = queue.command(&taken).await;

    let remove = |silent_ms| RemoveConsumers { group: ConsumerGroup::Events(&group), silent_ms };
    assert_eq!(queue.run(&remove(24 * 3600 * 1000)).await, 0, "both read today");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(queue.run(&remove(10)).await, 1);
    let left: redis::streams::StreamInfoConsumersReply =
        queue.command(&["XINFO", "CONSUMERS", &events, &group]).await;
    let left: Vec<_> = left.consumers.iter().map(|consumer| (&*consumer.name, consumer.pending)).collect();
    assert_eq!(left, [("busy", 1)], "what is pending is not dropped");
}
