/* Finds and reads the segments of entropy-coded data between restart markers (ITU-T T.81, B.1.1.5
 * and B.2.1). Where there are no markers, all of a scan is one segment.
 */

#include <string.h>

#include "jpeg.h"

enum { STUFFED = 0x00, RST0 = 0xD0, EOI = 0xD9 };

int num_mcus(const Frame *frame) { return frame->num_mcus_across * frame->num_mcus_down; }

Segments segments_of(const uint8_t *content, size_t num_bytes, const Frame *frame)
{
    return (Segments){.number = -1,
                      .last = (num_mcus(frame) - 1) / frame->restart,
                      .next = content + frame->scan,
                      .content_end = content + num_bytes,
                      .num_bytes = num_bytes - frame->scan + READ_AHEAD};
}

/* The marker at which the data from `place` on end, or NULL. The data are copied to `*to`, if it is
 * not NULL, without the zeros behind bytes of ones. */
static const uint8_t *find_marker(const uint8_t *place, const uint8_t *end, uint8_t **to)
{
    for (;;) {
        const uint8_t *ones = memchr(place, 0xFF, (size_t)(end - place));
        if (ones == NULL || end - ones < 2)
            return NULL;
        int is_stuffed = ones[1] == STUFFED;
        if (to != NULL) {
            size_t count = (size_t)(ones - place) + is_stuffed;
            memcpy(*to, place, count);
            *to += count;
        }
        if (!is_stuffed)
            return ones;
        place = ones + 2;
    }
}

int read_segment(Segments *segments, int number)
{
    segments->bytes_end = segments->bytes;
    while (segments->number < number) {
        int next = segments->number + 1;
        const uint8_t *end = find_marker(segments->next, segments->content_end,
                                         next == number ? &segments->bytes_end : NULL);
        if (end == NULL || end[1] != (next == segments->last ? EOI : RST0 + next % 8))
            return 0;
        segments->number = next;
        segments->next = end + 2;
    }
    memset(segments->bytes_end, 0, sizeof(uint64_t)); /* what is read behind them first */
    return 1;
}
