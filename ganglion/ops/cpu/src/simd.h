// A vector of floats as wide as the registers that this file is compiled for, and exp and log on it.
//
// GCC and Clang lower the vector extension to any instruction set. Other compilers get the same type as an array
// of lanes, which is correct everywhere and as fast as their loop vectoriser makes it.
//
// Everything has internal linkage: the same source is compiled for several instruction sets into one library, and
// the linker must not merge the copies.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE__) || defined(_M_X64)
#include <immintrin.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define SCAN_INLINE __forceinline
#define SCAN_UNROLL
#else
#define SCAN_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define SCAN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SCAN_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

// The same bytes as another type.
template <class To, class From>
SCAN_INLINE To reinterpret(From value) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

#if defined(__GNUC__) || defined(__clang__)

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Bits __attribute__((vector_size(4 * WIDTH)));

// `value - 0`, unlike `value + 0`, is `value` also for a negative zero, and so costs no operation.
SCAN_INLINE Vec splat(float value) { return value - Vec{}; }
SCAN_INLINE Bits as_bits(Vec a) { return (Bits)a; }
SCAN_INLINE Vec as_floats(Bits a) { return (Vec)a; }
// Lane i is a[I[i]], from WIDTH on b[I[i] - WIDTH].
template <int... I>
SCAN_INLINE Vec shuffle(Vec a, Vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, Bits{I...});
#endif
}
SCAN_INLINE Vec select(Bits mask, Vec yes, Vec no) { return mask ? yes : no; }
// A NaN in `a` stays: x86's max and min return their second operand then, and compilers miss that this is meant.
#if defined(__AVX512F__)
SCAN_INLINE Vec at_least(Vec a, Vec low) { return (Vec)_mm512_max_ps((__m512)low, (__m512)a); }
SCAN_INLINE Vec at_most(Vec a, Vec high) { return (Vec)_mm512_min_ps((__m512)high, (__m512)a); }
#elif defined(__AVX__)
SCAN_INLINE Vec at_least(Vec a, Vec low) { return (Vec)_mm256_max_ps((__m256)low, (__m256)a); }
SCAN_INLINE Vec at_most(Vec a, Vec high) { return (Vec)_mm256_min_ps((__m256)high, (__m256)a); }
#elif defined(__SSE__)
SCAN_INLINE Vec at_least(Vec a, Vec low) { return (Vec)_mm_max_ps((__m128)low, (__m128)a); }
SCAN_INLINE Vec at_most(Vec a, Vec high) { return (Vec)_mm_min_ps((__m128)high, (__m128)a); }
#else
SCAN_INLINE Vec at_least(Vec a, Vec low) { return select(a < low, low, a); }
SCAN_INLINE Vec at_most(Vec a, Vec high) { return select(high < a, high, a); }
#endif

#else

struct Bits {
    int32_t lane[WIDTH];
};
struct Vec {
    float lane[WIDTH];
};

#define SCAN_LANES(type, expression)                              \
    type result;                                                  \
    for (int i = 0; i < WIDTH; ++i) result.lane[i] = (expression); \
    return result;
