/* The inverse DCT of libjpeg-turbo's ISLOW (jidctint.c), for two blocks at once where there is AVX2,
 * one in each half of a vector; first of the columns, then of the rows, by products of 16 bits that
 * are added in 32.
 *
 * libjpeg-turbo's vectors also add in 16 bits, and its plain C wraps samples beyond ±512. Where
 * neither happens all agree. So what is watched is whether dequantized coefficients and what the
 * first pass gives stay within ±16384 (no sum of two leaves 16 bits then, and none of products 32),
 * and samples within ±512.
 */

#include <string.h>

#include "jpeg.h"

#define CONSTANT_BITS 13
#define ROW 64           /* blocks */
#define PASS_BITS 2 /* that the first pass keeps */
#define FIRST_SHIFT (CONSTANT_BITS - PASS_BITS)
#define SECOND_SHIFT (CONSTANT_BITS + PASS_BITS + 3)

#define LIMIT 16384      /* of dequantized coefficients, and of what the first pass gives */
#define SIZE_SCALE (65536 / LIMIT)
#define SAMPLE_LIMIT 512 /* before 128 is added: 4 times what they are in a good image */

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2")
#define AT_ONCE 2 /* blocks */
#define IS_FAST __builtin_cpu_supports("avx2")

typedef int16_t Words __attribute__((vector_size(32)));
typedef uint16_t Unsigned __attribute__((vector_size(32)));
typedef int32_t Sums __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(32)));

typedef char Operand8 __attribute__((vector_size(32)));
typedef short Operand16 __attribute__((vector_size(32)));
typedef int Operand32 __attribute__((vector_size(32)));
typedef long long Operand64 __attribute__((vector_size(32)));

#define AS_BUILTIN(name, builtin, Operand, Result)                                                 \
    static inline Result name(Words a, Words b) { return (Result)builtin((Operand)a, (Operand)b); }

AS_BUILTIN(add_products, __builtin_ia32_pmaddwd256, Operand16, Sums)
AS_BUILTIN(high_products, __builtin_ia32_pmulhw256, Operand16, Words)
AS_BUILTIN(narrow, __builtin_ia32_packssdw256, Operand32, Words)
AS_BUILTIN(to_bytes, __builtin_ia32_packuswb256, Operand16, Words)
AS_BUILTIN(low_bytes, __builtin_ia32_punpcklbw256, Operand8, Words)
AS_BUILTIN(high_bytes, __builtin_ia32_punpckhbw256, Operand8, Words)
AS_BUILTIN(low_words, __builtin_ia32_punpcklwd256, Operand16, Words)
AS_BUILTIN(high_words, __builtin_ia32_punpckhwd256, Operand16, Words)
AS_BUILTIN(low_pairs, __builtin_ia32_punpckldq256, Operand32, Words)
AS_BUILTIN(high_pairs, __builtin_ia32_punpckhdq256, Operand32, Words)
AS_BUILTIN(low_fours, __builtin_ia32_punpcklqdq256, Operand64, Words)
AS_BUILTIN(high_fours, __builtin_ia32_punpckhqdq256, Operand64, Words)

static inline Words load_row(const int16_t *const *blocks, int place)
{
    typedef long long Half __attribute__((vector_size(16)));
    typedef int Low __attribute__((vector_size(16)));
    Low low;
    Half high;
    memcpy(&low, blocks[0] + place, sizeof(low));
    memcpy(&high, blocks[1] + place, sizeof(high));
    return (Words)__builtin_ia32_insert128i256((Operand64)__builtin_ia32_si256_si(low), high, 1);
}

#else

#define AT_ONCE 1
#define IS_FAST 1

typedef int16_t Words __attribute__((vector_size(16)));
typedef uint16_t Unsigned __attribute__((vector_size(16)));
typedef int32_t Sums __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

/* Pairs of products, added. */
static inline Sums add_products(Words a, Words b)
{
    Sums sums;
    for (int i = 0; i < 4; i++)
        sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sums;
}

/* The upper 16 bits of products. */
static inline Words high_products(Words a, Words b)
{
    Words high;
    for (int i = 0; i < 8; i++)
        high[i] = a[i] * b[i] >> 16;
    return high;
}

