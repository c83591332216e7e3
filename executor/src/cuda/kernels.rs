//! parplan's own kernels on one GPU.

use std::collections::BTreeMap;

use cudarc::driver::{CudaFunction, CudaModule, DeviceRepr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use parplan_kernels::launch::{MODULES, PEER, PLACE_ROWS, ROWS, SCALE_BF16, TAKE_ROWS};
use parplan_kernels::peer::{Operation, PeerArgs};

use super::{Gpu, Inside, cuda};
use crate::{Error, Result};

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A device address.
    Address(u64),
    /// A 64-bit count.
    U64(u64),
    /// A single.
    F32(f32),
    /// The fixed part of a peer collective.
    Peer(PeerArgs),
}

/// `PeerArgs` as a kernel argument.
#[repr(transparent)]
struct PeerRepr(PeerArgs);

// SAFETY: `PeerArgs` is repr(C), plain data, and mirrors the struct in peer.cu.
unsafe impl DeviceRepr for PeerRepr {}

/// The loaded kernels, by name.
pub struct Kernels(BTreeMap<&'static str, CudaFunction>);

impl Kernels {
    pub(super) fn load(gpu: &Gpu) -> Result<Self> {
        let (major, minor) = gpu.compute_capability()?;
        let mut functions = BTreeMap::new();
        for module in MODULES {
            let ptx = module.ptx(major, minor).ok_or_else(|| {
                Error::Unusable(format!(
                    "GPU {} has compute capability {major}.{minor}, 8.0 or newer is needed",
                    gpu.ordinal()
                ))
            })?;
            let loaded = cuda(
                || format!("loading the kernels of '{}'", module.name),
                gpu.context().load_module(Ptx::from_src(ptx)),
            )?;
            let names: Vec<&'static str> = match module {
                ROWS => vec![PLACE_ROWS, TAKE_ROWS, SCALE_BF16],
                PEER => Operation::ALL.iter().map(|o| o.kernel()).collect(),
                _ => Vec::new(),
            };
            for name in names {
                functions.insert(name, function(&loaded, name)?);
            }
        }
        Ok(Kernels(functions))
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The arguments must fit the kernel's signature, and every address must be live
    /// device memory as large as the kernel's description says, until the work is done.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub unsafe fn launch(
        &self,
        gpu: &Gpu,
        name: &'static str,
        blocks: u32,
        threads: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        let function = self.0.get(name).ok_or_else(|| Error::Arguments {
            op: "launch",
            why: format!("no kernel '{name}'"),
        })?;
        // Launch arguments are taken by reference, so they need a place of their own.
        enum Slot {
            U64(u64),
            F32(f32),
            Peer(PeerRepr),
        }
        let slots: Vec<Slot> = arguments
            .iter()
            .map(|a| match a {
                Argument::Address(v) | Argument::U64(v) => Slot::U64(*v),
                Argument::F32(v) => Slot::F32(*v),
                Argument::Peer(v) => Slot::Peer(PeerRepr(*v)),
            })
            .collect();
        let mut builder = gpu.stream().launch_builder(function);
        for slot in &slots {
            match slot {
                Slot::U64(v) => builder.arg(v),
                Slot::F32(v) => builder.arg(v),
                Slot::Peer(v) => builder.arg(v),
            };
        }
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: 0,
        };
        let _inside = Inside::enter();
        // SAFETY: the caller promises that the arguments fit.
        cuda(
            || format!("launching {name}"),
            unsafe { builder.launch(config) }.map(drop),
        )
    }
}

fn function(module: &std::sync::Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    cuda(
        || format!("finding the kernel {name}"),
        module.load_function(name),
    )
}
