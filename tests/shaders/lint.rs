//! Integer hygiene, over naga's IR: a shader relies on nothing but `RELIED_ON`, and on that only where every
//! driver's compiler must agree.
//!
//! An abstract interpreter walks all that the entry point reaches with an interval per scalar. Values of
//! expressions follow the control flow: a comparison narrows its operands in the branches and behind an early
//! return (not as a part of `&&` or `||`, which naga makes variables of). Variables, arguments and results are one
//! interval for the whole run, grown until nothing changes. What it does not know it refuses, so that it needs to
//! know no more than the shaders use.

use crate::intervals::{Interval, Relation};
use naga::back::binary_operation_str;
use naga::common::wgsl::{TryToWgsl, address_space_str};
use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{
    AddressSpace, Arena, AtomicFunction, Barrier, BinaryOperator, Block, Expression, Function, GlobalVariable, Handle,
    Literal, MathFunction, Module, Span, Statement, Type, TypeInner, UnaryOperator,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// All that shaders rely on of a driver: types, address spaces, operations, barriers. A new entry needs a reason
/// to believe that every driver gets it right, and where it is not defined for all operands, a rule here.
pub(crate) const RELIED_ON: &[&str] = &[
    // Types; vectors, arrays and structs of them.
    "atomic<u32>",
    "bool",
    "i32",
    "u32",
    // Address spaces. Private variables and locals start at zero, workgroup variables anyhow.
    "var<private>",
    "var<storage>",
    "var<uniform>",
    "var<workgroup>",
    // Wrapping arithmetic and operations on bits.
    "u32 +",
    "u32 -",
    "u32 *",
    "u32 &",
    "u32 |",
    "u32 ^",
    "u32 ~",
    // Never by 0.
    "u32 /",
    "u32 %",
    // By 0 to 31 places; of i32 with copies of the sign.
    "u32 <<",
    "u32 >>",
    "i32 >>",
    // Never beyond the range of i32.
    "i32 +",
    "i32 -",
    "i32 negation",
    // Of no zero.
    "u32 countLeadingZeros",
    "u32 max",
    "u32 min",
    "i32 clamp",
    "i32 max",
    "i32 min",
    "bool !",
    "bool !=",
    "i32 ==",
    "i32 !=",
    "i32 <",
    "i32 <=",
    "i32 >",
    "i32 >=",
    "u32 ==",
    "u32 !=",
    "u32 <",
    "u32 <=",
    "u32 >",
    "u32 >=",
    "select",
    "bitcast of i32",
    "bitcast of u32",
    // Between invocations.
    "atomicAdd",
    "atomicLoad",
    "atomicMax",
    "atomicStore",
    "workgroupBarrier",
];

/// A slot that has grown as often grows to all values of its type.
const PATIENCE: usize = 16;

/// What the lint found in a shader, and what it looked at.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) findings: Vec<String>,
    /// How often each of `RELIED_ON` occurs.
    pub(crate) uses: BTreeMap<String, usize>,
    /// The functions that the entry point reaches.
    pub(crate) reached: BTreeSet<String>,
}

/// Runs the lint on a valid module with one entry point.
pub(crate) fn lint(label: &str, text: &str, module: &Module, info: &ModuleInfo) -> Report {
    let mut functions: Vec<_> = module.functions.iter().map(|(handle, f)| (f, &info[handle])).collect();
    let [entry] = module.entry_points.as_slice() else { panic!("{label}: not one entry point") };
    functions.push((&entry.function, info.get_entry_point(0)));
    let mut lint = Lint {
        label,
        text,
        module,
        summaries: Vec::new(),
        globals: Vec::new(),
        grown: false,
        place: Place { function: String::new(), span: Span::UNDEFINED },
        report: Report::default(),
    };
    lint.check_types(&functions);
    // Values of other types have no intervals.
    if lint.report.findings.is_empty() {
        lint.run(&functions);
    }
    lint.report
}

/// A value: its scalars in order. An array is one element that stands for all.
type Value = Rc<[Interval]>;

/// Each expression's value, where it has been evaluated on every path to here.
type Env = Vec<Option<Value>>;

/// What a variable, an argument or a result may hold at any time; nothing yet where `value` is `None`.
struct Slot {
    value: Option<Value>,
    all: Value,
    growths: usize,
}

impl Slot {
    fn new(value: Option<Value>, all: Value) -> Self {
        Self { value, all, growths: 0 }
    }

