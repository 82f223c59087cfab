/* Vectors of 16-bit numbers in one or two independent halves of 16 bytes, and what GCC's vectors
 * lack: by the instructions of AVX2 on x86-64 and in plain C elsewhere. (PLAIN_LANES is for tests of
 * that.)
 */

#ifndef LANES_H
#define LANES_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(PLAIN_LANES)

#define HALVES 2
#define IS_FAST __builtin_cpu_supports("avx2") /* else nothing of this can be called */
#define BEGIN_FAST _Pragma("GCC push_options") _Pragma("GCC target(\"avx2\")")
#define END_FAST _Pragma("GCC pop_options")

#else

#define HALVES 1
#define IS_FAST 1
#define BEGIN_FAST
#define END_FAST

#endif

#define VECTOR __attribute__((vector_size(16 * HALVES)))

typedef int16_t Words VECTOR;
typedef uint16_t Unsigned VECTOR;
typedef int32_t Sums VECTOR;
typedef uint32_t Bits VECTOR;

BEGIN_FAST

#if HALVES == 2

typedef char Operand8 VECTOR;
typedef short Operand16 VECTOR;
typedef int Operand32 VECTOR;
typedef long long Operand64 VECTOR;

#define AS_BUILTIN(name, builtin, Operand, Result)                                                 \
    static inline Result name(Words a, Words b) { return (Result)builtin((Operand)a, (Operand)b); }

AS_BUILTIN(add_products, __builtin_ia32_pmaddwd256, Operand16, Bits)
AS_BUILTIN(high_products, __builtin_ia32_pmulhw256, Operand16, Words)
AS_BUILTIN(round_products, __builtin_ia32_pmulhrsw256, Operand16, Words)
AS_BUILTIN(narrow, __builtin_ia32_packssdw256, Operand32, Words)
AS_BUILTIN(to_bytes, __builtin_ia32_packuswb256, Operand16, Words)
AS_BUILTIN(low_bytes, __builtin_ia32_punpcklbw256, Operand8, Words)
AS_BUILTIN(high_bytes, __builtin_ia32_punpckhbw256, Operand8, Words)
AS_BUILTIN(low_words, __builtin_ia32_punpcklwd256, Operand16, Words)
AS_BUILTIN(high_words, __builtin_ia32_punpckhwd256, Operand16, Words)
AS_BUILTIN(low_pairs, __builtin_ia32_punpckldq256, Operand32, Words)
AS_BUILTIN(high_pairs, __builtin_ia32_punpckhdq256, Operand32, Words)

/* One half from each place. */
static inline Words load_halves(const void *const *places)
{
    typedef int Low __attribute__((vector_size(16)));
    typedef long long High __attribute__((vector_size(16)));
    Low low;
    High high;
    memcpy(&low, places[0], sizeof(low));
    memcpy(&high, places[1], sizeof(high));
    return (Words)__builtin_ia32_insert128i256((Operand64)__builtin_ia32_si256_si(low), high, 1);
}

#define BLEND(a, b, bits) ((Words)__builtin_ia32_pblendw256((Operand16)(a), (Operand16)(b), bits))
static inline Words blend_147(Words a, Words b) { return BLEND(a, b, 0x92); }
static inline Words blend_25(Words a, Words b) { return BLEND(a, b, 0x24); }

static inline Words pick_bytes(Words bytes, const char *places)
{
    const void *twice[2] = {places, places};
    return (Words)__builtin_ia32_pshufb256((Operand8)bytes, (Operand8)load_halves(twice));
}
#define PICK_BYTES(bytes, ...) pick_bytes(bytes, (const char[]){__VA_ARGS__})

#else

#ifdef __clang__
#define SHUFFLE(Vector, a, b, ...)                                                                 \
    ((Words)__builtin_shufflevector((Vector)(a), (Vector)(b), __VA_ARGS__))
