/* A gRPC unary load generator that costs about as much as the echo it loads.
 *
 * Closed loop (--concurrency N): N callers, each calls again when it is answered.
 * Open loop (--rate R): calls arrive as a Poisson process whatever becomes of the earlier ones, and
 * latency counts from the intended send time, so that a stall is seen by every call it delayed.
 *
 * One call leaves with `grpc-timeout` and is cancelled when --deadline-ms has passed since it was due.
 * What is counted: calls settled inside the window (closed loop), calls due inside it (open loop);
 * CPU and `answered` always between the two same readings of the clock.
 *
 * One thread, loopback only, one JSON object on stdout. Exit status 2 when it could not measure. */
#define _GNU_SOURCE
#include "connection.h"
#include "histogram.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  CONNECTIONS_MAX = 64,
  RECONNECTS_MAX = 64,
  IN_FLIGHT_MAX = 100000,
  WATCHED_MAX = 8,
  STATUSES = 18, /* the 17 of gRPC and one for a stream that ended without any */
  NO_STATUS = 17,
  DRAIN_EXTRA_MS = 500,
};

struct call {
  struct connection *connection;
  int32_t stream_id;
  int status;
  bool expired; /* cancelled at its deadline; counted then */
  int64_t due_ns;
  size_t sent_bytes, received_bytes;
  struct call *previous, *next; /* all calls in flight, oldest first */
};

static struct {
  long port, connections, concurrency, payload_bytes, deadline_ms, in_flight_max;
  double rate_per_s, warmup_s, duration_s;
  const char *path;
} option = {.connections = 4,
            .deadline_ms = 5000,
            .in_flight_max = 20000,
            .payload_bytes = 100,
            .warmup_s = 0.5,
            .duration_s = 2,
            .path = "/bench.Echo/Call"};

static struct connection *connections[CONNECTIONS_MAX];
static nghttp2_session_callbacks *callbacks;
static uint8_t *request;
static size_t request_bytes;
static char authority[32];
static struct call *oldest, *newest;
static long in_flight, in_flight_peak, reconnects, turn;
static uint64_t random_state = 1;

/* The window, set when its edges are passed: [opened, closed) in monotonic ns. */
static int64_t opened_ns = INT64_MAX, closed_ns = INT64_MAX;
static bool generating = true;

static struct {
  long offered;  /* due inside the window */
  long answered; /* ended with a status inside the window, whatever the status */
  long ok, expired, unsent, lost, corrupt;
  long status[STATUSES];
  struct histogram ok_latency, refusal_latency, send_lag;
} result;

static int watched_count;
static struct {
  long pid;
  clockid_t clock;
  int64_t at_open_ns, at_close_ns;
} watched[WATCHED_MAX + 1]; /* [0] is this process */

static bool inside(int64_t t) { return t >= opened_ns && t < closed_ns; }

/* splitmix64; uniform in (0, 1). */
static double draw(void) {
  uint64_t z = (random_state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}

static void link_call(struct call *call) {
  call->previous = newest;
  *(newest ? &newest->next : &oldest) = call;
  newest = call;
  if (++in_flight > in_flight_peak)
    in_flight_peak = in_flight;
}

static void forget(struct call *call) {
  *(call->previous ? &call->previous->next : &oldest) = call->next;
  *(call->next ? &call->next->previous : &newest) = call->previous;
  in_flight--;
  free(call);
}

static struct connection *dial(void) {
  struct connection *c = calloc(1, sizeof *c);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)option.port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!c || (c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0 || connect(c->fd, (void *)&address, sizeof address))
    give_up("connecting");
  socket_prepare(c->fd);
  nghttp2_session_client_new(&c->session, callbacks, c);
  connection_announce(c, 0); /* no pushes */
  return c;
}

static ssize_t read_request(nghttp2_session *session, int32_t stream_id, uint8_t *out, size_t room, uint32_t *flags,
                            nghttp2_data_source *source, void *user) {
  (void)session, (void)stream_id, (void)user;
  struct call *call = source->ptr;
  size_t left = request_bytes - call->sent_bytes;
  size_t length = left < room ? left : room;
  memcpy(out, request + call->sent_bytes, length);
  call->sent_bytes += length;
  if (length == left)
    *flags |= NGHTTP2_DATA_FLAG_EOF;
  return (ssize_t)length;
}

