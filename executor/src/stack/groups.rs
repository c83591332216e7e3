//! The groups of ranks that a stack communicates in.

use std::rc::Rc;

use super::compute::Compute;
use super::spec::{ExpertPath, StackSpec};
use crate::attention;
use crate::gather::{DpExchange, DpLayout};
use crate::{Communicator, DType, ReduceOp, Result, View};

/// One rank's communicators. A group of one rank has none.
pub struct Groups {
    /// All ranks, where nothing is gathered over DP ranks.
    tp: Option<Box<dyn Communicator>>,
    /// The gather over DP ranks, which owns the group of all ranks then.
    exchange: Option<DpExchange>,
    attn_tp: Option<Box<dyn Communicator>>,
    dcp: Option<Box<dyn Communicator>>,
    /// Memory of the DCP group's ranks, where they map it from each other.
    peers: Option<Rc<dyn attention::Peers>>,
}

impl Groups {
    /// Splits the groups off `world`, which has all ranks at hand. Collective.
    ///
    /// # Errors
    /// Errors of the communicator.
    pub fn new(
        device: &dyn Compute,
        spec: &StackSpec,
        mut world: Box<dyn Communicator>,
    ) -> Result<Self> {
        let (rank, here) = (world.rank(), &spec.here);
        let key = rank as u32;
        let mut part = |size: usize| -> Result<Option<Box<dyn Communicator>>> {
            if size == 1 {
                return Ok(None);
            }
            world.split(Some((rank / size) as u32), key)
        };
        let attn_tp = part(here.attn_tp())?;
        let dcp = part(here.dcp)?;
        let (tp, exchange) = if spec.shard_of.attn_dp > 1 {
            let layout = DpLayout::new(here.tp, here.attn_dp)?;
            // Attention outputs are partial sums wherever attention TP splits heads.
            let partial = spec.shard_of.attn_tp() > 1;
            let row = spec.hidden * 2;
            let exchange = DpExchange::new(device, world, layout, row, partial)?;
            (None, Some(exchange))
        } else {
            (Some(world), None)
        };
        Ok(Groups {
            tp,
            exchange,
            attn_tp,
            dcp,
            peers: None,
        })
    }

    /// The gather over DP ranks, where the layout has them.
    pub fn exchange(&mut self) -> Option<&mut DpExchange> {
        self.exchange.as_mut()
    }

    /// The ranks that share a request's cache, where there are several.
    pub fn dcp(&mut self) -> Option<attention::Group<'_>> {
        let comm = self.dcp.as_mut()?.as_mut();
        Some(attention::Group {
            comm,
            peers: self.peers.as_deref(),
        })
    }

    /// Lets the ranks that share a cache exchange over memory that they map from each
    /// other, see [`DcpMerge::Peer`](super::DcpMerge::Peer). Before anything is captured.
    pub fn share_memory(&mut self, peers: Rc<dyn attention::Peers>) {
        self.peers = Some(peers);
    }

    /// The ranks that split a request's heads, where there are several.
    pub fn attn_tp(&mut self) -> Option<&mut Box<dyn Communicator>> {
        self.attn_tp.as_mut()
    }

    /// All ranks.
    pub fn tp(&mut self) -> Option<&mut dyn Communicator> {
        match (&mut self.tp, &mut self.exchange) {
            (Some(tp), _) => Some(tp.as_mut()),
            (None, Some(exchange)) => Some(exchange.tp()),
            (None, None) => None,
        }
    }

    /// Sums bf16 over all ranks, or over the attention-TP group.
    ///
    /// # Errors
    /// Errors of the communicator.
    pub fn sum(&mut self, values: &View, over: Over) -> Result<()> {
        let group = match over {
            Over::Tp => self.tp(),
            Over::AttentionTp => self
                .attn_tp
                .as_mut()
                .map(|g| g.as_mut() as &mut dyn Communicator),
        };
        match group {
            Some(group) if group.size() > 1 => {
                group.all_reduce(values, values, DType::Bf16, ReduceOp::Sum)
            }
            _ => Ok(()),
        }
    }

    /// Waits for everything enqueued in all groups.
    ///
    /// # Errors
    /// Errors of the communicators that came late.
    pub fn wait(&mut self) -> Result<()> {
        if let Some(tp) = self.tp() {
            tp.wait()?;
        }
        for group in [&mut self.attn_tp, &mut self.dcp].into_iter().flatten() {
            group.wait()?;
        }
        Ok(())
    }
}

/// A group to sum over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// All ranks.
    Tp,
    /// The ranks that split a request's heads.
    AttentionTp,
}

/// How a block's rows come together and its results apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Every rank of a group has all rows: sums before and after.
    Reduce(Over),
    /// Rows of all DP ranks are gathered, and scattered after.
    Gather,
    /// Rows go to their experts' ranks.
    AllToAll,
}

impl Path {
    /// The path of a block in this specification.
    #[must_use]
    pub fn of(spec: &StackSpec, dense: bool) -> Path {
        if dense && spec.dense_on_attn_tp {
            Path::Reduce(Over::AttentionTp)
        } else if !dense && spec.experts == ExpertPath::AllToAll {
            Path::AllToAll
        } else if spec.shard_of.attn_dp > 1 {
            Path::Gather
        } else {
            Path::Reduce(Over::Tp)
        }
    }
}
