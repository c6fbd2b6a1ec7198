/* A load client that costs little: N WebSocket clients in one thread, counting what they get.
 *
 *   load PORT PATH CLIENTS SETTLE SECONDS FLIGHT PID STAMPS
 *
 * Connects CLIENTS (FLIGHT handshakes at a time, from many loopback addresses), lets SETTLE seconds pass,
 * counts for SECONDS, and reads the CPU time of process PID (utime + stime) at both ends. SECONDS 0: says
 * that all are connected, and holds them until its input ends. STAMPS: a shared file of CLOCK_MONOTONIC
 * nanoseconds by offset ("-": none), from which it tells how late each message is. Answers no ping.
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
#define LATENCIES 40000000L

typedef struct {
  int fd, up;
  char *kept; /* the beginning of a frame whose rest has not come yet */
  int kept_size;
} Client;

static Client *clients;
static int epoll, connected, counting, lost;
static char request[1024], buffer[BUFFER];
static const char *port, *pid;
static int64_t *stamps;
static float *latencies;
static long messages, bytes, known_latencies;

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

/* One whole text or binary message. */
static void message(const char *text, long size, double read_at) {
  messages++;
  if (!counting || !stamps || known_latencies >= LATENCIES) return;
  const char *found = memmem(text, size < 160 ? size : 160, "\"offset\":", 9);
  if (!found) return;
  int64_t stamp = stamps[strtoll(found + 9, 0, 10) % SLOTS];
  if (stamp) latencies[known_latencies++] = (float)((read_at - stamp * 1e-9) * 1e6);
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
    if ((head[0] & 15) <= 2) message(at + start, length, read_at);
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

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return x < y ? -1 : x > y;
}

static double at_share(double share) {
  return known_latencies ? latencies[(long)(known_latencies * share)] : 0;
}

int main(int argc, char **argv) {
  if (argc != 9) return 2;
  port = argv[1], pid = argv[7];
  int wanted = atoi(argv[3]), flight = atoi(argv[6]), begun = 0;
  double settle = atof(argv[4]), seconds = atof(argv[5]);
  if (strcmp(argv[8], "-")) {
    int file = open(argv[8], O_RDONLY);
    stamps = mmap(0, SLOTS * sizeof *stamps, PROT_READ, MAP_SHARED, file, 0);
    if (stamps == MAP_FAILED) perror("stamps"), exit(1);
    latencies = malloc(LATENCIES * sizeof *latencies);
  }
  snprintf(request, sizeof request,
           "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
           argv[2], port);
  clients = calloc(wanted, sizeof *clients);
  epoll = epoll_create1(0);

  double began = now(), cpu = cpu_of_server();
  while (connected < wanted) {
    while (begun < wanted && begun - connected < flight) begin(begun++);
    turn(100);
    if (now() - began > 120) fprintf(stderr, "%d of %d connected\n", connected, wanted), exit(1);
  }
  printf("{\"connect_s\": %.6f, \"connect_cpu_s\": %.3f, \"connected\": %d}\n", now() - began,
         cpu_of_server() - cpu, connected);
  fflush(stdout);
  if (seconds <= 0) {
    fcntl(0, F_SETFL, O_NONBLOCK);
    char c;
    for (;;) {
      long n = read(0, &c, 1);
      if (n == 0) return 0;
      turn(20);
    }
  }

  for (double until = now() + settle; now() < until;) turn(20);
  double mine = cpu_of_mine();
  long before = messages;
  cpu = cpu_of_server(), began = now(), counting = 1;
  while (now() - began < seconds) turn(20);
  double wall = now() - began;
  cpu = cpu_of_server() - cpu, mine = cpu_of_mine() - mine;
  if (known_latencies) qsort(latencies, known_latencies, sizeof *latencies, ascending);
  printf("{\"seconds\": %.6f, \"messages\": %ld, \"bytes\": %ld, \"cpu_s\": %.3f, \"client_cpu_s\": %.3f, "
         "\"lost\": %d, \"latencies\": %ld, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
         "\"max_us\": %.1f}\n",
         wall, messages - before, bytes, cpu, mine, lost, known_latencies, at_share(0.5),
         at_share(0.99), at_share(0.999), known_latencies ? latencies[known_latencies - 1] : 0);
  return 0;
}
