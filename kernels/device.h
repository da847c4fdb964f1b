/* device.h - what every device context begins with, and the constructors. Only kernels/ includes this. */
#ifndef RETRO_KERNELS_DEVICE_H
#define RETRO_KERNELS_DEVICE_H

#include "kernels/kernels.h"

struct device { /* first member of struct cpu_device and struct cuda_device */
    const struct ops *ops;
    void (*close)(struct device *d);
    char description[160];
};

enum status cpu_device_open(struct device **out, const struct device_options *o, struct reason *why);
enum status cuda_device_open(struct device **out, const struct device_options *o, struct reason *why);
void cuda_find_gpu(struct device_gpu *g, int ordinal);

#endif