    /// Takes in `value` from scalar `at` on; whether that was new.
    fn grow(&mut self, at: usize, value: &[Interval]) -> bool {
        let Some(old) = &self.value else {
            self.value = Some(value.into());
            return true;
        };
        let mut new = old.to_vec();
        for (i, &interval) in (at..).zip(value) {
            new[i] = new[i].join(interval);
            if self.growths > PATIENCE && new[i] != old[i] {
                new[i] = self.all[i];
            }
        }
        let grown = new[..] != old[..];
        self.growths += usize::from(grown);
        self.value = Some(new.into());
        grown
    }
}

struct Summary {
    called: bool,
    arguments: Vec<Slot>,
    locals: Vec<Slot>,
    /// Empty, but there, once a function without a result returns.
    result: Slot,
}

/// A function being walked.
#[derive(Clone, Copy)]
struct Frame<'a> {
    id: usize,
    function: &'a Function,
    info: &'a FunctionInfo,
}

#[derive(Clone, Copy)]
enum Variable {
    Global(Handle<GlobalVariable>),
    Local(usize),
}

/// What a pointer may point at: scalars of a variable from any of these offsets on.
struct Target {
    variable: Variable,
    offsets: Vec<usize>,
}

/// Where findings are.
struct Place {
    function: String,
    span: Span,
}

struct Lint<'a> {
    label: &'a str,
    text: &'a str,
    module: &'a Module,
    summaries: Vec<Summary>,
    globals: Vec<Slot>,
    grown: bool,
    place: Place,
    report: Report,
}

impl<'a> Lint<'a> {
    fn finding(&mut self, what: &str) {
        let Place { function, span } = &self.place;
        let line = span.location(self.text).line_number as usize;
        let code = self.text.lines().nth(line - 1).unwrap_or_default().trim();
        self.report.findings.push(format!("{}, {function}, line {line}: {what}: {code}", self.label));
    }

    /// Whether `name` is on the list; a finding if not.
    fn rely_on(&mut self, name: &str) -> bool {
        let listed = RELIED_ON.contains(&name);
        if listed {
            *self.report.uses.entry(name.to_owned()).or_default() += 1;
        } else {
            self.finding(&format!("`{name}` is not on the list of what is relied on"));
        }
        listed
    }

    fn check_types(&mut self, functions: &[(&Function, &FunctionInfo)]) {
        "the module".clone_into(&mut self.place.function);
        for (handle, ty) in self.module.types.iter() {
            self.place.span = self.module.types.get_span(handle);
            self.check_type(&ty.inner);
        }
        for (handle, global) in self.module.global_variables.iter() {
            self.place.span = self.module.global_variables.get_span(handle);
            let space = address_space_str(global.space).0.unwrap_or("handle");
            self.rely_on(&format!("var<{space}>"));
        }
        for (handle, _) in self.module.overrides.iter() {
            self.place.span = self.module.overrides.get_span(handle);
            self.rely_on("override");
        }
        for (function, info) in functions {
            self.place.function = function.name.clone().unwrap_or_default();
            for (handle, _) in function.expressions.iter() {
                self.place.span = function.expressions.get_span(handle);
                let inner = info[handle].ty.inner_with(&self.module.types);
                // Of a variable that was checked.
                if inner.pointer_space().is_none() {
                    self.check_type(inner);
                }
            }
        }
    }

    fn check_type(&mut self, inner: &TypeInner) {
        match *inner {
            TypeInner::Scalar(scalar) | TypeInner::Vector { scalar, .. } => {
                self.rely_on(&scalar.to_wgsl_for_diagnostics())
            }
            TypeInner::Atomic(scalar) => self.rely_on(&format!("atomic<{}>", scalar.to_wgsl_for_diagnostics())),
            // Of types that are checked for themselves.
            TypeInner::Struct { .. } | TypeInner::Array { .. } => true,
            _ => self.rely_on(&variant(inner)),
        };
    }

