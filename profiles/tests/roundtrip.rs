//! Profiles survive being written and read again, whatever is in them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail loudly"
)]

use parplan_profiles::{
    Attention, Compressed, DenseFfn, Dtype, Ffn, Gqa, Indexer, LayerGroup, Library, Mla,
    ModelProfile, MoeFfn, WeightFormats,
};
use proptest::prelude::*;

#[test]
fn every_embedded_profile_round_trips_through_toml_and_json() {
    let library = Library::embedded();
    for listed in library.models().expect("listed") {
        let model = library.model(&listed.name).expect("a model");
        let text = toml::to_string(&model).expect("written");
        assert_eq!(toml::from_str::<ModelProfile>(&text).expect("read"), model);
        let text = serde_json::to_string(&model).expect("written");
        assert_eq!(
            serde_json::from_str::<ModelProfile>(&text).expect("read"),
            model
        );
    }
    for listed in library.gpus().expect("listed") {
        let gpu = library.gpu(&listed.name).expect("a GPU");
        let text = toml::to_string(&gpu).expect("written");
        let read: parplan_profiles::GpuProfile = toml::from_str(&text).expect("read");
        assert_eq!(read, gpu);
    }
    for listed in library.workloads().expect("listed") {
        let workload = library.workload(&listed.name).expect("a workload");
        let text = toml::to_string(&workload).expect("written");
        let read: parplan_profiles::Workload = toml::from_str(&text).expect("read");
        assert_eq!(read, workload);
    }
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(Dtype::ALL.to_vec())
}

fn formats() -> BoxedStrategy<WeightFormats> {
    (
        dtype(),
        dtype(),
        prop::option::of(dtype()),
        prop::option::of(dtype()),
    )
        .prop_map(
            |(linear, embedding, attention_output, lm_head)| WeightFormats {
                attention_output,
                lm_head,
                ..WeightFormats::uniform(linear, embedding)
            },
        )
        .boxed()
}

/// A dimension: mostly sensible, sometimes 0 or huge.
fn size() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 1u32..4096, 1 => Just(0), 1 => any::<u32>()]
}

// Boxed, because the trees of unboxed strategies this deep overflow a test thread's stack.
fn attention() -> BoxedStrategy<Attention> {
    let gqa = (
        size(),
        size(),
        size(),
        prop::option::of(size()),
        any::<bool>(),
    )
        .prop_map(|(q_heads, kv_heads, head_dim, window, flag)| {
            Attention::Gqa(Gqa {
                q_heads,
                kv_heads,
                head_dim,
                v_head_dim: head_dim,
                window,
                qk_norm: flag,
                qk_norm_all_heads: flag,
                output_gate: !flag,
                bias: flag,
                sinks: !flag,
                sparse: None,
            })
        });
    let indexer = || {
        prop::option::of((size(), size(), size(), any::<bool>())).prop_map(|index| {
            index.map(|(heads, head_dim, top_k, owned)| Indexer {
                heads,
                head_dim,
                top_k,
                owned,
            })
        })
    };
    let mla = (size(), size(), size(), size(), indexer()).prop_map(
        |(q_heads, q_lora_rank, kv_lora_rank, dim, indexer)| {
            Attention::Mla(Mla {
                q_heads,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim: dim,
                qk_rope_head_dim: 64,
                v_head_dim: dim,
                indexer,
                window: None,
                output_gate: true,
            })
        },
    );
    let compressed = (size(), size(), size(), 0u32..200, indexer()).prop_map(
        |(q_heads, head_dim, rank, compress_ratio, indexer)| {
            Attention::Compressed(Compressed {
                q_heads,
                head_dim,
                qk_rope_head_dim: 64,
                q_lora_rank: rank,
                o_groups: 8,
                o_lora_rank: rank,
                window: 128,
                compress_ratio,
                indexer,
            })
        },
    );
    prop_oneof![gqa, mla, compressed].boxed()
}

fn ffn() -> BoxedStrategy<Ffn> {
    let moe = (size(), size(), size(), size(), any::<bool>()).prop_map(
        |(experts, top_k, intermediate, latent, gated)| {
            Ffn::Moe(MoeFfn {
                experts,
                top_k,
                intermediate,
                shared_intermediate: intermediate,
                gated,
                bias: !gated,
                latent,
                shared_gate: gated,
                router_fp32: !gated,
            })
        },
    );
    let dense = (size(), any::<bool>()).prop_map(|(intermediate, gated)| {
        Ffn::Dense(DenseFfn {
            intermediate,
            gated,
        })
    });
    prop_oneof![moe, dense].boxed()
}

fn group() -> BoxedStrategy<LayerGroup> {
    (
        size(),
        prop::option::of(attention()),
        prop::option::of(ffn()),
        prop::option::of(formats()),
    )
        .prop_map(|(count, attention, ffn, weights)| LayerGroup {
            count,
            attention,
            ffn,
            weights,
        })
        .boxed()
}

prop_compose! {
    fn model()(
        hidden_size in size(),
        vocab_size in size(),
        max_position in size(),
        weights in formats(),
        kv_dtype in dtype(),
        layers in prop::collection::vec(group(), 0..4),
        mtp_layer in prop::option::of(group()),
        mtp_layers in 0u32..3,
        hyper_connections in 0u32..6,
        name in "[a-z0-9.-]{0,10}",
        aliases in prop::collection::vec(".{0,10}", 0..3),
    ) -> ModelProfile {
        ModelProfile {
            name, aliases, repository: "a/b".into(), architecture: "X".into(), hidden_size,
            vocab_size, tied_embeddings: false, max_position, weights, kv_dtype, layers,
            mtp_layers, mtp_layer, hyper_connections, published: None,
        }
    }
}

proptest! {
    /// Written and read again, a profile is the same; and any profile is either valid, and then
    /// can be counted without overflow, or refused with reasons.
    #[test]
    fn any_model_round_trips_and_is_judged_without_panic(model in model()) {
        let text = toml::to_string(&model).expect("written");
        prop_assert_eq!(&toml::from_str::<ModelProfile>(&text).expect("read"), &model);
        match model.validate() {
            Ok(()) => {
                let params = model.params();
                prop_assert!(params.total() <= 1_000_000_000_000_000 + params.embedding * 2 + params.norms);
                prop_assert!(params.active_in_layers() <= params.total_without_embeddings());
                let layers: u64 = model
                    .layers
                    .iter()
                    .map(|group| u64::from(group.count) * model.layer_params(group).total())
                    .sum();
                // Layers, tables and the last norm are all there is.
                prop_assert_eq!(
                    params.total(),
                    layers + params.embedding + params.lm_head + u64::from(model.hidden_size)
                );
            }
            Err(faults) => prop_assert!(!faults.0.is_empty()),
        }
    }

    #[test]
    fn no_toml_text_makes_a_reader_panic(text in "(name|base|aliases|layers|weights|\\[|\\]|=|\"|\\{|\\}|,|\n| |[a-z0-9.])*") {
        let _ = toml::from_str::<ModelProfile>(&text);
        let folder = std::env::temp_dir().join(format!("parplan-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("models")).expect("a folder");
        std::fs::write(folder.join("models/x.toml"), &text).expect("written");
        let library = Library::with_folder(&folder);
        let _ = library.model("x");
        let _ = library.models();
        let judged = Library::check(&folder);
        std::fs::remove_dir_all(&folder).expect("removed");
        prop_assert!(judged.is_err());
    }
}
