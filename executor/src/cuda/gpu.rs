//! One GPU, as one rank uses it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::{DeviceMemory, Freer, Health, Kernels, cuda};
use crate::comm::DEFAULT_DEADLINE;
use crate::{Buffer, Deadline, Error, MemoryMeter, Result};

/// How many GPUs the driver shows this process.
///
/// # Errors
/// [`Error::Unusable`] when there is no NVIDIA driver or no GPU.
pub fn device_count() -> Result<usize> {
    // SAFETY: looks for libcuda and loads it, which has no other effect.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Unusable(
            "no GPU: libcuda.so.1 was not found, so there is no NVIDIA driver here (--backend cpu needs none)".into(),
        ));
    }
    let none = |e| {
        Error::Unusable(format!(
            "no GPU: the NVIDIA driver does not start: {}",
            super::describe(e)
        ))
    };
    result::init().map_err(none)?;
    match result::device::get_count().map_err(none)? {
        0 => Err(Error::Unusable(
            "no GPU: the driver shows none (is CUDA_VISIBLE_DEVICES empty?)".into(),
        )),
        count => Ok(count as usize),
    }
}

/// Work that a wait should look after meanwhile: errors that come late, peers that die.
pub trait Watch: Send {
    /// The failure, if there is one. Called often; must not wait.
    fn failure(&mut self) -> Option<Error>;
}

/// A GPU's context and the one stream on which a rank's work is ordered.
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    ordinal: usize,
    pub(super) meter: Arc<MemoryMeter>,
    deadline_ms: AtomicU64,
    kernels: Mutex<Option<Arc<Kernels>>>,
    health: Health,
    watch: Mutex<Option<Box<dyn Watch>>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.ordinal)
    }
}

