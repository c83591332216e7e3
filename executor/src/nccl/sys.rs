//! `nccl.h` as far as it is used: types, constants, and the table of symbols.
//! Names and values: NCCL 2.18 to 2.30, `src/nccl.h.in`.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `ncclResult_t`, open: a newer library may return values that are not named here.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultCode(pub c_int);

/// `ncclSuccess`
pub const SUCCESS: ResultCode = ResultCode(0);
/// `ncclInProgress`
pub const IN_PROGRESS: ResultCode = ResultCode(7);

/// `ncclComm_t`
pub type Comm = *mut c_void;
/// `ncclWindow_t`
pub type Window = *mut c_void;
/// `cudaStream_t`
pub type Stream = *mut c_void;

/// `ncclUniqueId`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId(pub [c_char; 128]);

/// `NCCL_SPLIT_NOCOLOR`
pub const NO_COLOR: c_int = -1;
/// `NCCL_WIN_COLL_SYMMETRIC`
pub const WIN_COLL_SYMMETRIC: c_int = 1;
/// Windows and `ncclMemAlloc` are aligned to this many bytes.
pub const WINDOW_ALIGNMENT: usize = 4096;

/// `ncclConfig_t` of NCCL 2.18, the oldest accepted; newer libraries read `size` and
/// take their defaults for the rest.
#[repr(C)]
#[derive(Debug)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// `NCCL_CONFIG_INITIALIZER` of 2.18: everything left to the library.
    #[must_use]
    pub fn new() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21801,
            blocking: UNDEFINED,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// `ncclDataType_t` and `ncclRedOp_t` are plain integers at the call boundary.
pub type DataType = c_int;
/// See [`DataType`].
pub type RedOp = c_int;

/// Declares the table: required symbols are plain, optional ones `Option`s.
macro_rules! symbols {
    (
        required { $($name:ident = $symbol:literal: fn($($arg:ty),*) -> $ret:ty;)* }
        optional { $($oname:ident = $osymbol:literal: fn($($oarg:ty),*) -> $oret:ty;)* }
    ) => {
        /// The symbols of a loaded library.
        #[allow(missing_docs)] // each field is documented by nccl.h under its symbol
        pub struct Symbols {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> $ret,)*
            $(pub $oname: Option<unsafe extern "C" fn($($oarg),*) -> $oret>,)*
        }

        impl Symbols {
            /// Names of the symbols without which parplan cannot work.
            pub const REQUIRED: &'static [&'static str] = &[$($symbol),*];

            /// Looks all symbols up; the error lists every required one that is missing.
            ///
            /// # Safety
            /// The library must be NCCL, whose functions have the declared signatures.
            ///
            /// # Errors
            /// The names of the required symbols that are missing.
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
                    ($(Ok($name),)*) => Ok(Symbols {
                        $($name: *$name,)*
                        $(
                            // SAFETY: the caller vouches for the signature.
                            $oname: unsafe { library.get::<unsafe extern "C" fn($($oarg),*) -> $oret>($osymbol.as_bytes()) }
                                .ok()
                                .map(|s| *s),
                        )*
                    }),
                    _ => Err(missing),
                }
            }
        }
    };
}

symbols! {
    required {
        get_version = "ncclGetVersion": fn(*mut c_int) -> ResultCode;
        get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> ResultCode;
        comm_init_rank_config = "ncclCommInitRankConfig": fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> ResultCode;
        comm_destroy = "ncclCommDestroy": fn(Comm) -> ResultCode;
        comm_abort = "ncclCommAbort": fn(Comm) -> ResultCode;
        comm_get_async_error = "ncclCommGetAsyncError": fn(Comm, *mut ResultCode) -> ResultCode;
        comm_split = "ncclCommSplit": fn(Comm, c_int, c_int, *mut Comm, *mut Config) -> ResultCode;
        get_error_string = "ncclGetErrorString": fn(ResultCode) -> *const c_char;
        get_last_error = "ncclGetLastError": fn(Comm) -> *const c_char;
        all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, DataType, Comm, Stream) -> ResultCode;
        all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, DataType, RedOp, Comm, Stream) -> ResultCode;
        reduce_scatter = "ncclReduceScatter": fn(*const c_void, *mut c_void, usize, DataType, RedOp, Comm, Stream) -> ResultCode;
        broadcast = "ncclBroadcast": fn(*const c_void, *mut c_void, usize, DataType, c_int, Comm, Stream) -> ResultCode;
        send = "ncclSend": fn(*const c_void, usize, DataType, c_int, Comm, Stream) -> ResultCode;
        recv = "ncclRecv": fn(*mut c_void, usize, DataType, c_int, Comm, Stream) -> ResultCode;
        group_start = "ncclGroupStart": fn() -> ResultCode;
        group_end = "ncclGroupEnd": fn() -> ResultCode;
    }
    optional {
        mem_alloc = "ncclMemAlloc": fn(*mut *mut c_void, usize) -> ResultCode;
        comm_register = "ncclCommRegister": fn(Comm, *mut c_void, usize, *mut *mut c_void) -> ResultCode;
        comm_deregister = "ncclCommDeregister": fn(Comm, *mut c_void) -> ResultCode;
        comm_window_register = "ncclCommWindowRegister": fn(Comm, *mut c_void, usize, *mut Window, c_int) -> ResultCode;
        comm_window_deregister = "ncclCommWindowDeregister": fn(Comm, Window) -> ResultCode;
        all_to_all = "ncclAlltoAll": fn(*const c_void, *mut c_void, usize, DataType, Comm, Stream) -> ResultCode;
    }
}
