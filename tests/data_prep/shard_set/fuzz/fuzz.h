/* A fuzzer for the C code: what its two files give each other. */

#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define MAX_BYTES 32768 /* of an input */

typedef struct {
    uint8_t bytes[MAX_BYTES];
    size_t size;
} Input;

/* mutate.c: numbers from 0 to `below` - 1; the seed sets where they begin. */
uint32_t draw(uint32_t below);
void set_seed(uint64_t seed);

/* mutate.c: damage an input somewhere; `other` is where segments are taken from. */
void mutate(Input *input, const Input *other);

#endif
