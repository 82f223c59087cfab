/* The steps of decoding a window of a JPEG, bit-equal to libjpeg-turbo's. Whatever is odd about an
 * image is left to libjpeg: each step may decline, and then says nothing.
 */

#ifndef JPEG_H
#define JPEG_H

#include "pixels.h"

#define BLOCK 64 /* coefficients; 8×8 samples */

/* idct.c: the samples of `count` blocks that lie side by side, to 8 rows `row_bytes` apart. A block
 * has its coefficients row by row, as they are in the file; `lasts` has for each block the place, in
 * zigzag order, of its last coefficient that is not 0. Like ISLOW of libjpeg-turbo (jidctint.c).
 * Returns 0 if a number may leave 16 bits, where libjpeg-turbo's own versions differ: no encoder
 * writes such a block. */
int inverse_dct(const int16_t *blocks, const uint8_t *lasts, int count, const uint16_t *quant,
                uint8_t *out, size_t row_bytes);

/* Samples of a component around a window. */
typedef struct {
    const uint8_t *samples; /* the first one that is there */
    size_t row_bytes;
    int top, left;     /* the place of that one in the component */
    int height, width; /* of the whole component: at its borders, samples are repeated */
    int down, across;  /* pixels of the image per sample, in a column and in a row: 1, 2 or 4 */
} Plane;

/* color.c: upsample the chroma of one plane (grayscale) or three (YCbCr) as libjpeg-turbo does by
 * default ("fancy" where a side is halved; repeated for others and for components of at most two
 * columns, see jdsample.c) and convert it to RGB, height×width×3. The planes have all samples of
 * the window, and one more on each side where chroma is halved and the component has it. Returns 0
 * if it knows no such sampling or has no memory. */
int planes_to_rgb(const Plane *planes, int num_planes, const Window *window, uint8_t *out);

#endif
