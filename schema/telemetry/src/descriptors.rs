//! How many files and sockets the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// The most that is asked for. macOS refuses more, whatever its hard limit says.
const CEILING: u64 = if cfg!(target_os = "macos") { 10_240 } else { 1 << 20 };

/// Raises the soft limit to the hard one, and returns the limit in force.
///
/// The soft limit is often 1,024 for the sake of programs that use `select`; ours do not.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current.unwrap_or(u64::MAX);
    let wanted = maximum.unwrap_or(u64::MAX).min(CEILING);
    if wanted <= current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            warn!(%error, current, "the limit on open files cannot be raised");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let limit = raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current.unwrap_or(u64::MAX), limit);
        assert!(limit >= maximum.unwrap_or(u64::MAX).min(CEILING));
    }
}
