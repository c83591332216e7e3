//! An NCCL communicator as a [`Communicator`].

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::library::{Library, data_type, red_op};
use super::sys::{self, Comm, Config, UniqueId};
use super::windows::Windows;
use crate::comm::{CpuCommunicator, check};
use crate::cuda::{Gpu, Inside, Watch};
use crate::{Buffer, Communicator, DType, Deadline, Device, Error, ReduceOp, Result, View};

/// `ncclUint8`: gathers move bytes.
const BYTES: c_int = 1;

/// The raw handle, null once it was given up.
struct Handle(Comm);

// SAFETY: NCCL allows a communicator to be used by any one thread at a time; `Handle`
// is reached through `&mut` or moved.
unsafe impl Send for Handle {}

/// NCCL on one GPU, with the CPU communicator of the same ranks beside it as control
/// plane: it carries the id, agrees on windows, and notices dead ranks.
pub struct NcclCommunicator {
    handle: Handle,
    library: Arc<Library>,
    gpu: Arc<Gpu>,
    control: CpuCommunicator,
    scratch: Buffer,
    granted: Duration,
    windows: Windows,
}

impl NcclCommunicator {
    /// The communicator of all ranks of `control`, each on its own GPU.
    ///
    /// # Errors
    /// [`Error::Nccl`], [`Error::Deadline`], [`Error::PeerLost`].
    pub fn connect(
        library: &Arc<Library>,
        gpu: &Arc<Gpu>,
        mut control: CpuCommunicator,
        granted: Duration,
    ) -> Result<Self> {
        control.set_deadline(granted);
        gpu.set_watch(control.watch());
        let mine = if control.rank() == 0 {
            library.unique_id()?.to_vec()
        } else {
            Vec::new()
        };
        let all = control.all_gather_bytes(&mine)?;
        let id: [u8; 128] = all[0].as_slice().try_into().map_err(|_| {
            Error::Mismatch(format!(
                "rank 0 sent an NCCL id of {} bytes, 128 are right",
                all[0].len()
            ))
        })?;
        let (rank, size) = (control.rank() as c_int, control.size() as c_int);
        let (thread_library, thread_gpu) = (Arc::clone(library), Arc::clone(gpu));
        // NCCL's initialisation blocks until every rank is in it. In a thread of its
        // own, so that this one keeps its deadline; a thread that never returns ends
        // with the process.
        let handle = bounded("ncclCommInitRankConfig", &control, granted, move || {
            thread_gpu.bind()?;
            let mut comm: Comm = std::ptr::null_mut();
            let id = UniqueId(id.map(|b| b as std::ffi::c_char));
            let mut config = Config::new();
            // SAFETY: all pointers outlive the call; the GPU is current on this thread.
            let code = unsafe {
                (thread_library.symbols().comm_init_rank_config)(
                    &raw mut comm,
                    size,
                    id,
                    rank,
                    &raw mut config,
                )
            };
            thread_library.check_result("ncclCommInitRankConfig", code, std::ptr::null_mut())?;
            Ok(Handle(comm))
        })?;
        Self::with(handle, library, gpu, control, granted)
    }

    fn with(
        handle: Handle,
        library: &Arc<Library>,
        gpu: &Arc<Gpu>,
        control: CpuCommunicator,
        granted: Duration,
    ) -> Result<Self> {
        let scratch = gpu.alloc("NCCL barrier", 16)?;
        gpu.fill(&scratch.all(), 0)?;
        gpu.set_deadline(granted);
        Ok(NcclCommunicator {
            handle,
            library: Arc::clone(library),
            gpu: Arc::clone(gpu),
            control,
            scratch,
            granted,
            windows: Windows::default(),
        })
    }

    /// The CPU communicator of the same ranks.
    pub fn control(&mut self) -> &mut CpuCommunicator {
        &mut self.control
    }

    /// The library behind it.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// The GPU that it works on.
    #[must_use]
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(super) fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The parts that a collective reads, of every rank alike: in memory that NCCL reads right.
    fn check_parts(
        &self,
        op: &'static str,
        dtype: DType,
        first: &View,
        stride: usize,
    ) -> Result<()> {
        let version = self.library.version();
        self.windows
            .check_parts(version, op, dtype.size(), first.address()?, stride)
    }

