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

/* The marker at which the data from `place` on end, or NULL. */
static const uint8_t *find_marker(const uint8_t *place, const uint8_t *end)
{
    while ((place = memchr(place, 0xFF, (size_t)(end - place))) != NULL && end - place >= 2) {
        if (place[1] != STUFFED)
            return place;
        place += 2;
    }
    return NULL;
}

/* Copy without the zeros behind bytes of ones; returns the end of the copy. */
static uint8_t *unstuff(const uint8_t *place, const uint8_t *end, uint8_t *to)
{
    while (place < end) {
        const uint8_t *ones = memchr(place, 0xFF, (size_t)(end - place));
        size_t count = (size_t)((ones == NULL ? end : ones + 1) - place);
        memcpy(to, place, count);
        to += count;
        place += count + (ones != NULL);
    }
    return to;
}

int read_segment(Segments *segments, int number)
{
    const uint8_t *start = NULL, *end = NULL;
    while (segments->number < number) {
        start = segments->next;
        end = find_marker(start, segments->content_end);
        segments->number++;
        int is_last = segments->number == segments->last;
        if (end == NULL || end[1] != (is_last ? EOI : RST0 + segments->number % 8))
            return 0;
        segments->next = end + 2;
    }
    segments->bytes_end = unstuff(start, end, segments->bytes);
    memset(segments->bytes_end, 0, sizeof(uint64_t)); /* what is read behind them first */
    return 1;
}