SCAN_INLINE Vec splat(float value) { SCAN_LANES(Vec, value) }
SCAN_INLINE Vec operator+(Vec a, Vec b) { SCAN_LANES(Vec, a.lane[i] + b.lane[i]) }
SCAN_INLINE Vec operator-(Vec a, Vec b) { SCAN_LANES(Vec, a.lane[i] - b.lane[i]) }
SCAN_INLINE Vec operator*(Vec a, Vec b) { SCAN_LANES(Vec, a.lane[i] * b.lane[i]) }
SCAN_INLINE Vec operator/(Vec a, Vec b) { SCAN_LANES(Vec, a.lane[i] / b.lane[i]) }
SCAN_INLINE Vec& operator+=(Vec& a, Vec b) { return a = a + b; }
SCAN_INLINE Bits operator<(Vec a, Vec b) { SCAN_LANES(Bits, a.lane[i] < b.lane[i] ? -1 : 0) }
SCAN_INLINE Bits operator|(Bits a, int32_t b) { SCAN_LANES(Bits, a.lane[i] | b) }
SCAN_INLINE Bits operator&(Bits a, Bits b) { SCAN_LANES(Bits, a.lane[i] & b.lane[i]) }
SCAN_INLINE Bits operator<<(Bits a, int b) { SCAN_LANES(Bits, (int32_t)((uint32_t)a.lane[i] << b)) }
SCAN_INLINE Vec select(Bits mask, Vec yes, Vec no) { SCAN_LANES(Vec, mask.lane[i] ? yes.lane[i] : no.lane[i]) }
SCAN_INLINE Vec at_least(Vec a, Vec low) { return select(a < low, low, a); }
SCAN_INLINE Vec at_most(Vec a, Vec high) { return select(high < a, high, a); }
template <int... I>
SCAN_INLINE Vec shuffle(Vec a, Vec b) {
    constexpr int from[] = {I...};
    SCAN_LANES(Vec, from[i] < WIDTH ? a.lane[from[i]] : b.lane[from[i] - WIDTH])
}
#undef SCAN_LANES
SCAN_INLINE Bits as_bits(Vec a) { return reinterpret<Bits>(a); }
SCAN_INLINE Vec as_floats(Bits a) { return reinterpret<Vec>(a); }

#endif

SCAN_INLINE Vec load(const float* from) {
    Vec result;
    memcpy(&result, from, sizeof result);
    return result;
}
SCAN_INLINE void store(float* to, Vec value) { memcpy(to, &value, sizeof value); }

// All bits of the first `count` lanes.
SCAN_INLINE Bits lanes_below(int count) {
    int32_t lane[WIDTH];
    for (int i = 0; i < WIDTH; ++i) lane[i] = i < count ? -1 : 0;
    Bits result;
    memcpy(&result, lane, sizeof result);
    return result;
}

// Of every two runs of STEP lanes, `a` keeps its first and gets b's first as its second, and `b` gets a's second as its
// first and keeps its second.
template <int STEP, int... I>
SCAN_INLINE void exchange(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
    const Vec first = shuffle<(I & STEP ? I - STEP + WIDTH : I)...>(a, b);
    b = shuffle<(I & STEP ? I + WIDTH : I + STEP)...>(a, b);
    a = first;
}
template <int STEP>
SCAN_INLINE void exchange(Vec& a, Vec& b) {
    exchange<STEP>(a, b, std::make_integer_sequence<int, WIDTH>());
}

// Turns WIDTH vectors: lane i of vector j becomes lane j of vector i.
template <int STEP = 1>
SCAN_INLINE void transpose(Vec* rows) {
    if constexpr (STEP < WIDTH) {
        SCAN_UNROLL for (int i = 0; i < WIDTH; ++i)
            if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP]);
        transpose<2 * STEP>(rows);
    }
}

// Lane j is the sum of the lanes of vector j; the vectors are lost.
template <int STEP = 1>
SCAN_INLINE Vec sums(Vec* rows) {
    if constexpr (STEP < WIDTH) {
        SCAN_UNROLL for (int i = 0; i < WIDTH; i += 2 * STEP) {
            exchange<STEP>(rows[i], rows[i + STEP]);
            rows[i] += rows[i + STEP];
        }
        return sums<2 * STEP>(rows);
    }
    return rows[0];
}

SCAN_INLINE float sum(Vec a) {
    float lane[WIDTH];
    store(lane, a);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

// 2 ** r for -0.5 <= r <= 0.5, relative error below 2e-7.
SCAN_INLINE Vec exp2_of_fraction(Vec r) {
    Vec p = splat(0.001326472719326087f);
    p = p * r + splat(0.009671512639923946f);
    p = p * r + splat(0.05550733743265194f);
    p = p * r + splat(0.24022242085369003f);
    p = p * r + splat(0.6931469775991541f);
    return p * r + splat(1.0f);
}

#if defined(__AVX512DQ__) && (defined(__GNUC__) || defined(__clang__))

// 2 ** a, relative error below 2e-7. The fraction of an infinite number is zero here.
SCAN_INLINE Vec exp2_of(Vec a) {
    const Vec r = (Vec)_mm512_reduce_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT);
    return (Vec)_mm512_scalef_ps((__m512)exp2_of_fraction(r), (__m512)(a - r));
}