    pub(super) fn raw(&self) -> Result<Comm> {
        if self.handle.0.is_null() {
            return Err(Error::Nccl {
                call: "a collective".into(),
                why: "the communicator was aborted".into(),
            });
        }
        Ok(self.handle.0)
    }

    fn call(
        &self,
        name: &str,
        f: impl FnOnce(&sys::Symbols, Comm, sys::Stream) -> sys::ResultCode,
    ) -> Result<()> {
        let comm = self.raw()?;
        self.gpu.bind()?;
        let _inside = Inside::enter();
        let code = f(self.library.symbols(), comm, self.gpu.raw_stream());
        self.library.check_result(name, code, comm)
    }

    /// Runs `f` between group start and end, ending the group also after an error.
    fn group(
        &self,
        name: &str,
        f: impl FnOnce(&sys::Symbols, Comm, sys::Stream) -> Result<()>,
    ) -> Result<()> {
        let comm = self.raw()?;
        self.gpu.bind()?;
        let _inside = Inside::enter();
        let symbols = self.library.symbols();
        // SAFETY: no arguments.
        let code = unsafe { (symbols.group_start)() };
        self.library.check_result("ncclGroupStart", code, comm)?;
        let inner = f(symbols, comm, self.gpu.raw_stream());
        // SAFETY: no arguments.
        let code = unsafe { (symbols.group_end)() };
        let end = self.library.check_result(name, code, comm);
        inner.and(end)
    }
}

impl NcclCommunicator {
    /// [`Communicator::split`] with its own type.
    ///
    /// # Errors
    /// As [`Communicator::split`].
    pub fn split_nccl(&mut self, color: Option<u32>, key: u32) -> Result<Option<Self>> {
        self.wait()?;
        let control = self.control.split_cpu(color, key)?;
        let (parent, library, gpu) = (
            Handle(self.raw()?),
            Arc::clone(&self.library),
            Arc::clone(&self.gpu),
        );
        let color = color.map_or(Ok(sys::NO_COLOR), |c| {
            c_int::try_from(c).map_err(|_| Error::Arguments {
                op: "split",
                why: format!("color {c} is above {}", c_int::MAX),
            })
        })?;
        let handle = bounded("ncclCommSplit", &self.control, self.granted, move || {
            let parent = parent;
            gpu.bind()?;
            let mut comm: Comm = std::ptr::null_mut();
            let mut config = Config::new();
            // SAFETY: the parent is alive and idle; all pointers outlive the call.
            let code = unsafe {
                (library.symbols().comm_split)(
                    parent.0,
                    color,
                    key as c_int,
                    &raw mut comm,
                    &raw mut config,
                )
            };
            library.check_result("ncclCommSplit", code, parent.0)?;
            Ok(Handle(comm))
        })?;
        let Some(control) = control else {
            return Ok(None);
        };
        Self::with(handle, &self.library, &self.gpu, control, self.granted).map(Some)
    }
}

/// Runs a blocking NCCL call in a thread, with a deadline and an eye on the ranks.
fn bounded<R: Send + 'static>(
    what: &str,
    control: &CpuCommunicator,
    granted: Duration,
    f: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        // Nobody listens any more once the deadline is over.
        let _ = tx.send(f());
    });
    let deadline = Deadline::after(granted);
    loop {
        match rx.recv_timeout(Duration::from_millis(5)) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Nccl {
                    call: what.into(),
                    why: "its thread died".into(),
                });
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some((rank, why)) = control.lost() {
                    return Err(Error::PeerLost { rank, why });
                }
                deadline.check(|| what.to_owned())?;
            }
        }
    }
}

fn source(view: &View) -> Result<*const c_void> {
    Ok(view.address()? as *const c_void)
}

fn target(view: &View) -> Result<*mut c_void> {
    Ok(view.address()? as *mut c_void)
}

