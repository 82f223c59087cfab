/* Scales windows of pixels as Pillow's BILINEAR does, by 16-bit products: a triangle as wide as the
 * scale, first to the output's height, then to its width.
 *
 * Values have 8 bits behind the point, and of a product by a weight the upper half counts. An input
 * costs a sum at most 1/256: half of it by its product, half by its weight. So a sum is off by less
 * than 2 · 60/256 < 0.47. Pillow's is off by 0.5, as it rounds between the two directions, and by its
 * weights, by less than 0.01. So the two differ by less than 1, and rounded by at most 1.
 */

#include <stdlib.h>
#include <string.h>

#include "pixels.h"

#define MOST_SHRINKING 30 /* at most 60 inputs to an output */
#define BAND 16           /* output rows at once: their values at one place are two vectors */
#define CHUNK 64          /* values of a row at once */
#define CACHE_LINE 64

#define INLINE static inline __attribute__((always_inline)) /* once for each processor */

typedef uint16_t uint16x8 __attribute__((vector_size(16)));
typedef uint8_t uint8x16 __attribute__((vector_size(16)));
typedef uint16_t Pair __attribute__((may_alias, aligned(1))); /* the lower half comes first */

/* What an output is made of along one side. The weights add up to 1 << 16; the weight of a single
 * input is 1 less, to fit. */
typedef struct {
    int first, count;
    const uint16_t *weights;
} Inputs;

static int most_inputs(int in_size, int out_size)
{
    return in_size > out_size ? (2 * (int64_t)in_size + out_size - 1) / out_size : 2;
}

/* The triangle in whole numbers: places are distances from the output, 2 · out_size a pixel. A weight
 * is the difference of two rounded sums. Returns the end of the weights. */
static uint16_t *find_inputs(Inputs *inputs, uint16_t *weights, int in_size, int out_size)
{
    int64_t step = 2 * (int64_t)out_size, out_step = 2 * (int64_t)in_size;
    int64_t support = in_size > out_size ? out_step : step;
    int64_t start = out_size - in_size, end = start;
    int first = 0, behind = 0;
    for (int x = 0; x < out_size; x++, start -= out_step, end -= out_step) {
        for (; start <= -support; start += step)
            first++;
        for (; behind < in_size && end < support; end += step)
            behind++;
        inputs[x] = (Inputs){first, behind - first, weights};
        int64_t total = 0, sum = 0;
        for (int64_t place = start; place < end; place += step)
            total += support - llabs(place);
        double scale = 65536.0 / (double)total;
        int before = 0;
        for (int64_t place = start; place < end; place += step) {
            sum += support - llabs(place);
            int now = (int)((double)sum * scale + 0.5);
            *weights++ = now - before > UINT16_MAX ? UINT16_MAX : now - before;
            before = now;
        }
    }
    return weights;
}

/* What `count` products lose on average without their lower halves. */
INLINE uint16_t lost_of(int count) { return (count + 1) / 2; }

INLINE uint16_t product(uint16_t value, uint16_t weight) { return (uint32_t)value * weight >> 16; }

/* CHUNK values of an output row: first those at even places, then those at odd ones. */
INLINE void sum_chunk(const uint8_t *rows, size_t row_bytes, const uint16_t *weights, int count,
                      uint16_t *restrict out)
{
    for (int x = 0; x < CHUNK; x++)
        out[x] = lost_of(count);
    for (int i = 0; i < count; i++, rows += row_bytes) {
        const Pair *pairs = (const Pair *)rows;
        for (int x = 0; x < CHUNK / 2; x++) {
            out[x] += product(pairs[x] << 8, weights[i]);
            out[CHUNK / 2 + x] += product(pairs[x] & 0xff00, weights[i]);
        }
    }
}

/* A chunk of each of `num_rows` output rows, one behind the other. The usual counts are known to the
 * compiler. */
FOR_EACH_PROCESSOR
static void sum_rows(const uint8_t *pixels, size_t row_bytes, const Inputs *inputs, int num_rows,
                     uint16_t *restrict out)
{
    for (int y = 0; y < num_rows; y++, inputs++, out += CHUNK) {
        const uint8_t *rows = pixels + inputs->first * row_bytes;
        switch (inputs->count) {
        case 2: sum_chunk(rows, row_bytes, inputs->weights, 2, out); break;
        case 3: sum_chunk(rows, row_bytes, inputs->weights, 3, out); break;
        case 4: sum_chunk(rows, row_bytes, inputs->weights, 4, out); break;
        default: sum_chunk(rows, row_bytes, inputs->weights, inputs->count, out);
        }
    }
}

/* The same values of BAND rows side by side, so that the width is scaled as the height was: BAND rows
 * of a chunk to CHUNK columns, in the order of the places. */
FOR_EACH_PROCESSOR
static void turn_chunk(const uint16_t *rows, uint16_t *columns)
{
    for (int y = 0; y < BAND; y += 8)
        for (int x = 0; x < CHUNK; x += 8) {
            uint16x8 lines[8], mixed[8];
            for (int i = 0; i < 8; i++)
                memcpy(&lines[i], rows + (y + i) * CHUNK + x, sizeof(uint16x8));
            for (int round = 0; round < 3; round++) {
                for (int i = 0; i < 4; i++) {
                    uint16x8 a = lines[i], b = lines[i + 4];
                    mixed[2 * i] = __builtin_shuffle(a, b, (uint16x8){0, 8, 1, 9, 2, 10, 3, 11});
                    mixed[2 * i + 1] =
                        __builtin_shuffle(a, b, (uint16x8){4, 12, 5, 13, 6, 14, 7, 15});
                }
                memcpy(lines, mixed, sizeof(lines));
            }
            uint16_t *column = columns + (x < CHUNK / 2 ? 2 * x : 2 * x - CHUNK + 1) * BAND + y;
            for (int i = 0; i < 8; i++)
                memcpy(column + 2 * i * BAND, &lines[i], sizeof(uint16x8));
        }
}

