/* Takes windows out of JPEGs, scaled where that is asked for. */

#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

const int INTERFACE = 5; /* goes up with each change of what these functions take, give or do */

#define LONGEST_SIDE 65535 /* that a JPEG can name; libjpeg takes fewer, and says so */

int is_inside(const Window *window, int image_height, int image_width)
{
    return window->top >= 0 && window->left >= 0 && window->height > 0 && window->width > 0 &&
           window->height <= image_height - window->top &&
           window->width <= image_width - window->left;
}

/* By our own decoder, or where that declines by libjpeg. Returns what is wrong, or NULL. */
static const char *decode(const uint8_t *content, size_t num_bytes, const Window *window,
                          uint8_t *out, char *message)
{
    if (decode_crop(content, num_bytes, window, out))
        return NULL;
    return decode_window(content, num_bytes, window, out, message);
}

/* Returns what is wrong, or NULL. */
static const char *cut_jpeg(const uint8_t *content, size_t num_bytes, const Window *window,
                            uint8_t *out, int out_height, int out_width, char *message)
{
    if (!is_inside(window, LONGEST_SIDE, LONGEST_SIDE))
        return BEYOND_IMAGE;
    if (window->height == out_height && window->width == out_width)
        return decode(content, num_bytes, window, out, message);
    uint8_t *pixels = malloc(3 * (size_t)window->height * window->width);
    if (pixels == NULL)
        return NO_MEMORY;
    const char *problem = decode(content, num_bytes, window, pixels, message);
    if (problem == NULL && !scale_window(pixels, 3 * (size_t)window->width, window->height,
                                         window->width, BILINEAR, out, out_height, out_width))
        problem = NO_MEMORY;
    free(pixels);
    return problem;
}

/* Of `count` JPEGs the windows, to count×out_height×out_width×3. Returns the number of the first
 * JPEG that is damaged, or not around its window, and what is wrong in `message`; else `count`. */
int cut_jpegs(const uint8_t *const *contents, const size_t *lengths, const Window *windows,
              int count, uint8_t *out, int out_height, int out_width, char *message)
{
    size_t image_bytes = 3 * (size_t)out_height * out_width;
    for (int i = 0; i < count; i++) {
        const char *problem = cut_jpeg(contents[i], lengths[i], &windows[i], out + i * image_bytes,
                                       out_height, out_width, message);
        if (problem != NULL && problem != message)
            strcpy(message, problem);
        if (problem != NULL)
            return i;
    }
    return count;
}
