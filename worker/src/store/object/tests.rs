//! Golden bytes, round trips, and everything that must not decode.

use clap::ValueEnum as _;
use proptest::prelude::*;
use proptest::sample::Index;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::config::KvDtype;
use crate::kv::{Namespace, PrefixHash, SegmentId};

/// Two layers of blocks of two tokens.
const SHAPE: BlockShape =
    BlockShape { layers: 2, block_tokens: 2, kv_heads: 1, head_dim: 4, dtype: KvDtype::F16 };
/// Bytes of the fields of a segment of four tokens.
const FIELD_BYTES: usize = 26 + 4 * 4 + 8 * 2 + 8;

fn segment(namespace: u8, parent: PrefixHash, first_block: usize, tokens: &[u32]) -> Arc<Segment> {
    let namespace = Namespace::from_bytes([namespace; 32]);
    let last = parent.after(&namespace, tokens, SHAPE.block_tokens);
    let id = SegmentId { namespace, parent, last };
    Arc::new(Segment { id, tenant: "default".into(), first_block, tokens: tokens.to_vec() })
}

/// The second segment of a sequence, whose elements are small numbers.
fn example(shape: &BlockShape) -> SegmentData {
    let segment = segment(7, PrefixHash([9; 32]), 3, &[1, 2, 3, u32::MAX]);
    let elements = (0..2 * shape.block_bytes() / shape.element_bytes()).map(|i| i as f32 / 4.0 - 3.0);
    let data: Vec<u8> = match shape.dtype {
        KvDtype::F32 => elements.flat_map(f32::to_le_bytes).collect(),
        KvDtype::F16 => elements.flat_map(|e| half::f16::from_f32(e).to_le_bytes()).collect(),
        KvDtype::Bf16 => elements.flat_map(|e| half::bf16::from_f32(e).to_le_bytes()).collect(),
    };
    SegmentData { segment, data: data.into() }
}

fn key(digit: &str) -> TenantKey {
    TenantKey::from_hex(&digit.repeat(64)).expect("a key")
}

fn f16(object: Vec<u8>, wanted: &Arc<Segment>, key: Option<&TenantKey>) -> Result<SegmentData, Damage> {
    decode(object.into(), wanted, &SHAPE, KvCodec::F16, key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(|pair| byte(pair).expect("hexadecimal digits")).collect()
}

/// `change` made to `object`, and the header's checksum made to fit again.
fn forged(mut object: Vec<u8>, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut object);
    let at = HEADER_BYTES + FIELD_BYTES - 8;
    let sum = xxh3_64(&object[..at]);
    object[at..at + 8].copy_from_slice(&sum.to_le_bytes());
    object
}

/// Stored objects have these bytes, made from the table at the top of the format by other implementations of its hashes
/// and its cipher: if this test fails, the version has to be bumped.
#[test]
fn the_format_never_changes() {
    let data = example(&SHAPE);
    for (codec, golden) in [(KvCodec::F16, GOLDEN_F16), (KvCodec::Q8, GOLDEN_Q8), (KvCodec::Q4, GOLDEN_Q4)] {
        let golden = unhex(golden);
        assert_eq!(hex(&encode(&data, &SHAPE, codec, None)), hex(&golden), "{codec}");
        decode(golden.into(), &data.segment, &SHAPE, codec, None).expect("it decodes");
    }
    // Its nonce is random, so it is made once and only read here.
    assert_eq!(f16(unhex(GOLDEN_SEALED), &data.segment, Some(&key("5"))), Ok(data));
}

#[test]
fn an_object_has_the_size_of_its_parts() {
    let (data, parts) = (example(&SHAPE), HEADER_BYTES + FIELD_BYTES);
    for (codec, payload) in [(KvCodec::F16, 16 * 8), (KvCodec::Q8, 16 * 8), (KvCodec::Q4, 16 * 6)] {
        assert_eq!(encode(&data, &SHAPE, codec, None).len(), parts + payload, "{codec}");
        assert_eq!(encode(&data, &SHAPE, codec, Some(&key("1"))).len(), parts + payload + 28, "{codec}");
    }
}

#[test]
fn another_size_is_damage() {
    let data = example(&SHAPE);
    let object = encode(&data, &SHAPE, KvCodec::F16, None);
    for len in 0..object.len() {
        assert_eq!(f16(object[..len].to_vec(), &data.segment, None), Err(Damage::Length), "cut to {len}");
    }
    let longer = [&object[..], &[0]].concat();
    assert_eq!(f16(longer, &data.segment, None), Err(Damage::Length));
}

