/* Damages JPEGs: their markers, lengths, tables, restart markers and data. */

#include <string.h>

#include "fuzz.h"

#define MAX_MARKS 512

static uint64_t state;

void set_seed(uint64_t seed) { state = seed * 2654435769u + 88172645463325252u; }

uint32_t draw(uint32_t below)
{
    state ^= state << 13; /* xorshift64 */
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) % below);
}

static size_t place_in(const Input *input) { return draw((uint32_t)input->size); }

static int find_marks(const Input *input, size_t *marks)
{
    int count = 0;
    for (size_t i = 0; i + 1 < input->size && count < MAX_MARKS; i++)
        if (input->bytes[i] == 0xFF && input->bytes[i + 1] != 0 && input->bytes[i + 1] != 0xFF)
            marks[count++] = i;
    return count;
}

/* Put other bytes in the place of `removed` ones; what does not fit is left as it is. */
static void replace(Input *input, size_t place, size_t removed, const uint8_t *bytes, size_t added)
{
    static uint8_t copy[MAX_BYTES]; /* `bytes` may be the input's own */
    if (place + removed > input->size || input->size - removed + added > MAX_BYTES)
        return;
    memcpy(copy, bytes, added);
    uint8_t *target = input->bytes + place;
    memmove(target + added, target + removed, input->size - place - removed);
    memcpy(target, copy, added);
    input->size += added - removed;
}

static void change_byte(Input *input)
{
    static const uint8_t VALUES[] = {0,    1,    2,    3,    0x11, 0x12, 0x21, 0x22, 0x3F, 0x40,
                                     0x41, 0x7F, 0x80, 0xD0, 0xD7, 0xD9, 0xF0, 0xFE, 0xFF};
    uint8_t *byte = input->bytes + place_in(input);
    switch (draw(3)) {
    case 0: *byte = (uint8_t)draw(256); break;
    case 1: *byte ^= (uint8_t)(1 << draw(8)); break;
    default: *byte = VALUES[draw(sizeof(VALUES))];
    }
}

static void change_length(Input *input)
{
    uint8_t bytes[16];
    size_t place = place_in(input), count = 1 + draw(16);
    size_t most = input->size - place < 16 ? input->size - place : 16;
    for (int i = 0; i < 16; i++)
        bytes[i] = draw(3) ? (uint8_t)draw(256) : 0xFF;
    switch (draw(4)) {
    case 0: replace(input, place, count > most ? most : count, bytes, 0); break;
    case 1: replace(input, place, 0, bytes, count); break;
    case 2: replace(input, place, 0, input->bytes + place_in(input) % (place + 1), most); break;
    default: input->size = draw(4) ? input->size - draw((uint32_t)most) : place + 1;
    }
}

/* Change what stands behind a marker: its length, or one of its first numbers. */
static void change_number(Input *input, size_t mark)
{
    static const uint16_t VALUES[] = {0, 1, 2, 3, 4, 5, 7, 8, 16, 255, 256, 32767, 32768, 65535};
    size_t place = mark + 2 + draw(draw(2) ? 3 : 24);
    if (place + 2 > input->size)
        return;
    uint32_t value = input->bytes[place] * 256u + input->bytes[place + 1];
    switch (draw(3)) {
    case 0: value = VALUES[draw(sizeof(VALUES) / sizeof(*VALUES))]; break;
    case 1: value += draw(5) - 2; break;
    default: value = draw(65536);
    }
    input->bytes[place] = (uint8_t)(value >> 8);
    input->bytes[place + 1] = (uint8_t)value;
}

/* Take a code of one length from a table of codes and give it another. */
static void change_table(Input *input, size_t mark)
{
    size_t place = mark + 5;
    if (input->bytes[mark + 1] != 0xC4 || place + 16 > input->size)
        return;
    if (draw(2))
        input->bytes[place + draw(16)]--;
    if (draw(2))
        input->bytes[place + draw(16)]++;
}

static void change_mark(Input *input, const size_t *marks, int count)
{
    static const uint8_t CODES[] = {0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xCC, 0xD0, 0xD1, 0xD2, 0xD3,
                                    0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD,
                                    0xE0, 0xE1, 0xEE, 0xFE, 0x01, 0x00, 0xFF};
    int number = (int)draw((uint32_t)count);
    size_t mark = marks[number];
    size_t stop = number + 1 < count ? marks[number + 1] : input->size;
    uint8_t *code = input->bytes + mark + 1;
    switch (draw(6)) {
    case 0: *code = CODES[draw(sizeof(CODES))]; break;
    case 1: *code = (uint8_t)(0xD0 + draw(8)); break;
    case 2: change_table(input, mark); break;
    case 3: replace(input, mark, stop - mark, code, 0); break;
    case 4: replace(input, marks[draw((uint32_t)count)], 0, input->bytes + mark, stop - mark); break;
    default: change_number(input, mark);
    }
}

static void splice(Input *input, size_t mark, const Input *other)
{
    size_t marks[MAX_MARKS];
    int count = find_marks(other, marks);
    if (count < 2)
        return;
    int number = (int)draw((uint32_t)count - 1);
    size_t start = marks[number], size = marks[number + 1] - start;
    replace(input, mark, draw(2) ? 0 : size, other->bytes + start, size);
}

void mutate(Input *input, const Input *other)
{
    size_t marks[MAX_MARKS];
    int count = find_marks(input, marks);
    if (input->size < 4)
        return;
    switch (count ? draw(5) : draw(2)) {
    case 0: change_byte(input); break;
    case 1: change_length(input); break;
    case 2: splice(input, marks[draw((uint32_t)count)], other); break;
    default: change_mark(input, marks, count);
    }
}
