/* Tables that decode Huffman codes (ITU-T T.81, annex C) and the coefficients behind them at once. */

#include <string.h>

#include "jpeg.h"

const uint8_t NATURAL[1 + BLOCK + LONG] = {
    0,  0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40,
    48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15,
    23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    [BLOCK + 1 ... BLOCK + LONG] = BLOCK - 1};

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
    size_t num_bytes = 16;
    for (int i = 0; i < 16; i++)
        num_bytes += codes[i];
    if (table->num_bytes == num_bytes && memcmp(table->codes, codes, num_bytes) == 0)
        return 1;
    table->num_bytes = 0;
    memcpy(table->codes, codes, num_bytes);
    for (int i = 0; i < 1 << LOOKUP_BITS; i++)
        table->entries[i] = packed(0, 0, LONG, LONG, 0, 0);
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
    table->num_bytes = num_bytes;
    return 1;
}
