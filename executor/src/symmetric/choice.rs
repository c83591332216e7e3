//! Which sides of a collective must be registered for NCCL's symmetric kernels.

use serde::{Deserialize, Serialize};

use crate::nccl::Version;

/// Buffers of a collective: which are, or must be, registered symmetrically.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// The send buffer.
    pub send: bool,
    /// The receive buffer.
    pub recv: bool,
}

impl Sides {
    /// Both buffers.
    pub const BOTH: Sides = Sides {
        send: true,
        recv: true,
    };

    /// Whether these are all that `needed` asks for.
    #[must_use]
    pub fn cover(self, needed: Sides) -> bool {
        (self.send || !needed.send) && (self.recv || !needed.recv)
    }
}

const NONE: Sides = Sides {
    send: false,
    recv: false,
};

/// Bytes of all ranks together up to which NCCL may take its low-latency symmetric kernels. It
/// changes to the bulk ones at about 160 KiB by a model of its own (`src/sym_kernels.cc`).
const LOW_LATENCY: usize = 256 << 10;

/// The rule of NCCL by version for a collective whose larger buffer has `bytes`: windows from 2.27
/// with both sides registered; from 2.29.2 the bulk kernels need the receive side only in an
/// all-gather and the send side only in a reduce-scatter, while the low-latency ones need both
/// (seen with 2.32.3, docs/executor.md). No symmetric kernels for all-to-all, broadcast and
/// all-gather-v. `None` when this NCCL has no symmetric kernel for the collective.
#[must_use]
pub fn sides_needed(version: Version, collective: &str, bytes: usize) -> Option<Sides> {
    if version < crate::nccl::WINDOWS {
        return None;
    }
    let one_sided = version >= crate::nccl::ONE_SIDED && bytes > LOW_LATENCY;
    match collective {
        "all_gather" if one_sided => Some(Sides { recv: true, ..NONE }),
        "reduce_scatter" if one_sided => Some(Sides { send: true, ..NONE }),
        "all_gather" | "reduce_scatter" | "all_reduce" => Some(Sides::BOTH),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_suffices_from_2_29_2_on() {
        let sides = |v, c| sides_needed(Version(v), c, 1 << 20);
        assert_eq!(sides(22_605, "all_gather"), None);
        assert_eq!(sides(22_703, "all_gather"), Some(Sides::BOTH));
        assert_eq!(sides(22_901, "reduce_scatter"), Some(Sides::BOTH));
        assert_eq!(
            sides(22_902, "all_gather"),
            Some(Sides {
                send: false,
                recv: true
            })
        );
        assert_eq!(
            sides(22_902, "reduce_scatter"),
            Some(Sides {
                send: true,
                recv: false
            })
        );
        assert_eq!(sides(23_007, "all_reduce"), Some(Sides::BOTH));
        assert_eq!(sides(23_007, "all_to_all"), None);
        let small = sides_needed(Version(23_203), "all_gather", 16 << 10);
        assert_eq!(small, Some(Sides::BOTH));
    }
}
