/* The inverse DCT of libjpeg-turbo's ISLOW (jidctint.c): first of the columns, then of the rows, by
 * products of 16 bits that are added in 32; of two blocks at once where vectors have two halves.
 *
 * libjpeg-turbo's vectors also add in 16 bits, and its plain C wraps samples beyond ±512; where
 * neither happens all agree. So dequantized coefficients must stay within ±16384, and samples within
 * ±512. Then no sum of two coefficients leaves 16 bits, and no sum of products 32. What the first
 * pass gives is 4 · √8 times the DCT of a row of samples, at most 4 · √8 · √8 · 512 = 16384, and the
 * sum of two of them √2 times that. Larger ones cannot wrap into the limits: the second pass makes
 * at most 8 · 32768 · 1.39 / 32 = 11387 of them, and wraps by 16384.
 *
 * Encoders keep away from both: of samples within ±128, and with steps of at most 255, a coefficient
 * is at most 8 · 128 + 128, and 64 rounding errors hardly ever add up to 384.
 */

#include "jpeg.h"
#include "lanes.h"

#define CONSTANT_BITS 13
#define PASS_BITS 2 /* that the first pass keeps */
#define FIRST_SHIFT (CONSTANT_BITS - PASS_BITS)
#define SECOND_SHIFT (CONSTANT_BITS + PASS_BITS + 3)

#define SIZE_SCALE 4     /* 65536 / 16384 */
#define SAMPLE_LIMIT 512 /* before 128 is added */
#define ROW 64           /* blocks */

BEGIN_FAST

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
    Unsigned steps = {0};
    *job = (Job){.row_bytes = row_bytes};
    for (int i = 0; i < 8; i++) {
        const void *twice[2] = {quant + 8 * i, quant + 8 * i};
        job->quant[i] = load_halves(twice);
        job->scaled[i] = (Words)((Unsigned)job->quant[i] * SIZE_SCALE);
        steps |= (Unsigned)job->quant[i];
    }
    return !has_bits(steps & ~(INT16_MAX / SIZE_SCALE));
}

static inline void transform_blocks(Job *job, const int16_t *const *blocks, uint8_t *const *outs)
{
    Words v[8], rows[4];
    Unsigned steps = {0}, samples = {0};
    for (int i = 0; i < 8; i++) {
        const void *places[HALVES];
        for (int k = 0; k < HALVES; k++)
            places[k] = blocks[k] + 8 * i;
        Words coefficients = load_halves(places);
        steps |= (Unsigned)high_products(coefficients, job->scaled[i]) + 1; /* of -1 or 0 */
        v[i] = (Words)((Unsigned)coefficients * (Unsigned)job->quant[i]);
    }
    transform(v, 1 << (FIRST_SHIFT - 1), FIRST_SHIFT);
    transpose(v);
    transform(v, (1 << (SECOND_SHIFT - 1)) + (SAMPLE_LIMIT << SECOND_SHIFT), SECOND_SHIFT);
    for (int i = 0; i < 8; i++) {
        samples |= (Unsigned)v[i];
        v[i] = (Words)((Unsigned)v[i] - (SAMPLE_LIMIT - 128));
    }
    job->odd |= (steps & ~1) | (samples & ~(2 * SAMPLE_LIMIT - 1));
    gather_rows(v, rows);
    for (int i = 0; i < HALVES; i++)
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
    for (int i = 0; i < counts[0]; i += HALVES) {
        const int16_t *some[HALVES];
        uint8_t *outs[HALVES];
        for (int k = 0; k < HALVES; k++) {
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
    for (int i = 0; i < count; i += ROW) {
        int size = count - i < ROW ? count - i : ROW;
        transform_row(&job, blocks + (size_t)i * BLOCK, lasts + i, size, out + 8 * (size_t)i);
    }
    return !job.is_odd && !has_bits(job.odd);
}

END_FAST

int inverse_dct(const int16_t *blocks, const uint8_t *lasts, int count, const uint16_t *quant,
                uint8_t *out, size_t row_bytes)
{
    if (!IS_FAST)
        return 0;
    return transform_all(blocks, lasts, count, quant, out, row_bytes);
}
