/* A gRPC echo server of known capacity: every request message comes back unchanged.
 *
 * With --service-us each call takes exactly that long; with --workers at most so many are served at
 * once and the others wait in a first-in first-out queue of --queue places (beyond it: RESOURCE_EXHAUSTED),
 * so that the capacity is workers / service time. Without them it answers at once.
 *
 * With --reflection FILE it also speaks server reflection, as a proxy may ask what the method is like: the
 * file holds two framed answers, one to `list_services` and one to every request for a descriptor.
 *
 * One thread, loopback only. Prints {"port": N, "pid": N} when it listens. Ends with its parent, or
 * after --lifetime-s (SIGALRM). */
#define _GNU_SOURCE
#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Since nghttp2 1.57, and in patched older ones that do not tell it by their version. */
extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t) __attribute__((weak));

#define REFLECTION_PATH "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

enum {
  CONNECTIONS_MAX = 256,
  REQUEST_BYTES_MAX = 4 << 20, /* gRPC's own default */
  CONCURRENT_STREAMS_MAX = 100000,
};

struct buffer {
  uint8_t *data;
  size_t length, capacity;
};

enum method { UNKNOWN, ECHO, REFLECTION };

enum phase { RECEIVING, WAITING, SERVING, ANSWERED, PHASES };

/* One stream. It is always in exactly one queue, that of its phase. */
struct call {
  struct connection *connection;
  int32_t stream_id;
  enum phase phase;
  enum method method;
  bool too_large;
  bool request_ended;
  struct buffer request, reply;
  size_t request_read, reply_sent; /* bytes of each that are done with */
  int64_t due_ns; /* when its service ends */
  struct call *previous, *next;
};

struct queue {
  struct call *head, *tail;
  long length;
};

static struct {
  int64_t service_ns;
  long workers; /* 0: no limit */
  long queue_places;
  const char *path;
  struct buffer service_list, descriptor; /* reflection's two answers, framed */
  struct queue calls[PHASES];
  struct connection *connections[CONNECTIONS_MAX];
  nghttp2_session_callbacks *callbacks;
  nghttp2_option *option;
} server;

static bool append(struct buffer *b, const uint8_t *data, size_t length) {
  size_t needed = b->length + length;
  if (needed > b->capacity) {
    uint8_t *larger = realloc(b->data, 2 * needed);
    if (!larger)
      return false;
    b->data = larger;
    b->capacity = 2 * needed;
  }
  memcpy(b->data + b->length, data, length);
  b->length = needed;
  return true;
}

static void enqueue(struct call *call, enum phase phase) {
  struct queue *q = &server.calls[phase];
  call->phase = phase;
  call->next = NULL;
  call->previous = q->tail;
  *(q->tail ? &q->tail->next : &q->head) = call;
  q->tail = call;
  q->length++;
}

static void unlink_call(struct call *call) {
  struct queue *q = &server.calls[call->phase];
  *(call->previous ? &call->previous->next : &q->head) = call->next;
  *(call->next ? &call->next->previous : &q->tail) = call->previous;
  q->length--;
}

static void move(struct call *call, enum phase phase) {
  unlink_call(call);
  enqueue(call, phase);
}

static ssize_t read_reply(nghttp2_session *session, int32_t stream_id, uint8_t *out, size_t room, uint32_t *flags,
                          nghttp2_data_source *source, void *user) {
  (void)user;
  struct call *call = source->ptr;
  size_t left = call->reply.length - call->reply_sent;
  size_t length = left < room ? left : room;
  if (left == 0 && !call->request_ended)
    return NGHTTP2_ERR_DEFERRED; /* a reflection stream waits for its next question */
  if (length)
    memcpy(out, call->reply.data + call->reply_sent, length);
  call->reply_sent += length;
  if (length == left && call->request_ended) {
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    nghttp2_nv trailers[] = {HEADER("grpc-status", "0")};
    nghttp2_submit_trailer(session, stream_id, trailers, 1);
  }
  return (ssize_t)length;
}

static void begin_reply(struct call *call) {
  nghttp2_nv headers[] = {HEADER(":status", "200"), HEADER("content-type", "application/grpc")};
  nghttp2_data_provider body = {.source.ptr = call, .read_callback = read_reply};
  nghttp2_submit_response(call->connection->session, call->stream_id, headers, 2, &body);
}

static void answer(struct call *call) {
  move(call, ANSWERED);
  call->reply = call->request;
  call->request = (struct buffer){0};
  begin_reply(call);
}

/* A Trailers-Only response. */
static void refuse(struct call *call, const char *status, const char *message) {
  nghttp2_nv headers[] = {HEADER(":status", "200"), HEADER("content-type", "application/grpc"),
                          HEADER("grpc-status", status), HEADER("grpc-message", message)};
  move(call, ANSWERED);
  nghttp2_submit_response(call->connection->session, call->stream_id, headers, 4, NULL);
}