    fn run(&mut self, functions: &[(&'a Function, &'a FunctionInfo)]) {
        let module = self.module;
        for (_, global) in module.global_variables.iter() {
            let inner = &module.types[global.ty].inner;
            let all = self.all(inner);
            let value = match global.space {
                AddressSpace::Private => match global.init {
                    Some(init) => self.constant(&module.global_expressions, init),
                    None => zero(&all),
                },
                _ => all.clone(),
            };
            self.globals.push(Slot::new(Some(value), all));
        }
        for (function, _) in functions {
            let slot = |ty: Handle<Type>| Slot::new(None, self.all(&module.types[ty].inner));
            let locals = function.local_variables.iter().map(|(_, local)| {
                let mut slot = slot(local.ty);
                slot.value = Some(match local.init {
                    Some(init) => self.constant(&function.expressions, init),
                    None => zero(&slot.all),
                });
                slot
            });
            self.summaries.push(Summary {
                called: false,
                arguments: function.arguments.iter().map(|argument| slot(argument.ty)).collect(),
                locals: locals.collect(),
                result: function.result.as_ref().map_or(Slot::new(None, [].into()), |result| slot(result.ty)),
            });
        }
        let entry = self.summaries.last_mut().expect("the entry point was added");
        entry.called = true;
        for argument in &mut entry.arguments {
            argument.value = Some(argument.all.clone());
        }
        // What an unfinished round finds, the last finds too.
        let types = std::mem::take(&mut self.report.uses);
        self.grown = true;
        while self.grown {
            self.grown = false;
            self.report = Report { uses: types.clone(), ..Default::default() };
            // Callers stand behind what they call.
            for (id, &(function, info)) in functions.iter().enumerate().rev() {
                if self.summaries[id].called {
                    self.walk_function(Frame { id, function, info });
                }
            }
        }
    }

    fn walk_function(&mut self, frame: Frame<'a>) {
        self.place.function = frame.function.name.clone().unwrap_or_default();
        self.report.reached.insert(self.place.function.clone());
        let env = frame.function.expressions.iter().map(|(handle, expression)| match *expression {
            Expression::FunctionArgument(i) => self.summaries[frame.id].arguments[i as usize].value.clone(),
            Expression::Literal(_) | Expression::Constant(_) | Expression::ZeroValue(_) => {
                Some(self.constant(&frame.function.expressions, handle))
            }
            _ => None,
        });
        if self.walk(frame, &frame.function.body, env.collect()).is_some() {
            self.grown |= self.summaries[frame.id].result.grow(0, &[]);
        }
    }

    /// The values behind the block, if control can come there.
    fn walk(&mut self, frame: Frame<'a>, block: &'a Block, mut env: Env) -> Option<Env> {
        for (statement, &span) in block.span_iter() {
            self.place.span = span;
            match statement {
                Statement::Emit(range) => {
                    for handle in range.clone() {
                        self.place.span = frame.function.expressions.get_span(handle);
                        env[handle.index()] = self.evaluate(frame, handle, &env);
                    }
                }
                Statement::Block(block) => env = self.walk(frame, block, env)?,
                Statement::If { condition, accept, reject } => {
                    let accept =
                        assume(frame, *condition, true, env.clone()).and_then(|env| self.walk(frame, accept, env));
                    let reject = assume(frame, *condition, false, env).and_then(|env| self.walk(frame, reject, env));
                    env = join(accept, reject)?;
                }
                Statement::Loop { body, continuing, break_if: _ } => {
                    // Behind it stands what stood before: a loop's own values end with it.
                    if let Some(env) = self.walk(frame, body, env.clone()) {
                        self.walk(frame, continuing, env);
                    }
                }
                Statement::Break => return None,
                Statement::Return { value } => {
                    let value = value.map_or([].into(), |value| get(&env, value));
                    self.grown |= self.summaries[frame.id].result.grow(0, &value);
                    return None;
                }
                Statement::ControlBarrier(barrier) if *barrier == Barrier::WORK_GROUP => {
                    self.rely_on("workgroupBarrier");
                }
                Statement::Store { pointer, value } => {
                    let atomic = frame.info[*pointer].ty.inner_with(&self.module.types);
                    if atomic.is_atomic_pointer(&self.module.types) {
                        self.rely_on("atomicStore");
                    }
                    self.store(frame, *pointer, &get(&env, *value));
                }
                Statement::Atomic { pointer, fun, value: _, result } => {
                    match fun {
                        AtomicFunction::Add => self.rely_on("atomicAdd"),
                        AtomicFunction::Max => self.rely_on("atomicMax"),
                        _ => self.rely_on(&format!("atomic{}", variant(fun))),
                    };
                    self.store(frame, *pointer, &[Interval::U32]);
                    if let Some(result) = result {
                        env[result.index()] = Some([Interval::U32].into());
                    }
                }
                Statement::Call { function, arguments, result } => {
                    let callee = &mut self.summaries[function.index()];
                    self.grown |= !callee.called;
                    callee.called = true;
                    for (slot, &argument) in callee.arguments.iter_mut().zip(arguments) {
                        self.grown |= slot.grow(0, &get(&env, argument));
                    }
                    let value = callee.result.value.clone()?;
                    if let Some(result) = result {
                        env[result.index()] = Some(value);
                    }
                }
                _ => {
                    self.rely_on(&variant(statement));
                    return None;
                }
            }
        }
        Some(env)
    }

