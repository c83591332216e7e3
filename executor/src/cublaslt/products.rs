//! Products of one GPU: `y[b] = alpha · x[b] · w[b]ᵀ`.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::library::Library;
use super::sys::{self, Algo, Desc, Handle, Heuristic, Layout};
use crate::cuda::{Gpu, Inside};
use crate::{Buffer, Device, Error, Result, View};

/// Workspace of a product; what the library's documentation recommends on Hopper.
const WORKSPACE: usize = 32 << 20;

/// The shape of a product. Pitches and strides are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of x and y.
    pub m: usize,
    /// Columns of y, rows of w.
    pub n: usize,
    /// Columns of x and of w.
    pub k: usize,
    /// Products side by side.
    pub batch: usize,
    /// From row to row of x.
    pub x_pitch: usize,
    /// From one x to the next.
    pub x_stride: usize,
    /// From row to row of y.
    pub y_pitch: usize,
    /// From one y to the next.
    pub y_stride: usize,
    /// x and w are e4m3 rather than bf16.
    pub fp8: bool,
    /// y is f32 rather than bf16.
    pub wide: bool,
}

impl Product {
    /// One product of dense rows.
    #[must_use]
    pub fn dense(m: usize, n: usize, k: usize, fp8: bool) -> Self {
        Product {
            m,
            n,
            k,
            batch: 1,
            x_pitch: k,
            x_stride: 0,
            y_pitch: n,
            y_stride: 0,
            fp8,
            wide: false,
        }
    }
}

/// Memory of a product.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// `[batch, m, k]`
    pub x: &'a View,
    /// `[batch, n, k]`, dense.
    pub w: &'a View,
    /// `[batch, m, n]`
    pub y: &'a View,
}

/// Descriptions of one product, and what the library chose for it.
struct Plan {
    desc: Desc,
    w: Layout,
    x: Layout,
    y: Layout,
    algo: Algo,
}

/// cuBLASLt on one GPU.
pub struct Products {
    library: Arc<Library>,
    gpu: Arc<Gpu>,
    handle: Handle,
    workspace: Buffer,
    plans: Mutex<HashMap<Product, Plan>>,
}

// SAFETY: cuBLASLt handles and descriptions may be used from any thread; plans are behind
// a lock.
unsafe impl Send for Products {}

impl Products {
    /// Opens the library on `gpu`; see [`Library::open`] for `given`.
    ///
    /// # Errors
    /// [`Error::Library`], [`Error::Cublas`], out of memory.
    pub fn open(gpu: &Arc<Gpu>, given: Option<&Path>) -> Result<Self> {
        let library = Library::open(given)?;
        gpu.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the GPU is current and `handle` outlives the call.
        let status = unsafe { (library.symbols().create)(&raw mut handle) };
        library.ok(|| "cublasLtCreate".into(), status)?;
        Ok(Products {
            workspace: gpu.alloc("product workspace", WORKSPACE)?,
            gpu: Arc::clone(gpu),
            library,
            handle,
            plans: Mutex::default(),
        })
    }

    /// The library.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Enqueues a product. The algorithm is chosen at the first call of a shape, on the
    /// host alone, so that this may happen inside a capture.
    ///
    /// # Errors
    /// [`Error::Arguments`] for views that are too short, [`Error::Cublas`] for a shape
    /// that the library has no algorithm for, and its other errors.
    pub fn run(&self, product: &Product, operands: Operands<'_>, alpha: f32) -> Result<()> {
        if product.m == 0 {
            return Ok(());
        }
        check(product, &operands)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if !plans.contains_key(product) {
            plans.insert(*product, self.plan(product)?);
        }
        let Some(plan) = plans.get(product) else {
            return Ok(());
        };
        let beta = 0f32;
        let (w, x, y) = (
            operands.w.address()?,
            operands.x.address()?,
            operands.y.address()?,
        );
        let workspace = self.workspace.all().address()?;
        self.gpu.bind()?;
        let _inside = Inside::enter();
        // SAFETY: the views are live and as long as the layouts say, which was checked;
        // alpha and beta are read before the call returns (pointer mode host).
        let status = unsafe {
            (self.library.symbols().matmul)(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                w as *const c_void,
                plan.w,
                x as *const c_void,
                plan.x,
                (&raw const beta).cast(),
                y as *const c_void,
                plan.y,
                y as *mut c_void,
                plan.y,
                &raw const plan.algo,
                workspace as *mut c_void,
                WORKSPACE,
                self.gpu.raw_stream(),
            )
        };
        self.library
            .ok(|| format!("cublasLtMatmul of {product:?}"), status)
    }

    /// Rows are columns to the library, which counts in column-major order: it computes
    /// `yᵀ = w · xᵀ` with w transposed from its `[k, n]`.
    fn plan(&self, p: &Product) -> Result<Plan> {
        let value = if p.fp8 { sys::R_8F_E4M3 } else { sys::R_16BF };
        let result = if p.wide { sys::R_32F } else { sys::R_16BF };
        let mut plan = Plan {
            desc: std::ptr::null_mut(),
            w: std::ptr::null_mut(),
            x: std::ptr::null_mut(),
            y: std::ptr::null_mut(),
            algo: Algo::default(),
        };
        let made = self.describe(p, &mut plan, value, result);
        if made.is_err() {
            self.forget(&plan);
        }
        made.map(|()| plan)
    }

