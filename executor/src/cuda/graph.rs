//! CUDA graphs and events.

use std::ffi::CStr;
use std::mem::ManuallyDrop;

use cudarc::driver::{CudaEvent, CudaGraph, sys};

use super::{Gpu, Health, Inside, cuda};
use crate::{Error, Result};

/// A captured, instantiated and uploaded graph. The buffers that it works on must
/// outlive it: the caller keeps them.
pub struct Graph {
    graph: ManuallyDrop<CudaGraph>,
    health: Health,
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.health.is_given_up() {
            // SAFETY: dropped once, here, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.graph) };
        }
    }
}

impl Gpu {
    /// Captures what `work` enqueues on this GPU's stream.
    ///
    /// # Errors
    /// The error of `work`, or [`Error::Cuda`] when something in it cannot be captured.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Thread-local: NCCL's own threads may allocate while this thread captures.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        cuda(
            || "beginning a capture".into(),
            self.stream().begin_capture(mode),
        )?;
        let done = work();
        // The capture must end in any case, or the stream stays unusable.
        let graph = self.stream().end_capture(sys::CUgraphInstantiate_flags(0));
        done?;
        let graph = cuda(|| "ending a capture".into(), graph)?.ok_or_else(|| Error::Cuda {
            call: "ending a capture".into(),
            why: "nothing was captured".into(),
        })?;
        cuda(|| "uploading a graph".into(), graph.upload())?;
        Ok(Graph {
            graph: ManuallyDrop::new(graph),
            health: self.health().clone(),
        })
    }

    /// A point in the stream whose time is taken when the stream reaches it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn event(&self) -> Result<Event> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = cuda(
            || "creating an event".into(),
            self.context().new_event(flags),
        )?;
        cuda(|| "recording an event".into(), event.record(self.stream()))?;
        Ok(Event(event))
    }
}

/// An event.
pub struct Event(CudaEvent);

impl Gpu {
    /// An event that is not recorded yet.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn new_event(&self) -> Result<Event> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        cuda(
            || "creating an event".into(),
            self.context().new_event(flags),
        )
        .map(Event)
    }
}

impl Event {
    /// Records it on the stream of `gpu`, in place of the last time.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn record(&self, gpu: &Gpu) -> Result<()> {
        cuda(|| "recording an event".into(), self.0.record(gpu.stream()))
    }

    /// Microseconds from this event to a later one; both must have been reached.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn micros_until(&self, later: &Event) -> Result<f64> {
        cuda(|| "cuEventElapsedTime".into(), self.0.elapsed_ms(&later.0))
            .map(|ms| f64::from(ms) * 1e3)
    }
}

impl Graph {
    /// Enqueues the graph.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn launch(&self) -> Result<()> {
        let _inside = Inside::enter();
        cuda(|| "launching a graph".into(), self.graph.launch())
    }

    /// Names of the kernels in the graph, in the order of its nodes. This is how a
    /// silent fallback is found: NCCL's symmetric kernels have names of their own.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn kernel_names(&self) -> Result<Vec<String>> {
        let check = |call: &str, code: sys::CUresult| cuda(|| call.to_owned(), code.result());
        let graph = self.graph.cu_graph();
        let mut count = 0;
        // SAFETY: the graph is alive; a null array asks for the count only.
        check("cuGraphGetNodes", unsafe {
            sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut count)
        })?;
        if count == 0 {
            // An empty array is refused as one that is not there.
            return Ok(Vec::new());
        }
        let mut nodes = vec![std::ptr::null_mut(); count];
        // SAFETY: the array has room for `count` nodes.
        check("cuGraphGetNodes", unsafe {
            sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count)
        })?;
        let mut names = Vec::new();
        for node in nodes {
            let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            // SAFETY: `node` is a node of the live graph.
            check("cuGraphNodeGetType", unsafe {
                sys::cuGraphNodeGetType(node, &raw mut kind)
            })?;
            if kind != sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL {
                continue;
            }
            // SAFETY: all-zero is a valid value of this plain C struct.
            let mut params: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
            // SAFETY: `node` is a kernel node, `params` outlives the call.
            check("cuGraphKernelNodeGetParams", unsafe {
                sys::cuGraphKernelNodeGetParams_v2(node, &raw mut params)
            })?;
            let mut name = std::ptr::null();
            // SAFETY: the node names its kernel by one of the two handles.
            let code = unsafe {
                if params.func.is_null() {
                    sys::cuKernelGetName(&raw mut name, params.kern)
                } else {
                    sys::cuFuncGetName(&raw mut name, params.func)
                }
            };
            check("cuFuncGetName", code)?;
            // SAFETY: the driver gave a C string that lives as long as its module.
            names.push(
                unsafe { CStr::from_ptr(name) }
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        Ok(names)
    }
}