    /// Grows a variable; storage may hold anything as it is.
    fn store(&mut self, frame: Frame<'a>, pointer: Handle<Expression>, value: &[Interval]) {
        let Target { variable, offsets } = self.target(frame, pointer);
        let slot = match variable {
            Variable::Local(i) => &mut self.summaries[frame.id].locals[i],
            Variable::Global(handle) => &mut self.globals[handle.index()],
        };
        for offset in offsets {
            self.grown |= slot.grow(offset, value);
        }
    }

    fn target(&self, frame: Frame<'a>, pointer: Handle<Expression>) -> Target {
        let (base, index) = match frame.function.expressions[pointer] {
            Expression::GlobalVariable(handle) => {
                return Target { variable: Variable::Global(handle), offsets: vec![0] };
            }
            Expression::LocalVariable(handle) => {
                return Target { variable: Variable::Local(handle.index()), offsets: vec![0] };
            }
            Expression::AccessIndex { base, index } => (base, Some(index)),
            Expression::Access { base, .. } => (base, None),
            ref other => panic!("{}: a pointer made by {other:?}", self.label),
        };
        let ty = frame.info[base].ty.inner_with(&self.module.types).pointer_base_type();
        let ty = ty.expect("the base of a pointer is one");
        let Target { variable, offsets } = self.target(frame, base);
        let parts = self.parts(ty.inner_with(&self.module.types), index);
        Target { variable, offsets: offsets.iter().flat_map(|at| parts.iter().map(move |part| at + part)).collect() }
    }

    /// Where the parts of a composite begin among its scalars: that of an index, or all that a variable index
    /// may mean.
    fn parts(&self, inner: &TypeInner, index: Option<u32>) -> Vec<usize> {
        match (inner, index) {
            (TypeInner::Array { .. }, _) => vec![0],
            (TypeInner::Struct { members, .. }, Some(index)) => {
                let before = &members[..index as usize];
                vec![before.iter().map(|member| self.all(&self.module.types[member.ty].inner).len()).sum()]
            }
            (TypeInner::Vector { .. }, Some(index)) => vec![index as usize],
            (&TypeInner::Vector { size, .. }, None) => (0..size as usize).collect(),
            _ => panic!("{}: a part of {inner:?}", self.label),
        }
    }

    /// Every value of a type.
    fn all(&self, inner: &TypeInner) -> Value {
        match *inner {
            TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => Interval::all_of(scalar).into_iter().collect(),
            TypeInner::Vector { size, scalar } => {
                Interval::all_of(scalar).into_iter().cycle().take(size as usize).collect()
            }
            TypeInner::Array { base, .. } => self.all(&self.module.types[base].inner),
            TypeInner::Struct { ref members, .. } => {
                let members = members.iter().map(|member| self.all(&self.module.types[member.ty].inner));
                members.flat_map(|member| member.to_vec()).collect()
            }
            _ => panic!("{}: no values of {inner:?}", self.label),
        }
    }

    fn constant(&self, arena: &Arena<Expression>, handle: Handle<Expression>) -> Value {
        match arena[handle] {
            Expression::Literal(literal) => [match literal {
                Literal::U32(x) => Interval::point(x.into()),
                Literal::I32(x) => Interval::point(x.into()),
                Literal::Bool(x) => Interval::point(x.into()),
                other => panic!("{}: {other:?}", self.label),
            }]
            .into(),
            Expression::Constant(constant) => {
                self.constant(&self.module.global_expressions, self.module.constants[constant].init)
            }
            Expression::ZeroValue(ty) => zero(&self.all(&self.module.types[ty].inner)),
            Expression::Compose { ty, ref components } => {
                self.compose(ty, components.iter().map(|&component| self.constant(arena, component)).collect())
            }
            Expression::Splat { size, value } => {
                self.constant(arena, value).iter().copied().cycle().take(size as usize).collect()
            }
            ref other => panic!("{}: the constant {other:?}", self.label),
        }
    }

