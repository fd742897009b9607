// Rows of bfloat16 and float16 to float32 and back, rounding to nearest even, in integer arithmetic that vectorises.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

enum ElementType : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

namespace {

inline float float_of(uint32_t bits) { return reinterpret<float>(bits); }
inline uint32_t bits_of(float value) { return reinterpret<uint32_t>(value); }

inline float from_bfloat16(uint16_t a) { return float_of((uint32_t)a << 16); }

inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

inline float from_float16(uint16_t a) {
    const uint32_t sign = (uint32_t)(a & 0x8000) << 16;
    const uint32_t magnitude = (uint32_t)(a & 0x7fff) << 13;
    // Normal numbers: rebias the exponent by 112. Infinity and NaN: by 224, to the largest exponent.
    const uint32_t normal = magnitude + ((magnitude >= 0x0f800000 ? 224u : 112u) << 23);
    // Subnormal: the mantissa counts units of 2**-24, read off below the leading bit of 0.5.
    const float subnormal = float_of(magnitude >> 13 | 0x3f000000) - 0.5f;
    return float_of(sign | (magnitude < 0x00800000 ? bits_of(subnormal) : normal));
}

inline uint16_t to_float16(float value) {
    const uint32_t sign = bits_of(value) >> 16 & 0x8000;
    const uint32_t magnitude = bits_of(value) & 0x7fffffff;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // Adding 0.5 rounds a subnormal to units of 2**-24, in the low bits of the sum.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
    const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (uint16_t)(sign | (magnitude >= 0x477ff000 ? special : finite));
}

// Conversions as types, as compilers call what functions point to and vectorise no loop around a call.
struct Same {
    float operator()(float a) const { return a; }
};
struct FromBfloat16 {
    float operator()(uint16_t a) const { return from_bfloat16(a); }
};
struct ToBfloat16 {
    uint16_t operator()(float a) const { return to_bfloat16(a); }
};
struct FromFloat16 {
    float operator()(uint16_t a) const { return from_float16(a); }
};
struct ToFloat16 {
    uint16_t operator()(float a) const { return to_float16(a); }
};

// Calls `work(data, decode, encode)` with a tensor of an ElementType as an array of its elements.
template <class Work>
SCAN_INLINE void with_elements(int64_t element, const void* tensor, Work work) {
    if (element == FLOAT32)
        work((float*)tensor, Same(), Same());
    else if (element == BFLOAT16)
        work((uint16_t*)tensor, FromBfloat16(), ToBfloat16());
    else
        work((uint16_t*)tensor, FromFloat16(), ToFloat16());
}

// A vector of elements: its first `count` lanes, the others `rest`; or all of them.
template <class T, class Decode>
SCAN_INLINE Vec load_as(const T* from, Decode decode, int64_t count, float rest) {
    float lanes[WIDTH];
    for (int i = 0; i < WIDTH; ++i) lanes[i] = rest;
    for (int64_t i = 0; i < count; ++i) lanes[i] = decode(from[i]);
    return load(lanes);
}
template <class T, class Decode>
SCAN_INLINE Vec load_as(const T* from, Decode decode) {
    float lanes[WIDTH];
    for (int i = 0; i < WIDTH; ++i) lanes[i] = decode(from[i]);
    return load(lanes);
}
SCAN_INLINE Vec load_as(const float* from, Same) { return load(from); }

// Writes the first `count` lanes, or all.
template <class T, class Encode>
SCAN_INLINE void store_as(T* to, Vec value, Encode encode, int64_t count) {
    float lanes[WIDTH];
    store(lanes, value);
    for (int64_t i = 0; i < count; ++i) to[i] = encode(lanes[i]);
}
template <class T, class Encode>
SCAN_INLINE void store_as(T* to, Vec value, Encode encode) {
    float lanes[WIDTH];
    store(lanes, value);
    for (int i = 0; i < WIDTH; ++i) to[i] = encode(lanes[i]);
}
SCAN_INLINE void store_as(float* to, Vec value, Same) { store(to, value); }

#if defined(__GNUC__) || defined(__clang__)  // who make one vector of an array of lanes only now and then

typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));

SCAN_INLINE Vec load_as(const uint16_t* from, FromBfloat16) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Vec)(__builtin_convertvector(halves, Words) << 16);
}
SCAN_INLINE void store_as(uint16_t* to, Vec value, ToBfloat16) {
    const Words bits = (Words)value, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const Words result = value == value ? rounded : bits | 0x400000;  // a quiet NaN
    const Halves halves = __builtin_convertvector(result >> 16, Halves);
    memcpy(to, &halves, sizeof halves);
}

#endif

}  // namespace
