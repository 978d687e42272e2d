//! Who a block is: the hash of everything that its K and V depend on.
//!
//! Invariants: equal hashes mean equal K and V bits, so blocks may be shared and stored under them; two
//! different identities, tenants or token prefixes never hash alike (blake3, every field labelled and
//! length-prefixed so that two fields cannot run together).

use std::fmt;

/// Everything besides the tokens that decides a block's bytes. Changing any field makes other blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Digest of the weights, not of the file's name.
    pub weights_digest: [u8; 32],
    /// How the weights are held: `f32`, `as-is`, `fast`.
    pub weights_mode: &'a str,
    /// Digest of the tokenizer.
    pub tokenizer_digest: [u8; 32],
    /// Rotary embedding and attention window parameters, spelled out by the model.
    pub rope_and_window: &'a str,
    /// Element type of K and V in the pool.
    pub kv_dtype: &'a str,
    /// How blocks are encoded once they leave the pool.
    pub codec: &'a str,
    /// Kind of device with its instruction set (`cpu-avx512vnni`), since each has its own bits.
    pub compute_kind: &'a str,
    /// Bumped when a kernel changes bits.
    pub numerics_revision: u32,
    /// Tokens a block.
    pub block_tokens: u32,
    /// Tokens of a full segment.
    pub segment_tokens: u32,
    /// Version of the order of elements within a block.
    pub layout_version: u32,
}

#[cfg(test)]
impl Identity<'static> {
    /// Some identity.
    pub(crate) fn example() -> Self {
        Self {
            weights_digest: [1; 32],
            weights_mode: "fast",
            tokenizer_digest: [2; 32],
            rope_and_window: "base=10000 window=none",
            kv_dtype: "f16",
            codec: "f16",
            compute_kind: "cpu-avx2",
            numerics_revision: 1,
            block_tokens: 16,
            segment_tokens: 256,
            layout_version: 1,
        }
    }
}

/// The world within which equal tokens have equal K and V.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Namespace([u8; 32]);

impl Namespace {
    /// The namespace of `identity`, before any tenant.
    pub fn new(identity: &Identity<'_>) -> Self {
        // Named one by one, so that a field added to `Identity` cannot be forgotten here.
        let Identity {
            weights_digest,
            weights_mode,
            tokenizer_digest,
            rope_and_window,
            kv_dtype,
            codec,
            compute_kind,
            numerics_revision,
            block_tokens,
            segment_tokens,
            layout_version,
        } = identity;
        Fields::default()
            .field("weights_digest", weights_digest)
            .field("weights_mode", weights_mode.as_bytes())
            .field("tokenizer_digest", tokenizer_digest)
            .field("rope_and_window", rope_and_window.as_bytes())
            .field("kv_dtype", kv_dtype.as_bytes())
            .field("codec", codec.as_bytes())
            .field("compute_kind", compute_kind.as_bytes())
            .field("numerics_revision", &numerics_revision.to_le_bytes())
            .field("block_tokens", &block_tokens.to_le_bytes())
            .field("chunk_tokens", &segment_tokens.to_le_bytes())
            .field("layout_version", &layout_version.to_le_bytes())
            .finish()
    }

    /// The namespace with these bytes, as something stored names it.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The namespace that `text` spells in 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(hash.into()))
    }

    /// What stands for it in stored things.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The part of this namespace that belongs to one tenant. Tenants never share blocks.
    pub fn for_tenant(&self, tenant: &str) -> Self {
        Fields::default().field("namespace", &self.0).field("tenant", tenant.as_bytes()).finish()
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blake3::Hash::from_bytes(self.0).fmt(f)
    }
}

/// Hashes labelled fields: each label and each value goes in after its length (u64 little endian).
#[derive(Default)]
struct Fields(blake3::Hasher);

