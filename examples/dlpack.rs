//! A loss on tensors that another library owns, as DLPack describes them: an address, a shape, strides, a device. This is all
//! that an adapter to a framework needs that shares its memory; on a GPU, a stream to go with it.
//!
//! ```sh
//! cargo run --release --example dlpack
//! ```
#![allow(unsafe_code, reason = "reads memory at addresses it is given")]

use std::ffi::c_void;
use std::slice;

use relata::{Batch, Cpu, Evaluation, Problem, RkdAngle, Rows, Shapes};

/// `DLTensor` of dlpack.h (version 1), which `DLManagedTensor` and a Python capsule lead to.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *mut i64,
    /// In elements; null for a compact row-major tensor.
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct DlDevice {
    /// 1: the CPU, 2: CUDA.
    kind: i32,
    id: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct DlDataType {
    /// 2: IEEE floats, 4: bfloat16.
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
    /// Rows and columns of a compact row-major matrix of f32.
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
            // A stride along one row, or to none, says nothing.
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

    /// Its memory as rows.
    ///
    /// # Safety
    /// As for [`shape`](Self::shape); the tensor is on the CPU, and its memory stays as it is while it is borrowed.
    unsafe fn rows(&self) -> Result<Rows<'_, f32>> {
        // SAFETY: as the caller promises.
        let [rows, columns] = unsafe { self.shape() }?;
        let data = self.address() as *const f32;
        if rows * columns == 0 || data.is_null() || !data.is_aligned() {
            return Err(format!("expected the address of some f32, got {data:p}").into());
        }
        // SAFETY: a compact matrix of this shape, as the caller promises, and aligned.
        let elements = unsafe { slice::from_raw_parts(data, rows * columns) };
        Ok(Rows::new(elements, [rows, columns])?)
    }
}

/// On the CPU.
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

/// On a GPU, in the context that is current: enqueues the evaluation on `stream` and returns. A trainer keeps the evaluator and
/// its workspace from step to step.
///
/// # Safety
/// As for [`DlTensor::shape`]. The tensors, `gradient` of the student's shape, `value` of `cuda::VALUE_LEN` f32 and `workspace`, of as many bytes as the
/// evaluator asks for, are memory of the context that stays until the stream is done; the last three overlap nothing. `stream` is a
/// `CUstream` of that context.
#[cfg(feature = "cuda")]
#[allow(dead_code, reason = "needs a GPU, and somebody's stream")]
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
        queue: 0,
        gradient: gradient.address(),
        value: value.address(),
        workspace: workspace(evaluator.workspace_bytes()),
    };
    evaluator.check(&buffers)?;
    // SAFETY: as the caller promises; once in a workspace's life.
    unsafe { evaluator.initialize(buffers.workspace, stream) }?;
    // SAFETY: as the caller promises.
    unsafe { evaluator.launch(&buffers, stream) }?;
    Ok(())
}

fn main() -> Result<()> {
    // What another library would hand over.
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
