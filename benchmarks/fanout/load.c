/* A load client that costs little: N WebSocket clients in one thread, counting what they get.
 *
 *   load PORT PATH CLIENTS SETTLE SECONDS FLIGHT PID STAMPS
 *
 * Connects CLIENTS (FLIGHT handshakes at a time, from many loopback addresses), lets SETTLE seconds pass,
 * counts for SECONDS, and reads the CPU time of process PID (utime + stime) at both ends. SECONDS 0: says
 * that all are connected, and holds them until its input ends; each line of input asks for the figures since
 * the line before, with the histogram of latencies. STAMPS: a shared file of CLOCK_MONOTONIC nanoseconds by
 * offset ("-": none), from which it tells how late each message is. Where PATH names one symbol
 * (/ws/SYMBOL), each client must get every offset behind its welcome once, in order; what it does not is told
 * in totals since the connection. Answers pings.
 * Prints one line of JSON for each phase; times in seconds, latencies in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif
#define SLOTS (1 << 20)
#define BUFFER (1 << 20)
#define ADDRESSES 200
#define BINS (1 << 22)    /* of one microsecond; the last one has all that is later */
#define TOLD_TOGETHER 10L /* bins, in a printed histogram */

typedef struct {
  int fd, up;
  long epoch, last; /* the tick it has got last */
  char *kept; /* the beginning of a frame whose rest has not come yet */
  int kept_size;
} Client;

static Client *clients;
static int epoll, wanted, connected, counting, accounting, lost;
static char request[1024], buffer[BUFFER];
static const char *port, *pid;
static int64_t *stamps;
static unsigned latencies[BINS];
static long messages, bytes, known_latencies, latest; /* while counting */
static long ticks, missed, doubled, skipped; /* by the accounts of all clients, since they connected */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static double cpu_of_server(void) {
  char path[64], line[2048];
  unsigned long user = 0, system = 0;
  snprintf(path, sizeof path, "/proc/%s/stat", pid);
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  if (fgets(line, sizeof line, file)) {
    char *rest = strrchr(line, ')'); /* the name before it may hold anything */
    sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
  }
  fclose(file);
  return (double)(user + system) / sysconf(_SC_CLK_TCK);
}

static double cpu_of_mine(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
}

static void begin(int i) {
  Client *c = clients + i;
  int one = 1;
  char from[32];
  struct sockaddr_in source = {.sin_family = AF_INET};
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  snprintf(from, sizeof from, "127.0.1.%d", 1 + i % ADDRESSES);
  inet_pton(AF_INET, from, &source.sin_addr);
  inet_pton(AF_INET, "127.0.0.1", &server.sin_addr);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) perror("socket"), exit(1);
  setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) perror("bind"), exit(1);
  if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
    perror("connect"), exit(1);
  struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
  epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static int begins(const char *text, long size, const char *with) {
  long length = strlen(with);
  return size >= length && !memcmp(text, with, length);
}

/* The number behind `name` near the beginning of a message; -1: none. */
static long number(const char *text, long size, const char *name) {
  const char *found = memmem(text, size < 240 ? size : 240, name, strlen(name));
  return found ? strtol(found + strlen(name), 0, 10) : -1;
}

/* A tick of the stream, not the last known price beside `welcome`. */
static int is_tick(const char *text, long size) {
  return begins(text, size, "{\"type\":\"market_data\"") && memcmp(text + size - 16, "\"snapshot\":true}", 16);
}

static void account_for_tick(Client *c, long epoch, long offset) {
  if (epoch != c->epoch) c->epoch = epoch, c->last = 0;
  if (offset <= c->last)
    doubled++;
  else
    ticks++, missed += offset - c->last - 1, c->last = offset;
}

static void account_for_other(Client *c, const char *text, long size) {
  if (begins(text, size, "{\"type\":\"skipped\"")) {
    skipped++; /* and missed: the next tick finds the hole */
  } else if (begins(text, size, "{\"type\":\"welcome\"")) {
    const char *offsets = memmem(text, size, "\"offsets\":{", 11);
    const char *colon = offsets ? memchr(offsets + 11, ':', text + size - offsets - 11) : 0;
    c->epoch = number(text, size, "\"epoch\":"), c->last = colon ? strtol(colon + 1, 0, 10) : 0;
  }
}

/* One whole text or binary message. */
static void message(Client *c, const char *text, long size, double read_at) {
  if (counting) messages++;
  if (!is_tick(text, size)) {
    if (accounting) account_for_other(c, text, size);
    return;
  }
  long offset = number(text, size, "\"offset\":");
  if (accounting) account_for_tick(c, number(text, size, "\"epoch\":"), offset);
  int64_t stamp = counting && stamps ? stamps[offset % SLOTS] : 0;
  if (!stamp) return;
  long late = (long)((read_at - stamp * 1e-9) * 1e6);
  latencies[late < 0 ? 0 : late < BINS ? late : BINS - 1]++, known_latencies++;
  if (late > latest) latest = late;
}

static void pong(Client *c, const char *ping, long size) {
  char frame[6 + 125] = {(char)0x8a, (char)(0x80 | size)}; /* masked with zeros */
  if (size > 125) return;
  memcpy(frame + 6, ping, size);
  if (write(c->fd, frame, 6 + size) < 0) perror("pong");
}

