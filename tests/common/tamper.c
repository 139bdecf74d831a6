/*
 * Runs a program and, at the n-th of chosen system calls of all its threads, kills it or lets the call fail.
 *
 *   tamper RULE HITS PROGRAM ARGUMENT...
 *
 * RULE is a file, read anew at each call, that holds one line
 *
 *   ACT FIRST TIMES LOW HIGH PATH CALL[,CALL...]
 *
 * and counts from 1 whenever it changes; without it nothing happens. ACT is `kill`, `short` (half of what is to be read or written
 * is; not of fallocate), `again` (EINTR, and when the thread makes its next call of those that match, that is let through) or the
 * number of an errno. Calls FIRST to FIRST + TIMES - 1 are hit, of those that match: PATH is part of the name of the call's
 * file, or `*`; of pread64, pwrite64 and fallocate the offset, of getrandom the flags, lie in LOW to HIGH - 1. Each call that is hit is a line
 * `CALL PATH` of the file HITS; when the program has ended, a line `counted N` says how many matched.
 *
 * strace counts calls of each thread and kind by themselves, so that the n-th of all can't be told to it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the registers of another processor have other names"
#endif

#define PATH_LEN 4096
#define LINE_LEN 8192
#define THREADS_MAX 1024

/* `fd`: which argument is a file; -1: none. `offset`: which is one; -1: none. */
static const struct call {
    const char *name;
    long number;
    int fd, offset;
} calls[] = {
    {"pread64", SYS_pread64, 0, 3},       {"pwrite64", SYS_pwrite64, 0, 3},   {"pwritev", SYS_pwritev, 0, 3},
    {"write", SYS_write, 0, -1},          {"writev", SYS_writev, 0, -1},      {"fdatasync", SYS_fdatasync, 0, -1},
    {"fsync", SYS_fsync, 0, -1},          {"fallocate", SYS_fallocate, 0, 2}, {"ftruncate", SYS_ftruncate, 0, -1},
    {"flock", SYS_flock, 0, -1},          {"rename", SYS_rename, -1, -1},     {"renameat", SYS_renameat, -1, -1},
    {"renameat2", SYS_renameat2, -1, -1}, {"unlink", SYS_unlink, -1, -1},     {"unlinkat", SYS_unlinkat, -1, -1},
    {"mkdir", SYS_mkdir, -1, -1},         {"mkdirat", SYS_mkdirat, -1, -1},   {"openat", SYS_openat, -1, -1},
    {"openat2", SYS_openat2, -1, -1},     {"sendto", SYS_sendto, -1, -1},     {"sendmsg", SYS_sendmsg, -1, -1},
    {"msync", SYS_msync, -1, -1},         {"getrandom", SYS_getrandom, -1, 2},
};
#define CALLS (sizeof calls / sizeof *calls)

static const char *rule_path;
static FILE *hits;
static char rule[LINE_LEN];
static unsigned long long counted;

static void die(const char *what) {
    perror(what);
    exit(125);
}

/* Whatever is in the table stops for us; all else runs at full speed. */
static void filter_calls(void) {
    struct sock_filter code[2 * CALLS + 2];
    size_t n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < CALLS; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number, 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = n, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) die("seccomp");
}

/* The rule as it is now; empty: none. */
static void read_rule(void) {
    char now[LINE_LEN] = {0};
    int fd = open(rule_path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, now, sizeof now - 1) < 0) die(rule_path);
        close(fd);
    }
    if (strcmp(now, rule) != 0) {
        memcpy(rule, now, sizeof rule);
        counted = 0;
    }
}

static int is_listed(const char *list, const char *name) {
    size_t len = strlen(name);
    for (const char *at = list; at != NULL; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, name, len) == 0 && (at[len] == ',' || at[len] == 0)) return 1;
    return 0;
}

static void path_of(pid_t thread, unsigned long long fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/fd/%d", thread, (int)fd);
    ssize_t len = readlink(link, path, PATH_LEN - 1);
    path[len < 0 ? 0 : len] = 0;
}