#else
#define SHUFFLE(Vector, a, b, ...)                                                                 \
    ((Words)__builtin_shuffle((Vector)(a), (Vector)(b), (Vector){__VA_ARGS__}))
#endif

#define AS_SHUFFLE(name, Vector, ...)                                                              \
    static inline Words name(Words a, Words b) { return SHUFFLE(Vector, a, b, __VA_ARGS__); }

typedef uint8_t Bytes VECTOR;

/* By turns one of `a` and one of `b`, from the lower or the upper ones. */
AS_SHUFFLE(low_bytes, Bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
AS_SHUFFLE(high_bytes, Bytes, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
AS_SHUFFLE(low_words, Words, 0, 8, 1, 9, 2, 10, 3, 11)
AS_SHUFFLE(high_words, Words, 4, 12, 5, 13, 6, 14, 7, 15)
AS_SHUFFLE(low_pairs, Bits, 0, 4, 1, 5)
AS_SHUFFLE(high_pairs, Bits, 2, 6, 3, 7)

/* Words 1, 4 and 7 of `b`, or 2 and 5; others of `a`. */
AS_SHUFFLE(blend_147, Words, 0, 9, 2, 3, 12, 5, 6, 15)
AS_SHUFFLE(blend_25, Words, 0, 1, 10, 3, 4, 13, 6, 7)

/* The bytes at those places. */
#define PICK_BYTES(bytes, ...) SHUFFLE(Bytes, bytes, bytes, __VA_ARGS__)

static inline Words load_halves(const void *const *places)
{
    Words words;
    memcpy(&words, places[0], sizeof(words));
    return words;
}

/* The first or the second word of each pair. */
static inline Sums firsts(Words words) { return (Sums)((Bits)words << 16) >> 16; }
static inline Sums seconds(Words words) { return (Sums)words >> 16; }

/* Products of words, added in pairs. */
static inline Bits add_products(Words a, Words b)
{
    return (Bits)(firsts(a) * firsts(b)) + (Bits)(seconds(a) * seconds(b));
}

/* Products by their upper 16 bits. */
static inline Words high_products(Words a, Words b)
{
    Bits upper = (Bits)(seconds(a) * seconds(b)) & 0xFFFF0000;
    return (Words)((Bits)(firsts(a) * firsts(b)) >> 16 | upper);
}

/* Products divided by 32768. */
static inline Words round_products(Words a, Words b)
{
    Bits lower = (Bits)(firsts(a) * firsts(b)) * 2 + 32768;
    Bits upper = (Bits)(seconds(a) * seconds(b)) * 2 + 32768;
    return (Words)(lower >> 16 | (upper & 0xFFFF0000));
}

/* Sums of 32 bits, or the nearest that 16 bits hold. */
static inline Words narrow(Words low, Words high)
{
    Sums sums[2] = {(Sums)low, (Sums)high};
    for (int i = 0; i < 2; i++) {
        Sums is_less = sums[i] < INT16_MIN, is_more = sums[i] > INT16_MAX;
        sums[i] = (sums[i] & ~(is_less | is_more)) | (is_less & INT16_MIN) | (is_more & INT16_MAX);
    }
    return SHUFFLE(Words, sums[0], sums[1], 0, 2, 4, 6, 8, 10, 12, 14);
}

/* Words, or the nearest numbers that 8 bits without a sign hold. */
static inline Words to_bytes(Words low, Words high)
{
    low = (low | (low > UINT8_MAX)) & ~(low < 0);
    high = (high | (high > UINT8_MAX)) & ~(high < 0);
    return SHUFFLE(Bytes, low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

#endif

/* Pairs of words times a pair of factors. */
static inline Bits multiply(Words pairs, int16_t first, int16_t second)
{
    uint32_t factors = (uint32_t)(uint16_t)second << 16 | (uint16_t)first;
    return add_products(pairs, (Words)((Bits){0} + factors));
}

END_FAST

#endif
