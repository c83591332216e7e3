//! Each rule of legality refuses what it should, names the value, and offers one that passes.

#![allow(clippy::unwrap_used)]

mod dcp;
mod experts;
mod layouts;

use super::*;
use parplan_profiles::engine::{embedded, select};

fn engine(name: &str) -> EngineRules {
    select(&embedded().unwrap(), name, false).unwrap()
}

fn heads(query: u32, kv: u32, latent: bool) -> shape::Heads {
    shape::Heads { query, kv, latent }
}

fn deepseek() -> ModelShape {
    ModelShape {
        layers: 61,
        attention: vec![heads(128, 1, true)],
        experts: vec![shape::Experts {
            count: 256,
            intermediate: 2048,
            dtype: Dtype::Fp8Block,
        }],
        dense: vec![shape::Dense {
            intermediate: 18_432,
            dtype: Dtype::Fp8Block,
        }],
        ..ModelShape::default()
    }
}

fn qwen235() -> ModelShape {
    ModelShape {
        layers: 94,
        attention: vec![heads(64, 4, false)],
        experts: vec![shape::Experts {
            count: 128,
            intermediate: 1536,
            dtype: Dtype::Bf16,
        }],
        ..ModelShape::default()
    }
}

fn llama70() -> ModelShape {
    ModelShape {
        layers: 80,
        attention: vec![heads(64, 8, false)],
        dense: vec![shape::Dense {
            intermediate: 28_672,
            dtype: Dtype::Bf16,
        }],
        ..ModelShape::default()
    }
}

const NODE: Machines = Machines {
    gpus: 8,
    gpus_per_node: 8,
    link_domain: 8,
    sm: 90,
};
const TP8: Layout = Layout {
    replicas: 1,
    tp: 8,
    attention_dp: 1,
    dcp: 1,
    ep: 1,
    pp: 1,
    nodes: 1,
};

fn refused(rules: &str, model: &ModelShape, layout: Layout, options: Options<'_>) -> Vec<Refusal> {
    let rules = engine(rules);
    let machines = Machines { gpus: 64, ..NODE };
    let ground = Ground {
        rules: &rules,
        model,
        machines,
        options,
    };
    let found = check(&layout, &ground);
    assert_eq!(found.is_ok(), is_legal(&layout, &ground), "{layout:?}");
    found.err().unwrap_or_default()
}

fn only(rules: &str, model: &ModelShape, layout: Layout, options: Options<'_>) -> Refusal {
    let mut found = refused(rules, model, layout, options);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}
