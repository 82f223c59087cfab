/* Fuzzes the C code of shard sets: with damaged JPEGs, our decoder against libjpeg, and whatever
 * else takes bytes or sizes. To be built with sanitizers, which end it with the first wrong access.
 *
 *     fuzz CORPUS CURRENT DOUBTFUL SEED SECONDS ITERATIONS
 *
 * CORPUS is a file of inputs, each behind its size. The input at work is in the file CURRENT: its
 * size, the window, which is four numbers of 4 bytes, and the JPEG. To the file DOUBTFUL go, in the
 * same form, those for which our decoder gives pixels and libjpeg a complaint, which may be about
 * data that the window does not need. Whether they are right is for others to say. It prints how
 * many inputs there were, how many of them our decoder answered, libjpeg refused, and are doubtful.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../../../data_prep/shard_set/c/jpeg.h"
#include "fuzz.h"

#define MAX_SEEDS 4096
#define MAX_PIXELS (1 << 20)   /* of what libjpeg decodes */
#define MESSAGE_BYTES 200      /* JMSG_LENGTH_MAX */
#define MAX_DOUBTFUL 20000     /* are kept */
#define DONE 1                 /* of `recode_jpeg` and `encode_jpeg` */
#define FILLING 0x5A

typedef struct {
    uint32_t size; /* of the JPEG */
    Window window;
    uint8_t bytes[MAX_BYTES];
} Case;

typedef struct {
    long inputs, answered, refused, doubtful;
} Counts;

static Input seeds[MAX_SEEDS];
static int num_seeds;
static Case *current;
static FILE *doubtful;

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

static void *need(void *memory)
{
    if (memory == NULL)
        fail("out of memory");
    return memory;
}

static void read_corpus(const char *path)
{
    FILE *file = need(fopen(path, "rb"));
    uint32_t size;
    while (num_seeds < MAX_SEEDS && fread(&size, sizeof(size), 1, file) == 1) {
        Input *seed = &seeds[num_seeds++];
        if (size > MAX_BYTES || fread(seed->bytes, 1, size, file) != size)
            fail("the corpus is damaged");
        seed->size = size;
    }
    fclose(file);
}