/* BAND pixels, rounded to 8 bits. */
INLINE void sum_pixels(const uint16_t *columns, const uint16_t *weights, int count,
                       uint8_t *restrict out)
{
    uint16_t sums[3 * BAND];
    for (int i = 0; i < 3 * BAND; i++)
        sums[i] = lost_of(count) + (1 << 7);
    for (int k = 0; k < count; k++, columns += 3 * BAND)
        for (int i = 0; i < 3 * BAND; i++)
            sums[i] += product(columns[i], weights[k]);
    for (int i = 0; i < 3 * BAND; i++)
        out[i] = sums[i] >> 8;
}

FOR_EACH_PROCESSOR
static void sum_columns(const uint16_t *columns, const Inputs *inputs, int out_width,
                        uint8_t *restrict out)
{
    for (int x = 0; x < out_width; x++, inputs++, out += 3 * BAND) {
        const uint16_t *first = columns + (size_t)inputs->first * 3 * BAND;
        switch (inputs->count) {
        case 2: sum_pixels(first, inputs->weights, 2, out); break;
        case 3: sum_pixels(first, inputs->weights, 3, out); break;
        case 4: sum_pixels(first, inputs->weights, 4, out); break;
        default: sum_pixels(first, inputs->weights, inputs->count, out);
        }
    }
}

/* BAND columns back to BAND rows, `row_bytes` apart. */
FOR_EACH_PROCESSOR
static void turn_columns(const uint8_t *columns, uint8_t *rows, size_t row_bytes)
{
    uint8x16 lines[BAND], mixed[BAND];
    memcpy(lines, columns, sizeof(lines));
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < BAND / 2; i++) {
            uint8x16 a = lines[i], b = lines[i + BAND / 2];
            mixed[2 * i] = __builtin_shuffle(
                a, b, (uint8x16){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
            mixed[2 * i + 1] = __builtin_shuffle(
                a, b, (uint8x16){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
        }
        memcpy(lines, mixed, sizeof(lines));
    }
    for (int i = 0; i < BAND; i++)
        memcpy(rows + i * row_bytes, &lines[i], sizeof(uint8x16));
}

/* Columns of `size` values to `num_rows` rows, which need not be multiples of BAND. */
static void write_rows(const uint8_t *columns, int num_rows, size_t size, uint8_t *out)
{
    for (size_t x = 0; x < size; x += BAND, columns += BAND * BAND) {
        if (num_rows == BAND && size - x >= BAND) {
            turn_columns(columns, out + x, size);
            continue;
        }
        uint8_t rows[BAND][BAND];
        turn_columns(columns, rows[0], BAND);
        for (int y = 0; y < num_rows; y++)
            memcpy(out + y * size + x, rows[y], size - x < BAND ? size - x : BAND);
    }
}

int can_scale_bilinear(int height, int width, int out_height, int out_width)
{
    return 3 * (int64_t)width >= CHUNK && height <= MOST_SHRINKING * (int64_t)out_height &&
           width <= MOST_SHRINKING * (int64_t)out_width;
}

int scale_bilinear(const uint8_t *pixels, size_t row_bytes, int height, int width, uint8_t *out,
                   int out_height, int out_width)
{
    size_t size = 3 * (size_t)width, out_size = 3 * (size_t)out_width;
    size_t num_weights = (size_t)most_inputs(height, out_height) * out_height +
                         (size_t)most_inputs(width, out_width) * out_width;
    size_t num_bytes = sizeof(uint16_t) * (size * BAND + num_weights) + (out_size + BAND) * BAND +
                       sizeof(Inputs) * ((size_t)out_height + out_width);
    uint16_t *columns = aligned_alloc(CACHE_LINE, (num_bytes / CACHE_LINE + 1) * CACHE_LINE);
    if (columns == NULL)
        return 0;
    Inputs *down = (Inputs *)(columns + size * BAND), *across = down + out_height;
    uint16_t *weights = (uint16_t *)(across + out_width);
    uint8_t *narrow = (uint8_t *)(weights + num_weights);
    uint16_t rows[BAND * CHUNK] = {0};
    find_inputs(across, find_inputs(down, weights, height, out_height), width, out_width);
    for (int y = 0; y < out_height; y += BAND) {
        int num_rows = out_height - y < BAND ? out_height - y : BAND;
        for (size_t x = 0; x < size; x += CHUNK) {
            size_t place = x < size - CHUNK ? x : size - CHUNK; /* the last one goes back */
            sum_rows(pixels + place, row_bytes, down + y, num_rows, rows);
            turn_chunk(rows, columns + place * BAND);
        }
        sum_columns(columns, across, out_width, narrow);
        write_rows(narrow, num_rows, out_size, out + y * out_size);
    }
    free(columns);
    return 1;
}
