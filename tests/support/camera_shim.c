/* A USB camera for tests: preloaded, it answers for any /video42 as a driver would, with the JPEG files (or YUYV frames)
   named in SHIM_FRAMES, and as SHIM_MODE says: "mjpg", "yuyv" (offers no MJPEG), "unplug" (gone after 5 frames),
   "hang" (silent after 5 frames). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME "/video42"
#define BUFFERS 8
#define SIZE (4 << 20)

static int camera = -1, queued[BUFFERS], waiting, frames, mjpg;
static unsigned char *memory[BUFFERS];
static int width = 320, height = 240;

static int is(const char *mode) { const char *now = getenv("SHIM_MODE"); return now && !strcmp(now, mode); }

static int ours(const char *path) {
    size_t length = strlen(path);
    return length >= strlen(NAME) && !strcmp(path + length - strlen(NAME), NAME);
}

static int opened(void) {
    camera = eventfd(0, EFD_NONBLOCK);
    waiting = frames = 0;
    return camera;
}

int open(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real) real = dlsym(RTLD_NEXT, "open");
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);
    return ours(path) ? opened() : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real) real = dlsym(RTLD_NEXT, "open64");
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);
    return ours(path) ? opened() : real(path, flags, mode);
}

int close(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "close");
    if (fd >= 0 && fd == camera) camera = -1;
    return real(fd);
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "mmap");
    if (fd < 0 || fd != camera) return real(at, length, protection, flags, fd, offset);
    int index = offset / SIZE;
    memory[index] = real(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory[index];
}
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(at, length, protection, flags, fd, offset);
}

int select(int count, fd_set *reading, fd_set *writing, fd_set *failing, struct timeval *timeout) {
    static int (*real)(int, fd_set *, fd_set *, fd_set *, struct timeval *);
    if (!real) real = dlsym(RTLD_NEXT, "select");
    return camera >= 0 && reading && FD_ISSET(camera, reading) ? 1 : real(count, reading, writing, failing, timeout);
}

int poll(struct pollfd *fds, nfds_t count, int timeout) {
    static int (*real)(struct pollfd *, nfds_t, int);
    if (!real) real = dlsym(RTLD_NEXT, "poll");
    if (count != 1 || camera < 0 || fds[0].fd != camera) return real(fds, count, timeout);
    fds[0].revents = POLLIN;
    return 1;
}

static int frame(unsigned char *to) {
    char list[4096], path[512];
    snprintf(list, sizeof list, "%s", getenv("SHIM_FRAMES"));
    if (!mjpg) {
        for (int i = 0; i < width * height; i++) { to[2 * i] = 40 + 10 * (frames % 20); to[2 * i + 1] = 128; }
        return 2 * width * height;
    }
    int total = 0;
    for (char *p = list; *p; p++) total += *p == ':';
    int wanted = frames % (total + 1);
    char *p = strtok(list, ":");
    while (wanted--) p = strtok(NULL, ":");
    snprintf(path, sizeof path, "%s", p);
    FILE *file = fopen(path, "rb");
    int length = fread(to, 1, SIZE, file);
    fclose(file);
    return length;
}

static int fill(struct v4l2_format *format) {
    struct v4l2_pix_format *pix = &format->fmt.pix;
    pix->width = width; pix->height = height; pix->field = V4L2_FIELD_NONE;
    pix->pixelformat = mjpg ? V4L2_PIX_FMT_MJPEG : V4L2_PIX_FMT_YUYV;
    pix->bytesperline = mjpg ? 0 : 2 * width;
    pix->sizeimage = mjpg ? SIZE : 2 * width * height;
    return 0;
}

static int answer(unsigned long request, void *argument) {
    if (is("unplug") && frames >= 5 && request == VIDIOC_DQBUF) { errno = ENODEV; return -1; }
    switch (request) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *reply = argument;
        memset(reply, 0, sizeof *reply);
        strcpy((char *)reply->driver, "shim"); strcpy((char *)reply->card, "Porch camera");
        reply->capabilities = reply->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        reply->capabilities |= V4L2_CAP_DEVICE_CAPS;
        return 0;
    }
    case VIDIOC_ENUM_FMT: {
        struct v4l2_fmtdesc *reply = argument;
        if (reply->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || reply->index > (is("yuyv") ? 0 : 1)) break;
        reply->pixelformat = reply->index || is("yuyv") ? V4L2_PIX_FMT_YUYV : V4L2_PIX_FMT_MJPEG;
        return 0;
    }
    case VIDIOC_ENUM_FRAMESIZES: {
        struct v4l2_frmsizeenum *reply = argument;
        if (reply->index > 1) break;
        reply->type = V4L2_FRMSIZE_TYPE_DISCRETE;
        reply->discrete.width = reply->index ? 1280 : 320; reply->discrete.height = reply->index ? 720 : 240;
        return 0;
    }
    case VIDIOC_G_FMT: return fill(argument);
    case VIDIOC_TRY_FMT:
    case VIDIOC_S_FMT: {
        struct v4l2_format *format = argument;
        mjpg = format->fmt.pix.pixelformat == V4L2_PIX_FMT_MJPEG && !is("yuyv");
        if (format->fmt.pix.width >= 1280) { width = 1280; height = 720; } else { width = 320; height = 240; }
        return fill(format);
    }
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM: {
        struct v4l2_streamparm *parm = argument;
        parm->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        parm->parm.capture.timeperframe.numerator = 1; parm->parm.capture.timeperframe.denominator = 50;
        return 0;
    }
    case VIDIOC_G_INPUT: *(int *)argument = 0; return 0;
    case VIDIOC_S_INPUT: return 0;
    case VIDIOC_ENUMINPUT: {
        struct v4l2_input *input = argument;
        if (input->index) break;
        input->type = V4L2_INPUT_TYPE_CAMERA;
        return 0;
    }
    case VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *reply = argument;
        if (reply->count > BUFFERS) reply->count = BUFFERS;
        waiting = 0;
        return 0;
    }
    case VIDIOC_QUERYBUF: {
        struct v4l2_buffer *buffer = argument;
        buffer->length = SIZE; buffer->m.offset = buffer->index * SIZE;
        return 0;
    }
    case VIDIOC_QBUF: {
        struct v4l2_buffer *buffer = argument;
        queued[waiting++ % BUFFERS] = buffer->index;
        return 0;
    }
    case VIDIOC_DQBUF: {
        struct v4l2_buffer *buffer = argument;
        static int taken;
        usleep(20000);
        while (is("hang") && frames >= 5) sleep(1); /* as a driver does that has lost its device */
        if (!waiting) { errno = EAGAIN; return -1; }
        buffer->index = queued[0];
        memmove(queued, queued + 1, sizeof queued - sizeof *queued);
        waiting--;
        buffer->bytesused = frame(memory[buffer->index]); buffer->length = SIZE;
        buffer->sequence = taken++; buffer->flags = V4L2_BUF_FLAG_MAPPED; buffer->field = V4L2_FIELD_NONE;
        frames++;
        return 0;
    }
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF: return 0;
    }
    errno = EINVAL;
    return -1;
}

int ioctl(int fd, unsigned long request, ...) {
    static int (*real)(int, unsigned long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "ioctl");
    va_list more; va_start(more, request); void *argument = va_arg(more, void *); va_end(more);
    return fd >= 0 && fd == camera ? answer(request & 0xffffffff, argument) : real(fd, request, argument);
}
