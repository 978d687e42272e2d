//! The tenants' keys for what lies in the object store.
//!
//! A folder has a file `<tenant>.key` a tenant, 64 hexadecimal digits: the key of AES-256-GCM. Other files are left
//! alone. Invariants: a key is never printed; what one key sealed, another does not open; what was sealed beside some
//! bytes is not opened beside others.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use turnmill_schema::Name;

/// Bytes before what is sealed.
pub(super) const NONCE_BYTES: usize = NONCE_LEN;
/// Bytes after what is sealed.
pub(super) const TAG_BYTES: usize = 16;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read the keys in {path}: {source}")]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Blocks would be stored as they are though encryption was asked for.
    #[error("there is no <tenant>.key in {0}; put the tenants' keys there, or name no folder of keys")]
    Empty(PathBuf),
    /// The file's name is not a tenant's.
    #[error(
        "{0} is not named after a tenant: its name before .key has other characters than tenants may have"
    )]
    Misnamed(PathBuf),
    /// The file does not hold a key.
    #[error("{0} is not a key: write 64 hexadecimal digits into it, as `openssl rand -hex 32` makes them")]
    NotAKey(PathBuf),
}

/// One tenant's key.
#[derive(Clone)]
pub struct TenantKey(Arc<LessSafeKey>);

impl TenantKey {
    /// The key that `text` spells in 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = blake3::Hash::from_hex(text).ok()?;
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_bytes()).expect("AES-256 takes 32 bytes");
        Some(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// Seals `object` in place from `start` on: the nonce comes to lie there, which must be room for it; the tag is
    /// added. It opens only with the same bytes before `start`.
    ///
    /// Nonces are random, which is safe for the 2^32 objects that one key may seal.
    pub(super) fn seal(&self, object: &mut Vec<u8>, start: usize) {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).expect("the system gives random numbers");
        let (beside, sealed) = object.split_at_mut(start);
        let (room, body) = sealed.split_at_mut(NONCE_BYTES);
        room.copy_from_slice(&nonce);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(beside), body);
        object.extend_from_slice(tag.expect("an object is far below 64 GiB").as_ref());
    }

    /// Opens in place what was sealed from `start` on. What was sealed then lies after the nonce and before the tag.
    /// None if it was sealed with another key, beside other bytes, or has changed.
    pub(super) fn open(&self, object: &mut [u8], start: usize) -> Option<()> {
        let (beside, sealed) = object.split_at_mut_checked(start)?;
        let (nonce, body) = sealed.split_at_mut_checked(NONCE_BYTES)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        self.0.open_in_place(nonce, Aad::from(beside), body).ok().map(drop)
    }
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantKey(***)")
    }
}

/// All tenants' keys.
#[derive(Clone, Debug)]
pub struct Keys(HashMap<String, TenantKey>);

impl Keys {
    /// Reads the keys in `folder`.
    pub fn open(folder: &Path) -> Result<Self, KeysError> {
        let unreadable = |source| KeysError::Unreadable { path: folder.to_owned(), source };
        let mut keys = HashMap::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "key") {
                let (tenant, key) = read(&path)?;
                keys.insert(tenant, key);
            }
        }
        if keys.is_empty() {
            return Err(KeysError::Empty(folder.to_owned()));
        }
        Ok(Self(keys))
    }

    /// The key of `tenant`, if it has one.
    pub fn get(&self, tenant: &str) -> Option<TenantKey> {
        self.0.get(tenant).cloned()
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &TenantKey> {
        self.0.values()
    }
}

fn read(path: &Path) -> Result<(String, TenantKey), KeysError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let tenant = Name::new(stem).map_err(|_| KeysError::Misnamed(path.to_owned()))?;
    let text =
        fs::read_to_string(path).map_err(|source| KeysError::Unreadable { path: path.to_owned(), source })?;
    let key = TenantKey::from_hex(text.trim()).ok_or_else(|| KeysError::NotAKey(path.to_owned()))?;
    Ok((tenant.into(), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("written");
        }
        folder
    }

    fn key(digit: &str) -> TenantKey {
        TenantKey::from_hex(&digit.repeat(64)).expect("a key")
    }

    fn sealed(key: &TenantKey) -> Vec<u8> {
        let mut object = [&b"beside"[..], &[0; NONCE_BYTES], b"secret"].concat();
        key.seal(&mut object, 6);
        object
    }

    #[test]
    fn every_tenant_has_the_key_of_its_file() {
        let (a, b) = ("a".repeat(64), format!("{}\n", "B".repeat(64)));
        let folder = folder(&[("a.key", &a), ("b.key", &b), ("README", "no key")]);
        let keys = Keys::open(folder.path()).expect("keys");
        assert_eq!(keys.0.len(), 2);
        assert!(keys.get("c").is_none());
        let mut object = sealed(&keys.get("b").expect("b has one"));
        assert!(keys.get("a").expect("a has one").open(&mut object.clone(), 6).is_none());
        key("b").open(&mut object, 6).expect("b's key opens it");
        assert_eq!(&object[6 + NONCE_BYTES..][..6], b"secret");
        assert!(!format!("{keys:?}").contains("aaa"));
    }

    #[test]
    fn what_is_not_a_key_is_named() {
        let good = "0".repeat(64);
        for (name, text, word) in [
            ("a.key", "", "a.key is not a key"),
            ("a.key", &good[1..], "a.key is not a key"),
            ("a.key", "the quick brown fox", "a.key is not a key"),
            ("a b.key", &good, "a b.key is not named"),
            ("README", &good, "there is no <tenant>.key"),
        ] {
            let folder = folder(&[(name, text)]);
            let error = Keys::open(folder.path()).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
            assert!(text.len() < 19 || !error.to_string().contains(text), "{error}");
        }
        let error = Keys::open(Path::new("/nowhere")).expect_err("no such folder");
        assert!(matches!(error, KeysError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn only_what_was_sealed_is_opened() {
        let object = sealed(&key("1"));
        assert!(!object.windows(6).any(|window| window == b"secret"));
        assert_ne!(object, sealed(&key("1")), "nonces are random");
        assert!(key("1").open(&mut object.clone(), 6).is_some());
        assert!(key("2").open(&mut object.clone(), 6).is_none());
        for at in 0..object.len() {
            let mut changed = object.clone();
            changed[at] ^= 1;
            assert!(key("1").open(&mut changed, 6).is_none(), "byte {at}");
            assert!(key("1").open(&mut object[..at].to_vec(), 6).is_none(), "cut to {at}");
        }
    }
}
