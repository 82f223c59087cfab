/* The steps of decoding a window of a JPEG, bit-equal to libjpeg-turbo's. Whatever is odd about an
 * image is left to libjpeg: each step may decline, and then says nothing.
 */

#ifndef JPEG_H
#define JPEG_H

#include "pixels.h"

#define BLOCK 64       /* coefficients; 8×8 samples */
#define MAX_PLANES 3   /* Y, Cb, Cr */
#define NUM_TABLES 4   /* of each kind (T.81, B.2.4) */
#define MAX_CODES 272  /* bytes of a table in the file */
#define LOOKUP_BITS 10 /* of a code and the bits behind it that one look-up decodes */

typedef struct {
    int across, down;              /* sampling factors */
    int height, width;             /* in samples, as far as they belong to the image */
    const uint16_t *quant;         /* row by row */
    const uint8_t *dc_codes;       /* see `codes` of HuffmanTable */
    const uint8_t *ac_codes;       /* the same */
} Component;

/* What the markers before the scan say of an image that we decode: baseline, one scan. */
typedef struct {
    int height, width, num_components;
    int across, down;   /* blocks of the first component in an MCU, which has the most */
    int num_mcus_across, num_mcus_down;
    int restart;        /* MCUs between two markers; all of them where there are none */
    size_t scan;        /* where its data begin */
    uint16_t quants[NUM_TABLES][BLOCK];
    Component components[MAX_PLANES];
} Frame;

/* header.c: returns 0 if it declines. */
int read_frame(const uint8_t *content, size_t num_bytes, Frame *frame);

/* What the next LOOKUP_BITS bits begin with: one coefficient or two. */
typedef uint64_t Entry;

/* How an Entry is packed: the bits that it uses up, how far its first coefficient and both are from
 * the one before, the bits of the first, and the values of both. With a skip of LONG it decodes no
 * coefficient: then the first bits are those of the code, or 0, and the first value its symbol. */
enum { FIRST_SKIP = 8, SKIP = 16, FIRST_BITS = 24, FIRST_VALUE = 32, SECOND_VALUE = 48 };
#define BYTE(entry, from) ((unsigned)(uint8_t)((entry) >> (from)))
#define VALUE(entry, from) ((int16_t)((entry) >> (from)))

/* The number that `size` bits stand for (T.81, F.2.2.1, EXTEND). */
static inline int extended(int bits, int size)
{
    int is_negative = (bits >> (size - 1)) - 1; /* a mask: which ones are no processor could predict */
    return bits + (is_negative & (1 - (1 << size)));
}

#define END_OF_BLOCK 128 /* a skip */
#define LONG 255         /* a skip: the code and what follows it are longer than LOOKUP_BITS */

/* tables.c: where a coefficient lies in its block, by its place in the file, counted from 1 (T.81,
 * figure A.6). Behind them: what ends a block, or is not decoded by a look-up, is stored in the last
 * one, which still gets its value then. */
extern const uint8_t NATURAL[1 + BLOCK + LONG];

typedef struct {
    Entry entries[1 << LOOKUP_BITS];
    uint32_t ends[17]; /* of the codes of each length, behind the last one, in the upper 16 bits */
    int first[17];     /* of their symbols, minus the first code */
    size_t num_bytes;  /* of `codes`; 0: it is not built */
    uint8_t codes[MAX_CODES]; /* it was built from: 16 counts, and the symbols behind them */
} HuffmanTable;

/* tables.c: build a table from 16 counts and the symbols behind them, unless it was built from the
 * same ones. Returns 0 if it declines them. */
int build_table(HuffmanTable *table, const uint8_t *codes, int is_dc);

/* The segments of a scan, read one by one. */
typedef struct {
    int number, last;                   /* of the one that was read, and of the last one */
    const uint8_t *next, *content_end;  /* where the next one begins */
    size_t num_bytes;                   /* that `bytes` must have room for */
    uint8_t *bytes, *bytes_end;         /* of the one that was read, without stuffed bytes */
} Segments;

/* segments.c: before the first segment; `bytes` is to be set. */
Segments segments_of(const uint8_t *content, size_t num_bytes, const Frame *frame);

/* segments.c: read a later segment; returns 0 if the markers up to it are not what they should be. */
int read_segment(Segments *segments, int number);

/* segments.c: in the image. */
int num_mcus(const Frame *frame);

/* Bits of entropy-coded data, without stuffed bytes. */
typedef struct {
    const uint8_t *place; /* of the first byte that is not in `buffer` yet */
    uint64_t buffer;      /* the next bits, the first one at the top */
    int num_bits;         /* of them that count */
    int dc[MAX_PLANES];   /* of the last block of each component */
} BitReader;

#define MAX_BLOCKS 10   /* in an MCU (T.81, B.2.3) */
#define READ_AHEAD 2560 /* bytes behind `end` that are read of codes that lie: more than an MCU has */

/* One of the blocks of which MCUs are made, and where its coefficients go. */
typedef struct {
    const HuffmanTable *dc, *ac;
    int component;
    int16_t *block; /* zeros, unless nobody looks at it */
    uint8_t *last;  /* the place, in the order of the file, of its last coefficient */
    int step;       /* blocks from one MCU to the next; 0: each overwrites the one before */
} McuBlock;

/* huffman.c: decode `num_mcus` MCUs of `num_blocks` blocks. Returns 0 if it declines. */
int decode_mcus(BitReader *reader, const McuBlock *blocks, int num_blocks, int num_mcus,
                const uint8_t *end);

/* crop.c: decode a window, to height×width×3. Returns 0 if it declines. */
int decode_crop(const uint8_t *content, size_t num_bytes, const Window *window, uint8_t *out);

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
