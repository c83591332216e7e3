//! `cublasLt.h` as far as it is used: types, constants, and the table of symbols. Names
//! and values: cuBLAS 12.0 to 13.2.

use std::ffi::{c_char, c_int, c_void};

/// `cublasStatus_t`, open: a newer library may return values that are not named here.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub c_int);

/// `CUBLAS_STATUS_SUCCESS`
pub const SUCCESS: Status = Status(0);
/// `CUBLAS_STATUS_NOT_SUPPORTED`
pub const NOT_SUPPORTED: Status = Status(15);

/// `cublasLtHandle_t`
pub type Handle = *mut c_void;
/// `cublasLtMatmulDesc_t`
pub type Desc = *mut c_void;
/// `cublasLtMatrixLayout_t`
pub type Layout = *mut c_void;
/// `cublasLtMatmulPreference_t`
pub type Preference = *mut c_void;

/// `CUBLAS_COMPUTE_32F`
pub const COMPUTE_32F: c_int = 68;
/// `CUDA_R_32F`
pub const R_32F: c_int = 0;
/// `CUDA_R_16BF`
pub const R_16BF: c_int = 14;
/// `CUDA_R_8F_E4M3`
pub const R_8F_E4M3: c_int = 28;
/// `CUBLAS_OP_T`
pub const OP_T: i32 = 1;
/// `CUBLASLT_MATMUL_DESC_TRANSA`
pub const DESC_TRANSA: c_int = 3;
/// `CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT`
pub const LAYOUT_BATCH_COUNT: c_int = 5;
/// `CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET`
pub const LAYOUT_BATCH_OFFSET: c_int = 6;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`
pub const PREF_WORKSPACE: c_int = 1;

/// `cublasLtMatmulAlgo_t`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Algo(pub [u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Heuristic {
    /// What to run.
    pub algo: Algo,
    /// Bytes of workspace that it needs.
    pub workspace: usize,
    /// Whether it may be run.
    pub state: Status,
    /// How full the last wave of blocks is.
    pub waves: f32,
    /// Unused.
    pub reserved: [c_int; 4],
}

macro_rules! symbols {
    ($($name:ident = $symbol:literal: fn($($arg:ty),*) -> $ret:ty;)*) => {
        /// The symbols of a loaded library.
        #[allow(missing_docs)] // each field is documented by cublasLt.h under its symbol
        pub struct Symbols {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> $ret,)*
        }

        impl Symbols {
            /// Names of the symbols, all of which are needed.
            pub const NAMES: &'static [&'static str] = &[$($symbol),*];

            /// Looks all symbols up; the error lists every one that is missing.
            ///
            /// # Safety
            /// The library must be cuBLASLt, whose functions have the declared signatures.
            ///
            /// # Errors
            /// The names of the symbols that are missing.
            pub unsafe fn load(library: &libloading::Library) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    // SAFETY: the caller vouches for the signature.
                    let $name = unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> $ret>($symbol.as_bytes()) };
                    if $name.is_err() {
                        missing.push($symbol);
                    }
                )*
                match ($($name,)*) {
                    ($(Ok($name),)*) => Ok(Symbols { $($name: *$name,)* }),
                    _ => Err(missing),
                }
            }
        }
    };
}

symbols! {
    get_version = "cublasLtGetVersion": fn() -> usize;
    status_string = "cublasLtGetStatusString": fn(Status) -> *const c_char;
    create = "cublasLtCreate": fn(*mut Handle) -> Status;
    destroy = "cublasLtDestroy": fn(Handle) -> Status;
    desc_create = "cublasLtMatmulDescCreate": fn(*mut Desc, c_int, c_int) -> Status;
    desc_destroy = "cublasLtMatmulDescDestroy": fn(Desc) -> Status;
    desc_set = "cublasLtMatmulDescSetAttribute": fn(Desc, c_int, *const c_void, usize) -> Status;
    layout_create = "cublasLtMatrixLayoutCreate": fn(*mut Layout, c_int, u64, u64, i64) -> Status;
    layout_destroy = "cublasLtMatrixLayoutDestroy": fn(Layout) -> Status;
    layout_set = "cublasLtMatrixLayoutSetAttribute": fn(Layout, c_int, *const c_void, usize) -> Status;
    preference_create = "cublasLtMatmulPreferenceCreate": fn(*mut Preference) -> Status;
    preference_destroy = "cublasLtMatmulPreferenceDestroy": fn(Preference) -> Status;
    preference_set = "cublasLtMatmulPreferenceSetAttribute": fn(Preference, c_int, *const c_void, usize) -> Status;
    heuristic = "cublasLtMatmulAlgoGetHeuristic": fn(Handle, Desc, Layout, Layout, Layout, Layout, Preference, c_int, *mut Heuristic, *mut c_int) -> Status;
    matmul = "cublasLtMatmul": fn(Handle, Desc, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void, *const c_void, Layout, *mut c_void, Layout, *const Algo, *mut c_void, usize, *mut c_void) -> Status;
}
