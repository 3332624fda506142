//! Tensors and borrowed views of them, row major, on the host or on a device. They hold shapes and
//! bytes; graphs do the arithmetic.

use crate::contract::DType;
use crate::memory::{Block, Class, Memory, MemoryError, Place, Span, SpanMut};
use memmap2::Mmap;
use ndarray::{ArrayBase, ArrayViewD, ArrayViewMutD, Data, Dimension};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A Rust type that a tensor can hold.
pub trait Element: bytemuck::Pod {
    /// The element type of such a tensor.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for i64 {
    const DTYPE: DType = DType::I64;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}

/// One cache line; the unit of allocation, so that every tensor starts 64-byte aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes of `u8` with size equal to alignment: no padding, every bit pattern valid.
#[expect(
    unsafe_code,
    reason = "an aligned allocation that can be viewed as any plain element type"
)]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; the type is `Copy` and `'static`.
#[expect(
    unsafe_code,
    reason = "an aligned allocation that can be viewed as any plain element type"
)]
unsafe impl bytemuck::Pod for Line {}

/// Storage of a tensor's elements.
#[derive(Clone)]
enum Storage {
    /// Host memory of its own.
    Lines(Vec<Line>),
    /// Part of a mapped file, never written.
    Mapped(Arc<Mmap>, usize),
    /// Part of a counted block of some device; a clone shares it, and only a sole owner may write.
    Block(Arc<Block>, usize),
}

/// An owned tensor, on the host unless it was allocated elsewhere.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
}

/// A borrowed tensor, or a range of lanes of one.
#[derive(Clone)]
pub struct View<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) span: Span<'a>,
}

/// A tensor borrowed for writing, or a range of lanes of one.
pub struct ViewMut<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) span: SpanMut<'a>,
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

