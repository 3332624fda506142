//! A restricted unpickler for the opcodes of `torch.save` (protocols 2 to 5). It turns them into
//! plain values. It never imports, calls or executes anything: a global or an opcode outside a
//! short list is refused by name or by number.
//!
//! Its memory is linear in the pickle. Values are `Copy` handles into arenas, and strings borrow
//! the pickle. So reading and dropping need no recursion, no cycle can leak, and no value can be
//! copied many times.

use std::collections::{HashMap, HashSet};

use super::dtype::StoredDType;
use super::error::TorchFault as Fault;

/// Most bytes of a pickle. A real checkpoint has a few hundred kilobytes.
const LIMIT: usize = 16 << 20;
/// Most dimensions of a tensor, the limit of torch itself. Without it, memoised shapes could
/// multiply.
const MAX_DIMS: usize = 64;

/// A tensor as the pickle describes it: a window on a storage record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) dtype: StoredDType,
    /// Index of the first element in the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A storage record `data/<record>`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    pub(super) record: &'a str,
    /// Type of the elements; `None` for an untyped storage, which counts bytes.
    dtype: Option<StoredDType>,
    numel: usize,
}

impl Storage<'_> {
    /// Returns the bytes that the record must hold, or `None` when they do not fit a `usize`.
    pub(super) fn bytes(&self) -> Option<usize> {
        self.numel
            .checked_mul(self.dtype.map_or(1, StoredDType::size))
    }
}

/// Returns the tensors of a pickled dictionary, in its order.
pub(super) fn tensors(pickle: &[u8]) -> Result<Vec<(&str, Tensor<'_>)>, Vec<Fault>> {
    if pickle.len() > LIMIT {
        return Err(vec![Fault::PickleLimit {
            got: pickle.len(),
            limit: LIMIT,
        }]);
    }
    let mut machine = Machine::new(pickle);
    let top = machine.run().map_err(|f| vec![f])?;
    let Value::Dict(id) = top else {
        return Err(vec![Fault::TopLevel { got: top.kind() }]);
    };
    let (mut seen, mut found, mut faults) = (HashSet::new(), Vec::new(), Vec::new());
    for &(key, value) in &machine.dicts[id] {
        match (key, value) {
            (Value::Str(key), _) if !seen.insert(key) => faults.push(Fault::Twice {
                key: key.to_owned(),
            }),
            (Value::Str(key), Value::Tensor(t)) => found.push((key, machine.tensors[t].clone())),
            (Value::Str(key), other) => faults.push(Fault::NotTensor {
                key: key.to_owned(),
                got: other.kind(),
            }),
            (other, _) => faults.push(Fault::KeyType { got: other.kind() }),
        }
    }
    if faults.is_empty() {
        Ok(found)
    } else {
        Err(faults)
    }
}

/// A global that a pickle may name.
#[derive(Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    /// Like `RebuildTensor`, with the element type as one more argument.
    RebuildTensorV3,
    RebuildParameter,
    /// `torch.Size`, which is a tuple.
    Size,
    Storage(Option<StoredDType>),
    DType(StoredDType),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch" | "torch.storage", "UntypedStorage") => Self::Storage(None),
            ("torch", class) => match StoredDType::from_storage_class(class) {
                Some(dtype) => Self::Storage(Some(dtype)),
                None => Self::DType(StoredDType::from_torch(class)?),
            },
            _ => return None,
        })
    }
}

/// A value on the machine's stack.
#[derive(Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Str(&'a str),
    Bytes,
    /// A range of `Machine::items`.
    Tuple(usize, usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(usize),
}

impl Value<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an int",
            Self::Float => "a float",
            Self::Str(_) => "a string",
            Self::Bytes => "bytes",
            Self::Tuple(..) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a class",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

struct Machine<'a> {
    pickle: &'a [u8],
    /// Next byte to read.
    at: usize,
    /// Position of the current opcode.
    op_at: usize,
    stack: Vec<Value<'a>>,
    /// Height of the stack at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    items: Vec<Value<'a>>,
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    tensors: Vec<Tensor<'a>>,
}

type Step<T> = Result<T, Fault>;

