// loadgen: neutral WebSocket load generator (C, epoll, single thread). See usage() for the options.
// Build: gcc -O2 -o loadgen loadgen.c -lssl -lcrypto
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void usage(void) {
  fprintf(
      stderr,
      "usage: loadgen --url ws[s]://127.0.0.1:PORT/PATH [options]      (one JSON object on stdout)\n"
      " connections: --conns N (1000)  --conc C handshakes in flight (64)  --srcs K source addresses "
      "127.0.0.2.. (8)\n"
      "   --ports P,P.. connection i goes to port P[i mod n] (that of the URL)\n"
      "   --base B first index (0)  --warm W connections opened before timing/RSS baseline (200)  "
      "--hs-timeout MS (15000)\n"
      " handshake:   --header 'K: V' (repeatable; {i} = 6-digit connection index)  --headers-file F: a line "
      "per handshake, headers parted by tabs;\n"
      "   the k-th handshake of connection i sends line k*N+i, so that proofs good for one use can be made "
      "beforehand\n"
      "   --first MSG sent after the 101  --ready-msgs M messages to receive before 'admitted' (0)  "
      "--capture KEY: digits after KEY => {c}\n"
      "   --bin send binary frames  --eio answer Engine.IO '2' pings with '3'\n"
      " server:      --pid P[,P..] read RSS+CPU of these pids  --settle MS before the RSS reading (1000)\n"
      " phases (in this order): --churn SECS open/close loop at --conc (before the ramp)  --churn-rate R: so "
      "many opened a second, at most\n"
      "   ramp to --conns (always)\n"
      "   --echo SIZE:ACTIVE:SECS (repeatable) closed loop, 1 outstanding on each of ACTIVE conns\n"
      "   --rate SIZE:PERSEC:SECS (repeatable) open loop over all conns, latency   --echo-prefix S "
      "--echo-suffix S\n"
      "   --kicks K one at a time over --admin HOST:PORT with --admin-req TEMPLATE ({i},{c}); --admin-hello "
      "S; --kick-gap-us (3000)\n"
      "   --kickall-file FILE sent once, as it is, to the admin port (mass drop); --storm: all reconnect at "
      "once; --break: all connections are reset by the clients;\n   "
      "--storm-cmd CMD: run instead of kickall\n"
      "   --storm-conc C handshakes in flight in the storm (all)  --retry-ms (50)  --hold SECS idle at the "
      "end  --close-frame send Close at end\n"
      " MSG/TEMPLATE escapes: \\r \\n \\xHH\n");
  exit(2);
}

enum { ST_NONE, ST_CONN, ST_TLS, ST_HS, ST_WAIT, ST_OPEN, ST_GONE };
typedef struct {
  int fd;
  uint8_t st, hn, op, out_on, ready_once, closing, idlewr, outst;
  uint32_t idx, hlen, msgs, tries;
  uint64_t cap;
  char *hbuf;
  uint8_t hdr[10];
  uint64_t rem;
  uint32_t got;
  char pre[48];
  uint64_t t0, t_close, t_eof, seq;
  char *ob;
  uint32_t ol, oo;
  SSL *ssl;
} conn;

static conn *C;
static int N = 1000, conc = 64, nsrc = 8, base_i = 0, warm = 200, tls = 0, ready_msgs = 0, bin = 0, eio = 0,
           storm = 0, storm_conc = 0, retry_ms = 50, settle = 1000, kick_gap = 3000, closeframe = 0;
static long hs_timeout = 15000;
static double churn_s = 0, churn_rate = 0, hold_s = 0;
static char host[64] = "127.0.0.1", path[512] = "/";
static int port = 80, ports[16], nports;
static char *headers[32];
static int nheaders;
static char *first, *capkey, *eprefix = "", *esuffix = "", *admin_req, *admin_hello, *kickall_file, *storm_cmd,
                             *admin_hp;
static size_t first_l, admin_req_l, admin_hello_l, epl, esl;
static int breaks;
static char **hfile;
static int nhfile;
static int pids[64], npids;
static char *echos[16], *rates[16];
static int nechos, nrates, nkicks;
static int ep, inflight, nopen;
static uint64_t fails, refused, hs_bad, badecho, gone_unexp;
static SSL_CTX *ctx;
static int last_status, last_code;
static char last_err[256];
static uint64_t *lat;
static size_t nlat, caplat;
static int phase;
enum { P_RAMP, P_CHURN, P_IDLE, P_ECHO, P_RATE, P_KICK, P_DROP, P_STORM, P_END };
static uint64_t msgs_done, churn_done;
static int esize, eactive;
static uint64_t echo_end;
static int *rq;
static uint64_t *rqt;
static size_t rqh, rqn, rqcap; // retry fifo

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}
static uint64_t rs = 88172645463325252ull;
static uint64_t rnd(void) {
  rs ^= rs << 13;
  rs ^= rs >> 7;
  rs ^= rs << 17;
  return rs;
}
static void addlat(uint64_t v) {
  if (nlat == caplat) {
    caplat = caplat ? caplat * 2 : 65536;
    lat = realloc(lat, caplat * 8);
  }
  lat[nlat++] = v;
}
static int cmp(const void *a, const void *b) {
  uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;
  return x < y ? -1 : x > y;
}
static double pct(double p) {
  if (!nlat)
    return 0;
  size_t k = (size_t)(p * (nlat - 1) + 0.5);
  return lat[k] / 1e6;
}
static void sortlat(void) {
  qsort(lat, nlat, 8, cmp);
}
static char *unesc(const char *s, size_t *l) {
  char *o = malloc(strlen(s) + 1), *p = o;
  while (*s) {
    if (*s == '\\' && s[1]) {
      s++;
      if (*s == 'r')
        *p++ = '\r', s++;
      else if (*s == 'n')
        *p++ = '\n', s++;
      else if (*s == 'x') {
        char h[3] = {s[1], s[2], 0};
        *p++ = (char)strtol(h, 0, 16);
        s += 3;
      } else
        *p++ = *s++;
    } else
      *p++ = *s++;
  }
  *p = 0;
  *l = p - o;
  return o;
}
static size_t expand(const char *t, size_t tl, conn *c, char *o, size_t ocap) {
  size_t n = 0;
  for (size_t k = 0; k < tl && n + 24 < ocap;) {
    if (k + 2 < tl && t[k] == '{' && t[k + 2] == '}' && (t[k + 1] == 'i' || t[k + 1] == 'c')) {
      n += t[k + 1] == 'i' ? sprintf(o + n, "%06u", c->idx)
                           : sprintf(o + n, "%8llu", (unsigned long long)c->cap);
      k += 3;
    } else
      o[n++] = t[k++];
  }
  o[n] = 0;
  return n;
}