/* Numbers that fit into 16 bits; others become the nearest that does. */
static inline Words narrow(Words low, Words high)
{
    Words narrowed;
    for (int i = 0; i < 8; i++) {
        int32_t sum = i < 4 ? ((Sums)low)[i] : ((Sums)high)[i - 4];
        narrowed[i] = sum < INT16_MIN ? INT16_MIN : sum > INT16_MAX ? INT16_MAX : sum;
    }
    return narrowed;
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

static inline Words to_bytes(Words low, Words high)
{
    Bytes bytes;
    for (int i = 0; i < 16; i++) {
        int16_t word = i < 8 ? low[i] : high[i - 8];
        bytes[i] = word < 0 ? 0 : word > UINT8_MAX ? UINT8_MAX : word;
    }
    return (Words)bytes;
}

#define AS_SHUFFLE(name, Vector, ...)                                                              \
    static inline Words name(Words a, Words b)                                                     \
    {                                                                                              \
        return (Words)__builtin_shuffle((Vector)a, (Vector)b, (Vector){__VA_ARGS__});              \
    }

typedef int64_t Fours __attribute__((vector_size(16)));

AS_SHUFFLE(low_bytes, Bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
AS_SHUFFLE(high_bytes, Bytes, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
AS_SHUFFLE(low_words, Words, 0, 8, 1, 9, 2, 10, 3, 11)
AS_SHUFFLE(high_words, Words, 4, 12, 5, 13, 6, 14, 7, 15)
AS_SHUFFLE(low_pairs, Sums, 0, 4, 1, 5)
AS_SHUFFLE(high_pairs, Sums, 2, 6, 3, 7)
AS_SHUFFLE(low_fours, Fours, 0, 2)
AS_SHUFFLE(high_fours, Fours, 1, 3)

static inline Words load_row(const int16_t *const *blocks, int place)
{
    Words row;
    memcpy(&row, blocks[0] + place, sizeof(row));
    return row;
}

#endif

/* Pairs of inputs times a pair of factors. */
static inline Bits multiply(Words pairs, int16_t first, int16_t second)
{
    uint32_t factors = (uint32_t)(uint16_t)second << 16 | (uint16_t)first;
    return (Bits)add_products(pairs, (Words)((Bits){0} + factors));
}

/* What inputs 1, 3, 5 and 7 add to outputs 0 to 3; of outputs 7 to 4 it is subtracted. Sums of the
 * factors in jidctint.c. */
static const int16_t ODD[4][4] = {
    {11363, 9633, 6437, 2260},
    {9633, -2259, -11362, -6436},
    {6437, -11362, 2261, 9633},
    {2260, -6436, 9633, -11363},
};

/* Half of the lanes of one pass: of inputs 0 and 4, 2 and 6, 1 and 3, 5 and 7 the outputs 0 to 7. */
static inline void transform_half(const Words *pairs, int32_t bias, int shift, Words *out)
{
    Bits sum = multiply(pairs[0], 8192, 8192) + (uint32_t)bias;
    Bits difference = multiply(pairs[0], 8192, -8192) + (uint32_t)bias;
    Bits outer = multiply(pairs[1], 10703, 4433);
    Bits inner = multiply(pairs[1], 4433, -10704);
    Bits even[4] = {sum + outer, difference + inner, difference - inner, sum - outer};
    for (int i = 0; i < 4; i++) {
        Bits odd = multiply(pairs[2], ODD[i][0], ODD[i][1]) +
                   multiply(pairs[3], ODD[i][2], ODD[i][3]);
        out[i] = (Words)((Sums)(even[i] + odd) >> shift);
        out[7 - i] = (Words)((Sums)(even[i] - odd) >> shift);
    }
}

/* One pass, in place: each lane has its own inputs and outputs 0 to 7. */
static inline void transform(Words *v, int32_t bias, int shift)
{
    static const int FIRSTS[] = {0, 2, 1, 5}, SECONDS[] = {4, 6, 3, 7};
    Words low[4], high[4], low_out[8], high_out[8];
    for (int i = 0; i < 4; i++) {
        low[i] = low_words(v[FIRSTS[i]], v[SECONDS[i]]);
        high[i] = high_words(v[FIRSTS[i]], v[SECONDS[i]]);
    }
    transform_half(low, bias, shift, low_out);
    transform_half(high, bias, shift, high_out);
    for (int i = 0; i < 8; i++)
        v[i] = narrow(low_out[i], high_out[i]);
}

/* Rows become columns: three times, what is 4 apart becomes neighbours. */
static inline void transpose(Words *v)
{
    for (int step = 0; step < 3; step++) {
        Words from[8];
        memcpy(from, v, sizeof(from));
        for (int i = 0; i < 4; i++) {
            v[2 * i] = low_words(from[i], from[i + 4]);
            v[2 * i + 1] = high_words(from[i], from[i + 4]);
        }
    }
}

/* The columns of samples, 16 bits each, become rows of bytes, two in a vector. */
static inline void gather_rows(const Words *v, Words *rows)
{
    Words a[4], b[4];
    for (int i = 0; i < 4; i++)
        a[i] = to_bytes(v[i], v[i + 4]); /* columns i and i + 4 */
    for (int i = 0; i < 2; i++) {
        b[i] = low_bytes(a[i], a[i + 2]); /* pairs i and i + 2 */
        b[i + 2] = high_bytes(a[i], a[i + 2]);
    }
    for (int i = 0; i < 2; i++) {
        a[2 * i] = low_bytes(b[2 * i], b[2 * i + 1]);
        a[2 * i + 1] = high_bytes(b[2 * i], b[2 * i + 1]);
    }
    rows[0] = low_pairs(a[0], a[2]);
    rows[1] = high_pairs(a[0], a[2]);
    rows[2] = low_pairs(a[1], a[3]);
    rows[3] = high_pairs(a[1], a[3]);
}

static inline int has_bits(Unsigned words)
{
    uint64_t parts[sizeof(words) / 8], all = 0;
    memcpy(parts, &words, sizeof(parts));
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        all |= parts[i];
    return all != 0;
}

typedef struct {
    Words quant[8];
    Words scaled[8]; /* so that the upper 16 bits of a coefficient's product tell its size */
    Unsigned odd;    /* has a bit if a number went beyond its limits */
    int is_odd;      /* the same of blocks of one value */
    size_t row_bytes;
} Job;

/* Returns 0 if a step is too large to tell sizes. */
static inline int set_up(Job *job, const uint16_t *quant, size_t row_bytes)
{
    const int16_t *twice[2] = {(const int16_t *)quant, (const int16_t *)quant};
    Unsigned steps = {0};
    *job = (Job){.row_bytes = row_bytes};
    for (int i = 0; i < 8; i++) {
        job->quant[i] = load_row(twice, 8 * i);
        job->scaled[i] = job->quant[i] * SIZE_SCALE;
        steps |= (Unsigned)job->quant[i];
    }
    return !has_bits(steps & ~(INT16_MAX / SIZE_SCALE));
}

static inline void transform_blocks(Job *job, const int16_t *const *blocks, uint8_t *const *outs)
{
    Words v[8], rows[4];
    Unsigned steps = {0}, firsts = {0}, samples = {0};
    for (int i = 0; i < 8; i++) {
        Words coefficients = load_row(blocks, 8 * i);
        steps |= (Unsigned)high_products(coefficients, job->scaled[i]) + 1; /* of -1 or 0 */
        v[i] = (Words)((Unsigned)coefficients * (Unsigned)job->quant[i]);
    }
    transform(v, 1 << (FIRST_SHIFT - 1), FIRST_SHIFT);
    for (int i = 0; i < 8; i++)
        firsts |= (Unsigned)v[i] + LIMIT;
    transpose(v);
    transform(v, (1 << (SECOND_SHIFT - 1)) + (SAMPLE_LIMIT << SECOND_SHIFT), SECOND_SHIFT);
    for (int i = 0; i < 8; i++) {
        samples |= (Unsigned)v[i];
        v[i] = (Words)((Unsigned)v[i] - (SAMPLE_LIMIT - 128));
    }
    job->odd |= (steps & ~1) | (firsts & 2 * LIMIT) | (samples & ~(2 * SAMPLE_LIMIT - 1));
    gather_rows(v, rows);
    for (int i = 0; i < AT_ONCE; i++)
        for (int row = 0; row < 8; row++)
            memcpy(outs[i] + row * job->row_bytes, (char *)&rows[row / 2] + 16 * i + 8 * (row % 2),
                   8);
}

/* A block of one value. */
static inline void fill_block(Job *job, int16_t coefficient, uint8_t *out)
{
    int32_t sample = (coefficient * job->quant[0][0] + 4) >> 3;
    job->is_odd |= sample < -SAMPLE_LIMIT || sample >= SAMPLE_LIMIT;
    sample += 128;
    sample = sample < 0 ? 0 : sample > UINT8_MAX ? UINT8_MAX : sample;
    for (int row = 0; row < 8; row++)
        memset(out + row * job->row_bytes, sample, 8);
}

/* Of up to 64 blocks side by side. Which ones have one value no processor could predict, so they are
 * sorted first. */
static inline void transform_row(Job *job, const int16_t *blocks, const uint8_t *lasts, int count,
                                 uint8_t *out)
{
    uint8_t sorted[2][ROW];
    int counts[2] = {0};
    for (int i = 0; i < count; i++) {
        int is_flat = lasts[i] == 0;
        sorted[is_flat][counts[is_flat]++] = (uint8_t)i;
    }
    for (int i = 0; i < counts[1]; i++)
        fill_block(job, blocks[BLOCK * sorted[1][i]], out + 8 * sorted[1][i]);
    for (int i = 0; i < counts[0]; i += AT_ONCE) {
        const int16_t *some[AT_ONCE];
        uint8_t *outs[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            int place = sorted[0][i + k < counts[0] ? i + k : i];
            some[k] = blocks + BLOCK * place;
            outs[k] = out + 8 * place;
        }
        transform_blocks(job, some, outs);
    }
}

static int transform_all(const int16_t *blocks, const uint8_t *lasts, int count,
                         const uint16_t *quant, uint8_t *out, size_t row_bytes)
{
    Job job;
    if (!set_up(&job, quant, row_bytes))
        return 0;
    for (int i = 0; i < count; i += ROW)
        transform_row(&job, blocks + (size_t)i * BLOCK, lasts + i, count - i < ROW ? count - i : ROW,
                      out + 8 * (size_t)i);
    return !job.is_odd && !has_bits(job.odd);
}

#if defined(__x86_64__)
#pragma GCC pop_options
#endif

int inverse_dct(const int16_t *blocks, const uint8_t *lasts, int count, const uint16_t *quant,
                uint8_t *out, size_t row_bytes)
{
    if (!IS_FAST)
        return 0;
    return transform_all(blocks, lasts, count, quant, out, row_bytes);
}
