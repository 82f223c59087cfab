/* Copies windows out of memory-mapped pixels and planes.
 *
 * Reading a mapped file that was cut, or whose disk fails, raises SIGBUS: it would end the process
 * without a word. In a thread that is copying, the handler goes back to before the copy.
 */

#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "pixels.h"

static _Thread_local sigjmp_buf *volatile copying = NULL; /* volatile: the handler reads it */
static struct sigaction earlier;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    if (copying != NULL)
        siglongjmp(*copying, 1);
    struct sigaction owner = earlier;
    earlier = (struct sigaction){.sa_handler = SIG_DFL}; /* if its owner then gives way to us again */
    sigaction(number, &owner, NULL); /* not ours: the instruction fails again, for its owner */
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

/* The pieces of an image, one behind the other. */
static void copy_image(const uint64_t *starts, const Piece *pieces, int num_pieces, int is_flipped,
                       uint8_t *out)
{
    for (int i = 0; i < num_pieces; i++) {
        const uint8_t *row = (const uint8_t *)(uintptr_t)starts[i];
        size_t columns = pieces[i].columns;
        for (int y = 0; y < pieces[i].rows; y++, row += pieces[i].row_bytes, out += columns) {
            if (is_flipped)
                mirror_row(out, row, columns / 3);
            else
                memcpy(out, row, columns);
        }
    }
}

#define LINE 64 /* bytes of a cache line */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

typedef long long Half __attribute__((vector_size(LINE / 2), may_alias));
typedef Half Unaligned __attribute__((aligned(1)));

#define PREFETCHED (4 * LINE) /* of each row; the rest of a longer one the processor expects */

static int can_stream(const Piece *pieces, int num_pieces)
{
    int is_wide = pieces[0].columns >= 2 * LINE; /* its first row loses less than a line */
    for (int i = 1; i < num_pieces; i++)
        is_wide = is_wide && pieces[i].columns >= LINE;
    return is_wide && __builtin_cpu_supports("avx");
}

__attribute__((target("avx"))) static inline void stream_line(uint8_t *out, const uint8_t *line)
{
    const Unaligned *halves = (const Unaligned *)line;
    __builtin_ia32_movntdq256((Half *)out, halves[0]);
    __builtin_ia32_movntdq256((Half *)out + 1, halves[1]);
}

__attribute__((target("avx"))) static inline void move_line(uint8_t *out, const uint8_t *line)
{
    ((Unaligned *)out)[0] = ((const Unaligned *)line)[0];
    ((Unaligned *)out)[1] = ((const Unaligned *)line)[1];
}

/* As copy_image, but past the caches: what is written is not read from memory first, and needs
 * whole lines of it. A line of two rows is put together in `line`, which has a line of room on each
 * side; the room crosses no page, as stores that do take many times as long. Meanwhile the next
 * image's rows, whose starts are `next`, are on their way. */
__attribute__((target("avx"))) static void stream_image(const uint64_t *starts,
                                                        const uint64_t *next, const Piece *pieces,
                                                        int num_pieces, uint8_t *out)
{
    uint8_t room[4 * LINE] __attribute__((aligned(4 * LINE))), *line = room + LINE;
    size_t filled = 0, skipped = -(uintptr_t)out % LINE;
    memcpy(out, (const uint8_t *)(uintptr_t)starts[0], skipped);
    out += skipped;
    for (int i = 0; i < num_pieces; i++) {
        const uint8_t *row = (const uint8_t *)(uintptr_t)starts[i];
        const uint8_t *ahead = (const uint8_t *)(uintptr_t)next[i];
        size_t columns = pieces[i].columns, row_bytes = pieces[i].row_bytes;
        for (int y = 0; y < pieces[i].rows; y++, row += row_bytes, ahead += row_bytes) {
            for (size_t x = 0; x < columns && x < PREFETCHED; x += LINE)
                __builtin_prefetch(ahead + x, 0, 2);
            const uint8_t *place = row + skipped, *end = row + columns;
            skipped = 0;
            move_line(line + filled, place);
            place += LINE - filled;
            stream_line(out, line);
            for (out += LINE; end - place >= LINE; place += LINE, out += LINE)
                stream_line(out, place);
            filled = end - place;
            move_line(line + filled - LINE, end - LINE);
        }
    }
    memcpy(out, line, filled);
}

/* Whoever reads on after this sees all of it. */
static void finish_streaming(void) { __builtin_ia32_sfence(); }

#else

static int can_stream(const Piece *pieces, int num_pieces)
{
    (void)pieces;
    (void)num_pieces;
    return 0;
}

static void stream_image(const uint64_t *starts, const uint64_t *next, const Piece *pieces,
                         int num_pieces, uint8_t *out)
{
    (void)next;
    copy_image(starts, pieces, num_pieces, 0, out);
}

static void finish_streaming(void) {}

#endif

typedef struct {
    const uint64_t *starts;
    const Piece *pieces;
    int num_pieces, count;
    volatile int num_copied; /* volatile: it must outlive the jump */
} Windows;

/* Not a part of its caller, to which the handler jumps back. */
__attribute__((noinline)) static void copy_images(Windows *windows, const uint8_t *flips,
                                                  int streams, uint8_t *out)
{
    int num_pieces = windows->num_pieces;
    const Piece *pieces = windows->pieces;
    size_t image_bytes = 0;
    for (int i = 0; i < num_pieces; i++)
        image_bytes += (size_t)pieces[i].rows * pieces[i].columns;
    streams = streams && can_stream(pieces, num_pieces);
    for (int image = 0; image < windows->count; out += image_bytes) {
        const uint64_t *starts = windows->starts + (size_t)image * num_pieces;
        const uint64_t *next = image + 1 < windows->count ? starts + num_pieces : starts;
        if (streams)
            stream_image(starts, next, pieces, num_pieces, out);
        else
            copy_image(starts, pieces, num_pieces, flips != NULL && flips[image], out);
        windows->num_copied = ++image;
    }
}

/* Of each image `num_pieces` pieces, whose first bytes are at `starts`. The images of `flips` (NULL:
 * none) are mirrored; they have one piece, of pixels. With `streams`, which mirrors none, they are
 * written past the caches. Returns the number of the first image that cannot be read because its
 * file was cut or its disk fails, or `count`. */
int copy_windows(const uint64_t *starts, int count, const Piece *pieces, int num_pieces,
                 const uint8_t *flips, int streams, uint8_t *out)
{
    Windows windows = {starts, pieces, num_pieces, count, 0};
    sigjmp_buf before;
    catch_bus_errors();
    if (sigsetjmp(before, 1) == 0) {
        copying = &before;
        copy_images(&windows, flips, streams, out);
    }
    copying = NULL;
    finish_streaming();
    return windows.num_copied;
}