impl Gpu {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::Unusable`] when there is no such GPU, [`Error::Cuda`].
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::Unusable(format!(
                "GPU {ordinal} was asked for, the driver shows {count} (0 to {})",
                count - 1
            )));
        }
        let context = cuda(
            || format!("opening GPU {ordinal}"),
            CudaContext::new(ordinal),
        )?;
        // SAFETY: all work goes through one stream, whose order is all the order there
        // is; cudarc's own events would also break graph capture.
        unsafe { context.disable_event_tracking() };
        let stream = cuda(|| "creating a stream".into(), context.new_stream())?;
        Ok(Arc::new(Gpu {
            context,
            stream,
            ordinal,
            meter: Arc::default(),
            deadline_ms: AtomicU64::new(DEFAULT_DEADLINE.as_millis() as u64),
            kernels: Mutex::new(None),
            health: Health::default(),
            watch: Mutex::new(None),
        }))
    }

    /// Time that any one wait on this GPU may take from now on.
    pub fn set_deadline(&self, granted: Duration) {
        self.deadline_ms
            .store(granted.as_millis() as u64, Ordering::Relaxed);
    }

    /// Looks after `watch` in every wait on this GPU from now on.
    pub fn set_watch(&self, watch: Box<dyn Watch>) {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Work on this GPU will not end. From now on nothing of it is given back, since
    /// that would wait; the process is to report and end.
    pub(crate) fn give_up(&self) {
        if !self.health.is_given_up() {
            self.health.give_up();
            std::mem::forget(Arc::clone(&self.context));
            std::mem::forget(Arc::clone(&self.stream));
            if let Some(kernels) = &*self.kernels.lock().unwrap_or_else(PoisonError::into_inner) {
                std::mem::forget(Arc::clone(kernels));
            }
        }
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The stream as NCCL takes it.
    pub(crate) fn raw_stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    /// Makes this GPU current on the calling thread.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn bind(&self) -> Result<()> {
        cuda(|| "cuCtxSetCurrent".into(), self.context.bind_to_thread())
    }

    /// Its number.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its name, as the driver gives it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn name(&self) -> Result<String> {
        cuda(|| "cuDeviceGetName".into(), self.context.name())
    }

    /// Major and minor compute capability.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn compute_capability(&self) -> Result<(i32, i32)> {
        cuda(
            || "the compute capability".into(),
            self.context.compute_capability(),
        )
    }

    /// Multiprocessors.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn multiprocessors(&self) -> Result<usize> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        cuda(
            || "the number of multiprocessors".into(),
            self.context.attribute(attribute),
        )
        .map(|n| n.max(1) as usize)
    }

    /// PCI address, as NVML takes it: `00000000:3B:00.0`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn pci_address(&self) -> Result<String> {
        let mut text = [0 as std::ffi::c_char; 32];
        // SAFETY: the buffer has the length that is given, and the device is open.
        let code = unsafe {
            sys::cuDeviceGetPCIBusId(
                text.as_mut_ptr(),
                text.len() as i32,
                self.context.cu_device(),
            )
        };
        cuda(|| "cuDeviceGetPCIBusId".into(), code.result())?;
        // SAFETY: the driver ended the text with a zero byte.
        let text = unsafe { std::ffi::CStr::from_ptr(text.as_ptr()) };
        Ok(text.to_string_lossy().into_owned())
    }

    /// Whether the GPU at that PCI address is this one or joined to it by NVLink. Atomics
    /// of the hardware between two GPUs tell: PCIe has none.
    #[must_use]
    pub fn is_joined(&self, pci_address: &str) -> bool {
        let Ok(address) = std::ffi::CString::new(pci_address) else {
            return false;
        };
        let own = self.context.cu_device();
        let (mut other, mut atomics) = (0, 0);
        // SAFETY: the text ends with a zero byte; the driver checks what it says.
        let code = unsafe { sys::cuDeviceGetByPCIBusId(&raw mut other, address.as_ptr()) };
        if code.result().is_err() {
            return false;
        }
        let attribute = sys::CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED;
        // SAFETY: writes one number; both devices came from the driver.
        let code = unsafe { sys::cuDeviceGetP2PAttribute(&raw mut atomics, attribute, own, other) };
        other == own || (code.result().is_ok() && atomics == 1)
    }

    /// The CUDA version that the driver brings: `13.0`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn driver_cuda(&self) -> Result<String> {
        let mut version = 0;
        // SAFETY: writes one number.
        let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        cuda(|| "cuDriverGetVersion".into(), code.result())?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// Free and total bytes.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = cuda(|| "cuMemGetInfo".into(), self.context.mem_get_info())?;
        Ok((free as u64, total as u64))
    }

    /// parplan's own kernels; each is loaded on first use.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a GPU older than the PTX, [`Error::Cuda`].
    pub fn kernels(&self) -> Result<Arc<Kernels>> {
        let mut slot = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*slot {
            return Ok(Arc::clone(kernels));
        }
        let kernels = Arc::new(Kernels::new(self)?);
        *slot = Some(Arc::clone(&kernels));
        Ok(kernels)
    }

    /// A buffer around memory that a library allocated on this GPU.
    pub(crate) fn adopt(
        &self,
        name: &str,
        address: u64,
        bytes: usize,
        freer: Arc<dyn Freer>,
    ) -> Buffer {
        let memory = DeviceMemory::library(
            address,
            freer,
            Arc::clone(&self.context),
            self.health.clone(),
        );
        Buffer::device(name, memory, bytes, self.meter.take(bytes as u64))
    }

    /// The error that says which buffer did not fit.
    pub(crate) fn out_of_memory(&self, name: &str, bytes: usize) -> Error {
        let (free, total) = self.memory().unwrap_or((0, 0));
        Error::OutOfMemory {
            place: format!("GPU {}", self.ordinal),
            buffer: name.to_owned(),
            asked: bytes as u64,
            free,
            total,
        }
    }

    /// Whether all enqueued work is done.
    ///
    /// # Errors
    /// [`Error::Cuda`] when some of it failed.
    pub fn idle(&self) -> Result<bool> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        match unsafe { sys::cuStreamQuery(self.stream.cu_stream()) } {
            sys::CUresult::CUDA_SUCCESS => Ok(true),
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => Err(Error::Cuda {
                call: "work on the GPU".into(),
                why: super::describe(cudarc::driver::DriverError(code)),
            }),
        }
    }

    /// Waits for all enqueued work, looking after `watch` and that of
    /// [`set_watch`](Self::set_watch) meanwhile.
    ///
    /// # Errors
    /// What a watch found, [`Error::Deadline`], [`Error::Cuda`]. After any of them the
    /// GPU's memory is kept until the process ends: see the source of `give_up`.
    pub fn wait(&self, watch: Option<&mut dyn Watch>) -> Result<()> {
        self.wait_watched(watch).inspect_err(|_| self.give_up())
    }

    fn wait_watched(&self, mut watch: Option<&mut dyn Watch>) -> Result<()> {
        let deadline = Deadline::after(Duration::from_millis(
            self.deadline_ms.load(Ordering::Relaxed),
        ));
        let mut polls = 0u32;
        while !self.idle()? {
            polls = polls.wrapping_add(1);
            // Spin for latency; look around now and then.
            if !polls.is_multiple_of(1024) {
                std::hint::spin_loop();
                continue;
            }
            if let Some(error) = watch.as_mut().and_then(|w| w.failure()) {
                return Err(error);
            }
            let mut own = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = own.as_mut().and_then(|w| w.failure()) {
                return Err(error);
            }
            deadline.check(|| format!("GPU {} to finish its work", self.ordinal))?;
        }
        Ok(())
    }
}