impl Fields {
    fn field(mut self, label: &str, value: &[u8]) -> Self {
        for part in [label.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    fn finish(self) -> Namespace {
        Namespace(self.0.finalize().into())
    }
}

/// Identity of a full block: the namespace and every token from the start to the block's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixHash(pub [u8; 32]);

impl PrefixHash {
    /// What stands for the parent of a sequence's first block.
    pub const ROOT: Self = Self([0; 32]);

    /// The hash that `text` spells in 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(hash.into()))
    }

    /// The hash of the last of the full blocks of `tokens`, the first of which comes after this one's.
    ///
    /// # Panics
    /// Where `block_tokens` is 0.
    pub fn after(self, namespace: &Namespace, tokens: &[u32], block_tokens: usize) -> Self {
        tokens.chunks_exact(block_tokens).fold(self, |parent, block| parent.child(namespace, block))
    }

    /// blake3(namespace, parent's hash, token ids as u32 little endian). The two hashes have fixed lengths
    /// and the tokens come last, so nothing runs together.
    pub(super) fn child(self, namespace: &Namespace, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&namespace.0).update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for PrefixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blake3::Hash::from_bytes(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::kv::TokenChain;

    fn chain(namespace: Namespace, tokens: &[u32]) -> Vec<PrefixHash> {
        TokenChain::new(namespace, 2, tokens.to_vec()).hashes().to_vec()
    }

    /// Stored blocks are found by these values: if this test fails, a layout version has to be bumped.
    #[test]
    fn hashes_never_change() {
        let namespace = Namespace::new(&Identity::example());
        let tenant = namespace.for_tenant("default");
        let hashes = chain(tenant, &[1, 2, 3, u32::MAX, 5]);
        assert_eq!(namespace.to_string(), "d014fee40885d267dbd5d576d99baf3eb2721a709e1a42e59815fed9ccf00b05");
        assert_eq!(tenant.to_string(), "ab21a380c455243dded6eb36fd8b49d55f622045e6900d72996c095d3570a0f3");
        assert_eq!(
            hashes.iter().map(PrefixHash::to_string).collect::<Vec<_>>(),
            [
                "89b318c75f11da15b4075f4996071fb2faa034bed185386da2fd7f0ed460e040",
                "8fa6e07d8c36943d94a62898857834cb36ba95647dfb8336253ccf8d03b157c1"
            ]
        );
    }

    #[test]
    fn every_field_and_the_tenant_make_another_namespace() {
        let base = Identity::example();
        let identities = [
            base.clone(),
            Identity { weights_digest: [9; 32], ..base.clone() },
            Identity { weights_mode: "f32", ..base.clone() },
            Identity { tokenizer_digest: [9; 32], ..base.clone() },
            Identity { rope_and_window: "base=10000 window=512", ..base.clone() },
            Identity { kv_dtype: "f32", ..base.clone() },
            Identity { codec: "q8", ..base.clone() },
            Identity { compute_kind: "metal", ..base.clone() },
            Identity { numerics_revision: 2, ..base.clone() },
            Identity { block_tokens: 32, ..base.clone() },
            Identity { segment_tokens: 512, ..base.clone() },
            Identity { layout_version: 2, ..base.clone() },
        ];
        let mut seen: HashSet<Namespace> = identities.iter().map(Namespace::new).collect();
        assert_eq!(seen.len(), identities.len());
        for tenant in ["", "a", "b"] {
            assert!(seen.insert(Namespace::new(&base).for_tenant(tenant)), "{tenant:?}");
        }
    }

    #[test]
    fn what_is_spelled_is_read_back() {
        let namespace = Namespace::new(&Identity::example());
        let hash = PrefixHash::ROOT.after(&namespace, &[1, 2], 2);
        assert_eq!(Namespace::from_hex(&namespace.to_string()), Some(namespace));
        assert_eq!(Namespace::from_bytes(*namespace.as_bytes()), namespace);
        assert_eq!(PrefixHash::from_hex(&hash.to_string()), Some(hash));
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(65)] {
            assert_eq!((PrefixHash::from_hex(bad), Namespace::from_hex(bad)), (None, None), "{bad:?}");
        }
    }

    #[test]
    fn neighbouring_fields_do_not_run_together() {
        let pair = |kv_dtype, codec| Namespace::new(&Identity { kv_dtype, codec, ..Identity::example() });
        assert_ne!(pair("ab", "c"), pair("a", "bc"));
        assert_ne!(pair("", "abc"), pair("abc", ""));
        let fields = |label, value: &str| Fields::default().field(label, value.as_bytes()).finish();
        assert_ne!(fields("ab", "c"), fields("a", "bc"));
    }

    proptest! {
        #[test]
        fn a_chain_is_continued_from_any_of_its_blocks(
            tokens in prop::collection::vec(any::<u32>(), 2..40), cut in 0usize..20,
        ) {
            let namespace = Namespace::new(&Identity::example());
            let hashes = chain(namespace, &tokens);
            let cut = cut % hashes.len();
            let parent = cut.checked_sub(1).map_or(PrefixHash::ROOT, |before| hashes[before]);
            prop_assert_eq!(parent.after(&namespace, &tokens[2 * cut..], 2), hashes[hashes.len() - 1]);
        }

        #[test]
        fn a_changed_token_changes_its_block_and_all_after_it(
            tokens in prop::collection::vec(0u32..4, 2..40), at in 0usize..40,
        ) {
            let namespace = Namespace::new(&Identity::example());
            let at = at % tokens.len();
            let mut other = tokens.clone();
            other[at] += 4;
            for (i, (a, b)) in chain(namespace, &tokens).iter().zip(chain(namespace, &other)).enumerate() {
                prop_assert_eq!(*a == b, i < at / 2);
            }
        }
    }
}
