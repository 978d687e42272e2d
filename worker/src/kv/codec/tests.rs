//! Round trips of every codec over every pool.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use clap::ValueEnum as _;

fn coding(codec: KvCodec, dtype: KvDtype, head_dim: usize) -> Coding {
    Coding::new(codec, &BlockShape { layers: 1, block_tokens: 1, kv_heads: 1, head_dim, dtype })
}

fn pool(dtype: KvDtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        KvDtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        KvDtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        KvDtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn values(dtype: KvDtype, pool: &[u8]) -> Vec<f32> {
    match dtype {
        KvDtype::F16 => pool.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        KvDtype::Bf16 => pool.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        KvDtype::F32 => pool.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Encodes and decodes.
fn there_and_back(coding: Coding, pool: &[u8]) -> Vec<u8> {
    let elements = pool.len() / (coding.head_bytes / coding.head_dim);
    let mut encoded = vec![0xa5; coding.encoded_bytes(elements).expect("it is small")];
    coding.encode(pool, &mut encoded);
    let mut decoded = vec![0xa5; pool.len()];
    coding.decode(&encoded, &mut decoded);
    decoded
}

/// How far a decoded element may be from `value`, which is in a group from `low` to `high`.
fn allowed(codec: KvCodec, dtype: KvDtype, value: f32, low: f32, high: f32) -> f32 {
    // Half the distance to the next number of the type, at most; the second is that of its smallest numbers.
    let rounding = |dtype, value: f32| match dtype {
        KvDtype::F16 => value.abs() / 2048.0 + 3e-8,
        KvDtype::Bf16 => value.abs() / 256.0,
        KvDtype::F32 => value.abs() / 16e6,
    };
    let steps = match codec {
        KvCodec::F16 => return rounding(KvDtype::F16, value) + rounding(dtype, value),
        KvCodec::Q8 => 255.0,
        KvCodec::Q4 => 15.0,
    };
    // Rounding to f16 makes the offset lower and the scale larger.
    let range = high - low + 2.0 * rounding(KvDtype::F16, low);
    let scale = range / steps * (1.0 + 1.0 / 1024.0) + 6e-8;
    0.501 * scale + rounding(dtype, value.abs() + scale)
}

fn dtypes() -> impl Strategy<Value = KvDtype> {
    prop::sample::select(KvDtype::value_variants())
}

fn codecs() -> impl Strategy<Value = KvCodec> {
    prop::sample::select(KvCodec::value_variants())
}

/// Elements of some heads: of one magnitude, of many, or all alike.
fn heads(head_dim: usize) -> impl Strategy<Value = Vec<f32>> {
    let element = prop_oneof![
        -1.0f32..1.0,
        -60000.0f32..60000.0,
        (-24i32..15, -1.0f32..1.0).prop_map(|(power, value)| value * 2.0f32.powi(power)),
        Just(0.0),
        Just(65504.0),
        Just(-65504.0),
    ];
    let mixed = prop::collection::vec(element.clone(), head_dim * 3);
    let alike = element.prop_map(move |value| vec![value; head_dim * 3]);
    let plain = prop::collection::vec(-4.0f32..4.0, head_dim * 3);
    prop_oneof![mixed, alike, plain]
}

proptest! {
    #[test]
    fn halves_are_kept_to_the_bit(bits in prop::collection::vec(any::<u16>(), 0..9)) {
        let pool: Vec<u8> = bits.repeat(16).iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let coding = coding(KvCodec::F16, KvDtype::F16, 16);
        prop_assert!(coding.is_verbatim());
        prop_assert_eq!(there_and_back(coding, &pool), pool);
    }

    #[test]
    fn elements_come_back_within_the_bound(
        codec in codecs(), dtype in dtypes(),
        (head_dim, given) in prop_oneof![Just(1), Just(33), Just(64), Just(80), Just(128)]
            .prop_flat_map(|head_dim| (Just(head_dim), heads(head_dim))),
    ) {
        let pool = pool(dtype, &given);
        let given: Vec<f32> = values(dtype, &pool).iter().map(|v| v.clamp(-65504.0, 65504.0)).collect();
        let got = values(dtype, &there_and_back(coding(codec, dtype, head_dim), &pool));
        prop_assert_eq!(got.len(), given.len());
        for (given, got) in given.chunks(head_dim).zip(got.chunks(head_dim)) {
            for (given, got) in given.chunks(GROUP).zip(got.chunks(GROUP)) {
                let (low, high) = given.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
                for (given, got) in given.iter().zip(got) {
                    let allowed = allowed(codec, dtype, *given, low, high);
                    prop_assert!((given - got).abs() <= allowed, "{given} came back as {got}, {allowed} allowed");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_never_looks_finite(
        bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
        at in 0usize..80, codec in prop_oneof![Just(KvCodec::Q8), Just(KvCodec::Q4)], dtype in dtypes(),
    ) {
        let mut given = vec![1.0; 80];
        given[at] = bad;
        let got = values(dtype, &there_and_back(coding(codec, dtype, 80), &pool(dtype, &given)));
        for (index, value) in got.iter().enumerate() {
            prop_assert_eq!(value.is_nan(), index / GROUP == at / GROUP, "{} is {}", index, value);
        }
    }
}

#[test]
fn groups_have_the_bytes_that_they_say() {
    for (codec, head_dim, expected) in [
        (KvCodec::F16, 80, 160),
        (KvCodec::Q8, 64, 68),
        (KvCodec::Q8, 80, 68 + 20),
        (KvCodec::Q4, 64, 36),
        (KvCodec::Q4, 80, 36 + 12),
        (KvCodec::Q4, 33, 4 + 17),
        (KvCodec::Q4, 128, 72),
    ] {
        let coding = coding(codec, KvDtype::F16, head_dim);
        assert_eq!(coding.encoded_bytes(3 * head_dim), Some(3 * expected), "{codec} of {head_dim}");
    }
    assert_eq!(coding(KvCodec::Q8, KvDtype::F16, 1).encoded_bytes(usize::MAX), None);
}

#[test]
fn extremes_stay_finite() {
    for codec in [KvCodec::Q8, KvCodec::Q4] {
        let given = [-65504.0, 65504.0].repeat(32);
        let got = values(
            KvDtype::F16,
            &there_and_back(coding(codec, KvDtype::F16, 64), &pool(KvDtype::F16, &given)),
        );
        assert!(got.iter().all(|value| value.is_finite()), "{got:?}");
    }
}

#[test]
fn the_second_half_of_a_group_is_in_the_high_bits() {
    let given: Vec<f32> = (0..16).map(|v| v as f32).collect();
    let mut encoded = [0; 12];
    coding(KvCodec::Q4, KvDtype::F32, 16).encode(&pool(KvDtype::F32, &given), &mut encoded);
    let scale_and_offset = [0x00, 0x3c, 0, 0];
    assert_eq!(encoded[..4], scale_and_offset);
    assert_eq!(encoded[4..], [0x80, 0x91, 0xa2, 0xb3, 0xc4, 0xd5, 0xe6, 0xf7]);
}

#[test]
#[should_panic(expected = "are not 7 encoded ones")]
fn lengths_that_do_not_fit_are_refused() {
    coding(KvCodec::Q8, KvDtype::F16, 4).encode(&[0; 8], &mut [0; 7]);
}
