/* What all that uses libjpeg shares: how its errors end. */

#ifndef LIBJPEG_H
#define LIBJPEG_H

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf escape;
    char *message;  /* of what ended it, else of the first complaint: JMSG_LENGTH_MAX */
    int is_patient; /* goes on after complaints that cost no pixel */
    int is_cut;     /* the data stop early: in the file, or in a scan */
} Errors;

/* The `err` of a decoder or encoder, all else of which is to be 0: it may be destroyed before it is
 * created. The caller then sets where errors escape to. */
struct jpeg_error_mgr *set_up_errors(Errors *errors, char *message, int is_patient);

/* Whether some component, or some bits of a progressive picture, are in no scan. Of scans that are
 * not there libjpeg says nothing. */
int lacks_scans(const struct jpeg_decompress_struct *decoder);

#endif
