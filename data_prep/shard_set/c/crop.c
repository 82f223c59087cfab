/* Decodes a window of a JPEG and no more: of entropy-coded data only the restart segments that the
 * window touches, or what lies before its end where there are none; of blocks and samples only
 * those of the window, and what exact upsampling needs beside them.
 */

#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

#define MARGIN 2 /* pixels around a window whose chroma is halved: one sample */

typedef struct {
    int first, last; /* including this one */
} Range;

/* The blocks and samples of a component that the window needs. */
typedef struct {
    Range across, down; /* blocks of the image */
    int num_stored;     /* blocks of a row of MCUs side by side */
    int16_t *blocks;    /* of a row of MCUs: `down` rows of `num_stored` */
    uint8_t *lasts;
    uint8_t *samples;
} Part;

typedef struct {
    const Frame *frame;
    const HuffmanTable *tables[2 * MAX_PLANES]; /* of each component that of DC and that of AC */
    Range across, down;                 /* MCUs */
    Part parts[MAX_PLANES];
    McuBlock wanted[MAX_BLOCKS], unwanted[MAX_BLOCKS];
    int num_blocks;
    int16_t scratch[BLOCK];
    uint8_t scratch_last;
    Segments segments;
    int next_mcu; /* of the segment that is being decoded */
    BitReader reader;
} Decoder;

static int smaller(int one, int other) { return one < other ? one : other; }

static Range clipped(int first, int last, int count)
{
    return (Range){first < 0 ? 0 : first, smaller(last, count - 1)};
}

static int num_in(Range range) { return range.last - range.first + 1; }

/* ------------------------------------------------------------------ MCUs */

static int open_segment(Decoder *decoder, int number)
{
    if (!read_segment(&decoder->segments, number))
        return 0;
    decoder->reader = (BitReader){.place = decoder->segments.bytes};
    decoder->next_mcu = number * decoder->frame->restart;
    return 1;
}

/* How many bits of the segment are left; below 0 if codes went beyond its end. */
static ptrdiff_t num_left(const Decoder *decoder)
{
    const BitReader *reader = &decoder->reader;
    return 8 * (decoder->segments.bytes_end - reader->place) + reader->num_bits;
}

/* Decode `count` MCUs of the segment. If they are its last ones, no byte may be left. */
static int decode_run(Decoder *decoder, const McuBlock *blocks, int count)
{
    const Frame *frame = decoder->frame;
    int end = smaller((decoder->segments.number + 1) * frame->restart, num_mcus(frame));
    if (!decode_mcus(&decoder->reader, blocks, decoder->num_blocks, count,
                     decoder->segments.bytes_end))
        return 0;
    decoder->next_mcu += count;
    ptrdiff_t rest = num_left(decoder);
    return rest >= 0 && (rest < 8 || decoder->next_mcu < end);
}

/* Decode those MCUs of a row that the window needs, into the blocks of the parts. */
static int decode_row(Decoder *decoder, int row)
{
    const Frame *frame = decoder->frame;
    McuBlock blocks[MAX_BLOCKS];
    int mcu = row * frame->num_mcus_across + decoder->across.first;
    int end = mcu + num_in(decoder->across);
    memcpy(blocks, decoder->wanted, sizeof(blocks));
    while (mcu < end) {
        int number = mcu / frame->restart;
        if (number != decoder->segments.number && !open_segment(decoder, number))
            return 0;
        if (decoder->next_mcu < mcu &&
            !decode_run(decoder, decoder->unwanted, mcu - decoder->next_mcu))
            return 0;
        int count = smaller(end - mcu, (number + 1) * frame->restart - mcu);
        if (!decode_run(decoder, blocks, count))
            return 0;
        mcu += count;
        for (int i = 0; i < decoder->num_blocks; i++) {
            blocks[i].block += (ptrdiff_t)BLOCK * blocks[i].step * count;
            blocks[i].last += blocks[i].step * count;
        }
    }
    return 1;
}

/* From the coefficients of a row of MCUs to samples. */
static int transform_row(const Decoder *decoder, int row)
{
    for (int i = 0; i < decoder->frame->num_components; i++) {
        const Component *component = &decoder->frame->components[i];
        const Part *part = &decoder->parts[i];
        int count = num_in(part->across);
        size_t row_bytes = 8 * (size_t)count;
        int inset = part->across.first - decoder->across.first * component->across;
        for (int y = 0; y < component->down; y++) {
            int down = row * component->down + y, from = y * part->num_stored + inset;
            if (down >= part->down.first && down <= part->down.last &&
                !inverse_dct(part->blocks + (ptrdiff_t)BLOCK * from, part->lasts + from, count,
                             component->quant,
                             part->samples + 8 * (size_t)(down - part->down.first) * row_bytes,
                             row_bytes))
                return 0;
        }
    }
    return 1;
}

/* ------------------------------------------------------------------ windows */

