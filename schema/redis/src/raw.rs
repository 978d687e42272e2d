//! What benchmarks compare the queue with, and clear up after themselves with.

use turnmill_schema::keys::FIELD_EVENT;

use crate::blocking::Blocking;
use crate::fault::Fault;
use crate::server::Server;

const STEP: &str = "a command of the benchmark";
/// Keys deleted in one command.
const KEYS_A_DELETE: usize = 1000;

impl Blocking {
    /// Appends `count` entries of the same payload to a stream in one round trip: what this Redis can do at best.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn raw_xadd(&mut self, key: &str, payload: &[u8], count: usize) -> Result<(), Fault> {
        let mut pipe = redis::pipe();
        for _ in 0..count {
            pipe.cmd("XADD").arg(key).arg("*").arg(FIELD_EVENT).arg(payload).ignore();
        }
        self.ask_all(STEP, &pipe).await
    }
}

impl Server {
    /// Processor time that the server took so far, in microseconds.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn cpu_us(&self) -> Result<f64, Fault> {
        let info: String = self.ask(STEP, redis::cmd("INFO").arg("cpu")).await?;
        let seconds = info.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            ["used_cpu_sys", "used_cpu_user"].contains(&name).then(|| value.trim().parse::<f64>().ok())?
        });
        Ok(seconds.sum::<f64>() * 1e6)
    }

    /// Deletes every key that matches `pattern`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn delete_matching(&self, pattern: String) -> Result<(), Fault> {
        let mut scan = self.scan(pattern);
        while let Some(keys) = scan.next().await? {
            for keys in keys.chunks(KEYS_A_DELETE) {
                let _deleted: u64 = self.ask(STEP, redis::cmd("UNLINK").arg(keys)).await?;
            }
        }
        Ok(())
    }
}
