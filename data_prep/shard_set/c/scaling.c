/* Scales windows of pixels with Pillow's bits: BILINEAR or LANCZOS, first to the output's height and
 * then to its width; a filter as wide as the scale, in fixed point, rounded to 8 bits after each of
 * the two. BILINEAR is mostly left to bilinear.c.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pixels.h"

#define FRACTION_BITS 22 /* of a filter's weights: 8 bits of pixel and 2 of headroom are left */

typedef int32_t int32x4 __attribute__((vector_size(16)));

typedef struct {
    double support; /* of upscaling; it grows with the scale */
    double (*weight)(double distance);
} Filter;

static double triangle(double distance) { return fabs(distance) < 1.0 ? 1.0 - fabs(distance) : 0.0; }

static double sinc(double x) { return x == 0.0 ? 1.0 : sin(x * M_PI) / (x * M_PI); }

static double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

static const Filter FILTERS[] = {{1.0, triangle}, {3.0, lanczos}};

/* How many inputs an output is made of along one side. */
static int count_taps(const Filter *filter, int in_size, int out_size)
{
    double scale = (double)in_size / out_size;
    int count = (int)ceil(2 * filter->support * (scale < 1.0 ? 1.0 : scale)) + 1;
    return count > in_size ? in_size : count;
}

/* For each output the first of its inputs, and `count` weights. Outputs at the border get weights
 * of 0 beside theirs, so that all have as many and no branch depends on it. */
static void fill_taps(int32_t *tap, int count, const Filter *filter, int in_size, int out_size)
{
    double scale = (double)in_size / out_size;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = filter->support * stretch;
    for (int out = 0; out < out_size; out++) {
        double center = (out + 0.5) * scale, sum = 0.0;
        int first = (int)(center - support + 0.5);
        first = first < 0 ? 0 : first;
        first = first > in_size - count ? in_size - count : first;
        *tap++ = first;
        for (int i = 0; i < count; i++)
            sum += filter->weight((first + i - center + 0.5) * (1.0 / stretch));
        for (int i = 0; i < count; i++) {
            double weight = filter->weight((first + i - center + 0.5) * (1.0 / stretch)) / sum;
            weight *= 1 << FRACTION_BITS;
            *tap++ = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
    }
}

static inline int32_t rounded(int32_t sum)
{
    int32_t value = sum >> FRACTION_BITS;
    value = value < 0 ? 0 : value;
    return value > 255 ? 255 : value;
}

/* Rows of `size` values, `row_bytes` apart, to one row. */
FOR_EACH_PROCESSOR
static void blend_rows(const uint8_t *rows, size_t row_bytes, size_t size, const int32_t *weights,
                       int count, int32_t *out)
{
    for (size_t x = 0; x < size; x++)
        out[x] = 1 << (FRACTION_BITS - 1);
    for (int i = 0; i < count; i++, rows += row_bytes)
        for (size_t x = 0; x < size; x++)
            out[x] += rows[x] * weights[i];
    for (size_t x = 0; x < size; x++)
        out[x] = rounded(out[x]);
}

/* A row of pixels of 3 values to a narrower or wider one. It works on 4 values at once, reads one
 * value behind the row and writes `wide`, of 3 · `out_size` + 1 values, on the way. */
FOR_EACH_PROCESSOR
static void scale_row(const int32_t *row, const int32_t *tap, int count, int out_size,
                      int32_t *wide, uint8_t *out)
{
    for (int x = 0; x < out_size; x++) {
        const int32_t *place = row + 3 * *tap++;
        int32x4 sum = (int32x4){0} + (1 << (FRACTION_BITS - 1));
        for (int i = 0; i < count; i++, place += 3) {
            int32x4 values;
            memcpy(&values, place, sizeof(values));
            sum += values * *tap++;
        }
        memcpy(wide + 3 * x, &sum, sizeof(sum));
    }
    for (int x = 0; x < 3 * out_size; x++)
        out[x] = rounded(wide[x]);
}

int scale_window(const uint8_t *pixels, size_t row_bytes, int height, int width, int filter_number,
                 uint8_t *out, int out_height, int out_width)
{
    if (filter_number == BILINEAR && can_scale_bilinear(height, width, out_height, out_width))
        return scale_bilinear(pixels, row_bytes, height, width, out, out_height, out_width);
    const Filter *filter = &FILTERS[filter_number];
    int across = count_taps(filter, width, out_width);
    int down = count_taps(filter, height, out_height);
    size_t size = 3 * (size_t)width, out_size = 3 * (size_t)out_width;
    size_t num_across = (across + 1) * (size_t)out_width;
    size_t num_down = (down + 1) * (size_t)out_height;
    int32_t *flat = malloc(sizeof(int32_t) * (size + 1 + out_size + 1 + num_across + num_down));
    if (flat == NULL)
        return 0;
    int32_t *wide = flat + size + 1, *taps = wide + out_size + 1, *tap = taps + num_across;
    fill_taps(taps, across, filter, width, out_width);
    fill_taps(tap, down, filter, height, out_height);
    flat[size] = 0; /* scale_row multiplies it, if only to drop it */
    for (int y = 0; y < out_height; y++, tap += down + 1) {
        blend_rows(pixels + *tap * row_bytes, row_bytes, size, tap + 1, down, flat);
        scale_row(flat, taps, across, out_width, wide, out + y * out_size);
    }
    free(flat);
    return 1;
}
