//! The worker's SIMD room alone, so that its unit tests can be built and run for another CPU than this machine's: the room
//! needs a few small crates, the worker hundreds, some of them in C. `deploy/arm-kernels` runs them.
//!
//! Invariant: no kernel and no test of one is here; the files are the worker's own.

/// Stands where the worker has its own, so that the room's paths are the same.
#[path = "../../../worker/src/model"]
pub mod model {
    pub mod simd;
}

#[cfg(all(test, target_arch = "aarch64"))]
mod tests {
    use crate::model::simd::Isa;

    /// Without it the room's tests would compare the portable version with itself and pass.
    #[test]
    fn byte_dot_products_are_detected() {
        assert_eq!(Isa::detect(), Isa::Dotprod);
    }
}
