/* Decodes Huffman codes (ITU-T T.81, annex F.2.2). One look-up gives a coefficient's bits,
 * the zeros before it and its value; four are made of what the buffer holds.
 */

#include <string.h>

#include "jpeg.h"

#define LOOKUPS (56 / LOOKUP_BITS) /* of what the buffer holds at least */

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WITH_FAST_SHIFTS __attribute__((target_clones("bmi2", "default")))
#else
#define WITH_FAST_SHIFTS
#endif

/* From then on there are at least 56 bits; those behind them are right, too, but do not count. */
INLINE void fill(BitReader *reader)
{
    uint64_t next;
    memcpy(&next, reader->place, sizeof(next));
    next = __builtin_bswap64(next);
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
