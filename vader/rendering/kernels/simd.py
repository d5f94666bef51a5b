"""Eight numbers at a time for numba: vectors of float32 that the fused renderer's CPU kernels compute with.

numba compiles scalars, and LLVM does not find the renderer's structure by itself. Hence `Float8`, a value of eight
floats (one AVX register, two NEON ones), and the few operations on it that the kernels need. numba keeps what it
compiled beside the kernels' file and looks at that file's date only: after a change here, touch `cpu.py`.
"""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

# Products and sums may fuse, divisions become reciprocals; NaN and infinity keep their meaning, so that bad input
# stays visible, and sums keep their order.
FASTMATH = {"contract", "nsz", "arcp"}
ONE, HALF, ZERO = np.float32(1), np.float32(0.5), np.float32(0)


class Float8(types.Type):
    """Eight float32; `*`, `+` and `-` work lane by lane."""

    def __init__(self):
        super().__init__(name="Float8")


FLOAT8, VECTOR = Float8(), ir.VectorType(ir.FloatType(), 8)


@register_default(Float8)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


def _lanewise(parameters, emit):
    """An intrinsic of Float8 arguments and result from a function that emits LLVM: builder, *arguments -> value."""

    @intrinsic
    def unary(typing, a):
        return FLOAT8(FLOAT8), lambda context, builder, signature, arguments: emit(builder, *arguments)

    @intrinsic
    def binary(typing, a, b):
        return FLOAT8(FLOAT8, FLOAT8), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return unary if parameters == 1 else binary


def _define_operator(symbol, instruction):
    apply = _lanewise(2, lambda builder, a, b: getattr(builder, instruction)(a, b, flags=tuple(FASTMATH)))

    @overload(symbol)
    def choose(a, b):
        if isinstance(a, Float8) and isinstance(b, Float8):
            return lambda a, b: apply(a, b)


_define_operator(operator.mul, "fmul")
_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")


def _llvm_function(name):
    def emit(builder, a):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR]), name)
        return builder.call(function, [a])

    return _lanewise(1, emit)


def _emit_exp2(builder, n):
    integers = ir.VectorType(ir.IntType(32), 8)
    biased = builder.add(builder.fptosi(n, integers), ir.Constant(integers, [127] * 8))
    return builder.bitcast(builder.shl(biased, ir.Constant(integers, [23] * 8)), VECTOR)


trunc8 = _llvm_function("llvm.trunc.v8f32")
round8 = _llvm_function("llvm.rint.v8f32")
whole_exp2 = _lanewise(1, _emit_exp2)  # 2^n for whole n in [-126, 127]
# The smaller and the larger of two, lane by lane; b where a is NaN, which keeps a bad position inside the volume.
less8 = _lanewise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
more8 = _lanewise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def pack8(typing, *lanes):
    """Float8 of eight float32."""

    def generate(context, builder, signature, arguments):
        vector = ir.Constant(VECTOR, ir.Undefined)
        for lane, value in enumerate(cgutils.unpack_tuple(builder, arguments[0])):
            vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
        return vector

    return FLOAT8(types.StarArgTuple([types.float32] * 8)), generate


@intrinsic
def lane8(typing, vector, lane):
    """One lane of a Float8 as a float32."""
    return types.float32(FLOAT8, types.int32), lambda context, builder, signature, arguments: builder.extract_element(
        *arguments
    )


def _address(context, builder, array_type, array, index):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), VECTOR.as_pointer())


@intrinsic
def load8(typing, array, index):
    """array[index : index + 8] of a contiguous float32 array, unchecked."""

    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=4)

    return FLOAT8(array, types.intp), generate


