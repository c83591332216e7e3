//! Efficiency figures that can be: fractions of a roofline up to 1, times from 0, spreads, sources.

use crate::dtype::Dtype;
use crate::efficiency::{EfficiencyProfile, MoeFit, Note};
use crate::fault::{Fault, Faults};

impl EfficiencyProfile {
    /// Every figure that is outside its range, every weight format that is missing.
    ///
    /// # Errors
    /// All of them, each naming its field.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut check = Figures::default();
        for dtype in Dtype::ALL {
            let field = format!("gemm.{dtype}");
            if let Some(gemm) = check.has(&field, self.gemm.get(&dtype)) {
                check.kernel(
                    &field,
                    [gemm.memory, gemm.compute],
                    &[
                        ("base_us", gemm.base_us),
                        ("depth_us", gemm.depth_us),
                        ("depth_tile_us", gemm.depth_tile_us),
                        ("output_passes", gemm.output_passes),
                    ],
                    &gemm.note,
                );
            }
            let field = format!("moe.{dtype}");
            if let Some(moe) = check.has(&field, self.moe.get(&dtype)) {
                check.experts(&field, moe);
            }
        }
        for (name, fits) in &self.moe_named {
            for (dtype, moe) in fits {
                check.experts(&format!("moe_named.{name}.{dtype}"), moe);
            }
        }
        for (dtype, moe) in &self.moe_alternative {
            let field = format!("moe_alternative.{dtype}");
            check.fractions(&field, &[("memory", moe.memory), ("compute", moe.compute)]);
        }
        self.check_attention(&mut check);
        self.check_links(&mut check);
        Faults::or_ok(check.faults)
    }

    fn check_attention(&self, check: &mut Figures) {
        for dtype in [Dtype::Bf16, Dtype::Fp8] {
            for (class, map) in [
                ("decode_gqa", &self.decode_gqa),
                ("decode_mla", &self.decode_mla),
                ("sparse.attention_decode", &self.sparse.attention_decode),
            ] {
                let field = format!("{class}.{dtype}");
                if let Some(fit) = check.has(&field, map.get(&dtype)) {
                    check.kernel(
                        &field,
                        [fit.memory, fit.compute],
                        &[
                            ("base_us", fit.base_us),
                            ("item_us", fit.item_us),
                            ("split_us", fit.split_us),
                        ],
                        &fit.note,
                    );
                }
            }
            for (class, map) in [
                ("prefill_gqa", &self.prefill_gqa),
                ("prefill_mla", &self.prefill_mla),
                ("sparse.attention_prefill", &self.sparse.attention_prefill),
            ] {
                let field = format!("{class}.{dtype}");
                if let Some(fit) = check.has(&field, map.get(&dtype)) {
                    check.kernel(
                        &field,
                        [fit.memory, fit.compute],
                        &[
                            ("base_us", fit.base_us),
                            ("item_us", fit.item_us),
                            ("depth_us", fit.depth_us),
                        ],
                        &fit.note,
                    );
                }
            }
            let field = format!("mla_bmm.{dtype}");
            if let Some(bmm) = check.has(&field, self.mla_bmm.get(&dtype)) {
                check.fractions(&field, &[("memory", bmm.memory), ("compute", bmm.compute)]);
            }
        }
        check.fractions("sparse", &[("topk_memory", self.sparse.topk_memory)]);
        check.fractions("elementwise", &[("memory", self.elementwise.memory)]);
        for (field, scan) in [("gated_delta", &self.gated_delta), ("mamba2", &self.mamba2)] {
            check.fractions(
                field,
                &[
                    ("decode_memory", scan.decode_memory),
                    ("prefill_memory", scan.prefill_memory),
                    ("prefill_compute", scan.prefill_compute),
                ],
            );
            check.spread(&format!("{field}.decode_note"), &scan.decode_note);
            check.spread(&format!("{field}.prefill_note"), &scan.prefill_note);
        }
    }

    fn check_links(&self, check: &mut Figures) {
        let c = &self.collective;
        for (field, ring) in [
            ("collective.all_gather", &c.all_gather),
            ("collective.reduce_scatter", &c.reduce_scatter),
            ("collective.all_reduce", &c.all_reduce),
            ("collective.all_to_all", &c.all_to_all),
            ("collective.symmetric", &c.symmetric),
        ] {
            check.times(
                field,
                &[
                    ("base_us", ring.base_us),
                    ("rank_us", ring.rank_us),
                    ("ramp_us", ring.ramp_us),
                ],
            );
            for (at, link) in ring.link.iter().enumerate() {
                check.within(
                    &format!("{field}.link[{at}]"),
                    *link,
                    2.0,
                    "fraction of the link",
                );
            }
            if let Some(low) = &ring.low_latency {
                let field = format!("{field}.low_latency");
                check.times(
                    &field,
                    &[
                        ("base_us", low.base_us),
                        ("rank_us", low.rank_us),
                        ("ramp_us", low.ramp_us),
                    ],
                );
                check.fractions(&field, &[("link", low.link)]);
            }
            check.spread(&format!("{field}.note"), &ring.note);
        }
        let custom = &c.custom_all_reduce;
        check.fractions(
            "collective.custom_all_reduce",
            &[
                ("one_shot_link", custom.one_shot_link),
                ("two_shot_link", custom.two_shot_link),
            ],
        );
        check.times(
            "collective.custom_all_reduce",
            &[
                ("one_shot_us", custom.one_shot_us),
                ("two_shot_us", custom.two_shot_us),
                ("rank_us", custom.rank_us),
                ("two_shot_rank_us", custom.two_shot_rank_us()),
                ("eager_us", custom.eager_us),
            ],
        );
        let network = &c.network;
        check.times(
            "collective.network",
            &[
                ("hop_us", network.hop_us),
                ("graph_host_us", network.graph_host_us),
                ("pcie_us", network.pcie_us),
            ],
        );
        check.fractions(
            "collective.network",
            &[("network", network.network), ("pcie", network.pcie)],
        );
        let deepep = &self.deepep;
        for (field, a2a) in [
            ("deepep.low_latency_dispatch", &deepep.low_latency_dispatch),
            ("deepep.low_latency_combine", &deepep.low_latency_combine),
            ("deepep.normal_dispatch", &deepep.normal_dispatch),
            ("deepep.normal_combine", &deepep.normal_combine),
        ] {
            check.fractions(field, &[("link", a2a.link), ("network", a2a.network)]);
            check.times(
                field,
                &[
                    ("base_us", a2a.base_us),
                    ("node_us", a2a.node_us),
                    ("row_us", a2a.row_us),
                ],
            );
        }
    }
}

