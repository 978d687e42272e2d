//! TLS comes without cryptography here, and panics where nobody chose one.

use rustls::crypto::CryptoProvider;

/// Chooses, where nobody has: to be called before a client that may speak TLS is made.
pub(crate) fn choose() {
    if CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