static void hear(Client *c) {
  memcpy(buffer, c->kept, c->kept_size);
  long size = read(c->fd, buffer + c->kept_size, BUFFER - c->kept_size);
  if (size <= 0) {
    if (size < 0 && errno == EAGAIN) return;
    if (!c->up) fprintf(stderr, "refused: %.*s\n", c->kept_size, buffer), exit(1);
    epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, 0);
    close(c->fd);
    lost++;
    return;
  }
  double read_at = now();
  if (counting) bytes += size;
  char *at = buffer, *end = buffer + c->kept_size + size;
  if (!c->up) {
    char *stop = memmem(at, end - at, "\r\n\r\n", 4);
    if (stop) {
      if (memcmp(at, "HTTP/1.1 101", 12)) {
        fprintf(stderr, "refused: %.*s\n", (int)(end - at), at);
        exit(1);
      }
      c->up = 1, connected++, at = stop + 4;
    }
  }
  while (c->up && end - at >= 2) {
    unsigned char *head = (unsigned char *)at;
    long length = head[1] & 127, start = 2;
    if (length == 126) {
      if (end - at < 4) break;
      length = head[2] << 8 | head[3], start = 4;
    } else if (length == 127) {
      if (end - at < 10) break;
      length = 0, start = 10;
      for (int i = 2; i < 10; i++) length = length << 8 | head[i];
    }
    if (end - at < start + length) break;
    int opcode = head[0] & 15;
    if (opcode <= 2) message(c, at + start, length, read_at);
    if (opcode == 9) pong(c, at + start, length);
    at += start + length;
  }
  c->kept_size = end - at;
  if (c->kept_size) c->kept = realloc(c->kept, c->kept_size), memcpy(c->kept, at, c->kept_size);
}

static void turn(int wait_ms) {
  struct epoll_event events[1024];
  int n = epoll_wait(epoll, events, 1024, wait_ms);
  for (int i = 0; i < n; i++) {
    Client *c = events[i].data.ptr;
    if (events[i].events & EPOLLOUT) {
      int failed = 0;
      socklen_t size = sizeof failed;
      getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &failed, &size);
      if (failed) fprintf(stderr, "connect: %s\n", strerror(failed)), exit(1);
      if (write(c->fd, request, strlen(request)) < 0) perror("request"), exit(1);
      struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
      epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    } else {
      hear(c);
    }
  }
}

static double at_share(double share) {
  long before = (long)(known_latencies * share), seen = 0;
  for (int i = 0; i < BINS; i++)
    if ((seen += latencies[i]) > before) return i + 0.5;
  return 0;
}

static double began, cpu_before, mine_before;

static void begin_counting(void) {
  memset(latencies, 0, (latest < BINS ? latest + 1 : BINS) * sizeof *latencies);
  messages = bytes = known_latencies = latest = 0;
  counting = 1, began = now(), cpu_before = cpu_of_server(), mine_before = cpu_of_mine();
}

/* What was counted since; with the whole histogram, by its bins' beginnings, where that is wanted. */
static void tell(int whole) {
  printf("{\"seconds\": %.6f, \"messages\": %ld, \"bytes\": %ld, \"cpu_s\": %.3f, \"client_cpu_s\": %.3f, "
         "\"lost\": %d, \"latencies\": %ld, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
         "\"max_us\": %ld",
         now() - began, messages, bytes, cpu_of_server() - cpu_before, cpu_of_mine() - mine_before, lost,
         known_latencies, at_share(0.5), at_share(0.99), at_share(0.999), latest);
  if (accounting) {
    long head = 0, behind = 0;
    for (int i = 0; i < wanted; i++)
      if (clients[i].last > head) head = clients[i].last;
    for (int i = 0; i < wanted; i++) behind += clients[i].last < head;
    printf(", \"ticks\": %ld, \"missed\": %ld, \"doubled\": %ld, \"skipped\": %ld, \"head\": %ld, \"behind\": %ld",
           ticks, missed, doubled, skipped, head, behind);
  }
  if (whole) {
    printf(", \"histogram\": [");
    const char *comma = "";
    for (long i = 0; i < BINS && i <= latest; i += TOLD_TOGETHER) {
      long many = 0;
      for (long j = i; j < i + TOLD_TOGETHER && j < BINS; j++) many += latencies[j];
      if (many) printf("%s[%ld,%ld]", comma, i, many), comma = ",";
    }
    printf("]");
  }
  printf("}\n");
  fflush(stdout);
}

int main(int argc, char **argv) {
  if (argc != 9) return 2;
  port = argv[1], pid = argv[7];
  int flight = atoi(argv[6]), begun = 0;
  wanted = atoi(argv[3]), accounting = strchr(argv[2] + 1, '/') != 0;
  double settle = atof(argv[4]), seconds = atof(argv[5]);
  if (strcmp(argv[8], "-")) {
    int file = open(argv[8], O_RDONLY);
    stamps = mmap(0, SLOTS * sizeof *stamps, PROT_READ, MAP_SHARED, file, 0);
    if (stamps == MAP_FAILED) perror("stamps"), exit(1);
  }
  snprintf(request, sizeof request,
           "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
           argv[2], port);
  clients = calloc(wanted, sizeof *clients);
  epoll = epoll_create1(0);

  double cpu = cpu_of_server();
  began = now();
  while (connected < wanted) {
    while (begun < wanted && begun - connected < flight) begin(begun++);
    turn(100);
    if (now() - began > 120) fprintf(stderr, "%d of %d connected\n", connected, wanted), exit(1);
  }
  printf("{\"connect_s\": %.6f, \"connect_cpu_s\": %.3f, \"connected\": %d}\n", now() - began,
         cpu_of_server() - cpu, connected);
  fflush(stdout);
  if (seconds <= 0) {
    begin_counting();
    fcntl(0, F_SETFL, O_NONBLOCK);
    char c;
    for (;;) {
      long n = read(0, &c, 1);
      if (n == 0) return 0;
      if (n == 1 && c == '\n') tell(1), begin_counting();
      turn(20);
    }
  }

  for (double until = now() + settle; now() < until;) turn(20);
  begin_counting();
  while (now() - began < seconds) turn(20);
  tell(0);
  return 0;
}
