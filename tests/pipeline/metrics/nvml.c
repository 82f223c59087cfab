/* A stand-in for the driver's NVML, with the GPU 1 of a host: its energy grows by 1.5 J a reading. */
#include <string.h>

static int device;
static unsigned long long millijoules = 7000000;

int nvmlInit_v2(void) { return 0; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **found)
{
    *found = &device;
    return strcmp(uuid, "GPU-0a1b2c3d-0123-4567-89ab-0123456789ab") ? 6 : 0;
}

int nvmlDeviceGetIndex(void *of, unsigned *number)
{
    *number = 1;
    return of != &device;
}

#ifndef WITHOUT_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(void *of, unsigned long long *found)
{
    millijoules += 1500;
    *found = millijoules;
    /* The fourth reading fails. */
    return of != &device || millijoules == 7000000 + 4 * 1500 ? 3 : 0;
}
#endif
