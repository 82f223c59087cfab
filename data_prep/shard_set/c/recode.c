/* Puts restart markers into JPEGs by libjpeg: into those that there are without loss, and into those
 * that it encodes.
 *
 * A re-coded JPEG has the quantised coefficients of the original, which is proven by reading both,
 * in one interleaved scan of baseline Huffman codes, with tables made for it. Of the other markers
 * it keeps those that say how the pixels are meant, as they are.
 */

#include <stdlib.h>
#include <string.h>

#include "libjpeg.h"
#include "pixels.h"

#define FIRST_BYTES 16384
#define EXACT_QUALITY 96 /* from here on TurboJPEG takes the slower transform (turbojpeg.c) */
#define JFIF_BYTES 14    /* of its marker, without a thumbnail; libjpeg knows no shorter one */
#define ADOBE_BYTES 12   /* the same */

typedef struct {
    struct jpeg_destination_mgr base;
    uint8_t *bytes;
    size_t capacity;
} Output;

static boolean grow_output(j_compress_ptr encoder)
{
    Output *output = (Output *)encoder->dest;
    size_t more = output->capacity + FIRST_BYTES; /* all there is is full */
    uint8_t *larger = realloc(output->bytes, output->capacity + more);
    if (larger == NULL)
        ERREXIT1(encoder, JERR_OUT_OF_MEMORY, 0);
    output->base.next_output_byte = larger + output->capacity;
    output->base.free_in_buffer = more;
    output->bytes = larger;
    output->capacity += more;
    return TRUE;
}

static void start_output(j_compress_ptr encoder) { grow_output(encoder); }

static void end_output(j_compress_ptr encoder) { (void)encoder; }

static size_t output_bytes(const Output *output)
{
    return output->capacity - output->base.free_in_buffer;
}

static void create_encoder(struct jpeg_compress_struct *encoder, Output *output)
{
    jpeg_create_compress(encoder);
    output->base.init_destination = start_output;
    output->base.empty_output_buffer = grow_output;
    output->base.term_destination = end_output;
    encoder->dest = &output->base;
}

/* The largest interval that divides a row of MCUs and is at most `restart` and more than half of
 * it, else `restart`. The sampling factors are set. */
static void set_interval(struct jpeg_compress_struct *encoder, int restart)
{
    int widest = 1; /* of a lone component the MCU is one block, whatever its factors are */
    for (int i = 0; i < encoder->num_components && encoder->num_components > 1; i++)
        if (encoder->comp_info[i].h_samp_factor > widest)
            widest = encoder->comp_info[i].h_samp_factor;
    int mcu_width = DCTSIZE * widest;
    int row = ((int)encoder->image_width + mcu_width - 1) / mcu_width, interval = restart;
    while (2 * interval > restart && row % interval != 0)
        interval--;
    encoder->restart_interval = 2 * interval > restart ? interval : restart;
}

static int starts_with(jpeg_saved_marker_ptr marker, const char *name, unsigned name_bytes)
{
    return marker->data_length >= name_bytes && memcmp(marker->data, name, name_bytes) == 0;
}

static int is_kept(jpeg_saved_marker_ptr marker)
{
    switch (marker->marker) {
    case JPEG_APP0:
        return starts_with(marker, "JFIF", 5) && marker->data_length >= JFIF_BYTES;
    case JPEG_APP0 + 1:
        return starts_with(marker, "Exif", 5);
    case JPEG_APP0 + 2:
        return starts_with(marker, "ICC_PROFILE", 12);
    case JPEG_APP0 + 14:
        return starts_with(marker, "Adobe", 5) && marker->data_length >= ADOBE_BYTES;
    default:
        return marker->marker == JPEG_COM;
    }
}

/* JFIF without its thumbnail, Exif, ICC profile, Adobe and comments. Others say nothing of the
 * picture, or where bytes were that are elsewhere now. */
static void write_markers(struct jpeg_compress_struct *encoder, jpeg_saved_marker_ptr marker)
{
    for (; marker != NULL; marker = marker->next) {
        if (!is_kept(marker))
            continue;
        if (marker->marker == JPEG_APP0) {
            marker->data[12] = marker->data[13] = 0; /* the thumbnail's width and height */
            marker->data_length = JFIF_BYTES;
        }
        jpeg_write_marker(encoder, marker->marker, marker->data, marker->data_length);
    }
}

