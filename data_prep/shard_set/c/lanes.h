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

/* In each half word i of `a` or, where bit i of `bits` is set, of `b`. */
#define BLEND(a, b, bits) ((Words)__builtin_ia32_pblendw256((Operand16)(a), (Operand16)(b), bits))

/* In each half the bytes at those places. */
static inline Words pick_bytes(Words bytes, const char *places)
{
    const void *twice[2] = {places, places};
    return (Words)__builtin_ia32_pshufb256((Operand8)bytes, (Operand8)load_halves(twice));
}

#else

/* Products of words, added in pairs. */
static inline Bits add_products(Words a, Words b)
{
    Bits sums;
    for (int i = 0; i < 4; i++)
        sums[i] = (uint32_t)(a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]);
    return sums;
}

/* Products by their upper 16 bits. */
static inline Words high_products(Words a, Words b)
{
    for (int i = 0; i < 8; i++)
        a[i] = (int16_t)(a[i] * b[i] >> 16);
    return a;
}

/* Products divided by 32768. */
static inline Words round_products(Words a, Words b)
{
    for (int i = 0; i < 8; i++)
        a[i] = (int16_t)((a[i] * b[i] + (1 << 14)) >> 15);
    return a;
}

/* Sums of 32 bits, or the nearest that 16 bits hold. */
static inline Words narrow(Words low, Words high)
{
    Words all;
    for (int i = 0; i < 8; i++) {
        int32_t sum = i < 4 ? ((Sums)low)[i] : ((Sums)high)[i - 4];
        all[i] = (int16_t)(sum < INT16_MIN ? INT16_MIN : sum > INT16_MAX ? INT16_MAX : sum);
    }
    return all;
}

typedef uint8_t Bytes VECTOR;

/* Words, or the nearest numbers that 8 bits without a sign hold. */
static inline Words to_bytes(Words low, Words high)
{
    Bytes all;
    for (int i = 0; i < 16; i++) {
        int16_t word = i < 8 ? low[i] : high[i - 8];
        all[i] = (uint8_t)(word < 0 ? 0 : word > UINT8_MAX ? UINT8_MAX : word);
    }
    return (Words)all;
}

/* By turns one of `a` and one of `b`, from the lower or the upper ones. */
#define AS_LOOP(name, Vector, count, first)                                                        \
    static inline Words name(Words a, Words b)                                                     \
    {                                                                                              \
        Vector both;                                                                               \
        for (int i = 0; i < (count); i++)                                                          \
            both[i] = i % 2 ? ((Vector)b)[(first) + i / 2] : ((Vector)a)[(first) + i / 2];         \
        return (Words)both;                                                                        \
    }

AS_LOOP(low_bytes, Bytes, 16, 0)
AS_LOOP(high_bytes, Bytes, 16, 8)
AS_LOOP(low_words, Words, 8, 0)
AS_LOOP(high_words, Words, 8, 4)
AS_LOOP(low_pairs, Bits, 4, 0)
AS_LOOP(high_pairs, Bits, 4, 2)

static inline Words load_halves(const void *const *places)
{
    Words words;
    memcpy(&words, places[0], sizeof(words));
    return words;
}

static inline Words blend(Words a, Words b, int bits)
{
    for (int i = 0; i < 8; i++)
        a[i] = bits >> i & 1 ? b[i] : a[i];
    return a;
}
#define BLEND(a, b, bits) blend(a, b, bits)

static inline Words pick_bytes(Words bytes, const char *places)
{
    Bytes picked;
    for (int i = 0; i < 16; i++)
        picked[i] = ((Bytes)bytes)[(int)places[i]];
    return (Words)picked;
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
