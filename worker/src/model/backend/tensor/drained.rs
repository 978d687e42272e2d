//! Temporary Objective-C objects, which candle's Metal side makes with every dispatch.

/// Runs `operation` and frees the temporary objects it made: threads of ours have no pool of their own, and without one
/// such objects stay until the thread ends.
#[cfg(all(target_os = "macos", feature = "metal"))]
pub fn drained<R>(operation: impl FnOnce() -> R) -> R {
    objc2::rc::autoreleasepool(|_| operation())
}

/// Runs `operation`; there are no such objects on this system.
#[cfg(not(all(target_os = "macos", feature = "metal")))]
pub fn drained<R>(operation: impl FnOnce() -> R) -> R {
    operation()
}
