/* Takes windows out of stored images: decodes no more of a JPEG than its window needs, scales the
 * window if that is asked for, and copies windows out of memory-mapped pixels. Whole JPEGs are
 * decoded for `data_prep.shard_set.jpegs`, which wants to know what is wrong with them.
 *
 * `data_prep.shard_set.pixels` calls the functions that are not static, answers for the sizes of
 * their arrays, and does the same in Python, byte for byte.
 *
 * A window of a JPEG has the bytes that the same window of the whole decoded image has. libjpeg's
 * chroma upsampling looks one chroma sample to the left and the right, and at the borders of what
 * is decoded it cannot: so a few columns more are decoded and left out. Rows above the window are
 * entropy-decoded only, rows below it not at all.
 *
 * Scaling is Pillow's BILINEAR or LANCZOS, first to the output's height and then to its width: a
 * filter as wide as the scale, in fixed point, rounded to 8 bits after each of the two.
 *
 * Longer than 250 lines: it is built as one file, without a header of its own.
 */

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

const int INTERFACE = 3; /* goes up with each change of what these functions take, give or do */

#define MARGIN_COLUMNS 8 /* two chroma samples at the coarsest usual subsampling, 4:1:1 */
#define FRACTION_BITS 22 /* of a filter's weights: 8 bits of pixel and 2 of headroom are left */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "sse4.1", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

typedef int32_t int32x4 __attribute__((vector_size(16)));

/* ------------------------------------------------------------------ scaling */

typedef struct {
    double support; /* of upscaling; it grows with the scale */
    double (*weight)(double distance);
} Filter;

static double triangle(double distance) { return fabs(distance) < 1.0 ? 1.0 - fabs(distance) : 0.0; }

static double sinc(double x) { return x == 0.0 ? 1.0 : sin(x * M_PI) / (x * M_PI); }

static double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

static const Filter FILTERS[] = {{1.0, triangle}, {3.0, lanczos}};
enum { BILINEAR, LANCZOS };

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

/* Rows of `size` values, one behind the other, to one row. */
FOR_EACH_PROCESSOR
static void blend_rows(const uint8_t *rows, size_t size, const int32_t *weights, int count,
                       int32_t *out)
{
    for (size_t x = 0; x < size; x++)
        out[x] = 1 << (FRACTION_BITS - 1);
    for (int i = 0; i < count; i++, rows += size)
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

/* Scale a window of height×width pixels to out_height×out_width×3. It begins `inset` pixels into
 * `lines`, whose rows are `row_bytes` apart. Returns 0 without memory. */
int scale_window(const uint8_t *lines, int row_bytes, int inset, int height, int width,
                 int filter_number, uint8_t *out, int out_height, int out_width)
{
    const Filter *filter = &FILTERS[filter_number];
    int across = count_taps(filter, width, out_width);
    int down = count_taps(filter, height, out_height);
    size_t num_flat = (size_t)row_bytes + 1, num_wide = 3 * (size_t)out_width + 1;
    size_t num_across = (across + 1) * (size_t)out_width;
    size_t num_down = (down + 1) * (size_t)out_height;
    int32_t *flat = malloc(sizeof(int32_t) * (num_flat + num_wide + num_across + num_down));
    if (flat == NULL)
        return 0;
    int32_t *wide = flat + num_flat, *taps = wide + num_wide, *tap = taps + num_across;
    fill_taps(taps, across, filter, width, out_width);
    fill_taps(tap, down, filter, height, out_height);
    flat[row_bytes] = 0; /* scale_row multiplies it, if only to drop it */
    for (int y = 0; y < out_height; y++, tap += down + 1) {
        blend_rows(lines + *tap * (size_t)row_bytes, row_bytes, tap + 1, down, flat);
        scale_row(flat + 3 * inset, taps, across, out_width, wide, out + y * 3 * (size_t)out_width);
    }
    free(flat);
    return 1;
}

/* ------------------------------------------------------------------ JPEG */

typedef struct {
    int top, left, height, width;
} Window;

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf escape;
    char *message;  /* of what ended it, else of the first complaint: JMSG_LENGTH_MAX */
    int is_patient; /* goes on after complaints that cost no pixel */
    int is_cut;     /* the data stop early: in the file, or in a scan */
} Errors;

/* The window has no negative number; a sum of two could overflow. */
static int is_inside(const Window *window, int image_height, int image_width)
{
    return window->top >= 0 && window->left >= 0 && window->height > 0 && window->width > 0 &&
           window->height <= image_height - window->top &&
           window->width <= image_width - window->left;
}

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