#[test]
fn every_wrong_field_is_its_damage() {
    let data = example(&SHAPE);
    let object = encode(&data, &SHAPE, KvCodec::F16, None);
    let number = |index: usize| HEADER_BYTES + 2 + 4 * index;
    for (at, value, damage) in [
        (0, 0, Damage::Magic),
        (4, 2, Damage::Version(2)),
        (6, 2, Damage::Flags(2)),
        (6, 1, Damage::KeyMissing),
        (8, 0, Damage::Namespace),
        (39, 0, Damage::Namespace),
        (40, 0, Damage::Parent),
        (71, 0, Damage::Parent),
        (72, !object[72], Damage::Hash),
        (103, !object[103], Damage::Hash),
        (HEADER_BYTES, 0, Damage::Codec),
        (HEADER_BYTES, 2, Damage::Codec),
        (HEADER_BYTES, 9, Damage::Codec),
        (HEADER_BYTES + 1, 0, Damage::Shape),
        (HEADER_BYTES + 1, 2, Damage::Shape),
        (number(0), 0, Damage::Shape),
        (number(0), 3, Damage::Tokens),
        (number(0), 4, Damage::Chain),
        (number(1), 0, Damage::Shape),
        (number(2), 0, Damage::Shape),
        (number(2), 2, Damage::Length),
        (number(3), 0, Damage::Shape),
        (number(4), 2, Damage::Position),
        (number(6), 8, Damage::Chain),
    ] {
        let forged = forged(object.clone(), |object| object[at] = value);
        let got = f16(forged, &data.segment, None);
        // A layer count decides where the checksum is, so that one cannot be made to fit here.
        let expected = if at == number(1) { Damage::HeaderChecksum } else { damage };
        assert_eq!(got, Err(expected), "byte {at} made {value}");
    }
}

#[test]
fn what_changed_without_its_checksum_is_damage() {
    let data = example(&SHAPE);
    let object = encode(&data, &SHAPE, KvCodec::F16, None);
    let payload = HEADER_BYTES + FIELD_BYTES;
    for at in HEADER_BYTES..object.len() {
        let mut changed = object.clone();
        changed[at] ^= 1;
        let damage = f16(changed, &data.segment, None).expect_err("a bit was flipped");
        let layer = (at.wrapping_sub(payload)) / 64;
        let counts = [HEADER_BYTES + 6..HEADER_BYTES + 10, HEADER_BYTES + 22..HEADER_BYTES + 26];
        if at >= payload {
            assert_eq!(damage, Damage::LayerChecksum(layer), "byte {at}");
        } else if counts.iter().any(|count| count.contains(&at)) {
            assert!([Damage::Length, Damage::HeaderChecksum].contains(&damage), "byte {at}: {damage}");
        } else {
            assert_eq!(damage, Damage::HeaderChecksum, "byte {at}");
        }
    }
}

#[test]
fn an_object_of_another_kind_of_worker_is_damage() {
    let data = example(&SHAPE);
    let object: Bytes = encode(&data, &SHAPE, KvCodec::F16, None).into();
    let damage = |wanted: &Arc<Segment>, shape: &BlockShape, codec| {
        decode(object.clone(), wanted, shape, codec, None).expect_err("it is another")
    };
    assert_eq!(damage(&data.segment, &SHAPE, KvCodec::Q8), Damage::Codec);
    for shape in [
        BlockShape { layers: 1, ..SHAPE },
        BlockShape { block_tokens: 1, ..SHAPE },
        BlockShape { kv_heads: 2, ..SHAPE },
        BlockShape { head_dim: 2, ..SHAPE },
        BlockShape { dtype: KvDtype::Bf16, ..SHAPE },
    ] {
        assert_eq!(damage(&data.segment, &shape, KvCodec::F16), Damage::Shape, "{shape:?}");
    }
    let wanted = |change: &dyn Fn(&mut Segment)| {
        let mut segment = (*data.segment).clone();
        change(&mut segment);
        damage(&Arc::new(segment), &SHAPE, KvCodec::F16)
    };
    assert_eq!(wanted(&|segment| segment.id.namespace = Namespace::from_bytes([8; 32])), Damage::Namespace);
    assert_eq!(wanted(&|segment| segment.id.parent = PrefixHash::ROOT), Damage::Parent);
    assert_eq!(wanted(&|segment| segment.id.last = PrefixHash::ROOT), Damage::Hash);
    assert_eq!(wanted(&|segment| segment.tokens[3] = 4), Damage::Tokens);
    assert_eq!(wanted(&|segment| segment.first_block = 4), Damage::Position);
}

