//! What the host tells the kernels: their arguments in order, and the records they read, as common.metal declares them.
//!
//! Invariant, tested against the sources: an argument's place in its list is its buffer's index, what a kernel writes is an
//! output, and a record has the kernels' fields in the kernels' order, each of 32 bits.

/// An argument of a kernel, by the name it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A buffer that is only read.
    Input(&'static str),
    /// A buffer that is written. Candle orders dispatches by this.
    Output(&'static str),
    /// The layer's [`Parameters`].
    Parameters,
}

/// A kernel of the library.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its name in the sources; its pipeline's is `turnmill_` and this.
    pub name: &'static str,
    /// Its arguments; the index of each is its buffer's.
    pub arguments: &'static [Argument],
}

use Argument::{Input, Output};

/// Writes a step's K and V into their slots.
pub const RESHAPE_AND_CACHE: Kernel = Kernel {
    name: "reshape_and_cache",
    arguments: &[Input("keys"), Input("values"), Input("slots"), Output("pool"), Argument::Parameters],
};

/// Attention of few query vectors over partitions of their contexts.
pub const DECODE: Kernel = Kernel {
    name: "paged_attention_decode",
    arguments: &[
        Input("queries"),
        Input("pool"),
        Input("block_tables"),
        Input("sequences"),
        Input("tasks"),
        Output("partial_values"),
        Output("partial_maxima"),
        Output("partial_sums"),
        Argument::Parameters,
    ],
};

/// Joins what [`DECODE`] left.
pub const REDUCE: Kernel = Kernel {
    name: "paged_attention_reduce",
    arguments: &[
        Input("partial_values"),
        Input("partial_maxima"),
        Input("partial_sums"),
        Input("sequences"),
        Input("joins"),
        Output("output"),
        Argument::Parameters,
    ],
};

/// Attention of many query vectors.
pub const PREFILL: Kernel = Kernel {
    name: "paged_attention_prefill",
    arguments: &[
        Input("queries"),
        Input("pool"),
        Input("block_tables"),
        Input("sequences"),
        Input("tasks"),
        Output("output"),
        Argument::Parameters,
    ],
};

/// All of them.
pub const KERNELS: [Kernel; 4] = [RESHAPE_AND_CACHE, DECODE, REDUCE, PREFILL];

/// The sources of a library, in order, after its definitions.
pub const SOURCES: [&str; 4] = [
    include_str!("common.metal"),
    include_str!("reshape_and_cache.metal"),
    include_str!("paged_decode.metal"),
    include_str!("paged_prefill.metal"),
];

/// Threads of every threadgroup.
pub const THREADS: usize = SIMDGROUPS * 32;
/// Simdgroups of every threadgroup.
pub const SIMDGROUPS: usize = 8;
/// Positions that a decode task takes.
pub const PARTITION_TOKENS: usize = THREADS;
/// [`Parameters::window`] where a row sees everything before it.
pub const NO_WINDOW: u32 = u32::MAX;

/// Query vectors of a decode task; a prefill task has [`SIMDGROUPS`] times as many.
pub const fn vectors_per_simdgroup(head_dim: usize) -> usize {
    if head_dim <= 128 { 8 } else { 4 }
}

/// A field as the kernels read it.
trait Word {
    fn word(self) -> u32;
}

impl Word for u32 {
    fn word(self) -> u32 {
        self
    }
}

impl Word for f32 {
    fn word(self) -> u32 {
        self.to_bits()
    }
}

