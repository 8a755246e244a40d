"""SIMD vectors for numba, and the compiler options of the CPU rasteriser.

`Vec` is a numba type of `TILE_W` floats in one register: kernels written with it read like scalar code for one pixel,
and always compile to vector instructions (on any processor; LLVM splits a vector where registers are narrower).
"""

import operator
import zlib
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

TILE_W = 8  # pixels in one SIMD vector: one AVX2 register of float32
EXP2_DEGREE = {4: 5, 8: 13}  # by item size: relative error about 1e-7 and 1e-16


# numba's cache notices a change of the file that a kernel is in, not of what it calls: so the kernels' names hold this
SOURCES = zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("raster_*.py"))))


def jit(function):
    """njit with a disk cache; without one where neither the package folder nor the user's cache folder is writable."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    function.__qualname__ += f"_{SOURCES:08x}"
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no writable cache folder
        return njit(**options)(function)


class Vec(types.Type):
    """numba type of `TILE_W` floats in one SIMD register; + - * / work between vectors and with scalars."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vec{TILE_W}({dtype})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager, vec):
        super().__init__(manager, vec, ir.VectorType(manager.lookup(vec.dtype).get_value_type(), TILE_W))


def _as_vec(context, builder, value, kind, vec):
    """LLVM value of `kind` (a Vec or a scalar, which is broadcast) as a `vec`."""
    if isinstance(kind, Vec):
        return value
    value = context.cast(builder, value, kind, vec.dtype)
    empty = ir.Constant(context.get_value_type(vec), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), TILE_W), [0] * TILE_W))


def _vec_of(kinds):
    """The Vec type among argument types if all the others are floats, else None."""
    vecs = [k for k in kinds if isinstance(k, Vec)]
    return vecs[0] if vecs and all(isinstance(k, Vec | types.Float) for k in kinds) else None


def _register_operator(op, instruction):
    @infer_global(op)
    class _VecOperator(AbstractTemplate):
        def generic(self, args, kws):
            vec = _vec_of(args)
            return None if vec is None else signature(vec, *args)

    def lower(context, builder, sig, args):
        a, b = (_as_vec(context, builder, v, k, sig.return_type) for v, k in zip(args, sig.args))
        return getattr(builder, instruction)(a, b, flags=("contract",))

    for kinds in ((Vec, Vec), (Vec, types.Float), (types.Float, Vec)):
        lower_builtin(op, *kinds)(lower)


_register_operator(operator.add, "fadd")
_register_operator(operator.iadd, "fadd")  # a += b
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")
_register_operator(operator.truediv, "fdiv")


def _element_pointer(context, builder, array, value, index, kind):
    data = context.make_array(array)(context, builder, value=value).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(kind))


@intrinsic
def vload(typing_context, array, index):
    """TILE_W consecutive elements of a 1-D array (no bounds check)."""
    vec = Vec(array.dtype)

    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, *args, context.get_value_type(vec))
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vec(array, types.intp), codegen