impl Tensor {
    /// Makes a host tensor of zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let bytes = count(shape) * dtype.size();
        Self {
            dtype,
            shape: shape.to_vec(),
            storage: Storage::Lines(vec![bytemuck::Zeroable::zeroed(); bytes.div_ceil(64)]),
        }
    }

    /// Makes a tensor of zeros in a device's memory, counted as `class`.
    ///
    /// # Errors
    /// The device or its budget refuses.
    pub fn zeros_in(
        memory: &dyn Memory,
        class: Class,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Self, MemoryError> {
        let block = memory.alloc(count(shape) * dtype.size(), class)?;
        Ok(Self {
            dtype,
            shape: shape.to_vec(),
            storage: Storage::Block(Arc::new(block), 0),
        })
    }

    /// Makes a tensor of the elements `at` bytes into a block.
    ///
    /// # Panics
    /// If they pass the block's end.
    pub fn in_block(block: Arc<Block>, at: usize, dtype: DType, shape: &[usize]) -> Self {
        block.span(at, count(shape) * dtype.size());
        Self {
            dtype,
            shape: shape.to_vec(),
            storage: Storage::Block(block, at),
        }
    }

    /// Makes a tensor of the elements `at` bytes into a mapped file.
    ///
    /// # Panics
    /// If they pass the file's end.
    pub fn mapped(map: Arc<Mmap>, at: usize, dtype: DType, shape: &[usize]) -> Self {
        Span::host(&map).part(at, count(shape) * dtype.size());
        Self {
            dtype,
            shape: shape.to_vec(),
            storage: Storage::Mapped(map, at),
        }
    }

    /// Copies the elements to a device's memory, counted as `class`.
    ///
    /// # Errors
    /// The device or its budget refuses.
    pub fn copied_to(&self, memory: &dyn Memory, class: Class) -> Result<Self, MemoryError> {
        let mut copy = Self::zeros_in(memory, class, self.dtype, &self.shape)?;
        memory.copy(self.span(), copy.span_mut())?;
        Ok(copy)
    }

    /// Returns a copy in plain host memory. Returns the tensor itself if `memory`, where it lies,
    /// is the process's own.
    ///
    /// # Errors
    /// The device refuses.
    pub fn into_host(self, memory: &dyn Memory) -> Result<Self, MemoryError> {
        if !memory.is_separate() {
            return Ok(self);
        }
        let mut copy = Self::zeros(self.dtype, &self.shape);
        memory.copy(self.span(), copy.span_mut())?;
        Ok(copy)
    }

    /// Says where the elements lie.
    pub fn place(&self) -> Place {
        self.span().place()
    }

    fn size(&self) -> usize {
        count(&self.shape) * self.dtype.size()
    }

    fn span(&self) -> Span<'_> {
        match &self.storage {
            Storage::Lines(lines) => Span::host(bytemuck::cast_slice(lines)).part(0, self.size()),
            Storage::Mapped(map, at) => Span::host(map).part(*at, self.size()),
            Storage::Block(block, at) => block.span(*at, self.size()),
        }
    }

    fn span_mut(&mut self) -> SpanMut<'_> {
        let size = self.size();
        match &mut self.storage {
            Storage::Lines(lines) => {
                SpanMut::host(&mut bytemuck::cast_slice_mut::<Line, u8>(lines)[..size])
            }
            Storage::Mapped(..) => panic!("a mapped tensor is never written"),
            Storage::Block(block, at) => Arc::get_mut(block)
                .expect("a shared block is never written")
                .span_mut(*at, size),
        }
    }

    /// Copies `data` into a host tensor.
    ///
    /// # Panics
    /// If the length is not the shape's.
    pub fn from_slice<T: Element>(shape: &[usize], data: &[T]) -> Self {
        assert_eq!(
            count(shape),
            data.len(),
            "{} elements for shape {shape:?}",
            data.len()
        );
        let mut t = Self::zeros(T::DTYPE, shape);
        t.as_mut_slice().copy_from_slice(data);
        t
    }

    /// Returns the element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Borrows the bytes of a host tensor.
    ///
    /// # Panics
    /// If the elements do not lie on the host.
    pub fn bytes(&self) -> &[u8] {
        self.span().bytes()
    }

    /// Borrows the bytes of a host tensor for writing.
    ///
    /// # Panics
    /// As [`Self::bytes`], and if the tensor is mapped from a file or shares its memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let size = self.size();
        match &mut self.storage {
            Storage::Lines(lines) => &mut bytemuck::cast_slice_mut(lines)[..size],
            Storage::Mapped(..) => panic!("a mapped tensor is never written"),
            Storage::Block(block, at) => Arc::get_mut(block)
                .expect("a shared block is never written")
                .bytes_mut(*at, size),
        }
    }

    /// Borrows the elements of a host tensor, row major.
    ///
    /// # Panics
    /// If `T` is not the tensor's element type, or the elements do not lie on the host.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "tensor holds {}", self.dtype);
        bytemuck::cast_slice(self.bytes())
    }

    /// Borrows the elements of a host tensor for writing, row major.
    ///
    /// # Panics
    /// As [`Self::as_slice`], and if the tensor is mapped from a file or shares its memory.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "tensor holds {}", self.dtype);
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// Borrows the elements of a host tensor as an array of the tensor's shape.
    ///
    /// ```
    /// use engines::tensor::Tensor;
    /// use ndarray::{Axis, arr1};
    ///
    /// let tensor = Tensor::from_slice(&[2, 3], &[1f32, 2., 3., 4., 5., 6.]);
    /// let rows = tensor.array::<f32>();
    /// assert_eq!(rows[[1, 2]], 6.);
    /// let sums: Tensor = rows.sum_axis(Axis(0)).into();
    /// assert_eq!(sums.array::<f32>(), arr1(&[5., 7., 9.]).into_dyn());
    /// ```
    ///
    /// # Panics
    /// If `T` is not the tensor's element type, or the elements do not lie on the host.
    pub fn array<T: Element>(&self) -> ArrayViewD<'_, T> {
        array(&self.shape, self.as_slice())
    }

    /// Borrows the elements of a host tensor for writing, as an array of the tensor's shape.
    ///
    /// # Panics
    /// As [`Self::array`], and if the tensor is mapped from a file or shares its memory.
    pub fn array_mut<T: Element>(&mut self) -> ArrayViewMutD<'_, T> {
        let shape = self.shape.clone();
        array_mut(&shape, self.as_mut_slice())
    }

    /// Gives the same elements another shape.
    ///
    /// # Panics
    /// If the counts differ.
    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(
            count(shape),
            count(&self.shape),
            "reshape {:?} to {shape:?}",
            self.shape
        );
        self.shape = shape.to_vec();
        self
    }

    /// Borrows the whole tensor.
    pub fn view(&self) -> View<'_> {
        View {
            dtype: self.dtype,
            shape: self.shape.clone(),
            span: self.span(),
        }
    }

    /// Borrows the whole tensor for writing.
    ///
    /// # Panics
    /// If the tensor is mapped from a file or shares its memory.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut {
            dtype: self.dtype,
            shape: self.shape.clone(),
            span: self.span_mut(),
        }
    }

    fn lane_bytes(&self, lanes: &Range<usize>) -> (Vec<usize>, Range<usize>) {
        let stride = count(&self.shape[1..]) * self.dtype.size();
        let mut shape = self.shape.clone();
        shape[0] = lanes.len();
        (shape, lanes.start * stride..lanes.end * stride)
    }

    /// Borrows rows `lanes` of the leading dimension.
    ///
    /// # Panics
    /// If they pass the last row.
    pub fn lanes(&self, lanes: Range<usize>) -> View<'_> {
        let (shape, range) = self.lane_bytes(&lanes);
        View {
            dtype: self.dtype,
            shape,
            span: self.span().part(range.start, range.len()),
        }
    }

    /// Borrows rows `lanes` of the leading dimension for writing.
    ///
    /// # Panics
    /// As [`Self::lanes`], and if the tensor is mapped from a file or shares its memory.
    pub fn lanes_mut(&mut self, lanes: Range<usize>) -> ViewMut<'_> {
        let (shape, range) = self.lane_bytes(&lanes);
        ViewMut {
            dtype: self.dtype,
            shape,
            span: self.span_mut().into_part(range.start, range.len()),
        }
    }

    /// Joins tensors along the leading dimension.
    ///
    /// # Panics
    /// If there are none, or their types or trailing shapes differ.
    pub fn stack<'a>(parts: impl IntoIterator<Item = View<'a>>) -> Self {
        let parts: Vec<View<'_>> = parts.into_iter().collect();
        let first = parts.first().expect("stack of no tensors");
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        let mut out = Self::zeros(first.dtype, &shape);
        let mut at = 0;
        for p in &parts {
            assert_eq!(
                (p.dtype, &p.shape[1..]),
                (first.dtype, &first.shape[1..]),
                "stack of unequal tensors"
            );
            let bytes = p.bytes();
            out.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
        out
    }
}

