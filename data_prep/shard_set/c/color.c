/* From the planes around a window to its pixels: chroma upsampled as libjpeg-turbo does by default
 * (jdsample.c), and YCbCr converted to RGB in fixed point (jdcolor.c).
 */

#include <stdlib.h>

#include "jpeg.h"
#include "lanes.h"

#define LANES (8 * HALVES)
#define CHUNK (2 * LANES) /* pixels that are converted at once */

BEGIN_FAST

/* Where a wide row is read, for every other pixel: sums of 2 bytes, so at byte x for pixel x. */
typedef struct {
    const uint8_t *near, *far;
    int16_t bias;
} Pair;

/* What a component needs for a row of the window's pixels. */
typedef struct {
    Plane plane;
    int first, count;       /* columns */
    int is_wide;            /* interpolated along the row, between `sums` */
    Pair firsts[2];         /* if it is wide, from the first pixel on */
    Pair lasts[2];          /* and from the last chunk's first on */
    uint8_t *line;          /* room for samples */
    int16_t *sums;          /* room for those of `blend_column` */
    const uint8_t *samples; /* of each pixel, if it is not wide */
} Row;

static inline const uint8_t *find_row(const Plane *plane, int row, int column)
{
    row = row < 0 ? 0 : row >= plane->height ? plane->height - 1 : row;
    return plane->samples + (row - plane->top) * (ptrdiff_t)plane->row_bytes + column - plane->left;
}

/* Where the last chunk of a row begins. */
static inline int last_chunk(int width) { return width < CHUNK ? 0 : width - CHUNK; }

static inline Words widen(const uint8_t *bytes)
{
    typedef uint8_t Bytes __attribute__((vector_size(LANES)));
    Bytes loaded;
    memcpy(&loaded, bytes, sizeof(loaded));
    return __builtin_convertvector(loaded, Words);
}

/* Of the samples of row `y` of the image, in a wide row also of one on each side: three times the
 * sample plus its neighbour above or below, or itself. */
static inline void blend_column(const Row *row, int y)
{
    const Plane *plane = &row->plane;
    int stop = row->first + row->count;
    int begin = row->first - (row->is_wide && row->first > 0);
    int size = stop + (row->is_wide && stop < plane->width) - begin;
    const uint8_t *near = find_row(plane, y, begin), *far = near;
    if (plane->down == 2) {
        near = find_row(plane, y / 2, begin);
        far = find_row(plane, y / 2 + (y % 2 ? 1 : -1), begin);
    }
    int16_t *sums = row->sums + (begin - row->first + 1);
    for (int x = 0; x < size && size < LANES; x++)
        sums[x] = (int16_t)(3 * near[x] + far[x]);
    for (int x = 0; x < size && size >= LANES; x += LANES) {
        int place = x <= size - LANES ? x : size - LANES; /* the last ones reach back */
        Words blended = 3 * widen(near + place) + widen(far + place);
        memcpy(sums + place, &blended, sizeof(blended));
    }
    if (begin == row->first)
        row->sums[0] = row->sums[1];
    if (stop == plane->width)
        row->sums[row->count + 1] = row->sums[row->count];
}

/* What is interpolated is rounded up or down by turns: along the row, or else along the column. */
static inline void upsample_row(Row *row, int y)
{
    const Plane *plane = &row->plane;
    if (row->is_wide) {
        blend_column(row, y);
    } else if (plane->across == 1 && plane->down == 2) {
        uint8_t *restrict line = row->line;
        const int16_t *restrict sums = row->sums + 1;
        int bias = y % 2 ? 2 : 1, count = row->count;
        blend_column(row, y);
        for (int x = 0; x < count; x++)
            line[x] = (uint8_t)((uint16_t)(sums[x] + bias) >> 2);
    } else {
        const uint8_t *samples = find_row(plane, y >> plane->down / 2, row->first);
        int is_short = row->count < CHUNK; /* reading on could leave the plane */
        if (plane->across == 1 && !is_short)
            row->samples = samples;
        else
            for (int x = 0; x < row->count; x++)
                memset(row->line + x * plane->across, samples[x], 4);
    }
}

/* The pair for pixels `column` and each second one after it, in the sums from the second on. */
static Pair find_pair(const Plane *plane, const int16_t *sums, int column)
{
    int bias = plane->down == 2 ? (column % 2 ? 7 : 8) : (column % 2 ? 8 : 4);
    const int16_t *near = sums + 1 + column / 2;
    return (Pair){.near = (const uint8_t *)near,
                  .far = (const uint8_t *)(column % 2 ? near + 1 : near - 1),
                  .bias = (int16_t)(bias - (128 << 4))};
}

static Row start_rows(const Plane *plane, const Window *window, int16_t *sums, uint8_t *line)
{
    int inset = window->left % plane->across;
    Row row = {.plane = *plane, .line = line, .sums = sums, .samples = line + inset};
    row.first = window->left / plane->across;
    row.count = (window->left + window->width - 1) / plane->across - row.first + 1;
    row.is_wide = plane->across == 2 && plane->down <= 2 && plane->width > 2;
    for (int i = 0; i < 2; i++) {
        row.firsts[i] = find_pair(plane, sums, inset + i);
        row.lasts[i] = find_pair(plane, sums, inset + i + last_chunk(window->width));
    }
    return row;
}

static inline Words load(const void *words)
{
    Words loaded;
    memcpy(&loaded, words, sizeof(loaded));
    return loaded;
}

/* Samples less 128: the first or the second of every two from pixel `x` on. `samples` is NULL where
 * they are interpolated. */