/// A struct of 32-bit fields that the kernels have as well.
macro_rules! record {
    ($(#[$meta:meta])+ $name:ident { $($(#[$doc:meta])+ $field:ident: $type:ty,)+ }) => {
        $(#[$meta])+
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name {
            $($(#[$doc])+ pub $field: $type,)+
        }

        impl $name {
            /// Its fields' names and types, in order.
            #[cfg(test)]
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($type)),)+];

            /// What the kernels read.
            pub fn words(&self) -> impl Iterator<Item = u32> + use<> {
                [$(self.$field.word(),)+].into_iter()
            }
        }
    };
}

record! {
    /// Scalars of a layer, the same for all kernels.
    Parameters {
        /// Query heads.
        heads: u32,
        /// K and V heads.
        kv_heads: u32,
        /// Blocks in the pool.
        blocks: u32,
        /// Tokens in a block.
        block_tokens: u32,
        /// Positions that a row sees, itself among them; [`NO_WINDOW`] for all.
        window: u32,
        /// Scores are multiplied by it.
        scale: f32,
        /// Scores become `cap * tanh(score / cap)`; 0: they do not.
        soft_cap: f32,
    }
}

record! {
    /// One sequence's rows in a step.
    Sequence {
        /// Its first row.
        first_row: u32,
        /// How many.
        rows: u32,
        /// Position of the first.
        first_position: u32,
        /// Where its blocks begin in the block tables.
        first_block: u32,
    }
}

record! {
    /// What a threadgroup computes for a KV head.
    Task {
        /// Of which sequence.
        sequence: u32,
        /// Its first query vector, counted within the sequence and the KV head.
        first_vector: u32,
        /// In decode, which [`PARTITION_TOKENS`] positions; in prefill 0.
        partition: u32,
    }
}

record! {
    /// Partitions of the same query vectors.
    Join {
        /// Of which sequence.
        sequence: u32,
        /// Its first query vector.
        first_vector: u32,
        /// The decode task of its first partition.
        first_task: u32,
        /// How many there are.
        partitions: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands between `start` and `end` in the sources.
    fn between<'a>(start: &str, end: &str) -> &'a str {
        let found = SOURCES.iter().find_map(|source| source.split_once(start));
        let (_, rest) = found.unwrap_or_else(|| panic!("no source has {start:?}"));
        rest.split_once(end).unwrap_or_else(|| panic!("no {end:?} after {start:?}")).0
    }

    fn without_comments(text: &str) -> String {
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ")
    }

    /// The arguments of `kernel` with `[[buffer(n)]]`, by n.
    fn declared(kernel: &Kernel) -> Vec<(usize, Argument)> {
        let list = without_comments(between(&format!("[[kernel]] void {}(", kernel.name), ") {"));
        let mut arguments = Vec::new();
        for argument in list.split(',') {
            let Some((declaration, index)) = argument.split_once("[[buffer(") else { continue };
            let index = index.trim_end().trim_end_matches(")]]").parse().expect("an index");
            let name = declaration.trim().rsplit([' ', '*', '&']).next().expect("a name").to_owned();
            let declaration = declaration.trim();
            arguments.push((
                index,
                if declaration.starts_with("constant Parameters &") {
                    Argument::Parameters
                } else if declaration.starts_with("const device ") {
                    Argument::Input(name.leak())
                } else if declaration.starts_with("device ") {
                    Argument::Output(name.leak())
                } else {
                    panic!("{declaration:?} of {} is no kind of argument that is known", kernel.name)
                },
            ));
        }
        arguments
    }

    #[test]
    fn arguments_are_bound_where_the_kernels_expect_them() {
        for kernel in KERNELS {
            let ours: Vec<(usize, Argument)> = kernel.arguments.iter().copied().enumerate().collect();
            assert_eq!(ours, declared(&kernel), "{}", kernel.name);
        }
    }

    #[test]
    fn every_kernel_of_the_sources_is_known_and_has_a_pipeline() {
        let all = SOURCES.concat();
        assert_eq!(all.matches("[[kernel]] void ").count(), KERNELS.len());
        for kernel in KERNELS {
            assert!(all.contains(&format!("\nINSTANTIATE({})\n", kernel.name)), "{}", kernel.name);
        }
        assert!(all.contains(r#"host_name("turnmill_" #NAME)"#));
    }

    #[test]
    fn records_have_the_kernels_fields() {
        let records = [
            ("Parameters", Parameters::FIELDS),
            ("Sequence", Sequence::FIELDS),
            ("Task", Task::FIELDS),
            ("Join", Join::FIELDS),
        ];
        for (name, ours) in records {
            let fields = without_comments(between(&format!("struct {name} {{"), "};"));
            let theirs: Vec<(String, String)> = fields
                .split(';')
                .filter_map(|field| field.trim().split_once(' '))
                .map(|(kind, field)| {
                    let kind = match kind {
                        "uint" => "u32",
                        "float" => "f32",
                        other => panic!("{other} of {name}.{field} is not known"),
                    };
                    (field.trim().to_owned(), kind.to_owned())
                })
                .collect();
            let ours: Vec<(String, String)> =
                ours.iter().map(|(field, kind)| ((*field).to_owned(), (*kind).to_owned())).collect();
            assert_eq!(ours, theirs, "{name}");
        }
    }

    #[test]
    fn constants_are_the_kernels() {
        let common = SOURCES[0];
        let constant = |name: &str| between(&format!("constexpr const uint {name} = "), ";");
        assert_eq!(constant("LANES"), "32");
        assert_eq!(constant("SIMDGROUPS"), SIMDGROUPS.to_string());
        assert_eq!((constant("THREADS"), THREADS), ("SIMDGROUPS * LANES", SIMDGROUPS * 32));
        assert_eq!((constant("PARTITION_TOKENS"), PARTITION_TOKENS), ("SIMDGROUPS * LANES", SIMDGROUPS * 32));
        assert!(common.contains("vectors_per_simdgroup(uint head_dim) { return head_dim <= 128 ? 8 : 4; }"));
        assert_eq!((vectors_per_simdgroup(128), vectors_per_simdgroup(144)), (8, 4));
        assert!(common.contains(&format!("{NO_WINDOW:#x}: all")));
    }

    #[test]
    fn words_are_the_fields_in_order() {
        let parameters = Parameters {
            heads: 1,
            kv_heads: 2,
            blocks: 3,
            block_tokens: 4,
            window: NO_WINDOW,
            scale: 1.0,
            soft_cap: -2.0,
        };
        let words: Vec<u32> = parameters.words().collect();
        assert_eq!(words, [1, 2, 3, 4, 0xffff_ffff, 0x3f80_0000, 0xc000_0000]);
        let task = Task { sequence: 1, first_vector: 2, partition: 3 };
        assert_eq!(task.words().collect::<Vec<_>>(), [1, 2, 3]);
        let join = Join { sequence: 1, first_vector: 2, first_task: 3, partitions: 4 };
        assert_eq!(join.words().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}