impl<'a> Machine<'a> {
    fn new(pickle: &'a [u8]) -> Self {
        Self {
            pickle,
            at: 0,
            op_at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            items: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Runs to STOP and returns the value on top.
    fn run(&mut self) -> Step<Value<'a>> {
        loop {
            self.op_at = self.at;
            let op = self.take(1)?[0];
            if op == b'.' {
                return self.pop();
            }
            if !(self.scalar(op)? || self.container(op)? || self.memoise(op)? || self.object(op)?) {
                return Err(Fault::Opcode { op, at: self.op_at });
            }
        }
    }

    /// Runs an opcode that pushes a constant or only moves the stack. Returns `false` for any other
    /// opcode.
    fn scalar(&mut self, op: u8) -> Step<bool> {
        let value = match op {
            0x80 => return self.protocol(),
            0x95 => return self.take(8).map(|_| true), // FRAME
            b'0' => return self.pop().map(|_| true),
            b'1' => return self.pop_mark().map(|_| true),
            b'2' => self.pop().inspect(|&v| self.stack.push(v))?, // DUP
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(self.take(1)?[0].into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => self.long()?,
            b'G' => self.take(8).map(|_| Value::Float)?,
            b'X' => self.string(4)?,
            0x8c => self.string(1)?,
            0x8d => self.string(8)?,
            b'T' => self.string(4)?,
            b'U' => self.string(1)?,
            b'B' => self.bytes(4).map(|_| Value::Bytes)?,
            b'C' => self.bytes(1).map(|_| Value::Bytes)?,
            0x8e => self.bytes(8).map(|_| Value::Bytes)?,
            _ => return Ok(false),
        };
        self.stack.push(value);
        Ok(true)
    }

    /// Runs an opcode of tuples, lists or dictionaries.
    fn container(&mut self, op: u8) -> Step<bool> {
        match op {
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.tuple(self.stack.len()),
            0x85..=0x87 => {
                let start = self
                    .stack
                    .len()
                    .checked_sub(usize::from(op - 0x84))
                    .filter(|&s| s >= self.floor());
                let start = start.ok_or_else(|| self.wrong("values on the stack", "too few"))?;
                self.tuple(start);
            }
            b't' => {
                let start = self.close()?;
                self.tuple(start);
            }
            b']' => self.new_list(Vec::new()),
            b'l' => {
                let items = self.pop_mark()?;
                self.new_list(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b'}' => self.new_dict(Vec::new()),
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(&items)?;
                self.new_dict(pairs);
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(&items)?;
                self.insert(pairs)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Runs an opcode of the memo.
    fn memoise(&mut self, op: u8) -> Step<bool> {
        let (get, id) = match op {
            b'q' => (false, self.take(1)?[0].into()),
            b'r' => (false, u32::from_le_bytes(self.array()?)),
            0x94 => (false, self.memo.len() as u32), // the pickle's length bounds the memo's
            b'h' => (true, self.take(1)?[0].into()),
            b'j' => (true, u32::from_le_bytes(self.array()?)),
            _ => return Ok(false),
        };
        if get {
            let value = self.memo.get(&id).copied();
            let value =
                value.ok_or_else(|| self.wrong("a memo entry that was put", "an unknown one"))?;
            self.stack.push(value);
        } else {
            let value = self.pop()?;
            self.stack.push(value);
            self.memo.insert(id, value);
        }
        Ok(true)
    }

    /// Runs an opcode that names a class or builds an object. The object comes from the short list;
    /// nothing is called.
    fn object(&mut self, op: u8) -> Step<bool> {
        match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => self.global(module, name)?,
                (other, _) => return Err(self.wrong("a module and a name", other.kind())),
            },
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.stack.push(Value::Storage(storage));
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let callee = self.pop()?;
                let made = self.reduce(callee, args)?;
                self.stack.push(made);
            }
            // The state of an OrderedDict (`_metadata` of a state dict) is read and dropped.
            b'b' => {
                self.pop()?;
                match self.top()? {
                    Value::Dict(_) => {}
                    other => return Err(self.wrong("state of a dictionary only", other.kind())),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn protocol(&mut self) -> Step<bool> {
        match self.take(1)?[0] {
            2..=5 => Ok(true),
            _ => Err(self.wrong("pickle protocol 2 to 5", "another one")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let global = Global::named(module, name);
        let global = global.ok_or_else(|| Fault::Global {
            global: printable(module, name),
            at: self.op_at,
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// `('storage', class, record, location, numel)`, torch/serialization.py `persistent_id`.
    fn storage(&self, id: Value<'a>) -> Step<Storage<'a>> {
        match self.tuple_items(id)? {
            &[
                Value::Str("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Str(record),
                Value::Str(_),
                Value::Int(n),
            ] => Ok(Storage {
                record,
                dtype,
                numel: self.size(Value::Int(n))?,
            }),
            _ => Err(self.wrong(
                "a storage id ('storage', class, record, location, count)",
                "another tuple",
            )),
        }
    }

    fn reduce(&mut self, callee: Value<'a>, args: Value<'a>) -> Step<Value<'a>> {
        let Value::Global(global) = callee else {
            return Err(self.wrong("a class to build", callee.kind()));
        };
        let args = self.tuple_items(args)?;
        match (global, args) {
            (Global::OrderedDict, []) => {
                self.new_dict(Vec::new());
                self.pop()
            }
            (Global::Size, &[tuple @ Value::Tuple(..)]) => Ok(tuple),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
            (Global::RebuildTensor, &[Value::Storage(s), offset, shape, strides, ..]) => {
                match s.dtype {
                    Some(dtype) => self.tensor(s, dtype, [offset, shape, strides]),
                    None => Err(self.wrong("a typed storage", "an untyped one")),
                }
            }
            (
                Global::RebuildTensorV3,
                &[
                    Value::Storage(s),
                    offset,
                    shape,
                    strides,
                    _,
                    _,
                    Value::Global(Global::DType(dtype)),
                    ..,
                ],
            ) => self.tensor(s, dtype, [offset, shape, strides]),
            _ => Err(self.wrong("the arguments torch.save writes", "others")),
        }
    }

    fn tensor(
        &mut self,
        storage: Storage<'a>,
        dtype: StoredDType,
        [offset, shape, strides]: [Value<'a>; 3],
    ) -> Step<Value<'a>> {
        let (offset, shape, strides) =
            (self.size(offset)?, self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(self.wrong("as many strides as dimensions", "another number"));
        }
        self.tensors.push(Tensor {
            storage,
            dtype,
            offset,
            shape,
            strides,
        });
        Ok(Value::Tensor(self.tensors.len() - 1))
    }

    fn sizes(&self, tuple: Value<'a>) -> Step<Vec<usize>> {
        let items = self.tuple_items(tuple)?;
        if items.len() > MAX_DIMS {
            return Err(self.wrong("at most 64 dimensions", "more"));
        }
        items.iter().map(|&v| self.size(v)).collect()
    }

    fn size(&self, value: Value<'a>) -> Step<usize> {
        match value {
            Value::Int(n) => {
                usize::try_from(n).map_err(|_| self.wrong("a size", "a negative number"))
            }
            other => Err(self.wrong("a size", other.kind())),
        }
    }

    fn tuple_items(&self, value: Value<'a>) -> Step<&[Value<'a>]> {
        match value {
            Value::Tuple(start, len) => Ok(&self.items[start..start + len]),
            other => Err(self.wrong("a tuple", other.kind())),
        }
    }

    fn tuple(&mut self, from: usize) {
        let start = self.items.len();
        self.items.extend(self.stack.drain(from..));
        self.stack
            .push(Value::Tuple(start, self.items.len() - start));
    }

    fn new_list(&mut self, items: Vec<Value<'a>>) {
        self.lists.push(items);
        self.stack.push(Value::List(self.lists.len() - 1));
    }

    fn new_dict(&mut self, pairs: Vec<(Value<'a>, Value<'a>)>) {
        self.dicts.push(pairs);
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        match self.top()? {
            Value::List(id) => self.lists[id].extend(items),
            other => return Err(self.wrong("a list", other.kind())),
        }
        Ok(())
    }

    fn insert(&mut self, pairs: Vec<(Value<'a>, Value<'a>)>) -> Step<()> {
        match self.top()? {
            Value::Dict(id) => self.dicts[id].extend(pairs),
            other => return Err(self.wrong("a dictionary", other.kind())),
        }
        Ok(())
    }

    fn pairs(&self, items: &[Value<'a>]) -> Step<Vec<(Value<'a>, Value<'a>)>> {
        match items.as_chunks() {
            (pairs, []) => Ok(pairs.iter().map(|&[k, v]| (k, v)).collect()),
            _ => Err(self.wrong("pairs of key and value", "an odd one")),
        }
    }

    /// Values below this height belong to an outer MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Value<'a>> {
        let top = self
            .stack
            .get(self.floor()..)
            .and_then(<[_]>::last)
            .copied();
        top.ok_or_else(|| self.wrong("a value on the stack", "none"))
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn close(&mut self) -> Step<usize> {
        self.marks
            .pop()
            .ok_or_else(|| self.wrong("an open mark", "none"))
    }

    fn pop_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let start = self.close()?;
        Ok(self.stack.split_off(start))
    }

    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let part = self
            .at
            .checked_add(n)
            .and_then(|stop| self.pickle.get(self.at..stop));
        let part = part.ok_or(Fault::PickleEnd { at: self.op_at })?;
        self.at += n;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let at = self.op_at;
        self.take(N)?
            .try_into()
            .map_err(|_| Fault::PickleEnd { at })
    }

    /// Reads bytes that follow their own count. The count has `width` bytes.
    fn bytes(&mut self, width: usize) -> Step<&'a [u8]> {
        let count = self
            .take(width)?
            .iter()
            .rev()
            .fold(0u64, |n, &b| n << 8 | u64::from(b));
        self.take(usize::try_from(count).map_err(|_| Fault::PickleEnd { at: self.op_at })?)
    }

    fn string(&mut self, width: usize) -> Step<Value<'a>> {
        let text = std::str::from_utf8(self.bytes(width)?);
        text.map(Value::Str)
            .map_err(|_| self.wrong("UTF-8 text", "other bytes"))
    }

    /// Reads a LONG1: a two's complement number of up to 8 bytes.
    fn long(&mut self) -> Step<Value<'a>> {
        let digits = self.bytes(1)?;
        if digits.len() > 8 {
            return Err(self.wrong("a number of at most 64 bits", "a longer one"));
        }
        let sign = digits
            .last()
            .map_or(0, |&b| if b & 0x80 == 0 { 0 } else { 0xFF });
        let mut wide = [sign; 8];
        wide[..digits.len()].copy_from_slice(digits);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.pickle[self.at..];
        let len = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or(Fault::PickleEnd { at: self.op_at })?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| self.wrong("UTF-8 text", "other bytes"))
    }

    fn wrong(&self, want: &'static str, got: &'static str) -> Fault {
        Fault::Pickle {
            at: self.op_at,
            want,
            got,
        }
    }
}

/// Returns `module.name`, shortened to a line that is safe to print.
fn printable(module: &str, name: &str) -> String {
    let full = format!("{}.{}", module.escape_debug(), name.escape_debug());
    full.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A dictionary of two tensors as torch 2 writes it:
    /// `torch.save({"w": f32 [2,3], "b": bf16 [4]})`, memo included.
    fn sound() -> Vec<u8> {
        let mut p = b"\x80\x02}q\x00(".to_vec();
        let mut tensor =
            |key: &str, class: &str, record: &str, numel: u8, shape: &[u8], strides: &[u8]| {
                let text = |s: &str| {
                    [&b"X"[..], &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
                };
                let tuple = |d: &[u8]| {
                    [
                        &b"("[..],
                        &d.iter().flat_map(|&n| [b'K', n]).collect::<Vec<_>>(),
                        b"t",
                    ]
                    .concat()
                };
                p.extend(text(key));
                p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                p.extend(text("storage"));
                p.extend(format!("ctorch\n{class}\n").bytes());
                p.extend(text(record));
                p.extend(text("cpu"));
                p.extend([b'K', numel, b't', b'Q', b'K', 0]);
                p.extend(tuple(shape));
                p.extend(tuple(strides));
                p.extend(b"\x89ccollections\nOrderedDict\n)Rtq\x01R");
            };
        tensor("w", "FloatStorage", "0", 6, &[2, 3], &[3, 1]);
        tensor("b", "BFloat16Storage", "1", 4, &[4], &[1]);
        p.extend(b"u.");
        p
    }

    fn refusal(pickle: &[u8]) -> String {
        tensors(pickle).unwrap_err()[0].to_string()
    }

    #[test]
    fn tensors_are_read_in_order() {
        let p = sound();
        let got = tensors(&p).unwrap();
        let facts: Vec<_> = got
            .iter()
            .map(|(k, t)| {
                (
                    *k,
                    t.dtype,
                    t.shape.as_slice(),
                    t.storage.record,
                    t.storage.bytes(),
                )
            })
            .collect();
        assert_eq!(
            facts,
            [
                ("w", StoredDType::F32, &[2, 3][..], "0", Some(24)),
                ("b", StoredDType::BF16, &[4], "1", Some(8))
            ]
        );
    }

    #[test]
    fn a_call_is_refused_by_name() {
        for (pickle, global) in [
            (&b"\x80\x02cos\nsystem\n(X\x02\0\0\0idtR."[..], "os.system"),
            (b"\x80\x02cposix\nsystem\n.", "posix.system"),
            (
                b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
                "builtins.eval",
            ),
            (b"\x80\x02ctorch\nload\n.", "torch.load"),
            (
                b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nctorch._utils\n__import__\n.",
                "torch._utils.__import__",
            ),
        ] {
            assert!(
                refusal(pickle).contains(&format!("names {global}, which is refused")),
                "{}",
                refusal(pickle)
            );
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for (pickle, want) in [
            (&b""[..], "ends in the middle"),
            (b"\x80\x02", "ends in the middle"),
            (b"\x80\x06}.", "wanted pickle protocol 2 to 5"),
            (b"\x80\x02i", "opcode 0x69"),
            (b"\x80\x02\x82\x01.", "opcode 0x82"),
            (b"\x80\x02].", "top level is a list"),
            (
                b"\x80\x02}K\x01K\x02s.",
                "a key of the dictionary is an int",
            ),
            (b"\x80\x02}X\x01\0\0\0aK\x02s.", "key a holds an int"),
            (
                b"\x80\x02}X\x01\0\0\0a}X\x01\0\0\0bNss.",
                "key a holds a dictionary",
            ),
            (b"\x80\x02(0.", "wanted a value on the stack"),
            (b"\x80\x02t.", "wanted an open mark"),
            (b"\x80\x02h\x07.", "wanted a memo entry"),
            (b"\x80\x02NK\x01b.", "state of a dictionary only"),
            (b"\x80\x02X\xff\xff\xff\xffa.", "ends in the middle"),
            (
                b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
                "ends in the middle",
            ),
            (b"\x80\x02(K\x01d.", "pairs of key and value"),
            (b"\x80\x02N)R.", "wanted a class to build"),
            (b"\x80\x02\x8a\x09123456789.", "at most 64 bits"),
        ] {
            assert!(
                refusal(pickle).contains(want),
                "{} has no {want:?}",
                refusal(pickle)
            );
        }
    }

    #[test]
    fn a_million_nested_containers_are_neither_deep_nor_dear() {
        let mut p = b"\x80\x02)".to_vec();
        p.extend([0x85].repeat(1_000_000));
        p.extend(b".");
        assert_eq!(
            refusal(&p),
            "top level is a tuple, wanted a dictionary of tensors"
        );
    }

    #[test]
    fn a_list_inside_itself_is_harmless() {
        assert_eq!(
            refusal(b"\x80\x02]q\x00h\x00a."),
            "top level is a list, wanted a dictionary of tensors"
        );
    }

    #[test]
    fn negative_long_keeps_its_sign() {
        let mut m = Machine::new(b"\x02\xff\xff");
        assert!(matches!(m.long(), Ok(Value::Int(-1))));
    }

    /// Bytes that begin an operation, or count its arguments.
    const OPCODES: &[u8] = b"().0122NJKMGXBCTU]leadsu}tqrhjcQRb\
        \x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95\0\x01";

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = tensors(&bytes);
        }

        #[test]
        fn arbitrary_opcodes_never_panic(
            ops in proptest::collection::vec(proptest::sample::select(OPCODES.to_vec()), 0..300),
        ) {
            let _ = tensors(&ops);
        }

        #[test]
        fn a_mutated_pickle_fails_or_still_describes_tensors(
            at in 0usize..1000,
            to in any::<u8>(),
        ) {
            let mut p = sound();
            let i = at % p.len();
            p[i] = to;
            if let Ok(found) = tensors(&p) {
                prop_assert!(found.len() <= 2);
                prop_assert!(found.iter().all(|(_, t)| t.shape.len() == t.strides.len()));
            }
        }

        #[test]
        fn a_shortened_pickle_always_fails(cut in 1usize..300) {
            let p = sound();
            prop_assert!(tensors(&p[..p.len() - cut.min(p.len())]).is_err());
        }
    }
}
