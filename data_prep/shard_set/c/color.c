/* From the planes around a window to its pixels: chroma upsampled as libjpeg-turbo does by default
 * (jdsample.c), and YCbCr converted to RGB in fixed point (jdcolor.c).
 */

#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

/* Each sample counts three times, and its neighbour once, in a column, in a row or in both. Sums are
 * rounded up or down by turns. */
static int is_interpolated(const Plane *plane)
{
    if (plane->across == 2)
        return plane->down <= 2 && plane->width > 2;
    return plane->across == 1 && plane->down == 2;
}

static const uint8_t *plane_row(const Plane *plane, int row)
{
    row = row < 0 ? 0 : row >= plane->height ? plane->height - 1 : row;
    return plane->samples + (row - plane->top) * (ptrdiff_t)plane->row_bytes;
}

/* Of row `y` of the image the sums of a sample and its neighbour above or below, or only the
 * samples: of `count` columns from `first` on, and one more on each side. */
static void blend_column(const Plane *plane, int y, int first, int count, int16_t *sums)
{
    const uint8_t *near = plane_row(plane, y / plane->down);
    const uint8_t *far = near;
    if (plane->down == 2)
        far = plane_row(plane, y / 2 + (y % 2 ? 1 : -1));
    int begin = first > 0 ? -1 : 0;
    int end = first + count < plane->width ? count + 1 : count;
    near += first - plane->left;
    far += first - plane->left;
    for (int x = begin; x < end; x++)
        sums[x + 1] = plane->down == 2 ? 3 * near[x] + far[x] : near[x];
    if (begin == 0)
        sums[0] = sums[1];
    if (end == count)
        sums[count + 1] = sums[count];
}

static const uint8_t *upsample_row(const Plane *plane, const Window *window, int y, int16_t *sums,
                                   uint8_t *row)
{
    int first = window->left / plane->across;
    int inset = window->left % plane->across;
    int count = (window->left + window->width - 1) / plane->across - first + 1;
    if (!is_interpolated(plane)) {
        const uint8_t *samples = plane_row(plane, y / plane->down) + first - plane->left;
        if (plane->across == 1)
            return samples;
        for (int x = 0; x < count * plane->across; x++)
            row[x] = samples[x / plane->across];
        return row + inset;
    }
    blend_column(plane, y, first, count, sums);
    if (plane->across == 1) {
        int bias = y % 2 ? 2 : 1;
        for (int x = 0; x < count; x++)
            row[x] = (sums[x + 1] + bias) >> 2;
        return row;
    }
    int shift = plane->down == 2 ? 4 : 2;
    int even_bias = plane->down == 2 ? 8 : 1;
    int odd_bias = plane->down == 2 ? 7 : 2;
    for (int x = 0; x < count; x++) {
        row[2 * x] = (3 * sums[x + 1] + sums[x] + even_bias) >> shift;
        row[2 * x + 1] = (3 * sums[x + 1] + sums[x + 2] + odd_bias) >> shift;
    }
    return row + inset;
}

static inline uint8_t clamped(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

/* The factors are 1.402, 0.34414, 0.71414 and 1.772, times 65536. */
static void convert_row(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, int width,
                        uint8_t *out)
{
    for (int x = 0; x < width; x++, out += 3) {
        int y = luma[x], cb = blue[x] - 128, cr = red[x] - 128;
        out[0] = clamped(y + ((91881 * cr + 32768) >> 16));
        out[1] = clamped(y + ((-22554 * cb - 46802 * cr + 32768) >> 16));
        out[2] = clamped(y + ((116130 * cb + 32768) >> 16));
    }
}

static int is_known(const Plane *plane)
{
    return (plane->down == 1 || plane->down == 2 || plane->down == 4) &&
           (plane->across == 1 || plane->across == 2 || plane->across == 4);
}

int planes_to_rgb(const Plane *planes, int num_planes, const Window *window, uint8_t *out)
{
    if (num_planes != 1 && num_planes != 3)
        return 0;
    for (int i = 0; i < num_planes; i++)
        if (!is_known(&planes[i]))
            return 0;
    size_t width = (size_t)window->width, room = width + 8; /* a sample more on either side */
    int16_t *sums = malloc(room * (sizeof(*sums) + num_planes));
    if (sums == NULL)
        return 0;
    uint8_t *rows = (uint8_t *)(sums + room);
    for (int y = window->top; y < window->top + window->height; y++, out += 3 * width) {
        const uint8_t *row[3];
        for (int i = 0; i < num_planes; i++)
            row[i] = upsample_row(&planes[i], window, y, sums, rows + i * room);
        if (num_planes == 3)
            convert_row(row[0], row[1], row[2], window->width, out);
        else
            for (size_t x = 0; x < width; x++)
                out[3 * x] = out[3 * x + 1] = out[3 * x + 2] = row[0][x];
    }
    free(sums);
    return 1;
}