static void send_call(int64_t due_ns, int64_t now) {
  if (inside(due_ns))
    result.offered++;
  if (in_flight >= option.in_flight_max) {
    result.unsent += inside(due_ns);
    return;
  }
  struct call *call = calloc(1, sizeof *call);
  if (!call)
    give_up("out of memory");
  call->connection = connections[turn++ % option.connections];
  call->status = NO_STATUS;
  call->due_ns = due_ns;
  int64_t left_us = option.deadline_ms * 1000 - (now - due_ns) / 1000;
  char timeout[24];
  snprintf(timeout, sizeof timeout, "%lldu", (long long)(left_us < 1 ? 1 : left_us));
  nghttp2_nv headers[] = {
      HEADER(":method", "POST"),  HEADER(":scheme", "http"), HEADER(":path", option.path),
      HEADER(":authority", authority), HEADER("te", "trailers"),  HEADER("content-type", "application/grpc"),
      HEADER("user-agent", "bench"), HEADER("grpc-timeout", timeout)};
  nghttp2_data_provider body = {.source.ptr = call, .read_callback = read_request};
  call->stream_id = nghttp2_submit_request(call->connection->session, NULL, headers,
                                           sizeof headers / sizeof *headers, &body, call);
  if (call->stream_id < 0) { /* GOAWAY has come: the connection is about to be lost */
    result.lost += inside(due_ns);
    free(call);
    return;
  }
  if (inside(due_ns))
    histogram_add(&result.send_lag, now - due_ns);
  link_call(call);
}

static void count(const struct call *call, int64_t now) {
  result.answered += inside(now) && call->status != NO_STATUS;
  if (call->expired || !inside(option.rate_per_s > 0 ? call->due_ns : now))
    return;
  result.status[call->status]++;
  if (call->status == 0) {
    result.ok++;
    result.corrupt += call->received_bytes != request_bytes;
    histogram_add(&result.ok_latency, now - call->due_ns);
  } else
    histogram_add(&result.refusal_latency, now - call->due_ns);
}

static int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user) {
  (void)error_code, (void)user;
  struct call *call = nghttp2_session_get_stream_user_data(session, stream_id);
  if (!call)
    return 0;
  int64_t now = now_ns();
  count(call, now);
  forget(call);
  if (generating && option.rate_per_s == 0)
    send_call(now, now);
  return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
  (void)value_length, (void)flags, (void)user;
  struct call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  if (call && name_length == 11 && !memcmp(name, "grpc-status", 11)) {
    int status = atoi((const char *)value); /* nghttp2 ends values with a NUL */
    call->status = status >= 0 && status < NO_STATUS ? status : 2;
  }
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t length,
                   void *user) {
  (void)flags, (void)data, (void)user;
  struct call *call = nghttp2_session_get_stream_user_data(session, stream_id);
  if (call)
    call->received_bytes += length;
  return 0;
}

/* Deadlines fall in the order of the list, as all calls have the same. */
static void expire(int64_t now) {
  for (struct call *call = oldest; call && call->due_ns + option.deadline_ms * 1000000 <= now; call = call->next)
    if (!call->expired) {
      call->expired = true;
      result.expired += inside(call->due_ns);
      nghttp2_submit_rst_stream(call->connection->session, NGHTTP2_FLAG_NONE, call->stream_id, NGHTTP2_CANCEL);
    }
}

/* The calls of a lost connection are counted as lost; in the closed loop their callers go on. */
static void replace(int slot) {
  struct connection *c = connections[slot];
  if (++reconnects > RECONNECTS_MAX)
    errno = 0, give_up("the subject keeps closing connections");
  connections[slot] = dial();
  long callers = 0;
  for (struct call *call = oldest, *next; call; call = next) {
    next = call->next;
    if (call->connection != c)
      continue;
    result.lost += !call->expired && inside(call->due_ns);
    callers++;
    forget(call);
  }
  connection_close(c);
  free(c);
  for (; generating && option.rate_per_s == 0 && callers; callers--)
    send_call(now_ns(), now_ns());
}