#[test]
fn impossible_numbers_are_refused_without_taking_memory() {
    let object = encode(&example(&SHAPE), &SHAPE, KvCodec::F16, None);
    for index in 0..6 {
        let at = HEADER_BYTES + 2 + 4 * index;
        for value in [0, u32::MAX / 2, u32::MAX] {
            let forged = forged(object.clone(), |o| o[at..at + 4].copy_from_slice(&value.to_le_bytes()));
            let damage = inspect(forged.into(), None).err();
            // Anything may be the first block.
            assert_eq!(damage.is_none(), index == 4, "number {index} made {value}: {damage:?}");
        }
    }
}

#[test]
fn sealed_objects_open_with_their_key_alone() {
    let data = example(&SHAPE);
    let (plain, sealed) = (encode(&data, &SHAPE, KvCodec::F16, None), |key: &TenantKey| {
        encode(&data, &SHAPE, KvCodec::F16, Some(key))
    });
    let (one, two) = (key("1"), key("2"));
    assert_eq!(f16(sealed(&one), &data.segment, Some(&one)), Ok(data.clone()));
    assert_eq!(f16(sealed(&one), &data.segment, Some(&two)), Err(Damage::Sealed));
    assert_eq!(f16(sealed(&one), &data.segment, None), Err(Damage::KeyMissing));
    assert_eq!(f16(plain.clone(), &data.segment, Some(&one)), Err(Damage::Plain));
    assert_ne!(sealed(&one), sealed(&one), "nonces are random");
    let clear = &plain[HEADER_BYTES + FIELD_BYTES..];
    assert!(!sealed(&one).windows(16).any(|window| clear.windows(16).any(|clear| clear == window)));

    // The flag taken away, the header of another segment, the body of another.
    let mut bare = sealed(&one);
    bare[6] = 0;
    assert_eq!(f16(bare, &data.segment, Some(&one)), Err(Damage::Plain));
    let other =
        SegmentData { segment: segment(7, PrefixHash([9; 32]), 3, &[1, 2, 3, 5]), data: data.data.clone() };
    let other_sealed = encode(&other, &SHAPE, KvCodec::F16, Some(&one));
    assert_eq!(f16(other_sealed.clone(), &data.segment, Some(&one)), Err(Damage::Hash));
    let spliced = [&sealed(&one)[..HEADER_BYTES], &other_sealed[HEADER_BYTES..]].concat();
    assert_eq!(f16(spliced, &data.segment, Some(&one)), Err(Damage::Sealed));
}

#[test]
fn an_object_that_others_hold_is_opened_in_a_copy() {
    let (data, key) = (example(&SHAPE), key("1"));
    let object: Bytes = encode(&data, &SHAPE, KvCodec::F16, Some(&key)).into();
    for _ in 0..2 {
        assert_eq!(decode(object.clone(), &data.segment, &SHAPE, KvCodec::F16, Some(&key)), Ok(data.clone()));
    }
}

#[test]
fn halves_are_not_copied() {
    let data = example(&SHAPE);
    let object: Bytes = encode(&data, &SHAPE, KvCodec::F16, None).into();
    let start = object.as_ptr() as usize + HEADER_BYTES + FIELD_BYTES;
    let decoded = decode(object, &data.segment, &SHAPE, KvCodec::F16, None).expect("it decodes");
    assert_eq!(decoded.data.as_ptr() as usize, start);
}

#[test]
fn an_object_tells_what_it_holds() {
    let data = example(&SHAPE);
    for key in [None, Some(&key("1"))] {
        let object = encode(&data, &SHAPE, KvCodec::Q4, key);
        let start = header(&object[..HEADER_BYTES]).expect("a header");
        assert_eq!(start, Header { encrypted: key.is_some(), id: data.segment.id });
        let contents = inspect(object.into(), key).expect("it is whole");
        assert_eq!((contents.header, contents.codec, contents.shape), (start, KvCodec::Q4, SHAPE));
        assert_eq!((contents.first_block, &contents.tokens), (3, &data.segment.tokens));
    }
}

