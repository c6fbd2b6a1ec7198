/* The floor: what the kernel alone asks for. No event loop, no parsing, no bookkeeping.
 *
 *   floor PORT CLIENTS RATE BURST APART STAMPS HEAD TAIL
 *
 * Accepts CLIENTS WebSocket clients, then RATE times a second makes BURST messages HEAD offset TAIL and
 * calls send() once for each client (APART=1: once for each client and message). The instant before it
 * begins is kept in the shared file STAMPS ("-": none), at the place of the message's offset.
 * With RATE 0 it only accepts and answers handshakes, for ever: the floor of a connect storm.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOTS (1 << 20) /* of the file of stamps */

/* Right for the one key that load.c sends. */
static const char answer[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int listening(int port) {
  int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
  if (bind(s, (struct sockaddr *)&at, sizeof at) || listen(s, 4096)) fail("listen");
  printf("ready %d\n", port);
  fflush(stdout);
  return s;
}

/* Answers each handshake, and returns when `clients` have had theirs. */
static void welcome(int s, int *fds, int clients) {
  char request[4096];
  int epoll = epoll_create1(0), met = 0, one = 1;
  struct epoll_event event = {.events = EPOLLIN, .data.fd = s}, events[256];
  epoll_ctl(epoll, EPOLL_CTL_ADD, s, &event);
  fcntl(s, F_SETFL, O_NONBLOCK);
  while (met < clients) {
    int n = epoll_wait(epoll, events, 256, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == s) {
        while ((fd = accept4(s, 0, 0, SOCK_NONBLOCK)) >= 0) {
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          event.data.fd = fd;
          epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        }
        continue;
      }
      if (read(fd, request, sizeof request) <= 0) continue;
      if (write(fd, answer, sizeof answer - 1) < 0) fail("handshake");
      epoll_ctl(epoll, EPOLL_CTL_DEL, fd, 0);
      if (fds) fds[met++] = fd;
    }
  }
  close(epoll);
}

int main(int argc, char **argv) {
  if (argc != 9) return 2;
  int clients = atoi(argv[2]), burst = atoi(argv[4]), apart = atoi(argv[5]);
  double rate = atof(argv[3]);
  const char *head = argv[7], *tail = argv[8];
  int s = listening(atoi(argv[1]));
  if (rate <= 0) welcome(s, 0, 1);
  int *fds = malloc(clients * sizeof *fds);
  welcome(s, fds, clients);

  int64_t *stamps = 0;
  if (strcmp(argv[6], "-")) {
    int file = open(argv[6], O_RDWR);
    stamps = mmap(0, SLOTS * sizeof *stamps, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (stamps == MAP_FAILED) fail("stamps");
  }
  char *frames = malloc(burst * 4096);
  int64_t due = now_ns(), offset = 1000000000; /* of one width: the pieces are equal */
  for (;;) {
    due += (int64_t)(1e9 / rate);
    struct timespec at = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0);
    int64_t begun = now_ns();
    int size = 0;
    for (int i = 0; i < burst; i++) {
      char *frame = frames + size;
      offset++;
      if (stamps) stamps[offset % SLOTS] = begun;
      int length = sprintf(frame + 4, "%s%lld%s", head, (long long)offset, tail);
      frame[0] = (char)0x81, frame[1] = 126, frame[2] = length >> 8, frame[3] = length;
      size += length + 4;
    }
    int pieces = apart ? burst : 1, each = size / pieces;
    for (int piece = 0; piece < pieces; piece++)
      for (int i = 0; i < clients; i++)
        if (send(fds[i], frames + piece * each, each, MSG_NOSIGNAL) < each) return 0;
  }
}