static int64_t cpu_ns(clockid_t clock) {
  struct timespec t;
  return clock_gettime(clock, &t) ? -1 : (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void wait_for_work(int64_t until_ns) {
  struct pollfd polled[CONNECTIONS_MAX];
  for (int i = 0; i < option.connections; i++)
    polled[i] = (struct pollfd){.fd = connections[i]->fd,
                                .events = connection_wants_write(connections[i]) ? POLLIN | POLLOUT : POLLIN};
  int64_t left = until_ns - now_ns();
  left = left < 0 ? 0 : left;
  struct timespec timeout = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
  if (ppoll(polled, (nfds_t)option.connections, &timeout, NULL) < 0 && errno != EINTR)
    give_up("polling");
  for (int i = 0; i < option.connections; i++)
    if (polled[i].revents)
      connection_receive(connections[i]);
}

static void open_window(int64_t now) {
  for (int i = 0; i <= watched_count; i++)
    watched[i].at_open_ns = cpu_ns(watched[i].clock);
  opened_ns = now;
}

static void close_window(int64_t now) {
  closed_ns = now;
  generating = false;
  for (int i = 0; i <= watched_count; i++)
    watched[i].at_close_ns = cpu_ns(watched[i].clock);
}

static int64_t earliest(int64_t a, int64_t b) { return a < b ? a : b; }

static void run(void) {
  int64_t start = now_ns();
  int64_t open_at = start + (int64_t)(option.warmup_s * 1e9), close_at = open_at + (int64_t)(option.duration_s * 1e9);
  int64_t give_up_at = close_at + (option.deadline_ms + DRAIN_EXTRA_MS) * 1000000;
  double arrival = (double)start;
  if (option.rate_per_s == 0)
    for (int i = 0; i < option.concurrency; i++)
      send_call(start, start);
  for (;;) {
    int64_t now = now_ns();
    if (opened_ns == INT64_MAX && now >= open_at)
      open_window(now);
    if (generating && now >= close_at)
      close_window(now);
    if (!generating && (in_flight == 0 || now >= give_up_at))
      return;
    if (option.rate_per_s > 0)
      for (; generating && arrival <= (double)now; arrival += -log(draw()) * 1e9 / option.rate_per_s)
        send_call((int64_t)arrival, now);
    expire(now);
    for (int i = 0; i < option.connections; i++) {
      connection_send(connections[i]);
      if (connections[i]->lost)
        replace(i);
    }
    int64_t next = now < open_at ? open_at : now < close_at ? close_at : give_up_at;
    if (option.rate_per_s > 0 && generating)
      next = earliest(next, (int64_t)arrival);
    if (oldest && !oldest->expired)
      next = earliest(next, oldest->due_ns + option.deadline_ms * 1000000);
    wait_for_work(next);
  }
}

static void print_quantiles(const char *name, const struct histogram *h) {
  if (h->count == 0) {
    printf(", \"%s\": null", name);
    return;
  }
  printf(", \"%s\": {\"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f}", name,
         histogram_quantile_ms(h, 0.5), histogram_quantile_ms(h, 0.9), histogram_quantile_ms(h, 0.99),
         histogram_quantile_ms(h, 0.999), histogram_quantile_ms(h, 1));
}

static void print_result(void) {
  printf("{\"window_s\": %.6f, \"offered\": %ld, \"answered\": %ld, \"ok\": %ld, \"expired\": %ld, \"unsent\": %ld, "
         "\"lost\": %ld, \"corrupt\": %ld, \"reconnects\": %ld, \"in_flight_peak\": %ld, \"left_in_flight\": %ld",
         (double)(closed_ns - opened_ns) / 1e9, result.offered, result.answered, result.ok, result.expired,
         result.unsent, result.lost, result.corrupt, reconnects, in_flight_peak, in_flight);
  print_quantiles("latency_ms", &result.ok_latency);
  print_quantiles("refusal_ms", &result.refusal_latency);
  print_quantiles("send_lag_ms", &result.send_lag);
  printf(", \"status\": {");
  for (int i = 0, first = 1; i < STATUSES; i++)
    if (result.status[i])
      printf("%s\"%d\": %ld", first ? "" : ", ", i, result.status[i]), first = 0;
  printf("}, \"generator_cpu_s\": %.6f, \"cpu_s\": {", (double)(watched[0].at_close_ns - watched[0].at_open_ns) / 1e9);
  for (int i = 1; i <= watched_count; i++)
    printf("%s\"%ld\": %.6f", i == 1 ? "" : ", ", watched[i].pid,
           (double)(watched[i].at_close_ns - watched[i].at_open_ns) / 1e9);
  printf("}}\n");
}

static double parse_real(const char *name, const char *text, double low, double high) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= low && value <= high)) {
    fprintf(stderr, "--%s must be a number from %g to %g, not '%s'\n", name, low, high, text);
    exit(2);
  }
  return value;
}

