//! A loaded NCCL: version checked, results turned into errors.

use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::Blocks;
use super::locate::{FILE, Found, find};
use super::sys::{self, Comm, ResultCode, Symbols, UniqueId};
use crate::loading::{Version, first_that_loads};
use crate::{Error, Result};

/// The oldest NCCL accepted: communicator split and configuration as used here.
pub const MINIMUM: Version = Version(21_800);
/// Symmetric windows exist from here on.
pub const WINDOWS: Version = Version(22_700);
/// One registered side suffices for the bulk kernels from here on; see [`crate::symmetric::sides_needed`].
pub const ONE_SIDED: Version = Version(22_902);
/// From here on ranks may share a GPU, where the variable below asks for it.
pub const SHARED_GPUS: Version = Version(23_000);
/// NCCL's own variable for that.
pub const SHARE_GPUS: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// NCCL, loaded for the rest of the process's life.
pub struct Library {
    symbols: Symbols,
    version: Version,
    path: String,
    blocks: Mutex<Blocks>,
    // Last: dropped after the symbols that point into it.
    _library: libloading::Library,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NCCL {} ({})", self.version, self.path)
    }
}

impl Library {
    /// Loads NCCL from `given` (a file, its folder, or a Python environment), or else
    /// from the system's search path, or else from the Python environment in use.
    ///
    /// # Errors
    /// [`Error::Library`]: not found (and where it was looked for), too old, or the
    /// names of the symbols that it lacks.
    pub fn open(given: Option<&Path>) -> Result<Arc<Self>> {
        let names = find(given)?.into_iter().map(|found| match found {
            Found::File(path) => path.display().to_string(),
            Found::System => FILE.to_owned(),
        });
        let how = "install it (pip install nvidia-nccl-cu13) or name it with --nccl-path";
        // SAFETY: NCCL's initialisers only set up its own state.
        let (library, name) = unsafe { first_that_loads("NCCL", names, how) }?;
        Self::check(library, &name)
    }

    fn check(library: libloading::Library, name: &str) -> Result<Arc<Self>> {
        let fail = |why: String| Error::Library {
            library: name.to_owned(),
            why,
        };
        // SAFETY: the file is what the user or the system calls NCCL.
        let symbols = unsafe { Symbols::load(&library) }.map_err(|missing| {
            fail(format!(
                "it lacks {}; NCCL {MINIMUM} or newer has them",
                missing.join(", ")
            ))
        })?;
        let mut code = 0;
        // SAFETY: `code` outlives the call.
        if unsafe { (symbols.get_version)(&raw mut code) } != sys::SUCCESS {
            return Err(fail("ncclGetVersion fails".into()));
        }
        let Ok(version) = u32::try_from(code).map(Version) else {
            return Err(fail(format!("ncclGetVersion says {code}")));
        };
        if version < MINIMUM {
            return Err(fail(format!(
                "it is NCCL {version}, {MINIMUM} or newer is needed"
            )));
        }
        Ok(Arc::new(Library {
            symbols,
            version,
            path: name.to_owned(),
            blocks: Mutex::default(),
            _library: library,
        }))
    }

    /// Whether `NCCL_MULTI_RANK_GPU_ENABLE=1` asks for ranks that share a GPU.
    #[must_use]
    pub fn asked_to_share_gpus() -> bool {
        std::env::var(SHARE_GPUS).is_ok_and(|v| v.trim() == "1")
    }

    /// Whether this NCCL knows of ranks that share a GPU.
    #[must_use]
    pub fn can_share_gpus(&self) -> bool {
        self.version >= SHARED_GPUS
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The file or name that it was loaded from.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The symbols, for the safe layer.
    pub(crate) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Turns a result into an error with NCCL's own words. `comm` may be null.
    pub(crate) fn check_result(&self, call: &str, code: ResultCode, comm: Comm) -> Result<()> {
        if code == sys::SUCCESS || code == sys::IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both return static or thread-local C strings, or null.
        let texts = unsafe {
            [
                (self.symbols.get_error_string)(code),
                (self.symbols.get_last_error)(comm),
            ]
        };
        let words: Vec<String> = texts
            .into_iter()
            .filter(|t| !t.is_null())
            .map(|t| {
                // SAFETY: not null, and NCCL's until the next call on this thread.
                let text = unsafe { CStr::from_ptr(t) };
                text.to_string_lossy().trim().to_owned()
            })
            .filter(|t| !t.is_empty())
            .collect();
        Err(Error::Nccl {
            call: call.to_owned(),
            why: format!("{} (code {})", words.join("; "), code.0),
        })
    }

    /// A fresh id, which rank 0 makes and all ranks need.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn unique_id(&self) -> Result<[u8; 128]> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: `id` outlives the call.
        let code = unsafe { (self.symbols.get_unique_id)(&raw mut id) };
        self.check_result("ncclGetUniqueId", code, std::ptr::null_mut())?;
        Ok(id.0.map(|b| b as u8))
    }

    /// The symbol of a feature that older libraries lack.
    pub(crate) fn optional<F: Copy>(
        &self,
        symbol: Option<F>,
        name: &str,
        since: Version,
    ) -> Result<F> {
        symbol.ok_or_else(|| Error::Library {
            library: self.path.clone(),
            why: format!("NCCL {} has no {name}; {since} or newer has", self.version),
        })
    }

    /// Device memory that windows can be made of, on the current GPU. `Ok(None)` when
    /// there is not enough. A process has one GPU, see [`Blocks`].
    pub(crate) fn mem_alloc(&self, bytes: usize) -> Result<Option<u64>> {
        if let Some(address) = self.blocks().take(bytes) {
            return Ok(Some(address));
        }
        let alloc = self.optional(self.symbols.mem_alloc, "ncclMemAlloc", Version(21_903))?;
        let mut pointer: *mut c_void = std::ptr::null_mut();
        // SAFETY: `pointer` outlives the call.
        let code = unsafe { alloc(&raw mut pointer, bytes) };
        const UNHANDLED_CUDA_ERROR: ResultCode = ResultCode(1);
        if code == UNHANDLED_CUDA_ERROR {
            return Ok(None);
        }
        self.check_result("ncclMemAlloc", code, std::ptr::null_mut())?;
        self.blocks().made(pointer as u64, bytes);
        Ok(Some(pointer as u64))
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        // Nothing in there is left half done by a panic.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl crate::cuda::Freer for Library {
    fn free(&self, address: u64) {
        self.blocks().give(address);
    }
}

/// `ncclDataType_t` of an element type.
pub(crate) fn data_type(dtype: crate::DType) -> c_int {
    use crate::DType;
    match dtype {
        DType::U8 => 1,
        DType::I32 => 2,
        DType::I64 => 4,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::Bf16 => 9,
    }
}

/// `ncclRedOp_t` of a reduction.
pub(crate) fn red_op(op: crate::ReduceOp) -> c_int {
    match op {
        crate::ReduceOp::Sum => 0,
        crate::ReduceOp::Max => 2,
        crate::ReduceOp::Min => 3,
    }
}
