//! A loss on tensors that another library owns, as DLPack describes them: an address, a shape,
//! strides and a device. An adapter to a framework needs nothing more, and on a GPU also a stream.
//!
//! ```sh
//! cargo run --release --example dlpack
//! ```
#![allow(
    unsafe_code,
    reason = "reads memory at addresses that the caller gives"
)]

use std::ffi::c_void;
use std::slice;

use relata::{Batch, Cpu, Evaluation, Problem, RkdAngle, Rows, Shapes};

/// `DLTensor` of dlpack.h (version 1). `DLManagedTensor` contains it, and a Python capsule points
/// to that.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *mut i64,
    /// The strides in elements, or null for a compact row-major tensor.
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct DlDevice {
    /// 1 is the CPU, 2 is CUDA.
    kind: i32,
    id: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct DlDataType {
    /// 2 is an IEEE float, 4 is bfloat16.
    code: u8,
    bits: u8,
    lanes: u16,
}

const CPU: DlDevice = DlDevice { kind: 1, id: 0 };
const F32: DlDataType = DlDataType {
    code: 2,
    bits: 32,
    lanes: 1,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl DlTensor {
    /// The numbers of rows and columns. The tensor must be a compact row-major matrix of f32.
    ///
    /// # Safety
    /// `shape` and, unless null, `strides` point at `ndim` numbers.
    unsafe fn shape(&self) -> Result<[usize; 2]> {
        if self.ndim != 2 || self.dtype != F32 {
            return Err(format!("expected a matrix of f32, got {:?}", self.dtype).into());
        }
        // SAFETY: two numbers, as the caller promises.
        let shape = unsafe { slice::from_raw_parts(self.shape, 2) };
        let [rows, columns] = [usize::try_from(shape[0])?, usize::try_from(shape[1])?];
        if !self.strides.is_null() {
            // SAFETY: two numbers, as the caller promises.
            let strides = unsafe { slice::from_raw_parts(self.strides, 2) };
            // The stride of a dimension with one element, or none, has no meaning.
            let compact = (rows < 2 || strides[0] == shape[1]) && (columns < 2 || strides[1] == 1);
            if !compact {
                return Err(format!("expected compact rows, got strides {strides:?}").into());
            }
        }
        Ok([rows, columns])
    }

    fn address(&self) -> u64 {
        self.data as u64 + self.byte_offset
    }

    /// The tensor as rows.
    ///
    /// # Safety
    /// As for [`shape`](Self::shape). The tensor is on the CPU, and nothing writes to its memory
    /// while it is borrowed.
    unsafe fn rows(&self) -> Result<Rows<'_, f32>> {
        // SAFETY: as the caller promises.
        let [rows, columns] = unsafe { self.shape() }?;
        let data = self.address() as *const f32;
        if rows * columns == 0 || data.is_null() || !data.is_aligned() {
            return Err(format!("expected the address of some f32, got {data:p}").into());
        }
        // SAFETY: an aligned and compact matrix of this shape, as the caller promises.
        let elements = unsafe { slice::from_raw_parts(data, rows * columns) };
        Ok(Rows::new(elements, [rows, columns])?)
    }
}

/// Evaluates on the CPU.
///
/// # Safety
/// As for [`DlTensor::rows`].
unsafe fn evaluate(student: &DlTensor, teacher: &DlTensor) -> Result<Evaluation<f32>> {
    if student.device != CPU || teacher.device != CPU {
        return Err("expected tensors on the CPU".into());
    }
    // SAFETY: as the caller promises.
    let student = unsafe { student.rows() }?;
    // SAFETY: as the caller promises.
    let teacher = unsafe { teacher.rows() }?;
    let batch = Batch::new(student, teacher);
    let problem = Problem::new(RkdAngle::default(), batch.shapes())?;
    Ok(problem.evaluate(&Cpu, batch)?)
}

/// Evaluates on a GPU, in the current context: launches the evaluation on `stream` and returns at
/// once. A trainer would keep the evaluator and its workspace from step to step.
///
/// # Safety
/// As for [`DlTensor::shape`]. The tensors, `gradient` (of the student's shape), `value`
/// (`cuda::VALUE_LEN` f32) and `workspace` (of as many bytes as the evaluator asks for) are memory
/// of the context. They live until the stream is done. The last three overlap nothing. `stream` is
/// a `CUstream` of that context.
#[cfg(feature = "cuda")]
#[allow(dead_code, reason = "needs a GPU and a stream")]
unsafe fn launch(
    student: &DlTensor,
    teacher: &DlTensor,
    gradient: &DlTensor,
    value: &DlTensor,
    workspace: impl FnOnce(usize) -> u64,
    stream: *mut c_void,
) -> Result<()> {
    use relata::cuda::{Buffers, RawEvaluator};

    // SAFETY: as the caller promises.
    let [rows, dim] = unsafe { student.shape() }?;
    // SAFETY: as the caller promises.
    let [teacher_rows, teacher_dim] = unsafe { teacher.shape() }?;
    if teacher_rows != rows {
        return Err(format!("expected {rows} rows of the teacher, got {teacher_rows}").into());
    }
    let problem = Problem::new(RkdAngle::default(), Shapes::new(rows, dim, teacher_dim))?;
    let evaluator = RawEvaluator::new::<f32>(&problem)?;
    let buffers = Buffers {
        student: student.address(),
        teacher: teacher.address(),
        gradient: gradient.address(),
        value: value.address(),
        workspace: workspace(evaluator.workspace_bytes()),
        ..Buffers::default()
    };
    evaluator.check(&buffers)?;
    // SAFETY: as the caller promises. It runs once for this workspace.
    unsafe { evaluator.initialize(buffers.workspace, stream) }?;
    // SAFETY: as the caller promises.
    unsafe { evaluator.launch(&buffers, stream) }?;
    Ok(())
}

fn main() -> Result<()> {
    // The memory of another library.
    let mut memory: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    let (mut student_shape, mut teacher_shape) = ([8, 3], [8, 4]);
    let mut strides = [4, 1];
    let data = memory.as_mut_ptr().cast();
    let tensor = |shape: &mut [i64; 2], strides, byte_offset| DlTensor {
        data,
        device: CPU,
        ndim: 2,
        dtype: F32,
        shape: shape.as_mut_ptr(),
        strides,
        byte_offset,
    };
    let student = tensor(&mut student_shape, std::ptr::null_mut(), 0);
    let teacher = tensor(&mut teacher_shape, strides.as_mut_ptr(), 4 * 24);

    // SAFETY: both lie within `memory`, which nothing writes to.
    let evaluation = unsafe { evaluate(&student, &teacher) }?;
    println!("{} {:?}", evaluation.loss, evaluation.gradient);
    let shapes = Shapes::new(8, 3, 4);
    let direct = RkdAngle::default().problem(shapes)?.evaluate(
        &Cpu,
        Batch::new(
            Rows::new(&memory[..24], [8, 3])?,
            Rows::new(&memory[24..56], [8, 4])?,
        ),
    )?;
    assert_eq!(evaluation, direct);
    Ok(())
}
