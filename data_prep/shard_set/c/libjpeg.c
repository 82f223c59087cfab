/* Decodes JPEGs by libjpeg: windows of them, and whole ones for `data_prep.shard_set.jpegs`, which
 * wants to know what is wrong with them.
 *
 * A window of a JPEG has the bytes that the same window of the whole decoded image has. libjpeg's
 * chroma upsampling looks one chroma sample to the left and the right, and at the borders of what
 * is decoded it cannot: so a few columns more are decoded and left out. Rows above the window are
 * entropy-decoded only, rows below it not at all.
 */

#include <stdlib.h>
#include <string.h>

#include "libjpeg.h"
#include "pixels.h"

#define MARGIN_COLUMNS 8 /* two chroma samples at the coarsest usual subsampling, 4:1:1 */

static void on_error(j_common_ptr decoder)
{
    Errors *errors = (Errors *)decoder->err;
    errors->base.format_message(decoder, errors->message);
    longjmp(errors->escape, 1);
}

/* Whether pixels are not the image's after a warning. Every other one tells of bytes that belong to
 * nothing or of numbers that decoding does not need; whether an early end of the file costs pixels
 * is known in the end only. */
static int costs_pixels(int warning)
{
    return warning != JWRN_ADOBE_XFORM && warning != JWRN_BOGUS_PROGRESSION &&
           warning != JWRN_EXTRANEOUS_DATA && warning != JWRN_JFIF_MAJOR &&
           warning != JWRN_JPEG_EOF && warning != JWRN_NOT_SEQUENTIAL;
}

static void on_message(j_common_ptr decoder, int level)
{
    Errors *errors = (Errors *)decoder->err;
    int code = errors->base.msg_code;
    if (level >= 0)
        return;
    if (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)
        errors->is_cut = 1;
    int ends = !errors->is_patient || costs_pixels(code);
    if (ends || errors->message[0] == '\0')
        errors->base.format_message(decoder, errors->message);
    if (ends)
        longjmp(errors->escape, 1);
}

struct jpeg_error_mgr *set_up_errors(Errors *errors, char *message, int is_patient)
{
    jpeg_std_error(&errors->base);
    errors->base.error_exit = on_error;
    errors->base.emit_message = on_message;
    errors->message = message;
    errors->is_patient = is_patient;
    errors->is_cut = message[0] = 0;
    return &errors->base;
}

/* Decode the next row into `line`. */
static void read_line(struct jpeg_decompress_struct *decoder, uint8_t *line)
{
    JSAMPROW row = line;
    while (jpeg_read_scanlines(decoder, &row, 1) != 1) {
    }
}

/* Start a decoder at the window's first row; returns the window's place in the rows it gives. */
static int seek_window(struct jpeg_decompress_struct *decoder, const Window *window)
{
    int left = window->left > MARGIN_COLUMNS ? window->left - MARGIN_COLUMNS : 0;
    int right = window->left + window->width + MARGIN_COLUMNS;
    if (right > (int)decoder->output_width)
        right = decoder->output_width;
    JDIMENSION first = left, width = right - left;
    if (width < decoder->output_width)
        jpeg_crop_scanline(decoder, &first, &width); /* moves `first` to the left */
    if (window->top > 0)
        jpeg_skip_scanlines(decoder, window->top);
    return window->left - (int)first;
}

/* Returns what is wrong, or NULL; an error of libjpeg leaves by a jump. `line` is to be freed. */
static const char *run_decoder(struct jpeg_decompress_struct *decoder, const Window *window,
                               uint8_t **line, uint8_t *out)
{
    jpeg_read_header(decoder, TRUE);
    if (!is_inside(window, (int)decoder->image_height, (int)decoder->image_width))
        return BEYOND_IMAGE;
    *line = malloc(3 * (size_t)decoder->image_width);
    if (*line == NULL)
        return NO_MEMORY;
    decoder->out_color_space = JCS_RGB;
    jpeg_start_decompress(decoder);
    int inset = seek_window(decoder, window);
    size_t out_bytes = 3 * (size_t)window->width;
    for (int y = 0; y < window->height; y++) {
        read_line(decoder, *line);
        memcpy(out + y * out_bytes, *line + 3 * inset, out_bytes);
    }
    return NULL;
}