/* What the window needs of each component. Returns the bytes that `place` needs. */
static size_t plan(Decoder *decoder, const Window *window)
{
    const Frame *frame = decoder->frame;
    int right = frame->across > 1 ? MARGIN : 0, below = frame->down > 1 ? MARGIN : 0;
    Range x = clipped(window->left - right, window->left + window->width - 1 + right, frame->width);
    Range y = clipped(window->top - below, window->top + window->height - 1 + below, frame->height);
    size_t num_bytes = decoder->segments.num_bytes;
    decoder->across = (Range){x.first / (8 * frame->across), x.last / (8 * frame->across)};
    decoder->down = (Range){y.first / (8 * frame->down), y.last / (8 * frame->down)};
    for (int i = 0; i < frame->num_components; i++) {
        const Component *component = &frame->components[i];
        Part *part = &decoder->parts[i];
        int across = 8 * frame->across / component->across; /* pixels of a block */
        int down = 8 * frame->down / component->down;
        part->across = (Range){x.first / across, x.last / across};
        part->down = (Range){y.first / down, y.last / down};
        part->num_stored = num_in(decoder->across) * component->across;
        num_bytes += (size_t)part->num_stored * component->down * (2 * BLOCK + 1);
        num_bytes += (size_t)num_in(part->across) * num_in(part->down) * BLOCK;
    }
    return num_bytes;
}

/* Divide the memory, and say where the blocks of an MCU go. Returns where coefficients end. */
static uint8_t *place(Decoder *decoder, uint8_t *memory)
{
    const Frame *frame = decoder->frame;
    for (int i = 0; i < frame->num_components; i++) {
        Part *part = &decoder->parts[i];
        part->blocks = (int16_t *)memory;
        memory += (size_t)part->num_stored * frame->components[i].down * 2 * BLOCK;
    }
    uint8_t *end = memory;
    for (int i = 0; i < frame->num_components; i++) {
        const Component *component = &frame->components[i];
        Part *part = &decoder->parts[i];
        part->samples = memory;
        memory += (size_t)num_in(part->across) * num_in(part->down) * BLOCK;
        part->lasts = memory;
        memory += (size_t)part->num_stored * component->down;
        for (int y = 0; y < component->down; y++)
            for (int x = 0; x < component->across; x++) {
                ptrdiff_t from = (ptrdiff_t)y * part->num_stored + x;
                McuBlock *one = &decoder->wanted[decoder->num_blocks];
                *one = (McuBlock){decoder->tables[2 * i], decoder->tables[2 * i + 1], i,
                                  part->blocks + BLOCK * from, part->lasts + from,
                                  component->across};
                decoder->unwanted[decoder->num_blocks] = *one;
                one = &decoder->unwanted[decoder->num_blocks++];
                one->block = decoder->scratch;
                one->last = &decoder->scratch_last;
                one->step = 0;
            }
    }
    decoder->segments.bytes = memory;
    return end;
}

static int decode_rows(Decoder *decoder, const Window *window, uint8_t *memory, uint8_t *out)
{
    const Frame *frame = decoder->frame;
    Plane planes[MAX_PLANES];
    uint8_t *end = place(decoder, memory);
    for (int row = decoder->down.first; row <= decoder->down.last; row++) {
        memset(memory, 0, (size_t)(end - memory));
        if (!decode_row(decoder, row) || !transform_row(decoder, row))
            return 0;
    }
    for (int i = 0; i < frame->num_components; i++) {
        const Component *component = &frame->components[i];
        const Part *part = &decoder->parts[i];
        planes[i] = (Plane){.samples = part->samples,
                            .row_bytes = 8 * (size_t)num_in(part->across),
                            .top = 8 * part->down.first,
                            .left = 8 * part->across.first,
                            .height = component->height,
                            .width = component->width,
                            .down = frame->down / component->down,
                            .across = frame->across / component->across};
    }
    return planes_to_rgb(planes, frame->num_components, window, out);
}

/* Components often share tables, and images often have those of the one before in the thread. */
static int build_tables(Decoder *decoder)
{
    static _Thread_local HuffmanTable kept[2 * MAX_PLANES];
    const uint8_t *codes[2 * MAX_PLANES];
    for (int i = 0; i < 2 * decoder->frame->num_components; i++) {
        const Component *component = &decoder->frame->components[i / 2];
        codes[i] = i % 2 == 0 ? component->dc_codes : component->ac_codes;
        int same = i % 2;
        while (same < i && codes[same] != codes[i])
            same += 2;
        decoder->tables[i] = &kept[same];
        if (same == i && !build_table(&kept[i], codes[i], i % 2 == 0))
            return 0;
    }
    return 1;
}

int decode_crop(const uint8_t *content, size_t num_bytes, const Window *window, uint8_t *out)
{
    Frame frame;
    Decoder decoder;
    if (!read_frame(content, num_bytes, &frame) || !is_inside(window, frame.height, frame.width))
        return 0;
    decoder.frame = &frame;
    decoder.segments = segments_of(content, num_bytes, &frame);
    decoder.num_blocks = 0;
    if (!build_tables(&decoder))
        return 0;
    uint8_t *memory = malloc(plan(&decoder, window));
    int is_decoded = memory != NULL && decode_rows(&decoder, window, memory, out);
    free(memory);
    return is_decoded;
}
