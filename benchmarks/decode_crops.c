/* Decodes crops of JPEGs by one of the functions of the compiled library, over and over:
 *
 *     decode_crops LIBRARY JOBS DECODER ROUNDS
 *
 * For `benchmarks.decoding`, which writes JOBS: for each image 7 numbers, see `Job`, and the JPEG.
 * Prints the CPU time of each round, in microseconds an image.
 */

#include <dlfcn.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../data_prep/shard_set/c/pixels.h"

enum { SIDE = 224, MESSAGE_BYTES = 200 };

typedef struct {
    int num_bytes, height, width;
    Window window;
    uint8_t *content;
} Job;

typedef const char *DecodeWindow(const uint8_t *, size_t, const Window *, uint8_t *, char *);
typedef int CutJpegs(const uint8_t *const *, const size_t *, const Window *, int, uint8_t *, int,
                     int, char *);

static DecodeWindow *decode_by_libjpeg;
static CutJpegs *cut_by_ours;
static uint8_t *out;
static char message[MESSAGE_BYTES];

static int libjpeg_whole(const Job *job)
{
    Window all = {0, 0, job->height, job->width};
    return decode_by_libjpeg(job->content, job->num_bytes, &all, out, message) == NULL;
}

static int libjpeg_cropped(const Job *job)
{
    return decode_by_libjpeg(job->content, job->num_bytes, &job->window, out, message) == NULL;
}

static int cut(const Job *job, int height, int width)
{
    const uint8_t *content = job->content;
    size_t num_bytes = job->num_bytes;
    return cut_by_ours(&content, &num_bytes, &job->window, 1, out, height, width, message) == 1;
}

static int ours(const Job *job) { return cut(job, job->window.height, job->window.width); }

static int ours_scaled(const Job *job) { return cut(job, SIDE, SIDE); }

static const struct {
    const char *name;
    int (*decode)(const Job *);
} DECODERS[] = {{"libjpeg-turbo, whole", libjpeg_whole},
                {"libjpeg-turbo, cropped", libjpeg_cropped},
                {"ours", ours},
                {"ours, scaled", ours_scaled}};

static void fail(const char *what)
{
    fprintf(stderr, "error: %s\n", what);
    exit(1);
}

static Job *read_jobs(const char *path, int *count)
{
    FILE *file = fopen(path, "rb");
    Job *jobs = NULL, job;
    size_t room = 3 * SIDE * SIDE;
    if (file == NULL)
        fail("JOBS cannot be opened");
    for (*count = 0; fread(&job, 7 * sizeof(int), 1, file) == 1; ++*count) {
        size_t num_pixels = 3 * (size_t)job.height * job.width;
        room = num_pixels > room ? num_pixels : room;
        job.content = malloc(job.num_bytes);
        jobs = realloc(jobs, (*count + 1) * sizeof(job));
        if (job.content == NULL || jobs == NULL ||
            fread(job.content, job.num_bytes, 1, file) != 1)
            fail("JOBS is cut off");
        jobs[*count] = job;
    }
    fclose(file);
    out = malloc(room);
    return jobs;
}

static double microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return 1e6 * now.tv_sec + 1e-3 * now.tv_nsec;
}

int main(int num_arguments, char **arguments)
{
    void *library = num_arguments == 5 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    int count, (*decode)(const Job *) = NULL;
    if (library == NULL)
        fail("usage: decode_crops LIBRARY JOBS DECODER ROUNDS");
    decode_by_libjpeg = (DecodeWindow *)dlsym(library, "decode_window");
    cut_by_ours = (CutJpegs *)dlsym(library, "cut_jpegs");
    for (size_t i = 0; i < sizeof(DECODERS) / sizeof(*DECODERS); i++)
        if (strcmp(DECODERS[i].name, arguments[3]) == 0)
            decode = DECODERS[i].decode;
    if (decode_by_libjpeg == NULL || cut_by_ours == NULL || decode == NULL)
        fail("no such DECODER, or LIBRARY is another one");
    mallopt(M_MMAP_THRESHOLD, 1 << 26); /* keep memory, as glibc learns to where many threads run */
    mallopt(M_TRIM_THRESHOLD, 1 << 26);
    Job *jobs = read_jobs(arguments[2], &count);
    for (int round = 0; round < atoi(arguments[4]); round++) {
        double begin = microseconds();
        for (int i = 0; i < count; i++)
            if (!decode(&jobs[i]))
                fail(message);
        printf("%.1f\n", (microseconds() - begin) / count);
    }
    return 0;
}