/* Whether baseline codes can say it. */
static int has_baseline_tables(const struct jpeg_decompress_struct *decoder)
{
    for (int i = 0; i < decoder->num_components; i++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (decoder->comp_info[i].quant_table->quantval[k] > 255)
                return 0;
    return 1;
}

static int same_component(struct jpeg_decompress_struct *decoders, jvirt_barray_ptr *const *blocks,
                          int number)
{
    const jpeg_component_info *components[2];
    for (int k = 0; k < 2; k++)
        components[k] = &decoders[k].comp_info[number];
    if (components[0]->component_id != components[1]->component_id ||
        components[0]->h_samp_factor != components[1]->h_samp_factor ||
        components[0]->v_samp_factor != components[1]->v_samp_factor ||
        memcmp(components[0]->quant_table->quantval, components[1]->quant_table->quantval,
               sizeof(components[0]->quant_table->quantval)) != 0)
        return 0;
    size_t row_bytes = components[0]->width_in_blocks * sizeof(JBLOCK);
    for (JDIMENSION y = 0; y < components[0]->height_in_blocks; y++) {
        JBLOCKARRAY rows[2];
        for (int k = 0; k < 2; k++)
            rows[k] = decoders[k].mem->access_virt_barray((j_common_ptr)&decoders[k],
                                                          blocks[k][number], y, 1, FALSE);
        if (memcmp(rows[0][0], rows[1][0], row_bytes) != 0)
            return 0;
    }
    return 1;
}

/* Whether two JPEGs have the same coefficients, tables and colours. */
static int are_same(struct jpeg_decompress_struct *decoders, jvirt_barray_ptr *const *blocks)
{
    if (decoders[0].image_width != decoders[1].image_width ||
        decoders[0].image_height != decoders[1].image_height ||
        decoders[0].num_components != decoders[1].num_components ||
        decoders[0].jpeg_color_space != decoders[1].jpeg_color_space)
        return 0;
    for (int i = 0; i < decoders[0].num_components; i++)
        if (!same_component(decoders, blocks, i))
            return 0;
    return 1;
}

static jvirt_barray_ptr *read_blocks(struct jpeg_decompress_struct *decoder,
                                     const uint8_t *content, size_t num_bytes)
{
    jpeg_create_decompress(decoder);
    jpeg_mem_src(decoder, content, num_bytes);
    for (int k = 0; k < 16; k++)
        jpeg_save_markers(decoder, JPEG_APP0 + k, 0xFFFF);
    jpeg_save_markers(decoder, JPEG_COM, 0xFFFF);
    jpeg_read_header(decoder, TRUE);
    return jpeg_read_coefficients(decoder);
}

/* Returns whether there is a proven result; an error of libjpeg leaves by a jump. */
static int recode(struct jpeg_decompress_struct *decoders, struct jpeg_compress_struct *encoder,
                  Output *output, const uint8_t *content, size_t num_bytes, int restart)
{
    jvirt_barray_ptr *blocks[2] = {read_blocks(&decoders[0], content, num_bytes)};
    if (lacks_scans(&decoders[0]) || !has_baseline_tables(&decoders[0]))
        return 0;
    create_encoder(encoder, output);
    jpeg_copy_critical_parameters(&decoders[0], encoder);
    encoder->write_JFIF_header = encoder->write_Adobe_marker = FALSE; /* but those of the file */
    encoder->optimize_coding = TRUE;
    set_interval(encoder, restart);
    jpeg_write_coefficients(encoder, blocks[0]);
    write_markers(encoder, decoders[0].marker_list);
    jpeg_finish_compress(encoder);
    blocks[1] = read_blocks(&decoders[1], output->bytes, output_bytes(output));
    return are_same(decoders, blocks);
}

enum { DECLINED, DONE, SHORT_OF_MEMORY };

/* A JPEG with a restart marker after about `restart` MCUs, none with 0, to new memory at `*out`, which
 * `free_jpeg` frees. Declines what is damaged or odd, and what baseline codes cannot say. */
int recode_jpeg(const uint8_t *content, size_t num_bytes, int restart, uint8_t **out,
                size_t *out_bytes)
{
    char message[JMSG_LENGTH_MAX];
    Errors errors;
    struct jpeg_error_mgr *handler = set_up_errors(&errors, message, 0);
    struct jpeg_decompress_struct decoders[2] = {{.err = handler}, {.err = handler}};
    struct jpeg_compress_struct encoder = {.err = handler};
    Output output = {.bytes = NULL};
    volatile int outcome = DECLINED; /* volatile: it must outlive the jump */
    if (setjmp(errors.escape) == 0)
        outcome = recode(decoders, &encoder, &output, content, num_bytes, restart);
    else if (errors.base.msg_code == JERR_OUT_OF_MEMORY)
        outcome = SHORT_OF_MEMORY;
    for (int k = 0; k < 2; k++)
        jpeg_destroy_decompress(&decoders[k]);
    jpeg_destroy_compress(&encoder);
    *out = output.bytes;
    *out_bytes = outcome == DONE ? output_bytes(&output) : 0;
    return outcome;
}

/* Pixels, height×width×3, with 4:4:4 and such markers, to `*out` as above. The tables are the
 * standard's: making better ones takes longer than all else. Declines sides that no JPEG has. */
int encode_jpeg(const uint8_t *pixels, int height, int width, int quality, int restart,
                uint8_t **out, size_t *out_bytes)
{
    char message[JMSG_LENGTH_MAX];
    Errors errors;
    struct jpeg_compress_struct encoder = {.err = set_up_errors(&errors, message, 0)};
    Output output = {.bytes = NULL};
    volatile int outcome = DECLINED; /* volatile: it must outlive the jump */
    if (setjmp(errors.escape) == 0) {
        create_encoder(&encoder, &output);
        encoder.image_height = height;
        encoder.image_width = width;
        encoder.input_components = 3;
        encoder.in_color_space = JCS_RGB;
        jpeg_set_defaults(&encoder);
        jpeg_set_quality(&encoder, quality, TRUE);
        encoder.dct_method = quality < EXACT_QUALITY ? JDCT_IFAST : JDCT_ISLOW;
        encoder.comp_info[0].h_samp_factor = encoder.comp_info[0].v_samp_factor = 1;
        set_interval(&encoder, restart);
        jpeg_start_compress(&encoder, TRUE);
        while (encoder.next_scanline < encoder.image_height) {
            JSAMPROW row = (JSAMPROW)pixels + encoder.next_scanline * 3 * (size_t)width;
            jpeg_write_scanlines(&encoder, &row, 1);
        }
        jpeg_finish_compress(&encoder);
        outcome = DONE;
    } else if (errors.base.msg_code == JERR_OUT_OF_MEMORY)
        outcome = SHORT_OF_MEMORY;
    jpeg_destroy_compress(&encoder);
    *out = output.bytes;
    *out_bytes = outcome == DONE ? output_bytes(&output) : 0;
    return outcome;
}

void free_jpeg(uint8_t *bytes) { free(bytes); }
