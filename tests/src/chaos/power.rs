//! What a power cut takes: the end of Redis's append-only file that was written and not yet synced.
//!
//! Killing Redis does not lose it, because the kernel has it. So where Redis syncs every second only, a crash also takes
//! back what was written in about the last second, down to the middle of a command, which Redis cuts off by itself.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Redis syncs once a second; somewhat less is lost as a rule.
const UNSYNCED: Duration = Duration::from_millis(900);

/// How long the append-only file was at times.
#[derive(Debug, Default)]
pub struct Unsynced {
    lengths: VecDeque<(Instant, u64)>,
}

impl Unsynced {
    /// Notes how long the file in Redis's `directory` is. Call it many times a second while Redis runs.
    pub fn note(&mut self, directory: &Path) -> io::Result<()> {
        let now = Instant::now();
        self.lengths.push_back((now, append_only_file(directory)?.metadata()?.len()));
        // The oldest that is kept is the newest that is old enough.
        while self.lengths.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= UNSYNCED) {
            self.lengths.pop_front();
        }
        Ok(())
    }

    /// Cuts the file back, after Redis is gone; how many bytes are lost.
    pub fn lose(&mut self, directory: &Path) -> io::Result<u64> {
        let Some((_, synced)) = self.lengths.front().copied() else { return Ok(0) };
        self.lengths.clear();
        let file = OpenOptions::new().write(true).open(append_only_file(directory)?)?;
        let lost = file.metadata()?.len().saturating_sub(synced);
        file.set_len(synced)?;
        Ok(lost)
    }
}

/// The file Redis appends to: the last increment.
fn append_only_file(directory: &Path) -> io::Result<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in directory.join("appendonlydir").read_dir()? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".incr.aof") {
            files.push(path);
        }
    }
    // Rewriting starts at 64 MB, which no run comes to: there is one.
    files.pop().ok_or_else(|| io::Error::other("Redis has no append-only file"))
}

#[cfg(test)]
mod tests {
    use redis::Commands;

    use super::*;
    use crate::redis_server::RedisServer;

    #[test]
    fn redis_forgets_the_last_moments_and_keeps_the_rest() {
        let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"]);
        let connect = |redis: &RedisServer| {
            let client = redis::Client::open(redis.url()).expect("a URL");
            client.get_connection().expect("Redis answers")
        };
        let () = connect(&redis).set("kept", 1).expect("SET");
        let mut unsynced = Unsynced::default();
        unsynced.note(redis.directory()).expect("the file is there");
        let () = connect(&redis).set("lost", 1).expect("SET");
        redis.crash();
        assert!(unsynced.lose(redis.directory()).expect("the file is there") > 0);
        redis.restart();
        let (kept, lost): (Option<u8>, Option<u8>) = connect(&redis).mget(&["kept", "lost"]).expect("MGET");
        assert_eq!((kept, lost), (Some(1), None));
    }
}