@intrinsic
def store8(typing, array, index, value):
    """array[index : index + 8] = value, unchecked."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOAT8), generate


@njit(inline="always")
def splat8(x):
    return pack8(x, x, x, x, x, x, x, x)


@njit(inline="always")
def exp8(x):
    """exp(x) for x <= 0 within 2 ulp (exp(-87) below -87): 2^n times the Cephes polynomial on [-ln 2 / 2, ln 2 / 2]."""
    x = more8(splat8(np.float32(-87)), x)
    n = round8(x * splat8(np.float32(1.4426950408889634)))
    r = x - n * splat8(np.float32(0.693359375)) + n * splat8(np.float32(2.12194440e-4))
    p = splat8(np.float32(1.9875691500e-4))
    p = p * r + splat8(np.float32(1.3981999507e-3))
    p = p * r + splat8(np.float32(8.3334519073e-3))
    p = p * r + splat8(np.float32(4.1665795894e-2))
    p = p * r + splat8(np.float32(1.6666665459e-1))
    p = p * r + splat8(np.float32(5.0000001201e-1))
    return (p * (r * r) + (r + splat8(ONE))) * whole_exp2(n)


INT8 = ir.VectorType(ir.IntType(32), 8)


def _int8(*values):
    return ir.Constant(INT8, list(values) if len(values) > 1 else list(values) * 8)


def _repeat(builder, scalar):
    vector = builder.insert_element(ir.Constant(INT8, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(vector, ir.Constant(INT8, ir.Undefined), _int8(0))


@intrinsic
def uniform8(typing, base):
    """`reference.hash_uniform` of the hash inputs base, base + 1, ..., base + 7 (modulo 2^32), base a uint32."""

    def generate(context, builder, signature, arguments):
        x = builder.add(_repeat(builder, arguments[0]), _int8(*range(8)))
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = builder.mul(builder.xor(x, builder.lshr(x, _int8(shift))), _int8(factor))
        x = builder.lshr(builder.xor(x, builder.lshr(x, _int8(16))), _int8(8))
        return builder.fmul(builder.sitofp(x, VECTOR), ir.Constant(VECTOR, [2.0**-24] * 8))

    return FLOAT8(types.uint32), generate


@intrinsic
def store_cells(typing, x, y, z, width, height, array):
    """array[:8] = (z * height + y) * width + x, for whole numbers x, y, z (Float8) and an int32 array."""

    def generate(context, builder, signature, arguments):
        x, y, z = (builder.fptosi(value, INT8) for value in arguments[:3])
        w, h = (_repeat(builder, value) for value in arguments[3:5])
        index = builder.add(builder.mul(builder.add(builder.mul(z, h), y), w), x)
        data = cgutils.create_struct_proxy(signature.args[5])(context, builder, arguments[5]).data
        builder.store(index, builder.bitcast(data, INT8.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(FLOAT8, FLOAT8, FLOAT8, types.int32, types.int32, array), generate


def _column8(column):
    """An intrinsic: the Float8 of entry `column` of eight samples, each a Float8 that holds two terms of four entries.

    The terms are added.
    """

    @intrinsic
    def gather(typing, a, b, c, d, e, f, g, h):
        def generate(context, builder, signature, samples):
            four = ir.VectorType(ir.IntType(32), 4)

            def merged(x, y, lanes):
                kind = INT8 if len(lanes) == 8 else four
                return builder.shuffle_vector(x, y, ir.Constant(kind, lanes))

            # Two samples after one another, terms added; then pairs of pairs until lane k belongs to sample k.
            pairs = []
            for k in range(4):
                low, high = samples[k], samples[k + 4]
                terms = [merged(low, high, [*range(s, s + 4), *range(s + 8, s + 12)]) for s in (0, 4)]
                pairs.append(builder.fadd(*terms, flags=tuple(FASTMATH)))
            i, j = column, column + 4
            ab, cd = (merged(x, y, [i, i + 8, i, i + 8, j, j + 8, j, j + 8]) for x, y in (pairs[:2], pairs[2:]))
            return merged(ab, cd, [0, 1, 8, 9, 4, 5, 12, 13])

        return FLOAT8(*[FLOAT8] * 8), generate

    return gather


densities8, reds8, greens8, blues8 = map(_column8, range(4))


def _prefix8(instruction, neutral):
    """An intrinsic: lane k becomes the sum (or product) of lanes 0 to k."""

    def emit(builder, a):
        filled = ir.Constant(VECTOR, [neutral] * 8)
        for shift in (1, 2, 4):
            moved = builder.shuffle_vector(a, filled, _int8(*[8] * shift, *range(8 - shift)))
            a = getattr(builder, instruction)(a, moved, flags=tuple(FASTMATH))
        return a

    return _lanewise(1, emit)


products8, sums8 = _prefix8("fmul", 1.0), _prefix8("fadd", 0.0)
# The last lane of b, then all lanes of a but its last.
behind8 = _lanewise(2, lambda builder, a, b: builder.shuffle_vector(b, a, _int8(7, *range(8, 15))))


@intrinsic
def where_not_less8(typing, a, b, c):
    """a where b < c does not hold, lane by lane, 0 elsewhere."""

    def generate(context, builder, signature, arguments):
        a, b, c = arguments
        return builder.select(builder.fcmp_ordered("<", b, c), ir.Constant(VECTOR, [0.0] * 8), a)

    return FLOAT8(FLOAT8, FLOAT8, FLOAT8), generate


@intrinsic
def total8(typing, value):
    """Sum of the lanes of a Float8, a float32."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v8f32")
        return builder.call(function, [ir.Constant(ir.FloatType(), -0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(FLOAT8), generate
