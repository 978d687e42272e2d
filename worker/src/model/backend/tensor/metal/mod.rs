//! Paged attention by kernels of our own, on Metal: K and V are read where they lie.
//!
//! Owns: the kernels' sources, what the host tells them, their pipelines and their dispatch on candle's command encoder.
//! Elsewhere there are no kernels: [`PagedKernels`] is then a type without values.
//!
//! Invariants: kernels are used only after they compiled and gave what gathering gives, on the machine they run on; every
//! buffer that is written is marked as an output, because that alone orders dispatches.
//!
//! Whatever only a Mac can tell (that Apple's compiler takes the sources, speed, the driver) is unmeasured.

#[cfg(any(test, all(target_os = "macos", feature = "metal")))]
mod records;
#[cfg(any(test, all(target_os = "macos", feature = "metal")))]
mod tables;

#[cfg(all(target_os = "macos", feature = "metal"))]
mod check;
#[cfg(all(target_os = "macos", feature = "metal"))]
mod kernels;
#[cfg(all(target_os = "macos", feature = "metal"))]
mod library;
#[cfg(all(target_os = "macos", feature = "metal"))]
mod memory;
#[cfg(all(target_os = "macos", feature = "metal"))]
pub use kernels::{PagedKernels, PagedStep};
#[cfg(all(target_os = "macos", feature = "metal"))]
pub use library::compile_all;
#[cfg(all(target_os = "macos", feature = "metal"))]
pub use memory::zeros;

#[cfg(not(all(target_os = "macos", feature = "metal")))]
mod absent;
#[cfg(not(all(target_os = "macos", feature = "metal")))]
pub use absent::{PagedKernels, PagedStep, compile_all, zeros};
