/* Reads the markers before the scan of a JPEG (ITU-T T.81, annex B), as far as it is of the kind
 * that nearly all are: baseline or extended sequential, 8 bits, one scan, YCbCr or grayscale.
 */

#include <string.h>

#include "jpeg.h"

enum { SOF0 = 0xC0, SOF1, DHT = 0xC4, SOS = 0xDA, DQT, DRI = 0xDD };
enum { APP0 = 0xE0, APP14 = 0xEE, APP15, COM = 0xFE };

#define LONGEST_SIDE 65500 /* JPEG_MAX_DIMENSION of libjpeg */

/* What is collected until the scan begins. */
typedef struct {
    const uint8_t *codes[2][NUM_TABLES]; /* DC, AC */
    int has_quant[NUM_TABLES];
    int ids[MAX_PLANES], quant_ids[MAX_PLANES];
    int is_jfif, adobe_transform; /* -1: no mark of Adobe's */
} Header;

static int read_16(const uint8_t *place) { return place[0] << 8 | place[1]; }

static int read_quants(Frame *frame, Header *header, const uint8_t *place, const uint8_t *end)
{
    for (; place < end; place += 1 + BLOCK) {
        int id = *place; /* with its upper four bits set, of 16-bit numbers */
        if (id >= NUM_TABLES || end - place < 1 + BLOCK)
            return 0;
        for (int i = 0; i < BLOCK; i++) {
            frame->quants[id][NATURAL[1 + i]] = place[1 + i];
            if (place[1 + i] == 0)
                return 0;
        }
        header->has_quant[id] = 1;
    }
    return 1;
}

static int read_codes(Header *header, const uint8_t *place, const uint8_t *end)
{
    while (place < end) {
        int class = *place >> 4, id = *place & 15, count = 0;
        if (class > 1 || id >= NUM_TABLES || end - place < 17)
            return 0;
        for (int i = 1; i <= 16; i++)
            count += place[i];
        if (count > 256 || end - place < 17 + count)
            return 0;
        header->codes[class][id] = place + 1;
        place += 17 + count;
    }
    return 1;
}

static int read_sof(Frame *frame, Header *header, const uint8_t *place, int length)
{
    if (frame->num_components != 0 || length < 6 || length != 6 + 3 * place[5] || place[0] != 8)
        return 0;
    frame->height = read_16(place + 1);
    frame->width = read_16(place + 3);
    frame->num_components = place[5];
    if (frame->height == 0 || frame->width == 0 || frame->height > LONGEST_SIDE ||
        frame->width > LONGEST_SIDE || (place[5] != 1 && place[5] != 3))
        return 0;
    for (int i = 0; i < place[5]; i++) {
        const uint8_t *from = place + 6 + 3 * i;
        Component *component = &frame->components[i];
        int across = from[1] >> 4, down = from[1] & 15;
        component->across = place[5] == 1 ? 1 : across; /* an MCU then is one block */
        component->down = place[5] == 1 ? 1 : down;
        header->ids[i] = from[0];
        header->quant_ids[i] = from[2];
        if (across < 1 || across > 4 || down < 1 || down > 4 || from[2] >= NUM_TABLES)
            return 0;
    }
    return 1;
}

/* Whether three components are YCbCr, by the rules of libjpeg (jdapimin.c). */
static int is_ycc(const Header *header)
{
    if (header->is_jfif)
        return 1;
    if (header->adobe_transform >= 0)
        return header->adobe_transform == 1;
    return header->ids[0] == 1 && header->ids[1] == 2 && header->ids[2] == 3;
}

static int divided_up(int number, int by) { return (number + by - 1) / by; }

static int read_sos(Frame *frame, const Header *header, const uint8_t *place, int length)
{
    static const uint8_t END[] = {0, BLOCK - 1, 0}; /* all coefficients, all bits */
    int count = frame->num_components, num_blocks = 0;
    if (count == 0 || length != 4 + 2 * count || place[0] != count ||
        memcmp(place + 1 + 2 * count, END, sizeof(END)) != 0 || (count == 3 && !is_ycc(header)))
        return 0;
    frame->across = frame->components[0].across;
    frame->down = frame->components[0].down;
    for (int i = 0; i < count; i++) {
        Component *component = &frame->components[i];
        int dc = place[2 + 2 * i] >> 4, ac = place[2 + 2 * i] & 15;
        if (place[1 + 2 * i] != header->ids[i] || dc >= NUM_TABLES || ac >= NUM_TABLES ||
            !header->codes[0][dc] || !header->codes[1][ac] ||
            !header->has_quant[header->quant_ids[i]] || frame->across % component->across != 0 ||
            frame->down % component->down != 0)
            return 0;
        component->dc_codes = header->codes[0][dc];
        component->ac_codes = header->codes[1][ac];
        component->quant = frame->quants[header->quant_ids[i]];
        component->height = divided_up(frame->height * component->down, frame->down);
        component->width = divided_up(frame->width * component->across, frame->across);
        num_blocks += component->across * component->down;
    }
    frame->num_mcus_across = divided_up(frame->width, 8 * frame->across);
    frame->num_mcus_down = divided_up(frame->height, 8 * frame->down);
    if (frame->restart == 0)
        frame->restart = num_mcus(frame);
    return num_blocks <= MAX_BLOCKS;
}

/* Returns 0 for what we do not know, or what libjpeg would complain of. */
static int read_marker(Frame *frame, Header *header, int marker, const uint8_t *place, int length)
{
    switch (marker) {
    case SOF0:
    case SOF1:
        return read_sof(frame, header, place, length);
    case DQT:
        return read_quants(frame, header, place, place + length);
    case DHT:
        return read_codes(header, place, place + length);
    case DRI:
        frame->restart = length == 2 ? read_16(place) : 0;
        return length == 2;
    case APP0:
        if (length >= 14 && memcmp(place, "JFIF", 5) == 0) {
            header->is_jfif = 1;
            return place[5] == 1; /* the version */
        }
        return 1;
    case APP14:
        if (length >= 12 && memcmp(place, "Adobe", 5) == 0)
            header->adobe_transform = place[11];
        return 1;
    default:
        return (marker > APP0 && marker <= APP15) || marker == COM;
    }
}

int read_frame(const uint8_t *content, size_t num_bytes, Frame *frame)
{
    Header header = {.adobe_transform = -1};
    size_t place = 2;
    memset(frame, 0, sizeof(*frame));
    if (num_bytes < 4 || content[0] != 0xFF || content[1] != 0xD8)
        return 0;
    while (num_bytes - place >= 4 && content[place] == 0xFF) {
        int marker = content[place + 1], length = read_16(content + place + 2);
        const uint8_t *inside = content + place + 4;
        place += 2 + (size_t)length;
        if (length < 2 || place > num_bytes)
            return 0;
        frame->scan = place;
        if (marker == SOS)
            return read_sos(frame, &header, inside, length - 2);
        if (!read_marker(frame, &header, marker, inside, length - 2))
            return 0;
    }
    return 0;
}
