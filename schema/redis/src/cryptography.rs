//! TLS comes without cryptography here, and panics if nobody chose one.

use rustls::crypto::CryptoProvider;

/// Chooses ring, unless the program has chosen already. Call it before a client that may speak TLS is made.
pub fn choose() {
    if CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
