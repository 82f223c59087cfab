/* Copies windows out of memory-mapped pixels.
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
