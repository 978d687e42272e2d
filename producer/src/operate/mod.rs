//! The operator's view of a queue: what is there, and the few things a person does to it.
//!
//! * [`turn`], [`agent`], [`worker`], [`dead`], [`queue`]: show and change one kind of thing each.
//! * [`running`]: the turns that workers hold, and how far each got. [`ends`]: how the newest ended.
//! * [`history`]: go back in an agent's history, or give it to another agent.
//! * [`transfer`]: an agent as one file.
//! * [`doctor`]: what is wrong with the server or the queue, and what to do.
//!
//! ```no_run
//! use turnmill_client::Client;
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let operator = client.operate();
//! for worker in operator.workers().await? {
//!     println!("{} is {} and runs {} turns", worker.name, worker.state, worker.running);
//! }
//! let agent = operator.agent(&"ada".parse()?).await?;
//! println!("ada is {} and has {} turns to come", agent.state, agent.backlog);
//! # Ok(())
//! # }
//! ```
//!
//! Invariant: everything that changes the queue is one of its scripts, or a key that only operators write. What is
//! shown is read without a lock and may be old by the time it is read by a person.

pub mod agent;
pub mod dead;
pub mod doctor;
pub mod ends;
pub mod history;
pub mod queue;
pub mod running;
pub mod transfer;
pub mod turn;
pub mod worker;

use turnmill_redis::Server;
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, AgentName, QueueName, TenantName};

use crate::client::Client;
use crate::connection::Connection;
use crate::error::ClientError;

/// An operator of a client's queue. Agents are those of the client's tenant.
#[derive(Clone, Debug)]
pub struct Operator {
    client: Client,
}

impl Client {
    /// An operator that shares this client's connection.
    pub fn operate(&self) -> Operator {
        Operator { client: self.clone() }
    }
}

impl Operator {
    /// The client whose queue it is.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where its Redis is: host and port, or a socket's path. Never a password.
    pub fn address(&self) -> &str {
        self.redis().address()
    }

    /// The queue's name.
    pub fn queue(&self) -> &QueueName {
        &self.client.settings.queue
    }

    /// The tenant's agent of that name, and the keys of its shard.
    fn agent_keys(&self, agent: &AgentName) -> (Keys, AgentId) {
        self.client.agent_keys(agent)
    }

    /// The way to Redis.
    fn redis(&self) -> &Connection {
        &self.client.connection
    }

    /// The server's clock, in Unix milliseconds.
    async fn now_ms(&self) -> Result<u64, ClientError> {
        self.redis().ask(Server::now_ms).await
    }
}

/// Whose agents and turns to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The client's tenant.
    #[default]
    Tenant,
    /// Every tenant.
    AllTenants,
}

impl Scope {
    /// Whether what belongs to `tenant` is in scope for a client of the tenant `own`.
    pub(crate) fn covers(self, own: &TenantName, tenant: &str) -> bool {
        self == Self::AllTenants || tenant == own.as_str()
    }
}