/* The caller then sets where errors escape to, and destroys the decoder. */
static void set_up_errors(struct jpeg_decompress_struct *decoder, Errors *errors, char *message,
                          int is_patient)
{
    memset(decoder, 0, sizeof(*decoder)); /* it may be destroyed before it is created */
    decoder->err = jpeg_std_error(&errors->base);
    errors->base.error_exit = on_error;
    errors->base.emit_message = on_message;
    errors->message = message;
    errors->is_patient = is_patient;
    errors->is_cut = message[0] = 0;
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

/* Returns what is wrong, or NULL; an error of libjpeg leaves by a jump. `lines`, to be freed, has a
 * decoded row, or all of the window if it is scaled. */
static const char *run_decoder(struct jpeg_decompress_struct *decoder, const Window *window,
                               uint8_t **lines, uint8_t *out, int out_height, int out_width)
{
    int is_scaled = window->height != out_height || window->width != out_width;
    jpeg_read_header(decoder, TRUE);
    if (!is_inside(window, (int)decoder->image_height, (int)decoder->image_width))
        return "the window reaches beyond the image";
    *lines = malloc(3 * (size_t)decoder->image_width * (is_scaled ? window->height : 1));
    if (*lines == NULL)
        return "out of memory";
    decoder->out_color_space = JCS_RGB;
    jpeg_start_decompress(decoder);
    int inset = seek_window(decoder, window);
    size_t row_bytes = 3 * (size_t)decoder->output_width, out_bytes = 3 * (size_t)out_width;
    for (int y = 0; y < window->height; y++) {
        read_line(decoder, *lines + (is_scaled ? y * row_bytes : 0));
        if (!is_scaled)
            memcpy(out + y * out_bytes, *lines + 3 * inset, out_bytes);
    }
    if (is_scaled && !scale_window(*lines, row_bytes, inset, window->height, window->width,
                                   BILINEAR, out, out_height, out_width))
        return "out of memory";
    return NULL;
}

/* Returns 1 if all went well, else `message` says what is wrong. */
static int decode_window(const uint8_t *content, size_t num_bytes, const Window *window,
                         uint8_t *out, int out_height, int out_width, char *message)
{
    struct jpeg_decompress_struct decoder;
    Errors errors;
    uint8_t *volatile lines = NULL; /* volatile: they must outlive the jump */
    const char *volatile problem = message;
    set_up_errors(&decoder, &errors, message, 0);
    if (setjmp(errors.escape) == 0) {
        jpeg_create_decompress(&decoder); /* fails with a libjpeg of another version */
        jpeg_mem_src(&decoder, content, num_bytes);
        problem = run_decoder(&decoder, window, (uint8_t **)&lines, out, out_height, out_width);
    }
    jpeg_destroy_decompress(&decoder);
    free(lines);
    if (problem != NULL && problem != message)
        strcpy(message, problem);
    return problem == NULL;
}

/* Of `count` JPEGs the windows, to count×out_height×out_width×3. Returns the number of the first
 * JPEG that is damaged, or not around its window, and what is wrong in `message`; else `count`. */
int cut_jpegs(const uint8_t *const *contents, const size_t *lengths, const Window *windows,
              int count, uint8_t *out, int out_height, int out_width, char *message)
{
    size_t image_bytes = 3 * (size_t)out_height * out_width;
    int i = 0;
    while (i < count && decode_window(contents[i], lengths[i], &windows[i], out + i * image_bytes,
                                      out_height, out_width, message))
        i++;
    return i;
}

/* Whether some component, or some bits of a progressive picture, are in no scan. Of scans that are
 * not there libjpeg says nothing. */
static int lacks_scans(const struct jpeg_decompress_struct *decoder)
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

/* Whether libjpeg-turbo would put the standard's tables in the place of some of the file's. */
static int lacks_tables(const struct jpeg_decompress_struct *decoder)
{
    for (int i = 0; i < decoder->comps_in_scan; i++) {
        const jpeg_component_info *component = decoder->cur_comp_info[i];
        if (!decoder->progressive_mode && (!decoder->dc_huff_tbl_ptrs[component->dc_tbl_no] ||
                                           !decoder->ac_huff_tbl_ptrs[component->ac_tbl_no]))
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
    struct jpeg_decompress_struct decoder;
    Errors errors;
    volatile int verdict = DAMAGED; /* volatile: it must outlive the jump */
    set_up_errors(&decoder, &errors, message, 1);
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

/* ------------------------------------------------------------------ mapped pixels */

/* Reading a mapped file that was cut, or whose disk fails, raises SIGBUS: it would end the process
 * without a word. In a thread that is copying, the handler goes back to before the copy. */

static _Thread_local sigjmp_buf *volatile copying = NULL; /* volatile: the handler reads it */
static struct sigaction earlier;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    if (copying != NULL)
        siglongjmp(*copying, 1);
    sigaction(number, &earlier, NULL); /* not ours: the instruction fails again, for its owner */
}

static void catch_bus_errors(void)
{
    struct sigaction now;
    sigaction(SIGBUS, NULL, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error)
        return;
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    earlier = now;
    sigaction(SIGBUS, &ours, NULL);
}

/* The last pixel first. Four bytes at a time: the fourth is the next pixel's, or another's that is
 * written over next; not so at the ends of the row. */
static void mirror_row(uint8_t *target, const uint8_t *row, int width)
{
    const uint8_t *source = row + 3 * ((size_t)width - 1);
    memcpy(target, source, 3);
    for (int x = 1; x < width; x++) {
        source -= 3;
        target += 3;
        memcpy(target, source, x < width - 1 ? 4 : 3);
    }
}

/* The windows' first bytes are at `starts`, their rows `row_bytes` apart. Returns the number of the
 * first window that cannot be read because its file was cut or its disk fails, or `count`. */
int copy_windows(const uint64_t *starts, const uint8_t *flips, int count, int row_bytes, int height,
                 int width, uint8_t *out)
{
    volatile int image = 0;
    sigjmp_buf before;
    catch_bus_errors();
    if (sigsetjmp(before, 1) == 0) {
        copying = &before;
        size_t out_bytes = 3 * (size_t)width;
        for (; image < count; image = image + 1) {
            const uint8_t *row = (const uint8_t *)(uintptr_t)starts[image];
            uint8_t *target = out + (size_t)image * height * out_bytes;
            for (int y = 0; y < height; y++, row += row_bytes, target += out_bytes) {
                if (flips[image])
                    mirror_row(target, row, width);
                else
                    memcpy(target, row, out_bytes);
            }
        }
    }
    copying = NULL;
    return image;
}