#[test]
fn every_damage_has_a_reason_of_its_own() {
    use Damage::*;
    let all = [
        Length,
        Magic,
        Version(2),
        Flags(2),
        Namespace,
        Parent,
        Hash,
        Chain,
        Tokens,
        Position,
        Shape,
        Codec,
        HeaderChecksum,
        LayerChecksum(1),
        KeyMissing,
        Plain,
        Sealed,
    ];
    let reasons: std::collections::HashSet<_> = all.iter().map(Damage::reason).collect();
    assert_eq!(reasons.len(), all.len());
}

/// A segment of some blocks of some shape with any bytes in it.
fn segments() -> impl Strategy<Value = (BlockShape, SegmentData)> {
    let heads = prop::sample::select(vec![1usize, 16, 64, 80]);
    let shapes = (1usize..4, 1usize..4, 1usize..3, heads, prop::sample::select(KvDtype::value_variants()))
        .prop_map(|(layers, block_tokens, kv_heads, head_dim, dtype)| BlockShape {
            layers,
            block_tokens,
            kv_heads,
            head_dim,
            dtype,
        });
    (shapes, 1usize..4, any::<[u8; 32]>(), any::<[u8; 32]>(), 0usize..1000, any::<u64>()).prop_flat_map(
        |(shape, blocks, namespace, parent, first_block, seed)| {
            prop::collection::vec(any::<u32>(), blocks * shape.block_tokens).prop_map(move |tokens| {
                let (namespace, parent) = (Namespace::from_bytes(namespace), PrefixHash(parent));
                let last = parent.after(&namespace, &tokens, shape.block_tokens);
                let id = SegmentId { namespace, parent, last };
                let mut random = fastrand::Rng::with_seed(seed);
                let data: Vec<u8> =
                    std::iter::repeat_with(|| random.u8(..)).take(blocks * shape.block_bytes()).collect();
                let segment = Arc::new(Segment { id, tenant: "t".into(), first_block, tokens });
                (shape, SegmentData { segment, data: data.into() })
            })
        },
    )
}

fn codecs() -> impl Strategy<Value = KvCodec> {
    prop::sample::select(KvCodec::value_variants())
}