static void procstat(double *cpu, long *rss) {
  *cpu = 0;
  *rss = 0;
  char b[4096], p[64];
  for (int i = 0; i < npids; i++) {
    sprintf(p, "/proc/%d/stat", pids[i]);
    FILE *f = fopen(p, "r");
    if (!f)
      continue;
    size_t n = fread(b, 1, 4095, f);
    fclose(f);
    b[n] = 0;
    char *q = strrchr(b, ')');
    if (!q)
      continue;
    unsigned long ut = 0, st = 0;
    long r = 0;
    sscanf(q + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %*d %*d %*u %*u %ld",
           &ut, &st, &r);
    *cpu += (ut + st) / (double)sysconf(_SC_CLK_TCK);
    *rss += r * (sysconf(_SC_PAGESIZE) / 1024);
  }
}
static long slab(void) {
  FILE *f = fopen("/proc/meminfo", "r");
  char l[128];
  long v, t = 0;
  while (fgets(l, 128, f))
    if (sscanf(l, "Slab: %ld", &v) == 1)
      t = v;
  fclose(f);
  return t;
}
static double mycpu(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void retry_later(conn *c, int delay_ms) {
  if (rqn == rqcap) {
    fprintf(stderr, "retry queue full\n");
    exit(1);
  }
  size_t k = (rqh + rqn++) % rqcap;
  rq[k] = c - C;
  rqt[k] = now() + delay_ms * 1000000ull;
}
static void hardclose(conn *c, int rst) {
  if (c->fd < 0)
    return;
  if (rst) {
    struct linger l = {1, 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
  }
  if (c->ssl) {
    SSL_free(c->ssl);
    c->ssl = 0;
  }
  close(c->fd);
  c->fd = -1;
  free(c->hbuf);
  c->hbuf = 0;
  free(c->ob);
  c->ob = 0;
  c->ol = c->oo = 0;
}
static int st_inflight(conn *c) {
  return c->st >= ST_CONN && c->st <= ST_WAIT;
}
static void on_gone(conn *c);
static void drop(conn *c, int why) { // socket is dead
  int inf = st_inflight(c), wasopen = c->st == ST_OPEN;
  hardclose(c, 1);
  c->st = ST_GONE;
  if (inf) {
    inflight--;
    fails++;
    if (why == ECONNREFUSED)
      refused++;
    if (phase == P_RAMP || phase == P_STORM)
      retry_later(c, retry_ms);
  }
  if (wasopen) {
    nopen--;
    c->t_eof = now();
    on_gone(c);
  }
}
static void wantout(conn *c, int on) {
  if (c->out_on == on)
    return;
  c->out_on = on;
  struct epoll_event e = {EPOLLIN | (on ? EPOLLOUT : 0), {.u32 = c - C}};
  epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}
static int rawsend(conn *c, const char *b, size_t l) { // -1 dead
  size_t o = 0;
  if (!c->ol)
    while (o < l) {
      ssize_t r;
      if (c->ssl) {
        r = SSL_write(c->ssl, b + o, l - o);
        if (r <= 0) {
          int e = SSL_get_error(c->ssl, r);
          if (e == SSL_ERROR_WANT_WRITE || e == SSL_ERROR_WANT_READ)
            break;
          return -1;
        }
      } else {
        r = send(c->fd, b + o, l - o, MSG_NOSIGNAL);
        if (r < 0) {
          if (errno == EAGAIN)
            break;
          return -1;
        }
      }
      o += r;
    }
  if (o < l) {
    c->ob = realloc(c->ob, c->ol + l - o);
    memcpy(c->ob + c->ol, b + o, l - o);
    c->ol += l - o;
    wantout(c, 1);
  }
  return 0;
}
static int flushout(conn *c) {
  while (c->oo < c->ol) {
    ssize_t r;
    if (c->ssl) {
      r = SSL_write(c->ssl, c->ob + c->oo, c->ol - c->oo);
      if (r <= 0) {
        int e = SSL_get_error(c->ssl, r);
        if (e == SSL_ERROR_WANT_WRITE || e == SSL_ERROR_WANT_READ)
          return 0;
        return -1;
      }
    } else {
      r = send(c->fd, c->ob + c->oo, c->ol - c->oo, MSG_NOSIGNAL);
      if (r < 0) {
        if (errno == EAGAIN)
          return 0;
        return -1;
      }
    }
    c->oo += r;
  }
  free(c->ob);
  c->ob = 0;
  c->ol = c->oo = 0;
  wantout(c, 0);
  return 0;
}
static char fbuf[1 << 20];
static int sendframe(conn *c, int op, const char *p, size_t l) {
  char *h = fbuf;
  size_t n = 2;
  h[0] = (char)(0x80 | op);
  if (l < 126)
    h[1] = (char)(0x80 | l);
  else if (l < 65536) {
    h[1] = (char)(0x80 | 126);
    h[2] = l >> 8;
    h[3] = l;
    n = 4;
  } else {
    h[1] = (char)(0x80 | 127);
    for (int i = 0; i < 8; i++)
      h[2 + i] = (char)(l >> (8 * (7 - i)));
    n = 10;
  }
  uint32_t m = (uint32_t)rnd();
  memcpy(h + n, &m, 4);
  n += 4;
  uint64_t mm = ((uint64_t)m << 32) | m;
  size_t k = 0;
  for (; k + 8 <= l; k += 8) {
    uint64_t v;
    memcpy(&v, p + k, 8);
    v ^= mm;
    memcpy(h + n + k, &v, 8);
  }
  for (; k < l; k++)
    h[n + k] = p[k] ^ ((char *)&m)[k & 3];
  return rawsend(c, h, n + l);
}

static char pbuf[1 << 19];
static void send_echo(conn *c) {
  size_t n = expand(eprefix, epl, c, pbuf, 4096);
  c->seq = rnd();
  int sz = esize < 16 ? 16 : esize;
  sprintf(pbuf + n, "%016llx", (unsigned long long)c->seq);
  memset(pbuf + n + 16, 'x', sz - 16);
  n += sz;
  memcpy(pbuf + n, esuffix, esl);
  n += esl;
  c->t0 = now();
  c->outst = 1;
  if (sendframe(c, bin ? 2 : 1, pbuf, n) < 0)
    drop(c, 0);
}

static void start(conn *c) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    perror("socket");
    exit(1);
  }
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, IPPROTO_IP, 24 /*IP_BIND_ADDRESS_NO_PORT*/, &one, sizeof one);
  struct sockaddr_in s = {.sin_family = AF_INET};
  s.sin_addr.s_addr = htonl(0x7f000002 + (c->idx % nsrc));
  if (bind(fd, (void *)&s, sizeof s) < 0) {
    perror("bind");
    exit(1);
  }
  struct sockaddr_in d = {.sin_family = AF_INET, .sin_port = htons(nports ? ports[c->idx % nports] : port)};
  inet_pton(AF_INET, host, &d.sin_addr);
  c->fd = fd;
  c->hlen = c->msgs = 0;
  c->hn = 0;
  c->got = 0;
  c->closing = c->outst = 0;
  c->rem = 0;
  c->op = 0xff;
  c->t_close = c->t_eof = 0;
  c->t0 = now();
  c->cap = 0;
  int r = connect(fd, (void *)&d, sizeof d);
  if (r < 0 && errno != EINPROGRESS) {
    int e = errno;
    c->st = ST_CONN;
    inflight++;
    snprintf(last_err, sizeof last_err, "connect: %s", strerror(e));
    drop(c, e);
    return;
  }
  c->st = ST_CONN;
  inflight++;
  c->out_on = 1;
  struct epoll_event e = {EPOLLIN | EPOLLOUT, {.u32 = c - C}};
  epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static void ready(conn *c) {
  inflight--;
  c->st = ST_OPEN;
  nopen++;
  addlat(now() - c->t0);
  if (phase == P_CHURN) {
    sendframe(c, 8, "\x03\xe8", 2);
    hardclose(c, 0);
    c->st = ST_NONE;
    nopen--;
    churn_done++;
  }
}
static int send_hs(conn *c) {
  char b[8192];
  int n = snprintf(b, sizeof b, "GET ");
  n += expand(path, strlen(path), c, b + n, 1024);
  n += snprintf(b + n, sizeof b - n,
                " HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
                "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
                host, port);
  for (int i = 0; i < nheaders; i++) {
    n += expand(headers[i], strlen(headers[i]), c, b + n, 2048);
    memcpy(b + n, "\r\n", 2);
    n += 2;
  }
  if (nhfile) { // the k-th handshake of connection i sends line k*N + i (round and round), its tabs as header
                // breaks
    for (const char *l = hfile[((uint64_t)c->tries++ * N + (c->idx - base_i)) % nhfile];
         *l && n < (int)sizeof b - 16; l++) {
      if (*l == '\t') {
        b[n++] = '\r';
        b[n++] = '\n';
      } else
        b[n++] = *l;
    }
    b[n++] = '\r';
    b[n++] = '\n';
  }
  memcpy(b + n, "\r\n", 2);
  n += 2;
  c->st = ST_HS;
  c->hbuf = malloc(2048);
  return rawsend(c, b, n);
}
static void on_msg(conn *c, int op, uint64_t len) {
  if (op == 8) {
    if (len >= 2)
      last_code = (unsigned char)c->pre[0] << 8 | (unsigned char)c->pre[1];
    if (!c->t_close)
      c->t_close = now();
    if (!c->closing) {
      c->closing = 1;
      sendframe(c, 8, "\x03\xe8", 2);
    }
    return;
  }
  if (op == 9) {
    sendframe(c, 10, c->pre, len < sizeof c->pre ? len : 0);
    return;
  }
  if (op == 10)
    return;
  if (eio && len == 1 && c->pre[0] == '2') {
    sendframe(c, 1, "3", 1);
    return;
  }
  if (eio && ((len == 1 && c->pre[0] == '1') || (len >= 2 && c->pre[0] == '4' && c->pre[1] == '1'))) {
    c->t_close = now();
    drop(c, 0);
    return;
  } // polite Engine.IO client: hangs up when told
  c->msgs++;
  if (c->st == ST_WAIT) {
    if ((int)c->msgs >= ready_msgs)
      ready(c);
    return;
  }
  if (c->st == ST_OPEN && (phase == P_ECHO || phase == P_RATE) && c->outst) {
    c->outst = 0;
    if (!epl && !esl) {
      char x[20];
      sprintf(x, "%016llx", (unsigned long long)c->seq);
      if (len != (uint64_t)(esize < 16 ? 16 : esize) || memcmp(x, c->pre, 16))
        badecho++;
    }
    msgs_done++;
    uint64_t t = now();
    addlat(t - c->t0);
    if (phase == P_ECHO && t < echo_end)
      send_echo(c);
  }
}
static int feed(conn *c, const unsigned char *b, size_t l) {
  while (l) {
    if (c->op == 0xff) { // header
      c->hdr[c->hn++] = *b++;
      l--;
      if (c->hn < 2)
        continue;
      int l7 = c->hdr[1] & 127, need = l7 == 126 ? 4 : l7 == 127 ? 10 : 2;
      if (c->hn < need)
        continue;
      c->rem = l7;
      if (l7 == 126)
        c->rem = c->hdr[2] << 8 | c->hdr[3];
      if (l7 == 127) {
        c->rem = 0;
        for (int i = 0; i < 8; i++)
          c->rem = c->rem << 8 | c->hdr[2 + i];
      }
      c->op = c->hdr[0] & 15;
      c->got = 0;
      c->hn = 0;
      if (c->rem)
        continue;
    } else {
      size_t k = l < c->rem ? l : c->rem;
      if (c->got < sizeof c->pre) {
        size_t z = sizeof c->pre - c->got;
        if (z > k)
          z = k;
        memcpy(c->pre + c->got, b, z);
      }
      if (capkey && !c->cap && c->st == ST_WAIT) {
        char t[2048];
        size_t z = k < 2047 ? k : 2047;
        memcpy(t, b, z);
        t[z] = 0;
        char *q = strstr(t, capkey);
        if (q)
          c->cap = strtoull(q + strlen(capkey), 0, 10);
      }
      c->got += k;
      c->rem -= k;
      b += k;
      l -= k;
      if (c->rem)
        continue;
    }
    int op = c->op;
    c->op = 0xff;
    on_msg(c, op, c->got);
    c->got = 0;
    if (c->fd < 0)
      return -1;
  }
  return 0;
}
static int got101(conn *c, char *b, size_t l) {
  size_t take = 2047 - c->hlen;
  if (take > l)
    take = l;
  memcpy(c->hbuf + c->hlen, b, take);
  size_t old = c->hlen;
  c->hlen += take;
  c->hbuf[c->hlen] = 0;
  char *q = strstr(c->hbuf, "\r\n\r\n");
  if (!q) {
    if (c->hlen >= 2047)
      return -1;
    return 0;
  }
  last_status = atoi(c->hbuf + 9);
  if (last_status != 101 || !strstr(c->hbuf, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")) {
    hs_bad++;
    snprintf(last_err, sizeof last_err, "%.60s", c->hbuf);
    char *z = strchr(last_err, '\r');
    if (z)
      *z = 0;
    return -1;
  }
  size_t used = (q + 4 - c->hbuf) - old;
  free(c->hbuf);
  c->hbuf = 0;
  c->st = ST_WAIT;
  if (first) {
    char m[8192];
    size_t n = expand(first, first_l, c, m, sizeof m);
    if (sendframe(c, bin ? 2 : 1, m, n) < 0)
      return -1;
  }
  if (!ready_msgs)
    ready(c);
  if (c->fd < 0)
    return 0;
  if (used < l)
    return feed(c, (unsigned char *)b + used, l - used);
  return 0;
}
static void handle(conn *c, uint32_t ev) {
  if (c->fd < 0)
    return;
  if (c->st == ST_CONN) {
    if (ev & (EPOLLERR | EPOLLHUP)) {
      int e = 0;
      socklen_t l = sizeof e;
      getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &l);
      snprintf(last_err, sizeof last_err, "connect: %s", strerror(e));
      drop(c, e);
      return;
    }
    if (!(ev & EPOLLOUT))
      return;
    if (tls) {
      c->ssl = SSL_new(ctx);
      SSL_set_fd(c->ssl, c->fd);
      SSL_set_connect_state(c->ssl);
      SSL_set_tlsext_host_name(c->ssl, "localhost");
      c->st = ST_TLS;
    } else {
      if (send_hs(c) < 0) {
        drop(c, 0);
        return;
      }
      wantout(c, c->ol > 0);
    }
  }
  if (c->st == ST_TLS) {
    int r = SSL_do_handshake(c->ssl);
    if (r == 1) {
      if (send_hs(c) < 0) {
        drop(c, 0);
        return;
      }
      wantout(c, c->ol > 0);
    } else {
      int e = SSL_get_error(c->ssl, r);
      if (e == SSL_ERROR_WANT_READ)
        wantout(c, 0);
      else if (e == SSL_ERROR_WANT_WRITE)
        wantout(c, 1);
      else {
        snprintf(last_err, sizeof last_err, "tls");
        drop(c, 0);
      }
      return;
    }
  }
  if ((ev & EPOLLOUT) && c->ol && flushout(c) < 0) {
    drop(c, 0);
    return;
  }
  if (ev & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
    static char b[65536];
    for (;;) {
      ssize_t r;
      if (c->ssl) {
        r = SSL_read(c->ssl, b, sizeof b);
        if (r <= 0) {
          int e = SSL_get_error(c->ssl, r);
          if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
            return;
          snprintf(last_err, sizeof last_err, "tls eof st=%d", c->st);
          drop(c, 0);
          return;
        }
      } else {
        r = recv(c->fd, b, sizeof b, 0);
        if (r < 0 && errno == EAGAIN)
          return;
        if (r <= 0) {
          if (st_inflight(c))
            snprintf(last_err, sizeof last_err, "eof/err in handshake st=%d %s", c->st,
                     r < 0 ? strerror(errno) : "EOF");
          drop(c, 0);
          return;
        }
      }
      int x = c->st == ST_HS ? got101(c, b, r) : feed(c, (unsigned char *)b, r);
      if (c->fd < 0)
        return;
      if (x < 0) {
        drop(c, 0);
        return;
      }
      if (!c->ssl && (size_t)r < sizeof b)
        return;
    }
  }
}
static int adminfd = -1;
static uint64_t last_scan;
static void step(int64_t us) {
  static struct epoll_event ev[1024];
  if (us < 0)
    us = 0;
  struct timespec ts = {us / 1000000, (us % 1000000) * 1000};
  int n = epoll_pwait2(ep, ev, 1024, &ts, 0);
  for (int i = 0; i < n; i++) {
    uint32_t k = ev[i].data.u32;
    if (k == 0xffffffff) {
      static char b[65536];
      while (recv(adminfd, b, sizeof b, MSG_DONTWAIT) > 0) {
      }
    } else
      handle(&C[k], ev[i].events);
  }
  if (inflight) {
    uint64_t t = now();
    if (t - last_scan > 500000000ull) {
      last_scan = t;
      for (int i = 0; i < N; i++)
        if (st_inflight(&C[i]) && t - C[i].t0 > hs_timeout * 1000000ull) {
          snprintf(last_err, sizeof last_err, "handshake timeout st=%d", C[i].st);
          drop(&C[i], 0);
        }
    }
  }
}
static void admin_open(void) {
  if (adminfd >= 0)
    return;
  char h[64];
  int p;
  if (!admin_hp || sscanf(admin_hp, "%63[^:]:%d", h, &p) != 2) {
    fprintf(stderr, "need --admin HOST:PORT\n");
    exit(2);
  }
  adminfd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int one = 1;
  setsockopt(adminfd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct sockaddr_in d = {.sin_family = AF_INET, .sin_port = htons(p)};
  inet_pton(AF_INET, h, &d.sin_addr);
  if (connect(adminfd, (void *)&d, sizeof d) < 0) {
    perror("admin connect");
    exit(1);
  }
  if (admin_hello) {
    send(adminfd, admin_hello, admin_hello_l, MSG_NOSIGNAL);
    uint64_t e = now() + 300000000ull;
    while (now() < e)
      step(10000);
  }
  fcntl(adminfd, F_SETFL, O_NONBLOCK);
  struct epoll_event ev = {EPOLLIN, {.u32 = 0xffffffff}};
  epoll_ctl(ep, EPOLL_CTL_ADD, adminfd, &ev);
}
static void send_file(const char *name) {
  FILE *f = fopen(name, "r");
  if (!f) {
    perror("kickall-file");
    exit(2);
  }
  static char b[65536];
  size_t l;
  while ((l = fread(b, 1, sizeof b, f)) > 0)
    for (size_t o = 0; o < l;) {
      ssize_t r = send(adminfd, b + o, l - o, MSG_NOSIGNAL);
      if (r > 0)
        o += r;
      else if (errno == EAGAIN)
        step(1000);
      else {
        perror("admin send");
        exit(1);
      }
    }
  fclose(f);
}
static uint64_t t_trigger, t_firstdrop, t_lastdrop;
static int dropped;
static int kick_target = -1;
static void on_gone(conn *c) {
  if (phase == P_DROP || phase == P_STORM) {
    uint64_t t = c->t_close ? c->t_close : c->t_eof;
    if (!dropped++)
      t_firstdrop = t;
    t_lastdrop = c->t_eof;
    if (storm)
      retry_later(c, 0);
    else
      addlat(t - t_trigger);
  } else if (phase == P_KICK && c - C == kick_target) {
  } else if (phase != P_END)
    gone_unexp++;
}
static void pump(int limit, int *next) {
  uint64_t t = now();
  while (rqn && inflight < limit && rqt[rqh] <= t) {
    int k = rq[rqh];
    rqh = (rqh + 1) % rqcap;
    rqn--;
    if (C[k].fd < 0)
      start(&C[k]);
  }
  while (*next < N && inflight < limit)
    start(&C[(*next)++]);
}
static const char *arg(int *i, int ac, char **av) {
  if (*i + 1 >= ac)
    usage();
  return av[++*i];
}
static double d0, dm0;
static long r0;
static uint64_t w0;
static void mark(void) {
  procstat(&d0, &r0);
  dm0 = mycpu();
  w0 = now();
  nlat = 0;
}
static void cpuinfo(double per) {
  double c;
  long r;
  procstat(&c, &r);
  double w = (now() - w0) / 1e9;
  printf("\"wall_s\":%.3f,\"srv_cpu_us_per\":%.1f,\"srv_cpu\":%.4f,\"lg_cpu\":%.2f", w,
         per ? (c - d0) * 1e6 / per : 0, (c - d0) / w, (mycpu() - dm0) / w);
}

int main(int ac, char **av) {
  char *url = 0;
  signal(SIGPIPE, SIG_IGN);
  size_t dummy;
  for (int i = 1; i < ac; i++) {
    char *a = av[i];
#define A arg(&i, ac, av)
    if (!strcmp(a, "--url"))
      url = (char *)A;
    else if (!strcmp(a, "--conns"))
      N = atoi(A);
    else if (!strcmp(a, "--conc"))
      conc = atoi(A);
    else if (!strcmp(a, "--srcs"))
      nsrc = atoi(A);
    else if (!strcmp(a, "--ports")) {
      char *s = strdup(A), *t;
      for (t = strtok(s, ","); t && nports < 16; t = strtok(0, ","))
        ports[nports++] = atoi(t);
    } else if (!strcmp(a, "--base"))
      base_i = atoi(A);
    else if (!strcmp(a, "--warm"))
      warm = atoi(A);
    else if (!strcmp(a, "--hs-timeout"))
      hs_timeout = atol(A);
    else if (!strcmp(a, "--header"))
      headers[nheaders++] = unesc(A, &dummy);
    else if (!strcmp(a, "--first"))
      first = unesc(A, &first_l);
    else if (!strcmp(a, "--ready-msgs"))
      ready_msgs = atoi(A);
    else if (!strcmp(a, "--capture"))
      capkey = (char *)A;
    else if (!strcmp(a, "--bin"))
      bin = 1;
    else if (!strcmp(a, "--eio"))
      eio = 1;
    else if (!strcmp(a, "--headers-file")) {
      FILE *f = fopen(A, "r");
      if (!f) {
        perror("headers-file");
        return 2;
      }
      char l[8192];
      hfile = malloc(1000000 * sizeof(char *));
      while (fgets(l, sizeof l, f) && nhfile < 1000000) {
        l[strcspn(l, "\r\n")] = 0;
        hfile[nhfile++] = strdup(l);
      }
      fclose(f);
    } else if (!strcmp(a, "--pid")) {
      char *s = strdup(A), *t;
      for (t = strtok(s, ","); t; t = strtok(0, ","))
        pids[npids++] = atoi(t);
    } else if (!strcmp(a, "--settle"))
      settle = atoi(A);
    else if (!strcmp(a, "--churn"))
      churn_s = atof(A);
    else if (!strcmp(a, "--churn-rate"))
      churn_rate = atof(A);
    else if (!strcmp(a, "--echo"))
      echos[nechos++] = (char *)A;
    else if (!strcmp(a, "--rate"))
      rates[nrates++] = (char *)A;
    else if (!strcmp(a, "--echo-prefix"))
      eprefix = unesc(A, &epl);
    else if (!strcmp(a, "--echo-suffix"))
      esuffix = unesc(A, &esl);
    else if (!strcmp(a, "--kicks"))
      nkicks = atoi(A);
    else if (!strcmp(a, "--admin"))
      admin_hp = (char *)A;
    else if (!strcmp(a, "--admin-req"))
      admin_req = unesc(A, &admin_req_l);
    else if (!strcmp(a, "--admin-hello"))
      admin_hello = unesc(A, &admin_hello_l);
    else if (!strcmp(a, "--kick-gap-us"))
      kick_gap = atoi(A);
    else if (!strcmp(a, "--kickall-file"))
      kickall_file = (char *)A;
    else if (!strcmp(a, "--break"))
      breaks = storm = 1;
    else if (!strcmp(a, "--storm"))
      storm = 1;
    else if (!strcmp(a, "--storm-cmd"))
      storm_cmd = (char *)A, storm = 1;
    else if (!strcmp(a, "--storm-conc"))
      storm_conc = atoi(A);
    else if (!strcmp(a, "--retry-ms"))
      retry_ms = atoi(A);
    else if (!strcmp(a, "--hold"))
      hold_s = atof(A);
    else if (!strcmp(a, "--close-frame"))
      closeframe = 1;
    else
      usage();
  }
  if (!url)
    usage();
  if (!strncmp(url, "wss://", 6))
    tls = 1, url += 6;
  else if (!strncmp(url, "ws://", 5))
    url += 5;
  else
    usage();
  path[0] = '/';
  path[1] = 0;
  if (sscanf(url, "%63[^:/]:%d%511s", host, &port, path) < 2)
    usage();
  struct rlimit rl;
  getrlimit(RLIMIT_NOFILE, &rl);
  rl.rlim_cur = rl.rlim_max;
  setrlimit(RLIMIT_NOFILE, &rl);
  if ((rlim_t)N + 16 > rl.rlim_max) {
    fprintf(stderr, "nofile hard limit %lu < conns\n", (unsigned long)rl.rlim_max);
    return 2;
  }
  if (tls) {
    ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
  }
  rs ^= now();
  ep = epoll_create1(EPOLL_CLOEXEC);
  C = calloc(N, sizeof(conn));
  rqcap = N + 1;
  rq = malloc(rqcap * sizeof(int));
  rqt = malloc(rqcap * 8);
  for (int i = 0; i < N; i++)
    C[i].fd = -1, C[i].idx = base_i + i;
  if (warm > N)
    warm = N;
  int next = 0;
  uint64_t hard;
  printf("{\"conns\":%d,\"conc\":%d", N, conc);
  if (churn_s > 0) {
    phase = P_CHURN;
    int at = 0; // round and round: each connection comes as often as any other, and has its own proofs
    mark();
    uint64_t e = now() + (uint64_t)(churn_s * 1e9);
    while (now() < e) {
      static uint64_t opened;
      for (int i = 0; i < N && inflight < conc; i++) {
        if (churn_rate && opened >= churn_rate * (now() - w0) / 1e9)
          break;
        if (C[at].fd < 0)
          start(&C[at]), opened++;
        at = (at + 1) % N;
      }
      step(churn_rate ? 1000 : 100000);
    }
    printf(",\"churn\":{\"n\":%llu,\"per_s\":%.0f,\"fails\":%llu,", (unsigned long long)churn_done,
           churn_done / ((now() - w0) / 1e9), (unsigned long long)fails);
    cpuinfo(churn_done);
    sortlat();
    printf(",\"p50_ms\":%.2f,\"p99_ms\":%.2f}", pct(.5), pct(.99));
    for (int i = 0; i < N; i++) {
      if (st_inflight(&C[i])) {
        hardclose(&C[i], 1);
        inflight--;
      }
      C[i].st = ST_NONE;
    }
    uint64_t z = now() + 300000000ull;
    while (now() < z)
      step(50000);
    fails = 0;
  }
  // ramp
  phase = P_RAMP;
  int realN = N;
  N = warm;
  hard = now() + 60000000000ull;
  while ((nopen < N) && now() < hard) {
    pump(conc, &next);
    step(20000);
  }
  N = realN;
  {
    uint64_t z = now() + 300000000ull;
    while (now() < z)
      step(50000);
  }
  if (nopen < warm) {
    printf(",\"error\":\"warm-up failed: open=%d fails=%llu bad=%llu last=%s\"}\n", nopen,
           (unsigned long long)fails, (unsigned long long)hs_bad, last_err);
    return 1;
  }
  long sl0 = slab();
  mark();
  long rssw = r0;
  hard = now() + 180000000000ull;
  while (nopen < N && now() < hard) {
    pump(conc, &next);
    step(20000);
  }
  double secs = (now() - w0) / 1e9;
  sortlat();
  printf(",\"ramp\":{\"n\":%d,\"per_s\":%.0f,\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"fails\":%llu,\"bad\":%llu,",
         nopen - warm, (nopen - warm) / secs, pct(.5), pct(.99), (unsigned long long)fails,
         (unsigned long long)hs_bad);
  cpuinfo(nopen - warm);
  printf("}");
  phase = P_IDLE;
  {
    uint64_t z = now() + settle * 1000000ull;
    while (now() < z)
      step(50000);
  }
  {
    double c;
    long r;
    procstat(&c, &r);
    if (N > warm)
      printf(",\"mem\":{\"rss_warm_kib\":%ld,\"rss_kib\":%ld,\"kib_per_conn\":%.2f,\"slab_kib_per_conn_both_"
             "ends\":%.2f}",
             rssw, r, (r - rssw) / (double)(N - warm), (slab() - sl0) / (double)(N - warm));
  }
  for (int q = 0; q < nechos; q++) {
    double s;
    sscanf(echos[q], "%d:%d:%lf", &esize, &eactive, &s);
    if (eactive > N)
      eactive = N;
    phase = P_ECHO;
    msgs_done = 0;
    echo_end = now() + (uint64_t)(s * 1e9);
    mark();
    int stride = N / eactive;
    for (int i = 0; i < eactive; i++) {
      conn *c = &C[i * stride];
      if (c->st == ST_OPEN)
        send_echo(c);
      if ((i & 63) == 63)
        step(-1);
    }
    while (now() < echo_end)
      step(10000);
    double w = (now() - w0) / 1e9;
    uint64_t m = msgs_done;
    sortlat();
    printf("%s{\"size\":%d,\"active\":%d,\"per_s\":%.0f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"bad\":%llu,",
           q ? "," : ",\"echo\":[", esize, eactive, m / w, pct(.5), pct(.99), (unsigned long long)badecho);
    cpuinfo(m);
    printf("}");
    phase = P_IDLE;
    uint64_t z = now() + 400000000ull;
    while (now() < z)
      step(20000);
    for (int i = 0; i < N; i++)
      C[i].outst = 0;
  }
  if (nechos)
    printf("]");
  for (int q = 0; q < nrates; q++) {
    double per, s;
    sscanf(rates[q], "%d:%lf:%lf", &esize, &per, &s);
    phase = P_RATE;
    msgs_done = 0;
    mark();
    uint64_t t = now(), e = t + (uint64_t)(s * 1e9), iv = (uint64_t)(1e9 / per), nx = t, skipped = 0,
             sent = 0;
    int k = 0;
    while ((t = now()) < e) {
      while (nx <= t) {
        conn *c = &C[k];
        k = (k + 7919) % N;
        nx += iv;
        if (c->st == ST_OPEN && !c->outst) {
          send_echo(c);
          sent++;
        } else
          skipped++;
      }
      int64_t us = ((int64_t)nx - (int64_t)now()) / 1000;
      step(us > 0 ? us : -1);
    }
    uint64_t z = now() + 500000000ull;
    while (now() < z)
      step(10000);
    sortlat();
    printf("%s{\"size\":%d,\"target\":%.0f,\"sent\":%llu,\"done\":%llu,\"skipped\":%llu,\"p50_ms\":%.3f,"
           "\"p99_ms\":%.3f,\"max_ms\":%.3f,",
           q ? "," : ",\"rate\":[", esize, per, (unsigned long long)sent, (unsigned long long)msgs_done,
           (unsigned long long)skipped, pct(.5), pct(.99), pct(1));
    cpuinfo(msgs_done);
    printf("}");
    phase = P_IDLE;
    for (int i = 0; i < N; i++)
      C[i].outst = 0;
  }
  if (nrates)
    printf("]");
  if (nkicks) {
    admin_open();
    phase = P_KICK;
    mark();
    uint64_t *leof = malloc(nkicks * 8), *lcl = malloc(nkicks * 8);
    int ok = 0, miss = 0, ncl = 0;
    for (int q = 0; q < nkicks; q++) {
      kick_target = (int)((uint64_t)q * 7919 % N);
      conn *c = &C[kick_target];
      if (c->st != ST_OPEN) {
        miss++;
        continue;
      }
      char b[8192];
      size_t n = expand(admin_req, admin_req_l, c, b, sizeof b);
      uint64_t t = now();
      if (send(adminfd, b, n, MSG_NOSIGNAL) < 0) {
        perror("admin send");
        break;
      }
      while (c->fd >= 0 && now() - t < 2000000000ull)
        step(1000);
      if (c->fd >= 0) {
        if (++miss > 5)
          break;
      } else {
        leof[ok++] = c->t_eof - t;
        if (c->t_close)
          lcl[ncl++] = c->t_close - t;
      }
      uint64_t z = now() + kick_gap * 1000ull;
      while (now() < z)
        step(500);
    }
    nlat = 0;
    for (int i = 0; i < ok; i++)
      addlat(leof[i]);
    sortlat();
    printf(",\"kick\":{\"n\":%d,\"missed\":%d,\"eof_p50_ms\":%.3f,\"eof_p99_ms\":%.3f,\"eof_max_ms\":%.3f",
           ok, miss, pct(.5), pct(.99), pct(1));
    nlat = 0;
    for (int i = 0; i < ncl; i++)
      addlat(lcl[i]);
    sortlat();
    printf(",\"closeframe_n\":%d,\"last_code\":%d,\"close_p50_ms\":%.3f,\"close_p99_ms\":%.3f}", ncl, last_code,
           pct(.5), pct(.99));
    kick_target = -1;
  }
  if (kickall_file || storm_cmd || breaks) {
    int live = nopen;
    if (kickall_file)
      admin_open();
    phase = storm ? P_STORM : P_DROP;
    fails = refused = 0;
    int lim = storm_conc ? storm_conc : N;
    mark();
    t_trigger = now();
    int firstback = 0;
    uint64_t t_fb = 0;
    if (storm_cmd) {
      pid_t p = fork();
      if (!p) {
        int fd = open("/dev/null", O_RDWR);
        dup2(fd, 0);
        dup2(fd, 1);
        execl("/bin/sh", "sh", "-c", storm_cmd, (char *)0);
        _exit(127);
      }
    } else if (breaks) {
      for (int i = 0; i < N; i++)
        if (C[i].st == ST_OPEN)
          drop(&C[i], 0);
    } else
      send_file(kickall_file);
    if (!storm) {
      while (dropped < live && now() - t_trigger < 60000000000ull)
        step(20000);
      sortlat();
      printf(",\"drop_all\":{\"live\":%d,\"dropped\":%d,\"first_ms\":%.2f,\"p50_ms\":%.2f,\"p99_ms\":%.2f,"
             "\"last_eof_ms\":%.2f,",
             live, dropped, (t_firstdrop - t_trigger) / 1e6, pct(.5), pct(.99),
             (t_lastdrop - t_trigger) / 1e6);
      cpuinfo(dropped);
      printf("}");
    } else {
      next = N;
      uint64_t lastb = 0;
      while (now() - t_trigger < 120000000000ull) {
        pump(lim, &next);
        step(rqn ? 2000 : 20000);
        if (!firstback && dropped && nopen + dropped > live) {
          firstback = 1;
          t_fb = now();
        }
        if (dropped >= live && nopen >= live) {
          lastb = now();
          break;
        }
      }
      sortlat();
      printf(",\"storm\":{\"live\":%d,\"dropped\":%d,\"back\":%d,\"first_drop_ms\":%.1f,\"last_drop_ms\":%."
             "1f,\"first_back_ms\":%.1f,\"all_back_s\":%.3f,\"from_first_back_s\":%.3f,\"fails\":%llu,"
             "\"refused\":%llu,\"hs_p50_ms\":%.1f,\"hs_p99_ms\":%.1f,",
             live, dropped, nopen, (t_firstdrop - t_trigger) / 1e6, (t_lastdrop - t_trigger) / 1e6,
             t_fb ? (t_fb - t_trigger) / 1e6 : 0, lastb ? (lastb - t_trigger) / 1e9 : -1,
             lastb && t_fb ? (lastb - t_fb) / 1e9 : -1, (unsigned long long)fails,
             (unsigned long long)refused, pct(.5), pct(.99));
      cpuinfo(nopen);
      printf("}");
    }
  }
  phase = P_IDLE;
  if (hold_s > 0) {
    mark();
    uint64_t z = now() + (uint64_t)(hold_s * 1e9);
    while (now() < z)
      step(100000);
    double c;
    long r;
    procstat(&c, &r);
    printf(",\"hold\":{\"open\":%d,\"rss_kib\":%ld,\"kib_per_conn\":%.2f,", nopen, r,
           (r - rssw) / (double)(N - warm));
    cpuinfo(0);
    printf("}");
  }
  printf(",\"open_at_end\":%d,\"unexpected_gone\":%llu,\"last_err\":\"%s\"}\n", nopen,
         (unsigned long long)gone_unexp, last_err);
  fflush(stdout);
  phase = P_END;
  if (closeframe)
    for (int i = 0; i < N; i++)
      if (C[i].fd >= 0)
        sendframe(&C[i], 8, "\x03\xe8", 2);
  for (int i = 0; i < N; i++)
    hardclose(&C[i], !closeframe);
  return 0;
}