fn array<'a, T>(shape: &[usize], elements: &'a [T]) -> ArrayViewD<'a, T> {
    ArrayViewD::from_shape(shape, elements).expect("a tensor has as many elements as its shape")
}

fn array_mut<'a, T>(shape: &[usize], elements: &'a mut [T]) -> ArrayViewMutD<'a, T> {
    ArrayViewMutD::from_shape(shape, elements).expect("a tensor has as many elements as its shape")
}

impl<S, D> From<ArrayBase<S, D>> for Tensor
where
    S: Data,
    S::Elem: Element,
    D: Dimension,
{
    /// Copies an array, or a view of one, into row-major order.
    fn from(array: ArrayBase<S, D>) -> Self {
        let mut tensor = Self::zeros(S::Elem::DTYPE, array.shape());
        tensor.array_mut().assign(&array);
        tensor
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

impl ViewMut<'_> {
    /// Copies the elements of another view of as many; the shapes may differ.
    ///
    /// # Panics
    /// If types or counts differ, or either side does not lie on the host.
    pub fn fill_from(&mut self, other: &View<'_>) {
        assert_eq!(self.dtype, other.dtype, "copy of another type");
        self.span.bytes().copy_from_slice(other.bytes());
    }
}

impl<'a> View<'a> {
    /// Gives the same elements another shape.
    ///
    /// # Panics
    /// If the counts differ.
    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(
            count(shape),
            count(&self.shape),
            "reshape {:?} to {shape:?}",
            self.shape
        );
        self.shape = shape.to_vec();
        self
    }

    /// Views a slice as a tensor.
    ///
    /// # Panics
    /// If the length is not the shape's.
    pub fn from_slice<T: Element>(shape: &[usize], data: &'a [T]) -> Self {
        assert_eq!(
            count(shape),
            data.len(),
            "{} elements for shape {shape:?}",
            data.len()
        );
        Self {
            dtype: T::DTYPE,
            shape: shape.to_vec(),
            span: Span::host(bytemuck::cast_slice(data)),
        }
    }

    /// Returns the element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Borrows the bytes of a host view.
    ///
    /// # Panics
    /// If the elements do not lie on the host.
    pub fn bytes(&self) -> &'a [u8] {
        self.span.bytes()
    }

    /// Returns the bytes, wherever they lie.
    pub fn span(&self) -> Span<'a> {
        self.span
    }

    /// Borrows the elements of a host view, row major.
    ///
    /// # Panics
    /// If `T` is not the view's element type, or the elements do not lie on the host.
    pub fn as_slice<T: Element>(&self) -> &'a [T] {
        assert_eq!(T::DTYPE, self.dtype, "view holds {}", self.dtype);
        bytemuck::cast_slice(self.span.bytes())
    }

    /// Borrows the elements as an array of the view's shape.
    ///
    /// # Panics
    /// If `T` is not the view's element type, or the elements do not lie on the host.
    pub fn array<T: Element>(&self) -> ArrayViewD<'a, T> {
        array(&self.shape, self.as_slice())
    }

    /// Copies the elements to a device's memory, counted as `class`.
    ///
    /// # Errors
    /// The device or its budget refuses.
    pub fn copied_to(&self, memory: &dyn Memory, class: Class) -> Result<Tensor, MemoryError> {
        let mut copy = Tensor::zeros_in(memory, class, self.dtype, &self.shape)?;
        memory.copy(self.span, copy.span_mut())?;
        Ok(copy)
    }

    /// Copies a host view into a tensor of its own.
    ///
    /// # Panics
    /// If the elements do not lie on the host.
    pub fn to_tensor(&self) -> Tensor {
        let mut t = Tensor::zeros(self.dtype, &self.shape);
        t.bytes_mut().copy_from_slice(self.bytes());
        t
    }
}