    fn compose(&self, ty: Handle<Type>, components: Vec<Value>) -> Value {
        if let TypeInner::Array { .. } = self.module.types[ty].inner {
            let joined = components.into_iter().reduce(|a, b| a.iter().zip(&*b).map(|(a, &b)| a.join(b)).collect());
            return joined.expect("an array has elements");
        }
        components.iter().flat_map(|component| component.iter().copied()).collect()
    }

    /// The value of an expression, if it is one and no pointer.
    fn evaluate(&mut self, frame: Frame<'a>, handle: Handle<Expression>, env: &Env) -> Option<Value> {
        let module = self.module;
        let types = &module.types;
        let inner = |handle: Handle<Expression>| frame.info[handle].ty.inner_with(types);
        if inner(handle).pointer_space().is_some() {
            return None;
        }
        let all = self.all(inner(handle));
        let part = |base: Handle<Expression>, starts: Vec<usize>| -> Value {
            let base = get(env, base);
            (0..all.len()).map(|i| join_all(starts.iter().map(|start| base[start + i]))).collect()
        };
        let scalar = |handle: Handle<Expression>| inner(handle).scalar().expect("operands are scalars and vectors");
        Some(match frame.function.expressions[handle] {
            Expression::Compose { ty, ref components } => {
                self.compose(ty, components.iter().map(|&component| get(env, component)).collect())
            }
            Expression::Access { base, .. } => part(base, self.parts(inner(base), None)),
            Expression::AccessIndex { base, index } => part(base, self.parts(inner(base), Some(index))),
            Expression::Splat { value, .. } => get(env, value).iter().copied().cycle().take(all.len()).collect(),
            Expression::Swizzle { vector, pattern, .. } => {
                let vector = get(env, vector);
                pattern.iter().take(all.len()).map(|&component| vector[component as usize]).collect()
            }
            Expression::Load { pointer } => {
                if inner(pointer).is_atomic_pointer(types) {
                    self.rely_on("atomicLoad");
                }
                let Target { variable, offsets } = self.target(frame, pointer);
                let slot = match variable {
                    Variable::Local(i) => &self.summaries[frame.id].locals[i],
                    Variable::Global(handle) => &self.globals[handle.index()],
                };
                let value = slot.value.as_ref().expect("a variable has a value");
                (0..all.len()).map(|i| join_all(offsets.iter().map(|offset| value[offset + i]))).collect()
            }
            Expression::Unary { op, expr } => {
                let kind = scalar(expr).to_wgsl_for_diagnostics();
                let name = match op {
                    UnaryOperator::Negate => "negation",
                    UnaryOperator::LogicalNot => "!",
                    UnaryOperator::BitwiseNot => "~",
                };
                if !self.rely_on(&format!("{kind} {name}")) {
                    return Some(all);
                }
                zip(&all, [&get(env, expr)], |all, [a]| match op {
                    UnaryOperator::Negate => self.in_range(Interval::point(0).subtract(a), all),
                    UnaryOperator::LogicalNot | UnaryOperator::BitwiseNot => a.complement(all),
                })
            }
            Expression::Binary { op, left, right } => {
                let kind = scalar(left).to_wgsl_for_diagnostics();
                if !self.rely_on(&format!("{kind} {}", binary_operation_str(op))) {
                    return Some(all);
                }
                let operands = [&get(env, left), &get(env, right)];
                zip(&all, operands, |all, [a, b]| self.binary(op, a, b, all))
            }
            Expression::Select { condition, accept, reject } => {
                self.rely_on("select");
                let operands = [&get(env, condition), &get(env, accept), &get(env, reject)];
                zip(&all, operands, |_, [condition, accept, reject]| match (condition.lo, condition.hi) {
                    (1, _) => accept,
                    (_, 0) => reject,
                    _ => accept.join(reject),
                })
            }
            Expression::Math { fun, arg, arg1, arg2, .. } => {
                let kind = scalar(arg).to_wgsl_for_diagnostics();
                if !self.rely_on(&format!("{kind} {}", fun.to_wgsl_for_diagnostics())) {
                    return Some(all);
                }
                let operands = [Some(arg), arg1, arg2].map(|arg| arg.map_or(all.clone(), |arg| get(env, arg)));
                zip(&all, operands.each_ref(), |all, [a, b, c]| match fun {
                    MathFunction::Min => a.min(b),
                    MathFunction::Max => a.max(b),
                    MathFunction::Clamp => a.max(b).min(c),
                    MathFunction::CountLeadingZeros => {
                        if a.holds(0) {
                            self.finding(&format!("countLeadingZeros of {a}"));
                        }
                        a.count_leading_zeros()
                    }
                    _ => all,
                })
            }
            Expression::As { expr, convert: None, .. } => {
                if !self.rely_on(&format!("bitcast of {}", scalar(expr).to_wgsl_for_diagnostics())) {
                    return Some(all);
                }
                zip(&all, [&get(env, expr)], |all, [a]| a.wrapped(all))
            }
            Expression::As { expr, .. } => {
                self.rely_on(&format!("conversion of {}", scalar(expr).to_wgsl_for_diagnostics()));
                all
            }
            ref other => {
                self.rely_on(&variant(other));
                all
            }
        })
    }