static void watch(long pid) {
  if (watched_count == WATCHED_MAX)
    errno = 0, give_up("too many --watch");
  watched[++watched_count].pid = pid;
  errno = clock_getcpuclockid((pid_t)pid, &watched[watched_count].clock);
  if (errno)
    give_up("--watch");
}

static void parse_options(int argc, char **argv) {
  static const struct option options[] = {
      {"port", required_argument, 0, 'p'},          {"path", required_argument, 0, 'm'},
      {"connections", required_argument, 0, 'n'},   {"concurrency", required_argument, 0, 'c'},
      {"rate", required_argument, 0, 'r'},          {"payload-bytes", required_argument, 0, 's'},
      {"deadline-ms", required_argument, 0, 't'},   {"in-flight-max", required_argument, 0, 'M'},
      {"warmup-s", required_argument, 0, 'w'},      {"duration-s", required_argument, 0, 'd'},
      {"watch", required_argument, 0, 'P'},         {"seed", required_argument, 0, 'S'},
      {0},
  };
  for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (o) {
      case 'p': option.port = parse_number("port", optarg, 1, 65535); break;
      case 'm': option.path = optarg; break;
      case 'n': option.connections = parse_number("connections", optarg, 1, CONNECTIONS_MAX); break;
      case 'c': option.concurrency = parse_number("concurrency", optarg, 1, IN_FLIGHT_MAX); break;
      case 'r': option.rate_per_s = parse_real("rate", optarg, 0.1, 1e6); break;
      case 's': option.payload_bytes = parse_number("payload-bytes", optarg, 0, 4 << 20); break;
      case 't': option.deadline_ms = parse_number("deadline-ms", optarg, 1, 90000); break;
      case 'M': option.in_flight_max = parse_number("in-flight-max", optarg, 1, IN_FLIGHT_MAX); break;
      case 'w': option.warmup_s = parse_real("warmup-s", optarg, 0, 60); break;
      case 'd': option.duration_s = parse_real("duration-s", optarg, 0.01, 600); break;
      case 'P': watch(parse_number("watch", optarg, 1, INT32_MAX)); break;
      case 'S': random_state = (uint64_t)parse_number("seed", optarg, 0, INT32_MAX); break;
      default: exit(2);
    }
  errno = 0;
  if (!option.port || !option.concurrency == !(option.rate_per_s > 0))
    give_up("usage: loadgen --port N and either --concurrency N or --rate R; see the options in loadgen.c");
  if (option.concurrency > option.in_flight_max)
    option.in_flight_max = option.concurrency;
}

static void prepare(void) {
  request_bytes = GRPC_PREFIX_BYTES + (size_t)option.payload_bytes;
  if (!(request = malloc(request_bytes)))
    give_up("out of memory");
  memset(request, 'x', request_bytes);
  uint32_t length = htonl((uint32_t)option.payload_bytes);
  request[0] = 0; /* not compressed */
  memcpy(request + 1, &length, sizeof length);
  snprintf(authority, sizeof authority, "127.0.0.1:%ld", option.port);
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
  for (int i = 0; i < option.connections; i++)
    connections[i] = dial();
}

int main(int argc, char **argv) {
  watched[0].clock = CLOCK_PROCESS_CPUTIME_ID;
  parse_options(argc, argv);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  prctl(PR_SET_TIMERSLACK, 1UL); /* the default, 50 us, would be added to every intended send time */
  alarm((unsigned)(option.warmup_s + option.duration_s + (double)option.deadline_ms / 1000 + 10));
  prepare();
  run();
  print_result();
  return 0;
}
