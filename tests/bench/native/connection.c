#define _GNU_SOURCE
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { STREAM_WINDOW_BYTES = 1 << 20, CONNECTION_WINDOW_BYTES = 1 << 26 };

int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void give_up(const char *what) {
  if (errno)
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
  else
    fprintf(stderr, "%s\n", what);
  exit(2);
}

long parse_number(const char *option, const char *text, long low, long high) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno || end == text || *end || value < low || value > high) {
    fprintf(stderr, "--%s must be a whole number from %ld to %ld, not '%s'\n", option, low, high, text);
    exit(2);
  }
  return value;
}

void socket_prepare(int fd) {
  int one = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) || fcntl(fd, F_SETFL, O_NONBLOCK))
    give_up("preparing a socket");
}

void connection_announce(struct connection *c, uint32_t concurrent_streams_max) {
  nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES},
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, concurrent_streams_max},
  };
  nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 2);
  nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW_BYTES);
}

void connection_receive(struct connection *c) {
  static uint8_t input[INPUT_BYTES];
  while (!c->lost) {
    ssize_t length = read(c->fd, input, sizeof input);
    if (length < 0 && errno == EAGAIN)
      return;
    if (length <= 0 || nghttp2_session_mem_recv(c->session, input, (size_t)length) < 0) {
      c->lost = true;
      return;
    }
    if (length < (ssize_t)sizeof input)
      return; /* the socket is empty: save the read that would only say EAGAIN */
  }
}

/* Move frames from the session into the output buffer until it is full or there are none. */
static void collect_output(struct connection *c) {
  /* One frame is at most 16 KiB and its header; a serialized header block may be a little more. */
  while (c->output_length + 64 * 1024 <= OUTPUT_BYTES_MAX) {
    const uint8_t *frame;
    ssize_t length = nghttp2_session_mem_send(c->session, &frame);
    if (length < 0)
      c->lost = true;
    if (length <= 0)
      return;
    memcpy(c->output + c->output_length, frame, (size_t)length);
    c->output_length += (size_t)length;
  }
}

void connection_send(struct connection *c) {
  while (!c->lost) {
    collect_output(c);
    if (c->output_length == 0)
      return;
    ssize_t written = send(c->fd, c->output, c->output_length, MSG_NOSIGNAL);
    if (written < 0) {
      c->lost = errno != EAGAIN;
      return;
    }
    c->output_length -= (size_t)written;
    if (c->output_length) {
      memmove(c->output, c->output + written, c->output_length);
      return; /* the socket is full: poll says when it is not */
    }
  }
}

bool connection_wants_write(const struct connection *c) { return c->output_length > 0; }

void connection_close(struct connection *c) {
  close(c->fd);
  nghttp2_session_del(c->session);
}
