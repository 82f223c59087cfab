/* Takes windows out of stored images: decodes no more of a JPEG than its window needs, scales the
 * window if that is asked for, and copies windows out of memory-mapped pixels. All of it runs
 * without the interpreter lock. `data_prep.shard_set.pixels` does the same in Python, byte for
 * byte. Whole JPEGs are decoded for `data_prep.convert.jpegs`, which wants to know what is wrong
 * with them.
 *
 * A window of a JPEG has the bytes that the same window of the whole decoded image has. libjpeg's
 * chroma upsampling looks one chroma sample to the left and the right, and at the borders of what
 * is decoded it cannot: so a few columns more are decoded and left out. Rows above the window are
 * entropy-decoded only, rows below it not at all.
 *
 * Scaling is Pillow's BILINEAR or LANCZOS, first to the output's height and then to its width: a
 * filter as wide as the scale, in fixed point, rounded to 8 bits after each of the two.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#define INTERFACE 2 /* goes up with each change of what these functions take, give or do */
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
    int count;        /* how many inputs an output is made of */
    int *firsts;      /* the first of them, by output */
    int32_t *weights; /* `count` of them, by output */
} Taps;

static void free_taps(Taps *taps)
{
    free(taps->firsts);
    free(taps->weights);
}

typedef struct {
    double support; /* of upscaling; it grows with the scale */
    double (*weight)(double distance);
} Filter;

static double triangle(double distance) { return fabs(distance) < 1.0 ? 1.0 - fabs(distance) : 0.0; }

static double sinc(double x) { return x == 0.0 ? 1.0 : sin(x * M_PI) / (x * M_PI); }

static double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

static const Filter FILTERS[] = {{1.0, triangle}, {3.0, lanczos}};
enum { BILINEAR, LANCZOS, NUM_FILTERS };

/* The taps along one side; 0 without memory. Outputs at the border get weights of 0 beside theirs,
 * so that all have as many and no branch depends on it. */
static int make_taps(Taps *taps, const Filter *filter, int in_size, int out_size)
{
    double scale = (double)in_size / out_size;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = filter->support * stretch;
    int count = (int)ceil(2 * support) + 1;
    taps->count = count = count > in_size ? in_size : count;
    taps->firsts = malloc(sizeof(int) * out_size);
    taps->weights = malloc(sizeof(int32_t) * count * out_size);
    if (taps->firsts == NULL || taps->weights == NULL)
        return 0;
    for (int out = 0; out < out_size; out++) {
        double center = (out + 0.5) * scale, sum = 0.0;
        int first = (int)(center - support + 0.5);
        first = first < 0 ? 0 : first;
        first = first > in_size - count ? in_size - count : first;
        for (int i = 0; i < count; i++)
            sum += filter->weight((first + i - center + 0.5) * (1.0 / stretch));
        for (int i = 0; i < count; i++) {
            double weight = filter->weight((first + i - center + 0.5) * (1.0 / stretch)) / sum;
            weight *= 1 << FRACTION_BITS;
            taps->weights[out * count + i] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        taps->firsts[out] = first;
    }
    return 1;
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
static void scale_row(const int32_t *row, const Taps *taps, int out_size, int32_t *wide,
                      uint8_t *out)
{
    const int32_t *weights = taps->weights;
    for (int x = 0; x < out_size; x++) {
        const int32_t *place = row + 3 * taps->firsts[x];
        int32x4 sum = (int32x4){0} + (1 << (FRACTION_BITS - 1));
        for (int i = 0; i < taps->count; i++, place += 3) {
            int32x4 values;
            memcpy(&values, place, sizeof(values));
            sum += values * *weights++;
        }
        memcpy(wide + 3 * x, &sum, sizeof(sum));
    }
    for (int x = 0; x < 3 * out_size; x++)
        out[x] = rounded(wide[x]);
}

/* ------------------------------------------------------------------ JPEG */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX]; /* of what ended it, else of the first complaint */
    int is_patient;                /* goes on after complaints that cost no pixel */
    int is_cut;                    /* the data stop early: in the file, or in a scan */
} Errors;