/// Collects figures that cannot be.
#[derive(Default)]
struct Figures {
    faults: Vec<Fault>,
}

impl Figures {
    fn fault(&mut self, field: String, message: String) {
        self.faults.push(Fault::field(field, message));
    }

    /// The entry of a class, or a fault that says that it is missing.
    fn has<'a, T>(&mut self, field: &str, entry: Option<&'a T>) -> Option<&'a T> {
        if entry.is_none() {
            self.fault(field.to_owned(), "is missing".to_owned());
        }
        entry
    }

    fn within(&mut self, field: &str, value: f64, most: f64, what: &str) {
        if !(value > 0.0 && value <= most) {
            let message = format!("is {value}; a {what} lies in (0, {most}]");
            self.fault(field.to_owned(), message);
        }
    }

    /// What the fit of any kernel has: shares of the two rooflines, times of its own, a source.
    fn kernel(
        &mut self,
        field: &str,
        [memory, compute]: [f64; 2],
        times: &[(&str, f64)],
        note: &Note,
    ) {
        self.fractions(field, &[("memory", memory), ("compute", compute)]);
        self.times(field, times);
        self.spread(&format!("{field}.note"), note);
    }

    fn experts(&mut self, field: &str, moe: &MoeFit) {
        self.kernel(
            field,
            [moe.memory, moe.compute],
            &[
                ("base_us", moe.base_us),
                ("pad_rows", moe.pad_rows),
                ("hidden_passes", moe.hidden_passes),
                ("intermediate_passes", moe.intermediate_passes),
                ("expert_us", moe.expert_us),
                ("local_expert_us", moe.local_expert_us),
                ("remote_passes", moe.remote_passes),
                ("remote_us", moe.remote_us),
            ],
            &moe.note,
        );
    }

    fn fractions(&mut self, field: &str, values: &[(&str, f64)]) {
        for (name, value) in values {
            self.within(
                &format!("{field}.{name}"),
                *value,
                1.0,
                "fraction of the roofline",
            );
        }
    }

    fn times(&mut self, field: &str, values: &[(&str, f64)]) {
        for (name, value) in values {
            if !(*value >= 0.0 && *value < 1e6) {
                let message = format!("is {value}; it must be at least 0 and below 1e6");
                self.fault(format!("{field}.{name}"), message);
            }
        }
    }

    fn spread(&mut self, field: &str, note: &Note) {
        if !(note.sigma > 0.0 && note.sigma < 3.0) {
            let message = format!("is {}; a spread lies in (0, 3)", note.sigma);
            self.fault(format!("{field}.sigma"), message);
        }
        if note.source.is_empty() {
            self.fault(
                format!("{field}.source"),
                "is empty; it names what was measured".to_owned(),
            );
        }
    }
}