const char *decode_window(const uint8_t *content, size_t num_bytes, const Window *window,
                          uint8_t *out, char *message)
{
    Errors errors;
    struct jpeg_decompress_struct decoder = {.err = set_up_errors(&errors, message, 0)};
    uint8_t *volatile line = NULL; /* volatile: they must outlive the jump */
    const char *volatile problem = message;
    if (setjmp(errors.escape) == 0) {
        jpeg_create_decompress(&decoder); /* fails with a libjpeg of another version */
        jpeg_mem_src(&decoder, content, num_bytes);
        problem = run_decoder(&decoder, window, (uint8_t **)&line, out);
    }
    jpeg_destroy_decompress(&decoder);
    free(line);
    return problem;
}

int lacks_scans(const struct jpeg_decompress_struct *decoder)
{
    for (int i = 0; i < decoder->num_components; i++) {
        if (decoder->comp_info[i].quant_table == NULL) /* it is noted with the first scan */
            return 1;
        for (int k = 0; decoder->coef_bits != NULL && k < DCTSIZE2; k++)
            if (decoder->coef_bits[i][k] != 0) /* still to come; -1: all of them */
                return 1;
    }
    return 0;
}

/* The header of a scan may name a table of any number from 0 to 15. */
static int has_table(JHUFF_TBL *const *tables, int number)
{
    return number < NUM_HUFF_TBLS && tables[number] != NULL;
}

/* Whether libjpeg-turbo would put the standard's tables in the place of some of the file's. */
static int lacks_tables(const struct jpeg_decompress_struct *decoder)
{
    for (int i = 0; i < decoder->comps_in_scan; i++) {
        const jpeg_component_info *component = decoder->cur_comp_info[i];
        if (!decoder->progressive_mode &&
            (!has_table(decoder->dc_huff_tbl_ptrs, component->dc_tbl_no) ||
             !has_table(decoder->ac_huff_tbl_ptrs, component->ac_tbl_no)))
            return 1;
    }
    return 0;
}

/* All pixels are there; the data stop early; pixels are lost, or cannot be had, for another reason. */
enum { WHOLE, TRUNCATED, DAMAGED };

/* All of a JPEG of that size, to height×width×channels: RGB with 3, CMYK with 4 as libjpeg gives
 * it. Returns one of the above; `message` is empty if there is nothing to complain of. */
int judge_jpeg(const uint8_t *content, size_t num_bytes, uint8_t *out, int height, int width,
               int channels, char *message)
{
    Errors errors;
    struct jpeg_decompress_struct decoder = {.err = set_up_errors(&errors, message, 1)};
    volatile int verdict = DAMAGED; /* volatile: it must outlive the jump */
    if (setjmp(errors.escape) == 0) {
        jpeg_create_decompress(&decoder); /* fails with a libjpeg of another version */
        jpeg_mem_src(&decoder, content, num_bytes);
        jpeg_read_header(&decoder, TRUE);
        decoder.out_color_space = channels == 4 ? JCS_CMYK : JCS_RGB;
        if ((int)decoder.image_height != height || (int)decoder.image_width != width)
            ERREXIT(&decoder, JERR_BAD_LENGTH);
        if (message[0] != '\0' && lacks_tables(&decoder)) /* what it skipped was one */
            ERREXIT1(&decoder, JERR_NO_HUFF_TABLE, 0);
        jpeg_start_decompress(&decoder);
        for (int y = 0; y < height; y++)
            read_line(&decoder, out + y * (size_t)channels * width);
        if (lacks_scans(&decoder)) {
            strcpy(message, "scans are missing");
            verdict = TRUNCATED;
        } else {
            jpeg_finish_decompress(&decoder);
            verdict = WHOLE;
        }
    }
    jpeg_destroy_decompress(&decoder);
    return verdict == DAMAGED && errors.is_cut ? TRUNCATED : verdict;
}