typedef struct {
    int top, left, height, width;
} Window;

/* The window has no negative number; a sum of two could overflow. */
static int is_inside(const Window *window, int image_height, int image_width)
{
    return window->top >= 0 && window->left >= 0 && window->height > 0 && window->width > 0 &&
           window->height <= image_height - window->top &&
           window->width <= image_width - window->left;
}

typedef struct {
    uint8_t *lines; /* decoded rows: one, or all of the window if it is scaled */
    int32_t *flat;  /* a row of the output's height */
    int32_t *wide;  /* and of its width */
    Taps across, down;
} Scratch;

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
    switch (warning) {
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_JFIF_MAJOR:
    case JWRN_JPEG_EOF:
    case JWRN_NOT_SEQUENTIAL:
        return 0;
    default:
        return 1;
    }
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
static void set_up_errors(struct jpeg_decompress_struct *decoder, Errors *errors, int is_patient)
{
    memset(errors, 0, sizeof(*errors));
    memset(decoder, 0, sizeof(*decoder)); /* it may be destroyed before it is created */
    decoder->err = jpeg_std_error(&errors->base);
    errors->base.error_exit = on_error;
    errors->base.emit_message = on_message;
    errors->is_patient = is_patient;
}

static void free_scratch(Scratch *scratch)
{
    free(scratch->lines);
    free(scratch->flat);
    free(scratch->wide);
    free_taps(&scratch->across);
    free_taps(&scratch->down);
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

static void decode_as_is(struct jpeg_decompress_struct *decoder, const Window *window,
                         Scratch *scratch, uint8_t *out)
{
    int inset = seek_window(decoder, window);
    size_t row_bytes = 3 * (size_t)window->width;
    for (int y = 0; y < window->height; y++) {
        read_line(decoder, scratch->lines);
        memcpy(out + y * row_bytes, scratch->lines + 3 * inset, row_bytes);
    }
}

/* Scale the window that begins `inset` pixels into `lines`. */
static void scale_lines(const uint8_t *lines, size_t row_bytes, int inset, const Scratch *scratch,
                        uint8_t *out, int out_height, int out_width)
{
    const Taps *down = &scratch->down;
    scratch->flat[row_bytes] = 0; /* scale_row multiplies it, if only to drop it */
    for (int y = 0; y < out_height; y++) {
        blend_rows(lines + down->firsts[y] * row_bytes, row_bytes, down->weights + y * down->count,
                   down->count, scratch->flat);
        scale_row(scratch->flat + 3 * inset, &scratch->across, out_width, scratch->wide,
                  out + y * 3 * (size_t)out_width);
    }
}

static void decode_scaled(struct jpeg_decompress_struct *decoder, const Window *window,
                          Scratch *scratch, uint8_t *out, int out_height, int out_width)
{
    int inset = seek_window(decoder, window);
    size_t row_bytes = 3 * (size_t)decoder->output_width;
    for (int y = 0; y < window->height; y++)
        read_line(decoder, scratch->lines + y * row_bytes);
    scale_lines(scratch->lines, row_bytes, inset, scratch, out, out_height, out_width);
}

/* What scaling needs, for rows of `row_bytes`; 0 without memory. */
static int prepare_scaling(Scratch *scratch, const Filter *filter, const Window *window,
                           size_t row_bytes, int out_height, int out_width)
{
    scratch->flat = malloc(sizeof(int32_t) * (row_bytes + 1));
    scratch->wide = malloc(sizeof(int32_t) * (3 * (size_t)out_width + 1));
    return scratch->flat && scratch->wide &&
           make_taps(&scratch->across, filter, window->width, out_width) &&
           make_taps(&scratch->down, filter, window->height, out_height);
}

/* Returns NULL, or what is wrong; an error of libjpeg leaves by a jump. */
static const char *run_decoder(struct jpeg_decompress_struct *decoder, const Window *window,
                               Scratch *scratch, uint8_t *out, int out_height, int out_width)
{
    int is_scaled = window->height != out_height || window->width != out_width;
    jpeg_read_header(decoder, TRUE);
    if (!is_inside(window, (int)decoder->image_height, (int)decoder->image_width))
        return "the window reaches beyond the image";
    size_t row_bytes = 3 * (size_t)decoder->image_width;
    scratch->lines = malloc(row_bytes * (is_scaled ? window->height : 1));
    if (scratch->lines == NULL ||
        (is_scaled && !prepare_scaling(scratch, &FILTERS[BILINEAR], window, row_bytes, out_height,
                                       out_width)))
        return "out of memory";
    decoder->out_color_space = JCS_RGB;
    jpeg_start_decompress(decoder);
    if (is_scaled)
        decode_scaled(decoder, window, scratch, out, out_height, out_width);
    else
        decode_as_is(decoder, window, scratch, out);
    return NULL;
}

/* Returns NULL, or what is wrong: a constant, or the text in `errors`. */
static const char *decode_window(const uint8_t *content, size_t num_bytes, const Window *window,
                                 uint8_t *out, int out_height, int out_width, Errors *errors)
{
    struct jpeg_decompress_struct decoder;
    Scratch scratch;
    memset(&scratch, 0, sizeof(scratch));
    set_up_errors(&decoder, errors, 0);
    const char *volatile problem = errors->message; /* volatile: it must outlive the jump */
    if (setjmp(errors->escape) == 0) {
        jpeg_create_decompress(&decoder); /* fails with a libjpeg of another version */
        jpeg_mem_src(&decoder, content, num_bytes);
        problem = run_decoder(&decoder, window, &scratch, out, out_height, out_width);
    }
    jpeg_destroy_decompress(&decoder);
    free_scratch(&scratch);
    return problem;
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

enum { WHOLE, TRUNCATED, DAMAGED };

/* Decode all of a JPEG. Returns one of the above; a message is in `errors` unless it is empty. */
static int judge(const uint8_t *content, size_t num_bytes, uint8_t *out, int height, int width,
                 int channels, Errors *errors)
{
    struct jpeg_decompress_struct decoder;
    volatile int verdict = DAMAGED; /* volatile: it must outlive the jump */
    set_up_errors(&decoder, errors, 1);
    if (setjmp(errors->escape) == 0) {
        jpeg_create_decompress(&decoder); /* fails with a libjpeg of another version */
        jpeg_mem_src(&decoder, content, num_bytes);
        jpeg_read_header(&decoder, TRUE);
        decoder.out_color_space = channels == 4 ? JCS_CMYK : JCS_RGB;
        if ((int)decoder.image_height != height || (int)decoder.image_width != width)
            ERREXIT(&decoder, JERR_BAD_LENGTH);
        if (errors->message[0] != '\0' && lacks_tables(&decoder)) /* what it skipped was one */
            ERREXIT1(&decoder, JERR_NO_HUFF_TABLE, 0);
        jpeg_start_decompress(&decoder);
        for (int y = 0; y < height; y++)
            read_line(&decoder, out + y * (size_t)channels * width);
        if (lacks_scans(&decoder)) {
            strcpy(errors->message, "scans are missing");
            verdict = TRUNCATED;
        } else {
            jpeg_finish_decompress(&decoder);
            verdict = WHOLE;
        }
    }
    jpeg_destroy_decompress(&decoder);
    return verdict == DAMAGED && errors->is_cut ? TRUNCATED : verdict;
}

/* cut_jpegs(contents, windows, out, out_height, out_width): of a list of N bytes the windows, int32
 * N×4 (top, left, height, width), to writable uint8 N×out_height×out_width×3. Returns None, or the
 * number of the first JPEG that is damaged, or not around its window, and what is wrong. */
static PyObject *cut_jpegs(PyObject *module, PyObject *arguments)
{
    PyObject *contents, *result = NULL;
    Py_buffer windows, out;
    int out_height, out_width;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!y*w*ii", &PyList_Type, &contents, &windows, &out,
                          &out_height, &out_width))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(contents), image_bytes = (Py_ssize_t)3 * out_height * out_width;
    const uint8_t **starts = PyMem_Calloc(count + 1, sizeof(*starts));
    size_t *lengths = PyMem_Calloc(count + 1, sizeof(*lengths));
    int is_sound = starts != NULL && lengths != NULL && out_height > 0 && out_width > 0 &&
                   windows.len == (Py_ssize_t)sizeof(Window) * count &&
                   out.len == image_bytes * count;
    for (Py_ssize_t i = 0; is_sound && i < count; i++) {
        PyObject *content = PyList_GET_ITEM(contents, i);
        is_sound = PyBytes_Check(content);
        if (is_sound) {
            starts[i] = (const uint8_t *)PyBytes_AS_STRING(content);
            lengths[i] = PyBytes_GET_SIZE(content);
        }
    }
    if (is_sound) {
        Errors errors;
        const char *problem = NULL;
        Py_ssize_t i;
        Py_BEGIN_ALLOW_THREADS
        for (i = 0; i < count; i++) {
            problem = decode_window(starts[i], lengths[i], (const Window *)windows.buf + i,
                                    (uint8_t *)out.buf + i * image_bytes, out_height, out_width,
                                    &errors);
            if (problem != NULL)
                break;
        }
        Py_END_ALLOW_THREADS
        result = problem == NULL ? Py_NewRef(Py_None) : Py_BuildValue("ns", i, problem);
    } else {
        PyErr_SetString(PyExc_ValueError, "the contents, windows and output differ in number");
    }
    PyMem_Free(starts);
    PyMem_Free(lengths);
    PyBuffer_Release(&windows);
    PyBuffer_Release(&out);
    return result;
}