@intrinsic
def vstore(typing_context, array, index, value):
    """Write TILE_W consecutive elements of a 1-D array (no bounds check); a scalar is broadcast."""
    vec = Vec(array.dtype)

    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, args[0], args[1], context.get_value_type(vec))
        builder.store(_as_vec(context, builder, args[2], value, vec), pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def vfull(typing_context, array, value):
    """A scalar in every lane of a vector of the array's dtype."""
    vec = Vec(array.dtype)

    def codegen(context, builder, sig, args):
        return _as_vec(context, builder, args[1], value, vec)

    return vec(array, value), codegen


@intrinsic
def where_gt(typing_context, a, b, yes, no):
    """a > b ? yes : no, per lane."""
    vec = _vec_of((a, b, yes, no))

    def codegen(context, builder, sig, args):
        a, b, yes, no = (_as_vec(context, builder, v, k, vec) for v, k in zip(args, sig.args))
        return builder.select(builder.fcmp_ordered(">", a, b), yes, no)

    return vec(a, b, yes, no), codegen


@intrinsic
def vexp2(typing_context, x):
    """2^x per lane for x <= 100, by a polynomial on [-1/2, 1/2] and the exponent bits; x is floored at -100."""
    size = x.dtype.bitwidth // 8
    interpolant = np.polynomial.Chebyshev.interpolate(np.exp2, EXP2_DEGREE[size], [-0.5, 0.5])
    coefficients = interpolant.convert(kind=np.polynomial.Polynomial).coef
    mantissa = {4: 23, 8: 52}[size]

    def codegen(context, builder, sig, args):
        vec = context.get_value_type(x)
        ints = ir.VectorType(ir.IntType(8 * size), TILE_W)

        def constant(c, kind=vec):
            return ir.Constant(kind, [c] * TILE_W)

        v = builder.select(builder.fcmp_ordered(">", args[0], constant(-100.0)), args[0], constant(-100.0))
        magic = constant(1.5 * 2.0**mantissa)  # adding it rounds v to an integer kept in the low mantissa bits
        shifted = builder.fadd(v, magic)
        fraction = builder.fsub(v, builder.fsub(shifted, magic))
        power = constant(float(np.float32(coefficients[-1]) if size == 4 else coefficients[-1]))
        for c in coefficients[-2::-1]:
            c = float(np.float32(c)) if size == 4 else float(c)
            power = builder.fadd(builder.fmul(power, fraction, flags=("contract",)), constant(c), flags=("contract",))
        exponent = builder.shl(builder.bitcast(shifted, ints), constant(mantissa, ints))
        return builder.bitcast(builder.add(builder.bitcast(power, ints), exponent), vec)

    return x(x), codegen


@intrinsic
def vsqrt(typing_context, v):
    """Square root per lane."""

    def codegen(context, builder, sig, args):
        kind = args[0].type
        name = f"llvm.sqrt.v{TILE_W}f{v.dtype.bitwidth}"  # declare_intrinsic of llvmlite knows no vectors
        declared = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(declared, args)

    return v(v), codegen


@intrinsic
def vany(typing_context, v):
    """Whether a lane is > 0."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, [0.0] * TILE_W)
        bits = builder.bitcast(builder.fcmp_ordered(">", args[0], zero), ir.IntType(TILE_W))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(v), codegen


@intrinsic
def vsum(typing_context, v):
    """Sum of the lanes of one vector, a scalar."""

    def codegen(context, builder, sig, args):
        total = args[0]
        for step in (4, 2, 1):
            mask = [lane ^ step for lane in range(TILE_W)]
            swapped = builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(ir.IntType(32), TILE_W), mask))
            total = builder.fadd(total, swapped)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return v.dtype(v), codegen


@intrinsic
def vsums(typing_context, v0, v1, v2, v3, v4, v5, v6, v7):
    """Vector whose lane k is the sum of the lanes of v_k: a transposed reduction, three levels of pairwise adds."""

    def codegen(context, builder, sig, args):
        level = [_as_vec(context, builder, v, k, v0) for v, k in zip(args, sig.args)]
        index = ir.VectorType(ir.IntType(32), TILE_W)
        for step in (1, 2, 4):
            # lanes with bit `step` clear come from a, the others from b; each adds its partner lane
            low = [lane if not lane & step else TILE_W + lane - step for lane in range(TILE_W)]
            high = [lane + step if not lane & step else TILE_W + lane for lane in range(TILE_W)]
            level = [
                builder.fadd(
                    builder.shuffle_vector(a, b, ir.Constant(index, low)),
                    builder.shuffle_vector(a, b, ir.Constant(index, high)),
                )
                for a, b in zip(level[0::2], level[1::2])
            ]
        return level[0]

    return v0(v0, v1, v2, v3, v4, v5, v6, v7), codegen
