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
#define PASS_BITS 2 /* that the first pass keeps */

#define LIMIT 16384      /* of dequantized coefficients, and of what the first pass gives */
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

#endif

/* Pairs of factors for pairs of inputs. */
#define PAIR(first, second)                                                                        \
    ((Words)((Sums){0} + (int32_t)((uint32_t)(second) << 16 | (uint16_t)(first))))

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
    Bits sum = (Bits)add_products(pairs[0], PAIR(8192, 8192)) + (uint32_t)bias;
    Bits difference = (Bits)add_products(pairs[0], PAIR(8192, -8192)) + (uint32_t)bias;
    Bits outer = (Bits)add_products(pairs[1], PAIR(10703, 4433));
    Bits inner = (Bits)add_products(pairs[1], PAIR(4433, -10704));
    Bits even[4] = {sum + outer, difference + inner, difference - inner, sum - outer};
    for (int i = 0; i < 4; i++) {
        Bits odd = (Bits)add_products(pairs[2], PAIR(ODD[i][0], ODD[i][1])) +
                   (Bits)add_products(pairs[3], PAIR(ODD[i][2], ODD[i][3]));
        out[i] = (Words)((Sums)(even[i] + odd) >> shift);
        out[7 - i] = (Words)((Sums)(even[i] - odd) >> shift);
    }
}

/* One pass, in place: each lane has its own inputs and outputs 0 to 7. */
static inline void transform(Words *v, int32_t bias, int shift)
{
    Words low[4] = {low_words(v[0], v[4]), low_words(v[2], v[6]), low_words(v[1], v[3]),
                    low_words(v[5], v[7])};
    Words high[4] = {high_words(v[0], v[4]), high_words(v[2], v[6]), high_words(v[1], v[3]),
                     high_words(v[5], v[7])};
    Words low_out[8], high_out[8];
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

typedef struct {
    Words quant[8], limits[8]; /* of coefficients */
    Words odd;                 /* has a bit if a number went beyond its limits */
    size_t row_bytes;
} Job;

static inline Words load_row(const int16_t *const *blocks, int row)
{
    Words words;
    for (int i = 0; i < AT_ONCE; i++)
        memcpy((char *)&words + 16 * i, blocks[i] + 8 * row, 16);
    return words;
}

static inline void transform_blocks(Job *job, const int16_t *const *blocks, uint8_t *const *outs)
{
    Words v[8], rows[4], first = {0}, second = {0};
    for (int i = 0; i < 8; i++) {
        Words coefficients = load_row(blocks, i);
        job->odd |= (coefficients ^ coefficients >> 15) > job->limits[i];
        v[i] = (Words)((Unsigned)coefficients * (Unsigned)job->quant[i]);
    }
    transform(v, 1 << (CONSTANT_BITS - PASS_BITS - 1), CONSTANT_BITS - PASS_BITS);
    for (int i = 0; i < 8; i++)
        first |= v[i] ^ v[i] >> 15;
    transpose(v);
    int shift = CONSTANT_BITS + PASS_BITS + 3;
    transform(v, (1 << (shift - 1)) + (SAMPLE_LIMIT << shift), shift);
    for (int i = 0; i < 8; i++) {
        second |= v[i];
        v[i] = (Words)((Unsigned)v[i] - (SAMPLE_LIMIT - 128));
    }
    job->odd |= (first & LIMIT) | (second & ~(2 * SAMPLE_LIMIT - 1));
    gather_rows(v, rows);
    for (int i = 0; i < AT_ONCE; i++)
        for (int row = 0; row < 8; row++)
            memcpy(outs[i] + row * job->row_bytes, (char *)&rows[row / 2] + 16 * i + 8 * (row % 2),
                   8);
}

static int transform_all(Job *job, const int16_t *blocks, const uint8_t *lasts, int count,
                         const uint16_t *quant, uint8_t *out)
{
    const int16_t *waiting[AT_ONCE];
    uint8_t *outs[AT_ONCE];
    int num_waiting = 0;
    for (int i = 0; i < 64; i++) {
        for (int half = 0; half < AT_ONCE; half++) {
            job->quant[i / 8][8 * half + i % 8] = (int16_t)quant[i];
            job->limits[i / 8][8 * half + i % 8] = quant[i] ? LIMIT / quant[i] - 1 : -1;
        }
    }
    for (int i = 0; i < count; i++, blocks += BLOCK, out += 8) {
        (void)lasts;
        waiting[num_waiting] = blocks;
        outs[num_waiting++] = out;
        if (num_waiting == AT_ONCE || i == count - 1) {
            for (int k = num_waiting; k < AT_ONCE; k++) {
                waiting[k] = blocks;
                outs[k] = out;
            }
            transform_blocks(job, waiting, outs);
            num_waiting = 0;
        }
    }
    int is_odd = 0;
    for (int i = 0; i < 8 * AT_ONCE; i++)
        is_odd |= job->odd[i];
    return !is_odd;
}

#if defined(__x86_64__)
#pragma GCC pop_options
#endif

int inverse_dct(const int16_t *blocks, const uint8_t *lasts, int count, const uint16_t *quant,
                uint8_t *out, size_t row_bytes)
{
    if (!IS_FAST)
        return 0;
    Job job = {.row_bytes = row_bytes};
    return transform_all(&job, blocks, lasts, count, quant, out);
}
