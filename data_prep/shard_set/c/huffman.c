/* Decodes Huffman codes (ITU-T T.81, annexes C and F.2.2). One look-up gives a coefficient's bits,
 * the zeros before it and its value; four are made of what the buffer holds.
 */

#include <string.h>

#include "jpeg.h"

/* How an Entry is packed: the bits that it uses up, how far its first coefficient and both are from
 * the one before, the bits of the first, and the values of both. With a skip of LONG it decodes no
 * coefficient: then the first bits are those of the code, or 0, and the first value its symbol. */
enum { FIRST_SKIP = 8, SKIP = 16, FIRST_BITS = 24, FIRST_VALUE = 32, SECOND_VALUE = 48 };
#define BYTE(entry, from) ((unsigned)(uint8_t)((entry) >> (from)))
#define VALUE(entry, from) ((int16_t)((entry) >> (from)))
#define LOOKUPS (56 / LOOKUP_BITS) /* of what the buffer holds at least */

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WITH_FAST_SHIFTS __attribute__((target_clones("bmi2", "default")))
#else
#define WITH_FAST_SHIFTS
#endif

const uint8_t NATURAL[1 + BLOCK + LONG] = {
    0,  0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40,
    48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15,
    23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    [BLOCK + 1 ... BLOCK + LONG] = BLOCK - 1};

/* The number that `size` bits stand for (T.81, F.2.2.1, EXTEND). */
INLINE int extended(int bits, int size)
{
    int is_negative = (bits >> (size - 1)) - 1; /* a mask: which ones are no processor could predict */
    return bits + (is_negative & (1 - (1 << size)));
}

/* Whether baseline has such a symbol: the zeros before a coefficient, and its size in bits. */
static int is_symbol(int symbol, int is_dc)
{
    int size = symbol & 15;
    if (is_dc)
        return symbol <= 11;
    return size > 0 ? size <= 10 : symbol == 0 || symbol == 0xF0;
}

/* An entry as it is loaded: the lowest byte is how many bits it uses up. */
static Entry packed(int bits, int first_bits, int first_skip, int skip, int first, int second)
{
    return (Entry)bits | (Entry)first_skip << FIRST_SKIP | (Entry)skip << SKIP |
           (Entry)first_bits << FIRST_BITS | (Entry)(uint16_t)first << FIRST_VALUE |
           (Entry)(uint16_t)second << SECOND_VALUE;
}

/* All entries that begin with a code. */
static void fill_entries(Entry *entries, int symbol, int length, int is_dc)
{
    int size = symbol & 15, rest = LOOKUP_BITS - length;
    int skip = symbol == 0 && !is_dc ? END_OF_BLOCK : (symbol >> 4) + 1;
    for (int i = 0; i < 1 << rest; i++) {
        if (size > rest) {
            entries[i] = packed(0, length, LONG, LONG, symbol, 0);
            continue;
        }
        int value = size == 0 ? 0 : extended(i >> (rest - size), size);
        entries[i] = packed(length + size, length + size, skip, skip, value, value);
    }
}

/* Where the bits of an entry begin with two coefficients, give both. */
static void pair_entries(Entry *entries)
{
    Entry single[1 << LOOKUP_BITS];
    memcpy(single, entries, sizeof(single));
    for (int i = 0; i < 1 << LOOKUP_BITS; i++) {
        Entry one = single[i], other = single[(i << BYTE(one, 0)) & ((1 << LOOKUP_BITS) - 1)];
        int bits = BYTE(one, 0) + BYTE(other, 0), skip = BYTE(one, SKIP) + BYTE(other, SKIP);
        if (BYTE(one, SKIP) < END_OF_BLOCK && BYTE(other, SKIP) != LONG && bits <= LOOKUP_BITS)
            entries[i] = packed(bits, BYTE(one, 0), BYTE(one, SKIP), skip, VALUE(one, FIRST_VALUE),
                                VALUE(other, FIRST_VALUE));
    }
}

int build_table(HuffmanTable *table, const uint8_t *codes, int is_dc)
{
    const uint8_t *symbols = codes + 16;
    int code = 0, count = 0;
    for (int i = 0; i < 1 << LOOKUP_BITS; i++)
        table->entries[i] = packed(0, 0, LONG, LONG, 0, 0);
    table->codes = codes;
    for (int length = 1; length <= 16; length++) {
        code <<= 1;
        table->first[length] = count - code;
        for (int i = 0; i < codes[length - 1]; i++, code++, count++) {
            if (code >= (1 << length) - 1 || !is_symbol(symbols[count], is_dc))
                return 0;
            if (length <= LOOKUP_BITS)
                fill_entries(table->entries + (code << (LOOKUP_BITS - length)), symbols[count],
                             length, is_dc);
        }
        table->ends[length] = (uint32_t)code << (16 - length);
    }
    if (!is_dc)
        pair_entries(table->entries);
    return 1;
}

/* From then on there are at least 56 bits; those behind them are right, too, but do not count. */
INLINE void fill(BitReader *reader)
{
    uint64_t next;
    memcpy(&next, reader->place, sizeof(next));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    next = __builtin_bswap64(next);
#endif
    reader->buffer |= next >> reader->num_bits;
    reader->place += (63 - reader->num_bits) >> 3;
    reader->num_bits |= 56;
}