static inline Words take_samples(const uint8_t *samples, const Pair *pairs, int x, int i)
{
    if (samples != NULL) {
        Unsigned both = (Unsigned)load(samples + x);
        return (Words)(i ? both >> 8 : both & 255) - 128;
    }
    return (3 * load(pairs[i].near + x) + load(pairs[i].far + x) + pairs[i].bias) >> 4;
}

/* Words of two colours of 8 pixels each in a half, so that they are in order when the words of three
 * such vectors are taken by turns. The places of red and green are 0, 3 and 6 in the first 8 words of
 * 24, and so on. */
#define RED_GREEN 0, 8, 3, 11, 6, 14, 1, 9, 4, 12, 7, 15, 2, 10, 5, 13
#define BLUE_RED 5, 13, 0, 8, 3, 11, 6, 14, 1, 9, 4, 12, 7, 15, 2, 10
#define GREEN_BLUE 2, 10, 5, 13, 0, 8, 3, 11, 6, 14, 1, 9, 4, 12, 7, 15

/* Colours of even and of odd pixels, in this order. */
static inline void store_pixels(const Words *red, const Words *green, const Words *blue,
                                uint8_t *out)
{
    Words a = PICK_BYTES(to_bytes(red[0], green[0]), RED_GREEN);
    Words b = PICK_BYTES(to_bytes(blue[0], red[1]), BLUE_RED);
    Words c = PICK_BYTES(to_bytes(green[1], blue[1]), GREEN_BLUE);
    Words parts[3] = {blend_25(blend_147(a, b), c), blend_25(blend_147(c, a), b),
                      blend_25(blend_147(b, c), a)};
    for (int half = 0; half < HALVES; half++)
        for (int i = 0; i < 3; i++)
            memcpy(out + 48 * half + 16 * i, (char *)&parts[i] + 16 * half, 16);
}

/* In jdcolor.c red has 91881 Cr, green -22554 Cb - 46802 Cr and blue 116130 Cb, divided by 65536 and
 * rounded. To fit into 16 bits, 65536 of the first, third and last are added as a whole. Half of what
 * is left of the first and the last, 13173 and 25297, rounds all 256 values as the whole does. */
static inline void convert_chunk(const uint8_t *const *samples, Pair (*pairs)[2], int x,
                                 uint8_t *out)
{
    Words red[2], green[2], blue[2];
    for (int i = 0; i < 2; i++) {
        Words luma = take_samples(samples[0], pairs[0], x, i) + 128;
        Words cb = take_samples(samples[1], pairs[1], x, i);
        Words cr = take_samples(samples[2], pairs[2], x, i);
        Sums low = (Sums)(multiply(low_words(cb, cr), -22554, 18734) + 32768) >> 16;
        Sums high = (Sums)(multiply(high_words(cb, cr), -22554, 18734) + 32768) >> 16;
        red[i] = luma + cr + round_products(cr, (Words){0} + 13173);
        green[i] = luma - cr + narrow((Words)low, (Words)high);
        blue[i] = luma + cb + round_products(cb, (Words){0} + 25297);
    }
    store_pixels(red, green, blue, out);
}

/* The last chunk reaches back into the one before. */
static inline void convert_row(const Row *rows, int width, uint8_t *out)
{
    const uint8_t *samples[3];
    Pair pairs[3][2];
    for (int i = 0; i < 3; i++) {
        samples[i] = rows[i].is_wide ? NULL : rows[i].samples;
        memcpy(pairs[i], rows[i].firsts, sizeof(pairs[i]));
    }
    for (int x = 0; x <= width - CHUNK; x += CHUNK)
        convert_chunk(samples, pairs, x, out + 3 * x);
    if (width % CHUNK == 0)
        return;
    int last = last_chunk(width);
    for (int i = 0; i < 3; i++) {
        samples[i] = rows[i].is_wide ? NULL : rows[i].samples + last;
        memcpy(pairs[i], rows[i].lasts, sizeof(pairs[i]));
    }
    uint8_t pixels[3 * CHUNK];
    convert_chunk(samples, pairs, 0, width < CHUNK ? pixels : out + 3 * last);
    if (width < CHUNK)
        memcpy(out, pixels, 3 * (size_t)width);
}

static void convert_rows(Row *rows, int num_planes, const Window *window, uint8_t *out)
{
    size_t out_bytes = 3 * (size_t)window->width;
    for (int y = window->top; y < window->top + window->height; y++, out += out_bytes) {
        for (int i = 0; i < num_planes; i++)
            upsample_row(&rows[i], y);
        convert_row(rows, window->width, out);
    }
}

END_FAST

static int is_known(const Plane *plane)
{
    return (plane->down == 1 || plane->down == 2 || plane->down == 4) &&
           (plane->across == 1 || plane->across == 2 || plane->across == 4);
}

int planes_to_rgb(const Plane *planes, int num_planes, const Window *window, uint8_t *out)
{
    if (!IS_FAST || (num_planes != 1 && num_planes != 3))
        return 0;
    for (int i = 0; i < num_planes; i++)
        if (!is_known(&planes[i]))
            return 0;
    size_t room = (size_t)window->width + CHUNK + 8; /* what is read and written beside it */
    int16_t *sums = calloc(3 * room, sizeof(*sums) + 1);
    if (sums == NULL)
        return 0;
    Row rows[3];
    uint8_t *line = (uint8_t *)(sums + 3 * room);
    for (int i = 0; i < num_planes; i++)
        rows[i] = start_rows(&planes[i], window, sums + i * room, line + i * room);
    for (int i = num_planes; i < 3; i++) /* no chroma: gray */
        rows[i] = (Row){.samples = memset(line + i * room, 128, room)};
    convert_rows(rows, num_planes, window, out);
    free(sums);
    return 1;
}