    fn describe(&self, p: &Product, plan: &mut Plan, value: c_int, result: c_int) -> Result<()> {
        let s = self.library.symbols();
        let (transposed, workspace) = (sys::OP_T, WORKSPACE);
        let ok = |call: &str, status| self.library.ok(|| format!("{call} for {p:?}"), status);
        // SAFETY: in this block every pointer is to a live local, or made by the library
        // just before; attribute sizes are those of the values.
        unsafe {
            ok(
                "cublasLtMatmulDescCreate",
                (s.desc_create)(&raw mut plan.desc, sys::COMPUTE_32F, sys::R_32F),
            )?;
            ok(
                "cublasLtMatmulDescSetAttribute",
                (s.desc_set)(
                    plan.desc,
                    sys::DESC_TRANSA,
                    (&raw const transposed).cast(),
                    size_of::<i32>(),
                ),
            )?;
            for (layout, kind, rows, columns, pitch, stride) in [
                (&mut plan.w, value, p.k, p.n, p.k, p.n * p.k),
                (&mut plan.x, value, p.k, p.m, p.x_pitch, p.x_stride),
                (&mut plan.y, result, p.n, p.m, p.y_pitch, p.y_stride),
            ] {
                ok(
                    "cublasLtMatrixLayoutCreate",
                    (s.layout_create)(layout, kind, rows as u64, columns as u64, pitch as i64),
                )?;
                if p.batch > 1 {
                    let (count, offset) = (p.batch as i32, stride as i64);
                    ok(
                        "cublasLtMatrixLayoutSetAttribute",
                        (s.layout_set)(
                            *layout,
                            sys::LAYOUT_BATCH_COUNT,
                            (&raw const count).cast(),
                            size_of::<i32>(),
                        ),
                    )?;
                    ok(
                        "cublasLtMatrixLayoutSetAttribute",
                        (s.layout_set)(
                            *layout,
                            sys::LAYOUT_BATCH_OFFSET,
                            (&raw const offset).cast(),
                            size_of::<i64>(),
                        ),
                    )?;
                }
            }
            let mut preference = std::ptr::null_mut();
            ok(
                "cublasLtMatmulPreferenceCreate",
                (s.preference_create)(&raw mut preference),
            )?;
            let set = (s.preference_set)(
                preference,
                sys::PREF_WORKSPACE,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            );
            let mut found = Heuristic {
                algo: Algo::default(),
                workspace: 0,
                state: sys::NOT_SUPPORTED,
                waves: 0.0,
                reserved: [0; 4],
            };
            let mut count = 0;
            let asked = (s.heuristic)(
                self.handle,
                plan.desc,
                plan.w,
                plan.x,
                plan.y,
                plan.y,
                preference,
                1,
                &raw mut found,
                &raw mut count,
            );
            // Nothing can be done about a failure here, and nothing depends on it.
            let _ = (s.preference_destroy)(preference);
            ok("cublasLtMatmulPreferenceSetAttribute", set)?;
            ok("cublasLtMatmulAlgoGetHeuristic", asked)?;
            if count == 0 {
                return Err(Error::Cublas {
                    call: format!("cublasLtMatmulAlgoGetHeuristic for {p:?}"),
                    why: "no algorithm; addresses and pitches must be multiples of 16 bytes".into(),
                });
            }
            ok("the algorithm that was chosen", found.state)?;
            plan.algo = found.algo;
        }
        Ok(())
    }

    fn forget(&self, plan: &Plan) {
        let s = self.library.symbols();
        // SAFETY: each was made by the library and is given back once; failures leave
        // memory to the end of the process.
        unsafe {
            for layout in [plan.w, plan.x, plan.y] {
                if !layout.is_null() {
                    let _ = (s.layout_destroy)(layout);
                }
            }
            if !plan.desc.is_null() {
                let _ = (s.desc_destroy)(plan.desc);
            }
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.gpu.health().is_given_up() || self.gpu.bind().is_err() {
            return;
        }
        let plans = std::mem::take(&mut *self.plans.lock().unwrap_or_else(PoisonError::into_inner));
        for plan in plans.values() {
            self.forget(plan);
        }
        // SAFETY: made by cublasLtCreate, destroyed once.
        let _ = unsafe { (self.library.symbols().destroy)(self.handle) };
    }
}

/// The views must hold what the shape says.
fn check(p: &Product, o: &Operands<'_>) -> Result<()> {
    let end = |pitch: usize, stride: usize, columns: usize| {
        (p.batch - 1) * stride + (p.m - 1) * pitch + columns
    };
    let value = if p.fp8 { 1 } else { 2 };
    let result = if p.wide { 4 } else { 2 };
    let wants = [
        (o.x, end(p.x_pitch, p.x_stride, p.k) * value),
        (o.w, p.batch * p.n * p.k * value),
        (o.y, end(p.y_pitch, p.y_stride, p.n) * result),
    ];
    for (view, bytes) in wants {
        if p.batch == 0 || view.len() < bytes {
            return Err(Error::Arguments {
                op: "matrix product",
                why: format!(
                    "'{}' has {} bytes, {bytes} are needed for {p:?}",
                    view.buffer().name(),
                    view.len()
                ),
            });
        }
    }
    Ok(())
}
