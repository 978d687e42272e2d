//! Why a stored segment is not the one that was wanted.

/// What is wrong with an object. Each of them makes a miss of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Damage {
    /// It ends too early, or goes on too long.
    #[error("it does not have the length that its header says; it was cut off or added to")]
    Length,
    /// It does not start as segments do.
    #[error("it is not a stored segment; something else wrote it")]
    Magic,
    /// Another version of the format.
    #[error("its format has version {0}, which this worker cannot read; another release wrote it")]
    Version(u16),
    /// A flag of a later version.
    #[error("it has flags {0:#x}, some of which this worker does not know; another release wrote it")]
    Flags(u16),
    /// Another model, way of computing, codec or tenant.
    #[error("it belongs to another namespace than its path")]
    Namespace,
    /// It comes after other tokens.
    #[error("it follows another segment than the one before it")]
    Parent,
    /// It is named differently than asked for.
    #[error("its name is another segment's; it was stored under a wrong path")]
    Hash,
    /// The tokens in it do not lead to its name.
    #[error("its tokens do not lead to its name; it was put together wrongly")]
    Chain,
    /// Its tokens are not those asked for, or not whole blocks.
    #[error("it holds other tokens than its name stands for, or no whole blocks")]
    Tokens,
    /// Its first block is at another place.
    #[error("it starts at another block of the sequence")]
    Position,
    /// Its blocks have another shape, or an impossible one.
    #[error("its blocks have another shape than this model's")]
    Shape,
    /// It is encoded in another way, or one that is unknown.
    #[error("its blocks are encoded in another way than this worker's setting")]
    Codec,
    /// The header has changed since it was written.
    #[error("the checksum over its header does not fit; its bytes have changed")]
    HeaderChecksum,
    /// A layer has changed since it was written.
    #[error("the checksum over layer {0} does not fit; its bytes have changed")]
    LayerChecksum(usize),
    /// It is encrypted and there is no key.
    #[error("it is encrypted and there is no key for its tenant; give the worker the folder of keys")]
    KeyMissing,
    /// It is not encrypted and its tenant has a key, so nothing proves who wrote it.
    #[error(
        "it is not encrypted though its tenant has a key; it was written before there was one, or by others"
    )]
    Plain,
    /// It does not open with the tenant's key.
    #[error("it does not open with its tenant's key; it was sealed with another, or has changed")]
    Sealed,
}

impl Damage {
    /// A word for labels of metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Magic => "magic",
            Self::Version(_) => "version",
            Self::Flags(_) => "flags",
            Self::Namespace => "namespace",
            Self::Parent => "parent",
            Self::Hash => "hash",
            Self::Chain => "chain",
            Self::Tokens => "tokens",
            Self::Position => "position",
            Self::Shape => "shape",
            Self::Codec => "codec",
            Self::HeaderChecksum => "header_checksum",
            Self::LayerChecksum(_) => "layer_checksum",
            Self::KeyMissing => "key_missing",
            Self::Plain => "plain",
            Self::Sealed => "sealed",
        }
    }
}
