//! What a run of attention found.

use serde::{Deserialize, Serialize};

use super::{AttentionJob, ExchangeSample, Way};
use crate::attention::{Kind, KvType, Shape};
use crate::bench::{Launch, Stats};
use crate::symmetric::Registration;

/// What of an attention was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionPart {
    /// Gather, attention, merge.
    Whole,
    /// The queries of all ranks.
    Gather,
    /// Attention to this rank's KV.
    Attend,
    /// The outputs of all ranks.
    Merge,
}

impl AttentionPart {
    /// What is timed with that many ranks.
    pub(super) fn of(ranks: usize) -> Vec<Self> {
        match ranks {
            1 => vec![AttentionPart::Whole],
            _ => vec![
                AttentionPart::Whole,
                AttentionPart::Gather,
                AttentionPart::Attend,
                AttentionPart::Merge,
            ],
        }
    }

    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            AttentionPart::Whole => "whole",
            AttentionPart::Gather => "gather",
            AttentionPart::Attend => "attend",
            AttentionPart::Merge => "merge",
        }
    }

    fn reads_kv(self) -> bool {
        matches!(self, AttentionPart::Whole | AttentionPart::Attend)
    }
}

/// One measured point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttentionSample {
    /// Way of sharing; `None` with one rank.
    pub way: Option<Way>,
    /// Part.
    pub part: AttentionPart,
    /// Launch mode.
    pub launch: Launch,
    /// Registration of what the communicator sees.
    pub registration: Registration,
    /// Times, averaged over the ranks.
    pub time: Stats,
    /// Bytes of KV that rank 0 reads, GB/s (10⁹); for the whole and the attention alone.
    pub read_gb_s: Option<f64>,
    /// That over the ceiling of the same run.
    pub of_ceiling: Option<f64>,
    /// Products of rank 0, TFLOP/s; masked pairs are not counted.
    pub tflop_s: Option<f64>,
    /// Kernels in the captured graph.
    pub kernels: Vec<String>,
    /// ‖out − reference‖ / ‖reference‖ over the rows that were compared, the worst rank's.
    pub relative_error: Option<f64>,
}

/// What a run of attention found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttentionResult {
    /// GPU name, or "cpu".
    pub device: String,
    /// Library and version, or "-".
    pub library: String,
    /// Ranks that share the KV.
    pub ranks: usize,
    /// Shape, with the query heads of all ranks.
    pub shape: Shape,
    /// Requests.
    pub requests: usize,
    /// Attention kernel.
    pub kernel: String,
    /// Bytes of KV that rank 0 reads in one attention.
    pub kv_bytes: u64,
    /// GB/s of a plain streaming read in this run, on GPUs.
    pub read_ceiling_gb_s: Option<f64>,
    /// Points.
    pub samples: Vec<AttentionSample>,
    /// Gathers and merges by turns, where they were asked for.
    #[serde(default)]
    pub exchanges: Vec<ExchangeSample>,
    /// What was left out or changed, and why.
    pub notes: Vec<String>,
}

impl Default for AttentionResult {
    fn default() -> Self {
        AttentionResult {
            device: String::new(),
            library: String::new(),
            ranks: 0,
            shape: Shape::new(Kind::Mla { heads: 0 }, KvType::Bf16, 0),
            requests: 0,
            kernel: String::new(),
            kv_bytes: 0,
            read_ceiling_gb_s: None,
            samples: Vec::new(),
            exchanges: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl AttentionResult {
    /// Adds a note that is not there yet.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    #[allow(clippy::too_many_arguments)] // a sample is these things
    pub(super) fn add(
        &mut self,
        job: &AttentionJob,
        way: Way,
        registration: Registration,
        launch: Launch,
        part: AttentionPart,
        time: Stats,
        kernels: Vec<String>,
        relative_error: Option<f64>,
    ) {
        let reads = part.reads_kv();
        let read_gb_s = reads.then(|| self.kv_bytes as f64 / time.median_us / 1e3);
        // Every query token sees the KV up to itself, shared evenly by the ranks.
        let pairs: f64 = job
            .requests
            .iter()
            .map(|&(kv, queries)| {
                let (kv, queries) = (kv as f64, queries as f64);
                queries * kv - queries * (queries - 1.0) / 2.0
            })
            .sum();
        let flops = pairs * job.shape.pair_flops() / self.ranks as f64;
        self.samples.push(AttentionSample {
            way: (self.ranks > 1).then_some(way),
            part,
            launch,
            registration,
            time,
            read_gb_s,
            of_ceiling: read_gb_s.zip(self.read_ceiling_gb_s).map(|(r, c)| r / c),
            tflop_s: reads.then(|| flops / time.median_us / 1e6),
            kernels,
            relative_error,
        });
    }
}