INLINE void drop(BitReader *reader, int count)
{
    reader->buffer <<= count;
    reader->num_bits -= count;
}

/* The number of `size` > 0 bits. */
INLINE int take(BitReader *reader, int size)
{
    int bits = (int)(reader->buffer >> (64 - size));
    drop(reader, size);
    return extended(bits, size);
}

/* The symbol of a code that a look-up does not decode whole; -1: there is no such code. */
INLINE int take_symbol(BitReader *reader, const HuffmanTable *table, Entry entry)
{
    int length = BYTE(entry, FIRST_BITS), symbol = VALUE(entry, FIRST_VALUE);
    if (length == 0) {
        uint32_t bits = (uint32_t)(reader->buffer >> 48);
        for (length = LOOKUP_BITS + 1; length <= 16 && bits >= table->ends[length];)
            length++;
        if (length > 16)
            return -1;
        symbol = table->codes[16 + table->first[length] + (int)(bits >> (16 - length))];
    }
    drop(reader, length);
    return symbol;
}

/* Behind it the buffer has bits for all look-ups but one. Returns 0 if there is no such code. */
INLINE int decode_dc(BitReader *reader, const HuffmanTable *table, int *difference)
{
    fill(reader);
    Entry entry = table->entries[reader->buffer >> (64 - LOOKUP_BITS)];
    *difference = VALUE(entry, FIRST_VALUE);
    drop(reader, BYTE(entry, 0));
    if (BYTE(entry, SKIP) != LONG)
        return 1;
    int size = take_symbol(reader, table, entry);
    if (size < 0)
        return 0;
    *difference = size == 0 ? 0 : take(reader, size);
    fill(reader);
    return 1;
}

/* Decode up to `count` look-ups, until the block is full or a look-up does not do. */
INLINE unsigned look_up(BitReader *reader, BitReader *before, const HuffmanTable *table, int count,
                        int16_t *block, unsigned place, Entry *entry)
{
    for (int i = 0; i < count && place < BLOCK; i++) {
        *before = *reader;
        *entry = table->entries[reader->buffer >> (64 - LOOKUP_BITS)];
        reader->buffer <<= *entry & 63;
        reader->num_bits -= BYTE(*entry, 0);
        block[NATURAL[place + BYTE(*entry, FIRST_SKIP)]] = VALUE(*entry, FIRST_VALUE);
        place += BYTE(*entry, SKIP);
        block[NATURAL[place]] = VALUE(*entry, SECOND_VALUE);
    }
    return place;
}

/* All but the first coefficient. Returns the place behind the last one, and END_OF_BLOCK more if
 * the file says that zeros follow; or a place that is none, if there is no such code. */
INLINE unsigned decode_ac(BitReader *reader, const HuffmanTable *table, int16_t *block)
{
    Entry entry = 0;
    BitReader before;
    /* Places before this one are decided. */
    unsigned place = look_up(reader, &before, table, LOOKUPS - 1, block, 1, &entry);
    for (;;) {
        while (place < BLOCK) {
            fill(reader);
            place = look_up(reader, &before, table, LOOKUPS, block, place, &entry);
        }
        if (BYTE(entry, SKIP) != LONG)
            break;
        place -= LONG;
        fill(reader);
        int symbol = take_symbol(reader, table, entry);
        if (symbol < 0)
            return 2 * BLOCK - 1;
        block[BLOCK - 1] = 0;
        if (symbol == 0)
            return place + END_OF_BLOCK;
        place += (unsigned)(symbol >> 4) + 1;
        block[NATURAL[place]] = (int16_t)((symbol & 15) == 0 ? 0 : take(reader, symbol & 15));
        if (place >= BLOCK)
            return place;
    }
    if (place - BYTE(entry, SKIP) + BYTE(entry, FIRST_SKIP) == BLOCK) {
        *reader = before; /* the second code is of the next block */
        drop(reader, BYTE(entry, FIRST_BITS));
        block[BLOCK - 1] = VALUE(entry, FIRST_VALUE);
        return BLOCK;
    }
    return place;
}

WITH_FAST_SHIFTS
int decode_mcus(BitReader *state, const McuBlock *blocks, int num_blocks, int num_mcus,
                const uint8_t *end)
{
    BitReader reader = *state;
    int predictions[MAX_PLANES]; /* beside the reader, which then stays in registers */
    memcpy(predictions, state->dc, sizeof(predictions));
    for (int mcu = 0; mcu < num_mcus; mcu++) {
        for (int i = 0; i < num_blocks; i++) {
            const McuBlock *one = &blocks[i];
            int16_t *block = one->block + (ptrdiff_t)BLOCK * one->step * mcu;
            int difference;
            if (!decode_dc(&reader, one->dc, &difference))
                return 0;
            int dc = predictions[one->component] += difference;
            unsigned place = decode_ac(&reader, one->ac, block);
            if (place % END_OF_BLOCK > BLOCK || dc != (int16_t)dc)
                return 0;
            block[0] = (int16_t)dc;
            one->last[one->step * mcu] = (uint8_t)(place % END_OF_BLOCK - 1);
        }
        if (reader.place > end + sizeof(reader.buffer))
            return 0;
    }
    *state = reader;
    memcpy(state->dc, predictions, sizeof(predictions));
    return 1;
}
