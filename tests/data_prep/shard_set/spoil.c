/* Stands between recode.c and libjpeg, and spoils what is written: a coefficient, or a table. */

#include <stdio.h>

#include <jpeglib.h>

int spoils_coefficient, spoils_table;

static jvirt_barray_ptr first_component;

void spoiled_write_coefficients(j_compress_ptr encoder, jvirt_barray_ptr *blocks)
{
    first_component = blocks[0];
    encoder->quant_tbl_ptrs[0]->quantval[DCTSIZE2 - 1] ^= spoils_table;
    jpeg_write_coefficients(encoder, blocks);
}

void spoiled_finish_compress(j_compress_ptr encoder)
{
    j_common_ptr common = (j_common_ptr)encoder;
    JBLOCKARRAY row = encoder->mem->access_virt_barray(common, first_component, 0, 1, TRUE);
    row[0][0][DCTSIZE2 - 1] ^= spoils_coefficient;
    jpeg_finish_compress(encoder);
    row = encoder->mem->access_virt_barray(common, first_component, 0, 1, TRUE);
    row[0][0][DCTSIZE2 - 1] ^= spoils_coefficient;
}