/* judge_jpeg(content, out, height, width, channels): all of a JPEG of that size to writable uint8
 * height×width×channels: RGB with 3, CMYK with 4 as libjpeg gives it. Returns the verdict, and what
 * there was to complain of, or None. */
static PyObject *judge_jpeg(PyObject *module, PyObject *arguments)
{
    Py_buffer content, out;
    int height, width, channels, verdict = DAMAGED;
    Errors errors;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*iii", &content, &out, &height, &width, &channels))
        return NULL;
    int is_sound = height > 0 && width > 0 && (channels == 3 || channels == 4) &&
                   out.len == (Py_ssize_t)channels * height * width;
    if (is_sound) {
        Py_BEGIN_ALLOW_THREADS
        verdict = judge(content.buf, content.len, out.buf, height, width, channels, &errors);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "the output does not fit the size");
    }
    PyBuffer_Release(&content);
    PyBuffer_Release(&out);
    if (!is_sound)
        return NULL;
    return Py_BuildValue("iz", verdict, errors.message[0] == '\0' ? NULL : errors.message);
}

/* scale_window(filter, pixels, image_height, image_width, top, left, height, width, out,
 * out_height, out_width): from uint8 image_height×image_width×3 to writable uint8 out_height×out_width×3. */
static PyObject *scale_window(PyObject *module, PyObject *arguments)
{
    Py_buffer pixels, out;
    Window window;
    int filter, image_height, image_width, out_height, out_width;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "iy*iiiiiiw*ii", &filter, &pixels, &image_height,
                          &image_width, &window.top, &window.left, &window.height, &window.width,
                          &out, &out_height, &out_width))
        return NULL;
    size_t row_bytes = 3 * (size_t)image_width;
    int is_sound = image_height > 0 && image_width > 0 &&
                   is_inside(&window, image_height, image_width) && out_height > 0 &&
                   out_width > 0 &&
                   pixels.len == (Py_ssize_t)row_bytes * image_height && filter >= 0 &&
                   filter < NUM_FILTERS &&
                   out.len == (Py_ssize_t)3 * out_height * out_width;
    if (is_sound) {
        Scratch scratch;
        memset(&scratch, 0, sizeof(scratch));
        int has_memory;
        Py_BEGIN_ALLOW_THREADS
        has_memory = prepare_scaling(&scratch, &FILTERS[filter], &window, row_bytes, out_height,
                                     out_width);
        if (has_memory)
            scale_lines((const uint8_t *)pixels.buf + window.top * row_bytes, row_bytes,
                        window.left, &scratch, out.buf, out_height, out_width);
        free_scratch(&scratch);
        Py_END_ALLOW_THREADS
        if (!has_memory)
            PyErr_NoMemory();
    } else {
        PyErr_SetString(PyExc_ValueError, "the window or the buffers do not fit the image");
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
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

/* Returns the number of the image that could not be read, or -1. */
static Py_ssize_t copy_all(const uint64_t *addresses, const int64_t *tops, const int64_t *lefts,
                           const uint8_t *flips, Py_ssize_t count, size_t stride, int height,
                           int width, uint8_t *out)
{
    volatile Py_ssize_t image = 0;
    sigjmp_buf before;
    if (sigsetjmp(before, 1)) {
        copying = NULL;
        return image;
    }
    copying = &before;
    size_t row_bytes = 3 * (size_t)width;
    for (; image < count; image = image + 1) {
        const uint8_t *row = (const uint8_t *)(uintptr_t)addresses[image];
        uint8_t *target = out + image * height * row_bytes;
        row += tops[image] * stride + 3 * lefts[image];
        for (int y = 0; y < height; y++, row += stride, target += row_bytes) {
            if (flips[image])
                mirror_row(target, row, width);
            else
                memcpy(target, row, row_bytes);
        }
    }
    copying = NULL;
    return -1;
}

/* copy_windows(addresses, tops, lefts, flips, row_bytes, height, width, out): `addresses` (uint64
 * N) are of the images' first bytes, their rows `row_bytes` apart; `tops` and `lefts` are int64 N,
 * `flips` bool N. The caller answers for the windows' being inside the images. Returns -1, or the
 * number of the first image that cannot be read because its file was cut or its disk fails. */
static PyObject *copy_windows(PyObject *module, PyObject *arguments)
{
    Py_buffer addresses, tops, lefts, flips, out;
    Py_ssize_t row_bytes;
    int height, width;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*niiw*", &addresses, &tops, &lefts, &flips, &row_bytes,
                          &height, &width, &out))
        return NULL;
    Py_ssize_t count = addresses.len / (Py_ssize_t)sizeof(uint64_t), failed = -1;
    int is_sound = tops.len == addresses.len && lefts.len == addresses.len &&
                   flips.len == count && height > 0 && width > 0 &&
                   out.len == count * height * width * 3;
    if (is_sound) {
        catch_bus_errors();
        Py_BEGIN_ALLOW_THREADS
        failed = copy_all(addresses.buf, tops.buf, lefts.buf, flips.buf, count, row_bytes, height,
                          width, out.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "the arrays and the output differ in length");
    }
    PyBuffer_Release(&addresses);
    PyBuffer_Release(&tops);
    PyBuffer_Release(&lefts);
    PyBuffer_Release(&flips);
    PyBuffer_Release(&out);
    return is_sound ? PyLong_FromSsize_t(failed) : NULL;
}

static PyMethodDef methods[] = {
    {"cut_jpegs", cut_jpegs, METH_VARARGS, NULL},
    {"judge_jpeg", judge_jpeg, METH_VARARGS, NULL},
    {"scale_window", scale_window, METH_VARARGS, NULL},
    {"copy_windows", copy_windows, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "data_prep.shard_set._pixels",
    .m_doc = "Windows of stored images; see data_prep.shard_set.pixels.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__pixels(void)
{
    PyObject *module = PyModule_Create(&module_definition);
    if (module != NULL && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0)
        Py_CLEAR(module);
    return module;
}