static void serve(struct call *call) {
  call->due_ns = now_ns() + server.service_ns;
  move(call, SERVING);
}

static void on_request_complete(struct call *call) {
  if (call->too_large)
    refuse(call, "8", "request larger than 4 MiB");
  else if (server.service_ns == 0)
    answer(call);
  else if (server.workers == 0 || server.calls[SERVING].length < server.workers)
    serve(call);
  else if (server.calls[WAITING].length < server.queue_places)
    move(call, WAITING);
  else
    refuse(call, "8", "queue full");
}

/* A ServerReflectionRequest is a host (field 1, rarely there) and one question; field 7 is `list_services`. */
static bool asks_for_services(const uint8_t *message, size_t length) {
  size_t at = length >= 2 && message[0] == 0x0a ? 2 + (size_t)message[1] : 0;
  return at < length && message[at] == 0x3a;
}

/* Answer the questions that have come whole. */
static void reflect(struct call *call) {
  struct buffer *request = &call->request;
  for (;;) {
    const uint8_t *frame = request->data + call->request_read;
    size_t left = request->length - call->request_read;
    uint32_t length;
    if (left < GRPC_PREFIX_BYTES)
      break;
    memcpy(&length, frame + 1, sizeof length);
    length = ntohl(length);
    if (left - GRPC_PREFIX_BYTES < length)
      break;
    struct buffer *reply =
        asks_for_services(frame + GRPC_PREFIX_BYTES, length) ? &server.service_list : &server.descriptor;
    if (!append(&call->reply, reply->data, reply->length))
      give_up("out of memory");
    call->request_read += GRPC_PREFIX_BYTES + length;
  }
  nghttp2_session_resume_data(call->connection->session, call->stream_id);
}

/* Answer the calls whose service has ended and let waiting ones take their places. The service time is the
 * same for all, so the serving queue is in the order of its ends. */
static void finish_due(int64_t now) {
  struct queue *serving = &server.calls[SERVING], *waiting = &server.calls[WAITING];
  while (serving->head && serving->head->due_ns <= now) {
    answer(serving->head);
    if (waiting->head)
      serve(waiting->head);
  }
}

static void forget(struct call *call) {
  unlink_call(call);
  free(call->request.data);
  free(call->reply.data);
  free(call);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
    return 0;
  struct call *call = calloc(1, sizeof *call);
  if (!call)
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  call->connection = user;
  call->stream_id = frame->hd.stream_id;
  enqueue(call, RECEIVING);
  return nghttp2_session_set_stream_user_data(session, call->stream_id, call);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
  (void)flags, (void)user;
  struct call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  if (!call || name_length != 5 || memcmp(name, ":path", 5))
    return 0;
  if (value_length == strlen(server.path) && !memcmp(value, server.path, value_length))
    call->method = ECHO;
  else if (server.descriptor.length && value_length == strlen(REFLECTION_PATH) &&
           !memcmp(value, REFLECTION_PATH, value_length))
    call->method = REFLECTION;
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t length,
                   void *user) {
  (void)flags, (void)user;
  struct call *call = nghttp2_session_get_stream_user_data(session, stream_id);
  if (!call || call->too_large || call->method == UNKNOWN)
    return 0;
  if (call->request.length + length > REQUEST_BYTES_MAX + GRPC_PREFIX_BYTES) {
    call->too_large = true;
    return 0;
  }
  if (!append(&call->request, data, length))
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  if (call->method == REFLECTION)
    reflect(call);
  return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  (void)user;
  if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS)
    return 0;
  struct call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  if (!call)
    return 0;
  call->request_ended = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
  bool begins = frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST;
  if (begins && call->method == UNKNOWN)
    refuse(call, "12", "the echo knows one method only");
  if (begins && call->method == REFLECTION)
    begin_reply(call);
  if (call->request_ended && call->method == ECHO)
    on_request_complete(call);
  if (call->request_ended && call->method == REFLECTION)
    nghttp2_session_resume_data(session, call->stream_id);
  return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user) {
  (void)error_code, (void)user;
  struct call *call = nghttp2_session_get_stream_user_data(session, stream_id);
  if (call)
    forget(call);
  return 0;
}

/* Forget the calls of a lost connection (deleting a session closes no stream), then the connection. */
static void drop(int slot) {
  struct connection *c = server.connections[slot];
  for (enum phase phase = 0; phase < PHASES; phase++)
    for (struct call *call = server.calls[phase].head, *next; call; call = next) {
      next = call->next;
      if (call->connection == c)
        forget(call);
    }
  connection_close(c);
  free(c);
  server.connections[slot] = NULL;
}