/// Late errors of NCCL while the GPU works; dead ranks are watched by the GPU itself.
struct Lookout<'a>(&'a NcclCommunicator);

// SAFETY: a `Lookout` stays on the thread that made it, within one call of `wait`.
unsafe impl Send for Lookout<'_> {}

impl Watch for Lookout<'_> {
    fn failure(&mut self) -> Option<Error> {
        let comm = self.0.raw().ok()?;
        let mut late = sys::SUCCESS;
        // SAFETY: the communicator is alive and `late` outlives the call.
        let code = unsafe { (self.0.library.symbols().comm_get_async_error)(comm, &raw mut late) };
        let library = &self.0.library;
        let checked = library
            .check_result("ncclCommGetAsyncError", code, comm)
            .and_then(|()| library.check_result("a collective", late, comm));
        // A dead rank says more than the error that it causes.
        let error = checked.err()?;
        Some(
            self.0
                .control
                .lost()
                .map_or(error, |(rank, why)| Error::PeerLost { rank, why }),
        )
    }
}

// SAFETY of the calls below: addresses come from live views whose sizes were checked
// against the collective, the communicator is alive, and the stream is the GPU's own.
impl Communicator for NcclCommunicator {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn implementation(&self) -> &'static str {
        "nccl"
    }

    fn set_deadline(&mut self, granted: Duration) {
        self.granted = granted;
        self.control.set_deadline(granted);
        self.gpu.set_deadline(granted);
    }

    fn all_gather(&mut self, send: &View, recv: &View) -> Result<()> {
        check::all_gather(self.size(), send.len(), recv.len())?;
        // In place, every rank's own part is one of these; elsewhere, ranks give alike.
        let in_place = send.address()? == recv.address()? + (self.rank() * send.len()) as u64;
        match in_place {
            true => self.check_parts("all-gather", DType::U8, recv, send.len())?,
            false => self.check_parts("all-gather", DType::U8, send, 0)?,
        }
        let (from, to, count) = (source(send)?, target(recv)?, send.len());
        self.call("ncclAllGather", |s, comm, stream| {
            // SAFETY: as said above this block.
            unsafe { (s.all_gather)(from, to, count, BYTES, comm, stream) }
        })
    }

    fn all_gather_v(&mut self, send: &View, recv: &View, lens: &[usize]) -> Result<()> {
        check::all_gather_v(self.size(), self.rank(), send.len(), recv.len(), lens)?;
        let (from, mut to) = (source(send)?, target(recv)?.cast::<u8>());
        // One broadcast from each rank, fused by the group. NCCL has no all-gather-v.
        self.group("grouped ncclBroadcast", |s, comm, stream| {
            for (root, &len) in lens.iter().enumerate() {
                if len > 0 {
                    // SAFETY: as said above this block; `to` stays within `recv`.
                    let code = unsafe {
                        (s.broadcast)(from, to.cast(), len, BYTES, root as c_int, comm, stream)
                    };
                    self.library.check_result("ncclBroadcast", code, comm)?;
                }
                to = to.wrapping_add(len);
            }
            Ok(())
        })
    }

    fn reduce_scatter(
        &mut self,
        send: &View,
        recv: &View,
        dtype: DType,
        op: ReduceOp,
    ) -> Result<()> {
        check::reduce_scatter(self.size(), send.len(), recv.len(), dtype)?;
        self.check_parts("reduce-scatter", dtype, send, recv.len())?;
        let (from, to, count) = (source(send)?, target(recv)?, recv.len() / dtype.size());
        self.call("ncclReduceScatter", |s, comm, stream| {
            // SAFETY: as said above this block.
            unsafe {
                (s.reduce_scatter)(from, to, count, data_type(dtype), red_op(op), comm, stream)
            }
        })
    }

    fn all_reduce(&mut self, send: &View, recv: &View, dtype: DType, op: ReduceOp) -> Result<()> {
        check::all_reduce(send.len(), recv.len(), dtype)?;
        self.check_parts("all-reduce", dtype, send, 0)?;
        let (from, to, count) = (source(send)?, target(recv)?, recv.len() / dtype.size());
        self.call("ncclAllReduce", |s, comm, stream| {
            // SAFETY: as said above this block.
            unsafe { (s.all_reduce)(from, to, count, data_type(dtype), red_op(op), comm, stream) }
        })
    }

    fn all_to_all(&mut self, send: &View, recv: &View) -> Result<()> {
        check::all_to_all(self.size(), send.len(), recv.len())?;
        let part = send.len() / self.size();
        let (from, to) = (source(send)?, target(recv)?);
        if let Some(all_to_all) = self.library.symbols().all_to_all {
            return self.call("ncclAlltoAll", |_, comm, stream| {
                // SAFETY: as said above this block.
                unsafe { all_to_all(from, to, part, BYTES, comm, stream) }
            });
        }
        let size = self.size();
        self.group("grouped ncclSend and ncclRecv", |s, comm, stream| {
            for peer in 0..size {
                let (from, to) = (
                    from.wrapping_byte_add(peer * part),
                    to.wrapping_byte_add(peer * part),
                );
                // SAFETY: as said above this block; both stay within their buffers.
                let code = unsafe { (s.send)(from, part, BYTES, peer as c_int, comm, stream) };
                self.library.check_result("ncclSend", code, comm)?;
                // SAFETY: as above.
                let code = unsafe { (s.recv)(to, part, BYTES, peer as c_int, comm, stream) };
                self.library.check_result("ncclRecv", code, comm)?;
            }
            Ok(())
        })
    }

    fn broadcast(&mut self, buffer: &View, root: usize) -> Result<()> {
        check::root(self.size(), root)?;
        let (from, to, count) = (source(buffer)?, target(buffer)?, buffer.len());
        self.call("ncclBroadcast", |s, comm, stream| {
            // SAFETY: as said above this block.
            unsafe { (s.broadcast)(from, to, count, BYTES, root as c_int, comm, stream) }
        })
    }

    fn barrier(&mut self) -> Result<()> {
        let one = self.scratch.view(0, 4)?;
        self.all_reduce(&one, &one, DType::I32, ReduceOp::Max)
    }

    fn split(&mut self, color: Option<u32>, key: u32) -> Result<Option<Box<dyn Communicator>>> {
        Ok(self
            .split_nccl(color, key)?
            .map(|c| Box::new(c) as Box<dyn Communicator>))
    }

    fn wait(&mut self) -> Result<()> {
        let gpu = Arc::clone(&self.gpu);
        let result = gpu.wait(Some(&mut Lookout(self)));
        if result.is_err() {
            self.abort();
        }
        result
    }

    fn abort(&mut self) {
        self.end(|symbols, comm| {
            // SAFETY: the handle was taken out, nobody uses it any more.
            let _ = unsafe { (symbols.comm_abort)(comm) };
        });
    }
}

impl NcclCommunicator {
    /// Gives the handle to `how`, in a thread: abort waits for NCCL's kernels to notice,
    /// destroy for the other ranks, and either may wait for ever when one is stalled.
    fn end(&mut self, how: impl FnOnce(&sys::Symbols, Comm) + Send + 'static) {
        let handle = Handle(std::mem::replace(&mut self.handle.0, std::ptr::null_mut()));
        if handle.0.is_null() {
            return;
        }
        let (library, gpu) = (Arc::clone(&self.library), Arc::clone(&self.gpu));
        let (tx, rx) = channel();
        std::thread::spawn(move || {
            let handle = handle;
            if gpu.bind().is_ok() {
                how(library.symbols(), handle.0);
            }
            // Nobody listens any more once the time is over.
            let _ = tx.send(());
        });
        const PATIENCE: Duration = Duration::from_millis(1500);
        if rx.recv_timeout(PATIENCE).is_err() {
            self.gpu.give_up();
        }
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        if self.gpu.health().is_given_up() {
            return;
        }
        self.end(|symbols, comm| {
            // SAFETY: the handle is alive and nobody uses it after this.
            let _ = unsafe { (symbols.comm_destroy)(comm) };
        });
    }
}
