//! Expert dispatch and combine between ranks (DeepEP and its like).

use super::resolve::OpCosts;
use super::terms::A2aTerm;

/// Which kernels exchange the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertMode {
    /// Fixed-capacity kernels for decode: every row goes to its expert by itself.
    LowLatency,
    /// Kernels for prefill: a token goes once to each rank, and once to each node, that needs it.
    Normal,
}

/// One exchange of an expert layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertExchange {
    /// Which kernels.
    pub mode: ExpertMode,
    /// Tokens that a rank sends.
    pub tokens: f64,
    /// Routed experts a token visits.
    pub top_k: f64,
    /// Width of a row.
    pub hidden: f64,
    /// Bytes an element of a row takes on the wire: 1 + 4/128 for fp8 dispatch, 2 for bf16.
    pub element_bytes: f64,
    /// Ranks of the group.
    pub ranks: f64,
    /// Ranks that share an NVLink domain.
    pub ranks_per_domain: f64,
    /// Rows of the busiest rank over the mean; 1 is balanced.
    pub imbalance: f64,
}

/// Expected distinct places among `places` that `draws` uniform draws hit.
#[inline]
fn distinct(places: f64, draws: f64) -> f64 {
    if places <= 1.0 {
        return 1.0;
    }
    places * (1.0 - (draws * (1.0 - 1.0 / places).ln()).exp())
}

impl ExpertExchange {
    /// Rows a rank sends: over NVLink in all, and of these over the network first.
    #[inline]
    fn rows(&self) -> (f64, f64) {
        let domains = (self.ranks / self.ranks_per_domain.max(1.0)).max(1.0);
        let remote = (domains - 1.0) / domains;
        let busiest = self.tokens * self.imbalance.max(1.0);
        match self.mode {
            ExpertMode::LowLatency => {
                let rows = busiest * self.top_k;
                let away = (self.ranks - 1.0) / self.ranks.max(1.0);
                (rows * (away - remote).max(0.0), rows * remote)
            }
            ExpertMode::Normal => {
                let ranks = busiest * distinct(self.ranks, self.top_k);
                let nodes = busiest * distinct(domains, self.top_k);
                (
                    ranks * (self.ranks - 1.0) / self.ranks.max(1.0),
                    nodes * remote,
                )
            }
        }
    }

    fn row_bytes(&self) -> f64 {
        self.hidden * self.element_bytes
    }
}

impl A2aTerm {
    /// `base + node · (nodes − 1) + rows · row + NVLink bytes / link + network bytes / network`.
    #[inline]
    fn time(&self, x: &ExpertExchange) -> f64 {
        let (link, network) = x.rows();
        let domains = (x.ranks / x.ranks_per_domain.max(1.0)).max(1.0);
        self.base_us
            + self.node_us * (domains - 1.0).sqrt()
            + x.tokens * x.top_k * self.us_per_row
            + x.row_bytes() * (link * self.us_per_byte_link + network * self.us_per_byte_network)
    }
}

impl OpCosts<'_> {
    /// Tokens to the ranks of their experts, µs.
    #[inline]
    pub fn expert_dispatch(&self, x: &ExpertExchange) -> f64 {
        if x.ranks <= 1.0 || x.tokens <= 0.0 {
            return 0.0;
        }
        match x.mode {
            ExpertMode::LowLatency => self.low_latency[0].time(x),
            ExpertMode::Normal => self.normal[0].time(x),
        }
    }

    /// Expert outputs back to the ranks of their tokens, weighted and summed there, µs.
    #[inline]
    pub fn expert_combine(&self, x: &ExpertExchange) -> f64 {
        if x.ranks <= 1.0 || x.tokens <= 0.0 {
            return 0.0;
        }
        match x.mode {
            ExpertMode::LowLatency => self.low_latency[1].time(x),
            ExpertMode::Normal => self.normal[1].time(x),
        }
    }

    /// The roofline of one exchange, µs: its bytes over each link, the longer.
    pub fn expert_exchange_roofline(&self, x: &ExpertExchange) -> f64 {
        if x.ranks <= 1.0 {
            return 0.0;
        }
        let (link, network) = x.rows();
        (x.row_bytes() * link * self.us_per_byte_link)
            .max(x.row_bytes() * network * self.network.us_per_byte_network_peak)
    }
}