static void admit(int listener) {
  int fd = accept(listener, NULL, NULL);
  if (fd < 0)
    return;
  int slot = 0;
  while (slot < CONNECTIONS_MAX && server.connections[slot])
    slot++;
  struct connection *c = slot < CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;
  if (!c) {
    close(fd);
    return;
  }
  socket_prepare(fd);
  c->fd = fd;
  nghttp2_session_server_new2(&c->session, server.callbacks, c, server.option);
  connection_announce(c, CONCURRENT_STREAMS_MAX);
  server.connections[slot] = c;
}

static int listen_on(long port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  socklen_t length = sizeof address;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&address, sizeof address) || listen(fd, CONNECTIONS_MAX) ||
      getsockname(fd, (void *)&address, &length))
    give_up("listening");
  printf("{\"port\": %d, \"pid\": %d}\n", ntohs(address.sin_port), getpid());
  fflush(stdout);
  return fd;
}

static void wait_for_work(int listener) {
  struct pollfd polled[CONNECTIONS_MAX + 1];
  int slots[CONNECTIONS_MAX + 1], count = 0;
  polled[count++] = (struct pollfd){.fd = listener, .events = POLLIN};
  for (int slot = 0; slot < CONNECTIONS_MAX; slot++) {
    struct connection *c = server.connections[slot];
    if (!c)
      continue;
    slots[count] = slot;
    polled[count++] = (struct pollfd){.fd = c->fd, .events = connection_wants_write(c) ? POLLIN | POLLOUT : POLLIN};
  }
  struct timespec timeout = {.tv_sec = 1};
  if (server.calls[SERVING].head) {
    int64_t left = server.calls[SERVING].head->due_ns - now_ns();
    left = left < 0 ? 0 : left;
    timeout = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
  }
  if (ppoll(polled, (nfds_t)count, &timeout, NULL) < 0 && errno != EINTR)
    give_up("polling");
  for (int i = 1; i < count; i++)
    if (polled[i].revents)
      connection_receive(server.connections[slots[i]]);
  if (polled[0].revents)
    admit(listener);
}

/* Read the two framed answers, one after the other. */
static void load_reflection(const char *path) {
  uint8_t bytes[64 * 1024];
  FILE *file = fopen(path, "rb");
  size_t size = file ? fread(bytes, 1, sizeof bytes, file) : 0;
  uint32_t length;
  if (size < GRPC_PREFIX_BYTES)
    give_up("--reflection");
  fclose(file);
  memcpy(&length, bytes + 1, sizeof length);
  size_t first = GRPC_PREFIX_BYTES + (size_t)ntohl(length);
  if (first >= size || !append(&server.service_list, bytes, first) ||
      !append(&server.descriptor, bytes + first, size - first))
    give_up("--reflection: two framed answers are wanted");
}

static void prepare_callbacks(void) {
  nghttp2_session_callbacks_new(&server.callbacks);
  nghttp2_session_callbacks_set_on_begin_headers_callback(server.callbacks, on_begin_headers);
  nghttp2_session_callbacks_set_on_header_callback(server.callbacks, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(server.callbacks, on_data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(server.callbacks, on_frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(server.callbacks, on_stream_close);
  nghttp2_option_new(&server.option);
  /* A proxy under test may reset thousands of streams a second; that is load here and no attack. */
  if (nghttp2_option_set_stream_reset_rate_limit)
    nghttp2_option_set_stream_reset_rate_limit(server.option, 1000000000, 1000000000);
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"port", required_argument, 0, 'p'},       {"path", required_argument, 0, 'm'},
      {"service-us", required_argument, 0, 's'}, {"workers", required_argument, 0, 'w'},
      {"queue", required_argument, 0, 'q'},      {"lifetime-s", required_argument, 0, 'l'},
      {"reflection", required_argument, 0, 'r'}, {0},
  };
  long port = 0, lifetime_s = 3600;
  server.path = "/bench.Echo/Call";
  server.queue_places = CONCURRENT_STREAMS_MAX;
  for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (o) {
      case 'p': port = parse_number("port", optarg, 0, 65535); break;
      case 'm': server.path = optarg; break;
      case 's': server.service_ns = 1000 * parse_number("service-us", optarg, 0, 60000000); break;
      case 'w': server.workers = parse_number("workers", optarg, 0, 100000); break;
      case 'q': server.queue_places = parse_number("queue", optarg, 0, CONCURRENT_STREAMS_MAX); break;
      case 'l': lifetime_s = parse_number("lifetime-s", optarg, 1, 86400); break;
      case 'r': load_reflection(optarg); break;
      default: return 2;
    }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  prctl(PR_SET_TIMERSLACK, 1UL); /* the default, 50 us, would lengthen every service time */
  alarm((unsigned)lifetime_s);
  prepare_callbacks();
  for (int listener = listen_on(port);;) {
    wait_for_work(listener);
    finish_due(now_ns());
    for (int slot = 0; slot < CONNECTIONS_MAX; slot++) {
      if (server.connections[slot])
        connection_send(server.connections[slot]);
      if (server.connections[slot] && server.connections[slot]->lost)
        drop(slot);
    }
  }
}