static void map_current(const char *path)
{
    FILE *file = need(fopen(path, "w+b"));
    if (ftruncate(fileno(file), sizeof(Case)) != 0)
        fail("the file of the input at work cannot be written");
    current = mmap(NULL, sizeof(Case), PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    if (current == MAP_FAILED)
        fail("the file of the input at work cannot be mapped");
    fclose(file);
}

/* The size in the last frame header; libjpeg's own is not asked, so that ours is not spared. */
static void find_size(const Input *input, int *height, int *width)
{
    *height = *width = 16;
    for (size_t i = 0; i + 9 < input->size; i++) {
        const uint8_t *byte = input->bytes + i;
        if (byte[0] == 0xFF && byte[1] >= 0xC0 && byte[1] <= 0xCF && byte[1] != 0xC4) {
            *height = byte[5] * 256 + byte[6];
            *width = byte[7] * 256 + byte[8];
        }
    }
}

static int draw_side(int size) { return size > 1 ? 1 + (int)draw((uint32_t)size) : 1; }

static Window draw_window(int height, int width)
{
    Window window = {0, 0, height, width};
    switch (draw(8)) {
    case 0: break; /* all of it */
    case 1: /* anything */
        window = (Window){(int)draw(80) - 8, (int)draw(80) - 8, (int)draw(80), (int)draw(80)};
        break;
    default:
        window.height = draw_side(height);
        window.width = draw_side(width);
        window.top = draw_side(height - window.height + 1) - 1;
        window.left = draw_side(width - window.width + 1) - 1;
    }
    return window;
}

static int is_large(int height, int width) { return (double)height * width > MAX_PIXELS; }

/* Returns whether our decoder answered. */
static int check_decoder(const uint8_t *content, size_t size, const Window *window, uint8_t *out,
                         uint8_t *expected, Counts *counts)
{
    size_t num_bytes = 3 * (size_t)window->height * window->width;
    char message[MESSAGE_BYTES];
    int is_answered = decode_crop(content, size, window, out);
    const char *problem = decode_window(content, size, window, expected, message);
    counts->answered += is_answered;
    counts->refused += problem != NULL;
    if (is_answered && problem == NULL && memcmp(out, expected, num_bytes) != 0)
        fail("other pixels than libjpeg's");
    if (is_answered && problem != NULL && counts->doubtful++ < MAX_DOUBTFUL)
        fwrite(current, 1, offsetof(Case, bytes) + size, doubtful);
    memset(expected, FILLING, num_bytes);
    int cut = cut_jpegs(&content, &size, window, 1, expected, window->height, window->width, message);
    if (cut != (is_answered || problem == NULL))
        fail("cut_jpegs disagrees with the decoders");
    if (is_answered && memcmp(out, expected, num_bytes) != 0)
        fail("cut_jpegs has other pixels than the decoder");
    return is_answered;
}

/* Both filters, by whichever way the sizes allow. */
static void check_scaling(const uint8_t *content, size_t size, const Window *window)
{
    char message[MESSAGE_BYTES];
    int height = draw_side(40), width = draw_side(40), filter = draw(2) ? LANCZOS : BILINEAR;
    int out_height = draw_side(40), out_width = draw_side(40);
    uint8_t *scaled = need(malloc(3 * (size_t)height * width));
    uint8_t *out = need(malloc(3 * (size_t)out_height * out_width));
    if (cut_jpegs(&content, &size, window, 1, scaled, height, width, message) == 1 &&
        !scale_window(scaled, 3 * (size_t)width, height, width, filter, out, out_height, out_width))
        fail("out of memory");
    free(scaled);
    free(out);
}

/* Some pieces of some images out of `size` bytes, against the plainest loop. */
static void check_copying(const uint8_t *memory, size_t size)
{
    Piece pieces[3];
    uint64_t starts[9];
    uint8_t flips[3] = {draw(2), draw(2), draw(2)}, *out, *place;
    int num_pieces = draw(2) ? 1 : 3, streams = (int)draw(2), row_bytes = draw_side((int)size);
    size_t out_bytes = 0;
    for (int i = 0; i < num_pieces; i++) {
        int columns = 3 * (draw_side(row_bytes) / 3), rows = draw_side((int)size / row_bytes);
        if (columns == 0 || columns > row_bytes)
            return;
        pieces[i] = (Piece){row_bytes, rows, columns};
        out_bytes += 3 * (size_t)rows * columns;
    }
    for (int i = 0; i < 3 * num_pieces; i++) {
        const Piece *piece = &pieces[i % num_pieces];
        size_t used = (size_t)(piece->rows - 1) * row_bytes + piece->columns;
        starts[i] = (uintptr_t)memory + draw((uint32_t)(size - used + 1));
    }
    int mirrors = num_pieces == 1 && !streams;
    place = out = need(malloc(out_bytes));
    if (copy_windows(starts, 3, pieces, num_pieces, mirrors ? flips : NULL, streams, out) != 3)
        fail("pixels in memory cannot be read");
    for (int i = 0; i < 3 * num_pieces; i++) {
        const uint8_t *row = (const uint8_t *)(uintptr_t)starts[i];
        const Piece *piece = &pieces[i % num_pieces];
        for (int y = 0; y < piece->rows; y++, row += row_bytes)
            for (int x = 0; x < piece->columns; x += 3, place += 3)
                if (memcmp(place, row + (mirrors && flips[i] ? piece->columns - 3 - x : x), 3) != 0)
                    fail("a copied pixel is another");
    }
    free(out);
}

static void check_judge(const uint8_t *content, size_t size, int height, int width)
{
    char message[MESSAGE_BYTES];
    int channels = draw(4) ? 3 : 4;
    uint8_t *out = need(malloc((size_t)channels * height * width + 1));
    judge_jpeg(content, size, out, height, width, channels, message);
    free(out);
}

/* The same pixels, or the same complaint: that there is no RGB. */
static void check_recoding(const uint8_t *content, size_t size, int height, int width)
{
    Window whole = {0, 0, height, width};
    char message[MESSAGE_BYTES], complaint[MESSAGE_BYTES];
    uint8_t *recoded = NULL;
    size_t num_bytes, out_bytes = 3 * (size_t)height * width;
    int restart = draw(2) ? 1 + (int)draw(9) : (int)draw(65536);
    if (recode_jpeg(content, size, restart, &recoded, &num_bytes) == DONE) {
        uint8_t *out = need(malloc(out_bytes)), *expected = need(malloc(out_bytes));
        const char *first = decode_window(content, size, &whole, expected, message);
        const char *second = decode_window(recoded, num_bytes, &whole, out, complaint);
        if ((first == NULL) != (second == NULL) || (first && strcmp(first, second) != 0))
            fail("a re-coded JPEG has another complaint than the original");
        if (first == NULL && memcmp(out, expected, out_bytes) != 0)
            fail("a re-coded JPEG has other pixels");
        free(out);
        free(expected);
    }
    free_jpeg(recoded);
}

/* Ours may decline: with the fast transform, blocks of hard contrasts get coefficients beyond all
 * bounds. */
static void check_encoding(const uint8_t *pixels, int height, int width)
{
    Window whole = {0, 0, height, width};
    char message[MESSAGE_BYTES];
    size_t size, out_bytes = 3 * (size_t)height * width;
    uint8_t *content = NULL, *out = need(malloc(out_bytes)), *expected = need(malloc(out_bytes));
    int quality = 1 + (int)draw(100), restart = (int)draw(20);
    if (encode_jpeg(pixels, height, width, quality, restart, &content, &size) != DONE)
        fail("pixels cannot be encoded");
    if (decode_window(content, size, &whole, expected, message) != NULL)
        fail("libjpeg complains of what we encoded");
    if (decode_crop(content, size, &whole, out) && memcmp(out, expected, out_bytes) != 0)
        fail("what we encoded has other pixels than libjpeg's");
    free(out);
    free(expected);
    free_jpeg(content);
}

static void run_input(const Input *input, Counts *counts)
{
    int height, width;
    find_size(input, &height, &width);
    Window window = draw_window(height, width);
    current->size = (uint32_t)input->size;
    current->window = window;
    memcpy(current->bytes, input->bytes, input->size);
    uint8_t *content = need(malloc(input->size)); /* of its size, so that none is read behind it */
    memcpy(content, input->bytes, input->size);
    counts->inputs++;
    if (is_inside(&window, 65535, 65535) && !is_large(window.height, window.width)) {
        size_t num_bytes = 3 * (size_t)window.height * window.width;
        uint8_t *out = need(malloc(num_bytes)), *expected = need(malloc(num_bytes));
        if (is_large(height, width))
            decode_crop(content, input->size, &window, out);
        else if (check_decoder(content, input->size, &window, out, expected, counts) &&
                 draw(8) == 0) {
            check_copying(out, num_bytes);
            check_encoding(out, window.height, window.width);
        }
        free(out);
        free(expected);
    }
    if (!is_large(height, width) && draw(4) == 0)
        check_scaling(content, input->size, &window);
    if (!is_large(height, width) && height > 0 && width > 0 && draw(4) == 0) {
        check_judge(content, input->size, height, width);
        check_recoding(content, input->size, height, width);
    }
    free(content);
}

int main(int count, char **words)
{
    static Input input;
    Counts counts = {0};
    if (count != 7)
        fail("fuzz CORPUS CURRENT DOUBTFUL SEED SECONDS ITERATIONS");
    read_corpus(words[1]);
    map_current(words[2]);
    doubtful = need(fopen(words[3], "wb"));
    set_seed(strtoull(words[4], NULL, 10));
    time_t end = time(NULL) + atol(words[5]);
    long iterations = atol(words[6]);
    while (counts.inputs < iterations && (counts.inputs % 64 != 0 || time(NULL) < end)) {
        input = seeds[draw((uint32_t)num_seeds)];
        for (uint32_t i = draw(5); i > 0; i--)
            mutate(&input, &seeds[draw((uint32_t)num_seeds)]);
        run_input(&input, &counts);
    }
    fclose(doubtful);
    printf("%ld %ld %ld %ld\n", counts.inputs, counts.answered, counts.refused, counts.doubtful);
    return 0;
}