/* The process of a thread. */
static pid_t process_of(pid_t thread) {
    char name[64], line[256];
    int process = thread;
    snprintf(name, sizeof name, "/proc/%d/status", thread);
    FILE *status = fopen(name, "re");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "Tgid: %d", &process) == 1) break;
    if (status != NULL) fclose(status);
    return process;
}

/* Every other time it is asked of a thread: whether the call before this one was interrupted. */
static int was_interrupted(pid_t thread) {
    static pid_t interrupted[THREADS_MAX];
    size_t n = 0;
    while (n < THREADS_MAX - 1 && interrupted[n] != thread && interrupted[n] != 0) n++;
    if (interrupted[n] == thread) {
        /* The last of the list takes its place. */
        size_t last = n;
        while (last < THREADS_MAX - 1 && interrupted[last + 1] != 0) last++;
        interrupted[n] = interrupted[last];
        interrupted[last] = 0;
        return 1;
    }
    interrupted[n] = thread;
    return 0;
}

/* A thread is about to make a call. */
static void meet(pid_t thread) {
    struct user_regs_struct regs;
    if (ptrace(PTRACE_GETREGS, thread, 0, &regs)) return; /* it was killed meanwhile */
    read_rule();
    char act[16], wanted[PATH_LEN], list[1024], path[PATH_LEN] = "";
    unsigned long long first, times, low, high;
    if (sscanf(rule, "%15s %llu %llu %llu %llu %4095s %1023s", act, &first, &times, &low, &high, wanted, list) != 7) return;
    const struct call *call = NULL;
    for (size_t i = 0; i < CALLS; i++)
        if (calls[i].number == (long)regs.orig_rax) call = &calls[i];
    if (call == NULL || !is_listed(list, call->name)) return;
    unsigned long long arguments[] = {regs.rdi, regs.rsi, regs.rdx, regs.r10};
    if (call->fd >= 0) path_of(thread, arguments[call->fd], path);
    if (strcmp(wanted, "*") != 0 && strstr(path, wanted) == NULL) return;
    if (call->offset >= 0 && (arguments[call->offset] < low || arguments[call->offset] >= high)) return;
    counted++;
    if (counted < first || counted - first >= times) return;
    if (strcmp(act, "again") == 0 && was_interrupted(thread)) return;
    fprintf(hits, "%s %s\n", call->name, path);
    fflush(hits);
    if (strcmp(act, "kill") == 0) {
        kill(process_of(thread), SIGKILL);
        return;
    }
    if (strcmp(act, "short") == 0) {
        if (regs.rdx > 1) regs.rdx /= 2;
    } else {
        regs.orig_rax = -1;
        regs.rax = -(strcmp(act, "again") == 0 ? EINTR : atoll(act));
    }
    ptrace(PTRACE_SETREGS, thread, 0, &regs);
}

int main(int argc, char **argv) {
    if (argc < 4) return 125;
    rule_path = argv[1];
    hits = fopen(argv[2], "we");
    if (hits == NULL) die(argv[2]);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        raise(SIGSTOP);
        filter_calls();
        execv(argv[3], argv + 3);
        die(argv[3]);
    }
    int status, ended = 0;
    if (waitpid(child, &status, WUNTRACED) < 0) die("waitpid");
    long options = PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACESECCOMP;
    if (ptrace(PTRACE_SEIZE, child, 0, options)) die("ptrace");
    kill(child, SIGCONT);
    for (;;) {
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0 && errno == EINTR) continue;
        if (thread < 0) break;
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (thread == child) ended = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int event = status >> 16, signal = event == 0 ? WSTOPSIG(status) : 0;
        if (event == PTRACE_EVENT_SECCOMP) meet(thread);
        ptrace(PTRACE_CONT, thread, 0, signal);
    }
    fprintf(hits, "counted %llu\n", counted);
    fclose(hits);
    return ended;
}