impl ViewMut<'_> {
    /// Borrows the same elements for a shorter time.
    pub(crate) fn again(&mut self) -> ViewMut<'_> {
        let len = self.span.len();
        ViewMut {
            dtype: self.dtype,
            shape: self.shape.clone(),
            span: self.span.part(0, len),
        }
    }

    /// Returns the bytes for writing, wherever they lie.
    pub fn span_mut(&mut self) -> SpanMut<'_> {
        let len = self.span.len();
        self.span.part(0, len)
    }

    /// Returns the shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Borrows the elements of a host view for writing, row major.
    ///
    /// # Panics
    /// If `T` is not the view's element type, or the elements do not lie on the host.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "view holds {}", self.dtype);
        bytemuck::cast_slice_mut(self.span.bytes())
    }

    /// Borrows the elements for writing, as an array of the view's shape.
    ///
    /// # Panics
    /// If `T` is not the view's element type, or the elements do not lie on the host.
    pub fn array_mut<T: Element>(&mut self) -> ArrayViewMutD<'_, T> {
        let shape = self.shape.clone();
        array_mut(&shape, self.as_mut_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array0, Array2};

    #[test]
    fn lanes_are_windows_of_the_leading_dimension() {
        let mut t = Tensor::from_slice(&[3, 2], &[0f32, 1., 2., 3., 4., 5.]);
        assert_eq!(
            t.lanes(1..3).to_tensor().as_slice::<f32>(),
            [2., 3., 4., 5.]
        );
        t.lanes_mut(2..3).span.bytes().fill(0);
        assert_eq!(t.as_slice::<f32>(), [0., 1., 2., 3., 0., 0.]);
    }

    #[test]
    fn stacking_lanes_restores_the_tensor() {
        let t = Tensor::from_slice(&[4, 3], &(0..12).collect::<Vec<i64>>());
        let again = Tensor::stack([t.lanes(0..1), t.lanes(1..4)]);
        assert_eq!(
            (again.shape(), again.as_slice::<i64>()),
            (t.shape(), t.as_slice::<i64>())
        );
        assert_eq!(again.bytes().as_ptr() as usize % 64, 0);
    }

    #[test]
    fn arrays_are_views_and_copies_of_them_are_row_major() {
        let mut t = Tensor::from_slice(&[2, 3], &[0i64, 1, 2, 3, 4, 5]);
        assert_eq!(t.array::<i64>().as_ptr().cast(), t.bytes().as_ptr());
        t.array_mut::<i64>()[[1, 0]] = 30;
        t.lanes_mut(0..1).array_mut::<i64>()[[0, 2]] = 20;
        assert_eq!(t.as_slice::<i64>(), [0, 1, 20, 30, 4, 5]);
        let turned = Tensor::from(t.array::<i64>().reversed_axes());
        assert_eq!(turned.shape(), [3, 2]);
        assert_eq!(turned.as_slice::<i64>(), [0, 30, 1, 4, 20, 5]);
        assert_eq!(t.lanes(1..2).array::<i64>().shape(), [1, 3]);
        assert_eq!(
            Tensor::from(Array0::from_elem((), 7u8)).shape(),
            [0usize; 0]
        );
        assert!(
            Tensor::from(Array2::<f32>::zeros((0, 3)))
                .bytes()
                .is_empty()
        );
    }

    #[test]
    #[should_panic(expected = "tensor holds f32")]
    fn an_array_of_another_type_is_a_bug() {
        Tensor::zeros(DType::F32, &[2]).array::<i64>();
    }
}