// 2 ** -|v|: the part that softplus and its derivative share.
SCAN_INLINE Vec exp2_of_minus_abs(Vec v) { return exp2_of(as_floats(as_bits(v) | INT32_MIN)); }

#else

// 2 ** a for -127 <= a <= 128, relative error below 2e-7. Zero from about -126.5 downwards, infinite from 127.5.
// Adding 1.5 * 2**23 rounds a to an integer and leaves it in the low mantissa bits, ready to become an exponent.
SCAN_INLINE Vec exp2_in_range(Vec a) {
    const Vec magic = splat(12582912.0f + 127.0f);
    const Vec rounded = a + magic;
    return exp2_of_fraction(a - (rounded - magic)) * as_floats(as_bits(rounded) << 23);
}

SCAN_INLINE Vec exp2_of(Vec a) { return exp2_in_range(at_most(at_least(a, splat(-127.0f)), splat(128.0f))); }

// 2 ** -|v|: the part that softplus and its derivative share.
SCAN_INLINE Vec exp2_of_minus_abs(Vec v) {
    return exp2_in_range(at_least(as_floats(as_bits(v) | INT32_MIN), splat(-127.0f)));
}

#endif

// log2(1 + t) for 0 <= t <= 1, relative error below 2e-7 however small t is.
SCAN_INLINE Vec log2_of_1_plus(Vec t) {
    Vec p = splat(0.007549181651614454f);
    p = p * t + splat(-0.04256706000345334f);
    p = p * t + splat(0.11285619013274992f);
    p = p * t + splat(-0.1971189671978252f);
    p = p * t + splat(0.2756414109563068f);
    p = p * t + splat(-0.35840847212292726f);
    p = p * t + splat(0.48069295727510086f);
    p = p * t + splat(-0.7213402080054822f);
    p = p * t + splat(1.4426949974343393f);
    return p * t;
}

// log2(1 + 2 ** v), softplus in base two. Where v is large this is v itself.
SCAN_INLINE Vec softplus2(Vec v, Vec exp2_minus_abs) {
    return at_least(v, splat(0.0f)) + log2_of_1_plus(exp2_minus_abs);
}

// Its derivative 1 / (1 + 2 ** -v), the logistic function in base two.
SCAN_INLINE Vec softplus2_grad(Vec v, Vec exp2_minus_abs) {
    const Vec one = splat(1.0f);
    return select(v < splat(0.0f), exp2_minus_abs, one) / (one + exp2_minus_abs);
}

// One panel of the product below: ROWS rows, held in registers.
template <int ROWS, int COLS, class A, class Start, class Finish>
SCAN_INLINE void multiply_panel(int m, int inner, A a, const float* b, int b_stride, Start start, Finish finish) {
    Vec acc[ROWS][COLS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLS; ++j) acc[i][j] = start(m + i, j);
    for (int k = 0; k < inner; ++k) {
        Vec row[COLS];
        for (int j = 0; j < COLS; ++j) row[j] = load(b + k * b_stride + j * WIDTH);
        for (int i = 0; i < ROWS; ++i) {
            const Vec scale = splat(a(m + i, k));
            for (int j = 0; j < COLS; ++j) acc[i][j] = scale * row[j] + acc[i][j];
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLS; ++j) finish(m + i, j, acc[i][j]);
}

// c[m][:] = start(m, :) + sum over k of a(m, k) * b[k][:] for m < rows; c and b are COLS vectors wide. Rows are taken
// eight accumulators at a time; with PADDED rows up to the next multiple of eight may be read and written.
template <int COLS, bool PADDED, class A, class Start, class Finish>
SCAN_INLINE void multiply(int rows, int inner, A a, const float* b, int64_t b_stride, Start start, Finish finish) {
    constexpr int ROWS = 8 / COLS > 0 ? 8 / COLS : 1;
    int m = 0;
    for (; PADDED ? m < rows : m + ROWS <= rows; m += ROWS)
        multiply_panel<ROWS, COLS>(m, inner, a, b, b_stride, start, finish);
    for (; m < rows; ++m) multiply_panel<1, COLS>(m, inner, a, b, b_stride, start, finish);
}

}  // namespace