fn keys() -> impl Strategy<Value = Option<TenantKey>> {
    prop_oneof![Just(None), Just(Some(key("1")))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_was_stored_comes_back((shape, data) in segments(), codec in codecs(), key in keys()) {
        let object = encode(&data, &shape, codec, key.as_ref());
        let decoded = decode(object.into(), &data.segment, &shape, codec, key.as_ref());
        let decoded = decoded.map_err(|damage| TestCaseError::fail(damage.to_string()))?;
        prop_assert_eq!(&decoded.segment, &data.segment);
        let coding = Coding::new(codec, &shape);
        if coding.is_verbatim() {
            prop_assert_eq!(decoded.data, data.data);
        } else {
            let elements = data.data.len() / shape.element_bytes();
            let mut encoded = vec![0; coding.encoded_bytes(elements).expect("it is small")];
            coding.encode(&data.data, &mut encoded);
            let mut expected = vec![0; data.data.len()];
            coding.decode(&encoded, &mut expected);
            prop_assert_eq!(&decoded.data[..], &expected);
        }
    }

    #[test]
    fn flipped_bits_never_decode(
        (shape, data) in segments(), codec in codecs(), key in keys(),
        flips in prop::collection::vec((any::<Index>(), 0u8..8), 1..4),
    ) {
        let object = encode(&data, &shape, codec, key.as_ref());
        let mut flipped = object.clone();
        for (at, bit) in flips {
            flipped[at.index(object.len())] ^= 1 << bit;
        }
        // Two flips may undo each other.
        prop_assume!(flipped != object);
        prop_assert!(decode(flipped.into(), &data.segment, &shape, codec, key.as_ref()).is_err());
    }

    #[test]
    fn cut_and_grown_objects_never_decode(
        (shape, data) in segments(), codec in codecs(), key in keys(),
        at in any::<Index>(), len in 1usize..100, grow in any::<bool>(),
    ) {
        let mut object = encode(&data, &shape, codec, key.as_ref());
        let at = at.index(object.len());
        if grow {
            object.splice(at..at, vec![0; len]);
        } else {
            object.drain(at..object.len().min(at + len));
        }
        prop_assert!(decode(object.into(), &data.segment, &shape, codec, key.as_ref()).is_err());
    }

    #[test]
    fn exchanged_objects_never_decode(
        (shape, data) in segments(), (other_shape, other) in segments(), codec in codecs(), key in keys(),
        cut in any::<Index>(),
    ) {
        prop_assume!(other.segment != data.segment);
        let one = encode(&data, &shape, codec, key.as_ref());
        let two = encode(&other, &other_shape, codec, key.as_ref());
        let cut = cut.index(one.len().min(two.len()));
        let spliced = [&one[..cut], &two[cut..]].concat();
        prop_assume!(spliced != one);
        for object in [two, spliced] {
            prop_assert!(decode(object.into(), &data.segment, &shape, codec, key.as_ref()).is_err());
        }
    }

    #[test]
    fn any_bytes_never_decode(bytes in prop::collection::vec(any::<u8>(), 0..400), key in keys()) {
        let wanted = example(&SHAPE);
        let mut forged = encode(&wanted, &SHAPE, KvCodec::F16, None)[..HEADER_BYTES].to_vec();
        forged[6] = u8::from(key.is_some());
        forged.extend(&bytes);
        for object in [bytes, forged] {
            prop_assert!(header(&object).is_err() || inspect(object.clone().into(), key.as_ref()).is_err());
            prop_assert!(f16(object, &wanted.segment, key.as_ref()).is_err());
        }
    }
}

const GOLDEN_F16: &str = "\
    544d4b5601000000070707070707070707070707070707070707070707070707070707070707070709090909090909090909\
    0909090909090909090909090909090909090909090951bc58934144fa97baba3765a8db82a2cc6eb65b1cdc61df6dd571a4\
    f6f70d710101020000000200000001000000040000000300000004000000010000000200000003000000ffffffffaf1460d8\
    a5f2ee2acf82e6d51138c49a54702d9c77daafcc00c280c100c180c000c000bf00be00bd00bc00ba00b800b4000000340038\
    003a003c003d003e003f00408040004180410042804200438043004440448044c044004540458045c045004640468046c046\
    004740478047c04700482048404860488048a048c048e04800492049404960498049a049c049e049004a204a404a604a";
const GOLDEN_Q8: &str = "\
    544d4b5601000000070707070707070707070707070707070707070707070707070707070707070709090909090909090909\
    0909090909090909090909090909090909090909090951bc58934144fa97baba3765a8db82a2cc6eb65b1cdc61df6dd571a4\
    f6f70d710201020000000200000001000000040000000300000004000000010000000200000003000000ffffffff181f04b9\
    c6a0db795a1e505964b3907ba35b7e25e648ba3b071a00c20055aaff071a00c00055aaff071a00bc0055aaff071a00000055\
    aaff071a003c0055aaff071a00400055aaff071a00420055aaff071a00440055aaff071a00450055aaff071a00460055aaff\
    071a00470055aaff071a00480055aaff071a80480055aaff071a00490055aaff071a80490055aaff071a004a0055aaff";
const GOLDEN_Q4: &str = "\
    544d4b5601000000070707070707070707070707070707070707070707070707070707070707070709090909090909090909\
    0909090909090909090909090909090909090909090951bc58934144fa97baba3765a8db82a2cc6eb65b1cdc61df6dd571a4\
    f6f70d710301020000000200000001000000040000000300000004000000010000000200000003000000ffffffffb90ddb5a\
    2937937a604666d2b9c3e782ea025c24f58b13c6672a00c2a0f5672a00c0a0f5672a00bca0f5672a0000a0f5672a003ca0f5\
    672a0040a0f5672a0042a0f5672a0044a0f5672a0045a0f5672a0046a0f5672a0047a0f5672a0048a0f5672a8048a0f5672a\
    0049a0f5672a8049a0f5672a004aa0f5";
const GOLDEN_SEALED: &str = "\
    544d4b5601000100070707070707070707070707070707070707070707070707070707070707070709090909090909090909\
    0909090909090909090909090909090909090909090951bc58934144fa97baba3765a8db82a2cc6eb65b1cdc61df6dd571a4\
    f6f70d71000102030405060708090a0b0c3f91addc518457f0f8c0d9a3b2a1fb8225b56ddb7eb30bddd897d67ff931c9236c\
    24faa72ed1ec9ea40e1b09221e0b161c2442f1720260e719578ad02a33776c9e947a4ced11e051ebaa0c6a1b640db0e4b20d\
    533029af6c312f1296b59d8b9ee50525dc9290288307563664aa325bb6b7ab60719b0dec56410150b6bc689bac3949298738\
    ab318f4b81f17cd03cae033dd828924dfb5e1b3bc23a40e82c06afa7bc71f0f324ce0a8480616e9b02c05f8a4e542fd5faba\
    f4b8c13768c13d316f562f1cacaaea625620164d13f19652a3db";
