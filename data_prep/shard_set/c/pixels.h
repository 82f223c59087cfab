/* What Python calls. `data_prep.shard_set.pixels` calls `cut_jpegs`, `judge_jpeg` and `scale_window`,
 * `copying` beside it `copy_windows`, and `recoding` the rest; they answer for the sizes of arrays.
 * Cutting, scaling and copying they also do themselves where this was not built, byte for byte.
 */

#ifndef PIXELS_H
#define PIXELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "sse4.1", "default")))
#else
#define FOR_EACH_PROCESSOR __attribute__((noinline)) /* as there: gcc vectorizes it as a whole */
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "on other processors Python does it");

typedef struct {
    int top, left, height, width;
} Window;

/* Of a window in memory, row by row: pixels, or one of its planes. */
typedef struct {
    int row_bytes, rows, columns; /* `columns` are bytes, too */
} Piece;

/* Each is explained where it is; `scale_window` is below, as C calls it too. */
int cut_jpegs(const uint8_t *const *contents, const size_t *lengths, const Window *windows,
              int count, uint8_t *out, int out_height, int out_width, char *message);
int judge_jpeg(const uint8_t *content, size_t num_bytes, uint8_t *out, int height, int width,
               int channels, char *message);
int copy_windows(const uint64_t *starts, int count, const Piece *pieces, int num_pieces,
                 const uint8_t *flips, int streams, uint8_t *out);
int recode_jpeg(const uint8_t *content, size_t num_bytes, int restart, uint8_t **out,
                size_t *out_bytes);
int encode_jpeg(const uint8_t *pixels, int height, int width, int quality, int restart,
                uint8_t **out, size_t *out_bytes);
void free_jpeg(uint8_t *bytes);

enum { BILINEAR, LANCZOS }; /* filters */

#define BEYOND_IMAGE "the window reaches beyond the image"
#define NO_MEMORY "out of memory"

/* windows.c: whether the window lies in an image of that size. */
int is_inside(const Window *window, int image_height, int image_width);

/* libjpeg.c: decode a window, to height×width×3. Returns what is wrong, which may be `message`, or
 * NULL. */
const char *decode_window(const uint8_t *content, size_t num_bytes, const Window *window,
                          uint8_t *out, char *message);

/* scaling.c: scale a window of height×width pixels, whose rows are `row_bytes` apart, to
 * out_height×out_width×3. Returns 0 without memory. */
int scale_window(const uint8_t *pixels, size_t row_bytes, int height, int width, int filter_number,
                 uint8_t *out, int out_height, int out_width);

/* bilinear.c: the same by BILINEAR, faster, where the sizes allow it. */
int can_scale_bilinear(int height, int width, int out_height, int out_width);
int scale_bilinear(const uint8_t *pixels, size_t row_bytes, int height, int width, uint8_t *out,
                   int out_height, int out_width);

#endif
