//! parplan's own kernels on one GPU.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaFunction, CudaModule, sys};
use cudarc::nvrtc::Ptx;
use parplan_kernels::attention::{AttentionArgs, BulkArgs, LineArgs, MergeArgs};
use parplan_kernels::launch::MODULES;
use parplan_kernels::layer::{CacheArgs, GroupedArgs};
use parplan_kernels::peer::PeerArgs;

use super::{Gpu, Inside, cuda};
use crate::{Error, Result};

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A device address.
    Address(u64),
    /// A 64-bit count.
    U64(u64),
    /// A 32-bit count.
    U32(u32),
    /// A single.
    F32(f32),
    /// The fixed part of a peer collective.
    Peer(PeerArgs),
    /// The arguments of an attention.
    Attention(AttentionArgs),
    /// The arguments of a merge over ranks.
    Merge(MergeArgs),
    /// The fixed part of an exchange by plain stores.
    Bulk(BulkArgs),
    /// The fixed part of an exchange by lines.
    Lines(LineArgs),
    /// The cache that a rotary kernel writes.
    Cache(CacheArgs),
    /// The arguments of a grouped product.
    Grouped(GroupedArgs),
}

impl Argument {
    /// Where its value lies, for the driver to copy from.
    fn place(&self) -> *mut c_void {
        match self {
            Argument::Address(v) | Argument::U64(v) => ptr::from_ref(v).cast(),
            Argument::U32(v) => ptr::from_ref(v).cast(),
            Argument::F32(v) => ptr::from_ref(v).cast::<c_void>(),
            Argument::Peer(v) => ptr::from_ref(v).cast(),
            Argument::Attention(v) => ptr::from_ref(v).cast(),
            Argument::Merge(v) => ptr::from_ref(v).cast(),
            Argument::Bulk(v) => ptr::from_ref(v).cast(),
            Argument::Lines(v) => ptr::from_ref(v).cast(),
            Argument::Cache(v) => ptr::from_ref(v).cast(),
            Argument::Grouped(v) => ptr::from_ref(v).cast(),
        }
        .cast_mut()
    }
}

/// Blocks, threads and memory of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks along x.
    pub x: u32,
    /// Blocks along y.
    pub y: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    /// Whether it may be launched while the kernel before it in the stream still ends:
    /// only kernels that wait for that by themselves (`after_previous` in their source).
    pub early: bool,
}

impl Grid {
    /// `blocks` of `threads`, without dynamic shared memory.
    #[must_use]
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Grid {
            x: blocks,
            y: 1,
            threads,
            shared: 0,
            early: false,
        }
    }

    /// The same, launched [`early`](Self::early).
    #[must_use]
    pub fn early(self) -> Self {
        Grid {
            early: true,
            ..self
        }
    }
}

/// A kernel that was loaded, and the most dynamic shared memory it may be given so far.
#[derive(Clone)]
struct Loaded {
    function: CudaFunction,
    shared: u32,
}

/// The kernels of one GPU, loaded on first use: the driver takes seconds to translate
/// the large modules, and most runs need only few.
pub struct Kernels {
    capability: (i32, i32),
    loaded: Mutex<BTreeMap<&'static str, Loaded>>,
    modules: Mutex<BTreeMap<&'static str, Arc<CudaModule>>>,
}

/// Dynamic shared memory that every kernel may be given without asking.
const SHARED_BY_DEFAULT: u32 = 48 * 1024;

impl Kernels {
    pub(super) fn new(gpu: &Gpu) -> Result<Self> {
        let capability = gpu.compute_capability()?;
        if capability.0 < 8 {
            return Err(Error::Unusable(format!(
                "GPU {} has compute capability {}.{}, 8.0 or newer is needed",
                gpu.ordinal(),
                capability.0,
                capability.1
            )));
        }
        Ok(Kernels {
            capability,
            loaded: Mutex::default(),
            modules: Mutex::default(),
        })
    }

    /// Loads a kernel and grants it `shared` bytes of dynamic shared memory, so that a
    /// launch of it can be captured: loading cannot.
    ///
    /// # Errors
    /// [`Error::Arguments`] for an unknown name, [`Error::Cuda`].
    pub fn prepare(&self, gpu: &Gpu, name: &'static str, shared: u32) -> Result<()> {
        self.function(gpu, name, shared).map(drop)
    }

    fn function(&self, gpu: &Gpu, name: &'static str, shared: u32) -> Result<CudaFunction> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = loaded.get(name)
            && shared <= known.shared
        {
            return Ok(known.function.clone());
        }
        let function = function(&self.module_of(gpu, name)?, name)?;
        if shared > SHARED_BY_DEFAULT {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            cuda(
                || format!("giving {name} {shared} bytes of shared memory"),
                function.set_attribute(attribute, shared as i32),
            )?;
        }
        let known = Loaded {
            function: function.clone(),
            shared: shared.max(SHARED_BY_DEFAULT),
        };
        loaded.insert(name, known);
        Ok(function)
    }

    fn module_of(&self, gpu: &Gpu, kernel: &'static str) -> Result<Arc<CudaModule>> {
        let module = MODULES
            .iter()
            .find(|m| m.has(kernel))
            .ok_or_else(|| Error::Arguments {
                op: "launch",
                why: format!("no kernel '{kernel}'"),
            })?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = modules.get(module.name) {
            return Ok(Arc::clone(known));
        }
        let (major, minor) = self.capability;
        let ptx = module.ptx(major, minor).ok_or_else(|| {
            Error::Unusable(format!(
                "no kernels for compute capability {major}.{minor}, 8.0 or newer is needed"
            ))
        })?;
        let loaded = cuda(
            || format!("loading the kernels of '{}'", module.name),
            gpu.context().load_module(Ptx::from_src(ptx)),
        )?;
        modules.insert(module.name, Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The arguments must fit the kernel's signature, and every address must be live
    /// device memory as large as the kernel's description says, until the work is done. A
    /// grid that is `early` needs a kernel that waits for the one before by itself.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub unsafe fn launch(
        &self,
        gpu: &Gpu,
        name: &'static str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        let function = self.function(gpu, name, grid.shared)?;
        let mut places: Vec<*mut c_void> = arguments.iter().map(Argument::place).collect();
        // Only in the code for 9.0 do kernels wait for the one before by themselves.
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let attributes = u32::from(grid.early && self.capability == (9, 0));
        let config = sys::CUlaunchConfig {
            gridDimX: grid.x,
            gridDimY: grid.y,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: gpu.stream().cu_stream(),
            attrs: &raw mut early,
            numAttrs: attributes,
        };
        gpu.bind()?;
        let _inside = Inside::enter();
        // SAFETY: the caller promises that the arguments fit; their places, the attribute
        // and the function outlive the call, which copies them.
        let code = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                places.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        cuda(|| format!("launching {name}"), code.result())
    }
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    cuda(
        || format!("finding the kernel {name}"),
        module.load_function(name),
    )
}