    /// One component of a binary operation; `all` is all of the result's type.
    fn binary(&mut self, op: BinaryOperator, a: Interval, b: Interval, all: Interval) -> Interval {
        if let Some(relation) = Relation::of(op) {
            return a.compare(relation, b);
        }
        match op {
            BinaryOperator::Add => self.in_range(a.add(b), all),
            BinaryOperator::Subtract => self.in_range(a.subtract(b), all),
            BinaryOperator::Multiply => self.in_range(a.multiply(b), all),
            BinaryOperator::Divide | BinaryOperator::Modulo if b.holds(0) => {
                self.finding(&format!("division by {b}"));
                all
            }
            BinaryOperator::Divide => a.divide(b),
            BinaryOperator::Modulo => a.modulo(b),
            BinaryOperator::ShiftLeft | BinaryOperator::ShiftRight if !b.lies_in(Interval::SHIFTS) => {
                self.finding(&format!("shift by {b}"));
                all
            }
            BinaryOperator::ShiftLeft => a.shift_left(b).wrapped(all),
            BinaryOperator::ShiftRight => a.shift_right(b),
            BinaryOperator::And => a.and(b),
            BinaryOperator::InclusiveOr => a.or(b),
            BinaryOperator::ExclusiveOr => a.xor(b),
            _ => all,
        }
    }

    /// u32 wraps, i32 must not need to.
    fn in_range(&mut self, exact: Interval, all: Interval) -> Interval {
        if all == Interval::I32 && !exact.lies_in(all) {
            self.finding(&format!("i32 overflow to {exact}"));
        }
        exact.wrapped(all)
    }
}

fn get(env: &Env, handle: Handle<Expression>) -> Value {
    env[handle.index()].clone().expect("a value is evaluated before it is used")
}

/// The values where a condition holds, or does not; `None` if that cannot be.
fn assume(frame: Frame, condition: Handle<Expression>, truth: bool, mut env: Env) -> Option<Env> {
    let known = Interval::point(truth.into());
    let (_, refined) = Relation::Equal.refine(known, get(&env, condition)[0])?;
    env[condition.index()] = Some([refined].into());
    match frame.function.expressions[condition] {
        Expression::Unary { op: UnaryOperator::LogicalNot, expr } => assume(frame, expr, !truth, env),
        Expression::Binary { op, left, right } => {
            let Some(relation) = Relation::of(op) else { return Some(env) };
            let relation = if truth { relation } else { relation.negated() };
            let (a, b) = relation.refine(get(&env, left)[0], get(&env, right)[0])?;
            env[left.index()] = Some([a].into());
            env[right.index()] = Some([b].into());
            Some(env)
        }
        _ => Some(env),
    }
}

/// The values where two paths meet.
fn join(a: Option<Env>, b: Option<Env>) -> Option<Env> {
    let (Some(a), Some(b)) = (&a, &b) else { return a.or(b) };
    let values = a.iter().zip(b).map(|(a, b)| {
        let (a, b) = (a.as_ref()?, b.as_ref()?);
        Some(a.iter().zip(&**b).map(|(a, &b)| a.join(b)).collect())
    });
    Some(values.collect())
}

fn join_all(intervals: impl Iterator<Item = Interval>) -> Interval {
    intervals.reduce(Interval::join).expect("at least one")
}

fn zero(like: &Value) -> Value {
    like.iter().map(|_| Interval::point(0)).collect()
}

/// Applies `f` to each component of the result's type and of the operands; a scalar goes with every component.
fn zip<const N: usize>(
    all: &Value,
    operands: [&Value; N],
    mut f: impl FnMut(Interval, [Interval; N]) -> Interval,
) -> Value {
    all.iter().enumerate().map(|(i, &all)| f(all, operands.map(|operand| operand[i % operand.len()]))).collect()
}

/// The name of an enum's variant.
fn variant(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}
