//! What happens to connections.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::{Hold, Proxy};

/// A fault of the network. Random numbers choose whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Every connection is cut.
    All,
    /// One connection is cut.
    One(u64),
    /// Replies to one client are held back and then lost.
    LoseReplies(u64, Duration),
    /// A worker is cut off for longer than its lease; what it sent meanwhile arrives afterwards.
    Isolate(u64, Duration),
    /// New connections are refused, and those there are are cut.
    Refuse(Duration),
}

impl Cut {
    /// Lets it happen to the ways of `workers` and of the producers; ends it later where it lasts. Says what it did.
    pub fn happen(self, workers: &[Arc<Proxy>], producers: &Arc<Proxy>) -> String {
        let all: Vec<Arc<Proxy>> = workers.iter().chain([producers]).cloned().collect();
        let one_of = |ways: &[Arc<Proxy>], choice: u64| ways[(choice % ways.len() as u64) as usize].clone();
        match self {
            Self::All => {
                let cut: usize = all.iter().map(|proxy| proxy.cut_all()).sum();
                format!("all {cut} connections cut")
            }
            Self::One(choice) => {
                // Another part of the number, so that all combinations of client and connection occur.
                one_of(&all, choice).cut_one(choice >> 32);
                "one connection cut".to_owned()
            }
            Self::LoseReplies(choice, time) => {
                let proxy = one_of(&all, choice);
                proxy.hold(Hold::Replies);
                after(time, move || {
                    proxy.cut_all();
                    proxy.hold(Hold::Nothing);
                });
                format!("one client's replies of {time:?} lost")
            }
            Self::Isolate(choice, time) => {
                let proxy = one_of(workers, choice);
                proxy.hold(Hold::Everything);
                after(time, move || proxy.hold(Hold::Nothing));
                format!("one worker isolated for {time:?}")
            }
            Self::Refuse(time) => {
                for proxy in &all {
                    proxy.refuse(true);
                    proxy.cut_all();
                }
                after(time, move || all.iter().for_each(|proxy| proxy.refuse(false)));
                format!("nobody let in for {time:?}")
            }
        }
    }
}

fn after(time: Duration, end: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        end();
    });
}
