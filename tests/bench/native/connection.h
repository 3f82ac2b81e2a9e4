/* One HTTP/2 connection over a non-blocking socket: what the load generator and the echo share.
 *
 * nghttp2 does the protocol; this does the bytes: read until the socket is empty, write what the
 * session has to say in large pieces, and report when the connection is lost. */
#ifndef BENCH_CONNECTION_H
#define BENCH_CONNECTION_H

#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
  GRPC_PREFIX_BYTES = 5,         /* compressed flag and length before every gRPC message */
  OUTPUT_BYTES_MAX = 256 * 1024, /* nghttp2 keeps the rest until this much has been written */
  INPUT_BYTES = 256 * 1024,
};

struct connection {
  int fd;
  nghttp2_session *session;
  size_t output_length;
  bool lost; /* no byte can be sent or received any more */
  uint8_t output[OUTPUT_BYTES_MAX];
};

#define HEADER(name, value) \
  (nghttp2_nv){(uint8_t *)(name), (uint8_t *)(value), strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE}

/* Monotonic nanoseconds. */
int64_t now_ns(void);

/* Large windows on both levels, so that flow control is not what is measured. */
void connection_announce(struct connection *c, uint32_t concurrent_streams_max);

/* Without Nagle's delay and non-blocking; exits with status 2 when the socket refuses. */
void socket_prepare(int fd);

/* Feed all that has arrived to the session (its callbacks run inside). */
void connection_receive(struct connection *c);

/* Write what the session has to send, as far as the socket takes it. */
void connection_send(struct connection *c);

/* Whether poll should wait for the socket to become writable. */
bool connection_wants_write(const struct connection *c);

/* Close the socket and the session. The callers' calls are theirs to settle. */
void connection_close(struct connection *c);

/* Print to stderr what could not be done and exit with status 2. */
_Noreturn void give_up(const char *what);

/* A whole number within [low, high], or give_up. */
long parse_number(const char *option, const char *text, long low, long high);

#endif
