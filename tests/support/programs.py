"""C programs that read files as engines do, compiled when they are first needed."""

import subprocess
from pathlib import Path

# Each prints the FNV-1a hash of what it read of argv[1].
HEAD = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static uint64_t hash = 14695981039346656037u;
static void eat(const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++) hash = (hash ^ p[i]) * 1099511628211u;
}
static int done(void) { printf("%016lx\n", (unsigned long)hash); return 0; }
static void *map(const char *path, int flags, size_t *size) {
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) exit(3);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    void *p = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED | flags, fd, 0);
    if (p == MAP_FAILED) exit(4);
    *size = st.st_size;
    return p;
}
"""
BODIES = {
    # the end first, then the rest from the start, in pieces of an odd size
    "stdio": r"""
int main(int c, char **v) {
    FILE *f = fopen(v[1], "rb");
    if (!f || fseek(f, 0, SEEK_END)) return 3;
    long size = ftell(f);
    static unsigned char piece[77777];
    if (fseek(f, size > 1000 ? size - 1000 : 0, SEEK_SET)) return 3;
    if (!fread(piece, 1, 1000, f)) return 5;
    rewind(f);
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, f)) > 0) eat(piece, n);
    return ferror(f) ? 6 : done();
}""",
    "mmap": r"""
int main(int c, char **v) { size_t n; void *p = map(v[1], 0, &n); eat(p, n); return done(); }""",
    "populate": r"""
int main(int c, char **v) {
    size_t n;
    void *p = map(v[1], MAP_POPULATE, &n);
    posix_madvise(p, n, POSIX_MADV_WILLNEED);
    eat(p, n);
    return done();
}""",
    # opened before the fork; the child reads the second half, the parent the first
    "fork": r"""
int main(int c, char **v) {
    int fd = open(v[1], O_RDONLY), status;
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) return 3;
    size_t half = st.st_size / 2, rest = st.st_size - half;
    unsigned char *p = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                            -1, 0);
    pid_t child = fork();
    size_t at = child ? 0 : half, end = child ? half : half + rest;
    while (at < end) {
        ssize_t n = pread(fd, p + at, end - at, at);
        if (n <= 0) _exit(5);
        at += n;
    }
    if (!child) _exit(0);
    waitpid(child, &status, 0);
    if (status) return 6;
    eat(p, st.st_size);
    return done();
}""",
}


def build(folder: Path) -> dict[str, Path]:
    """All of them, by name."""
    built = {}
    for name, body in BODIES.items():
        source, built[name] = folder / f"{name}.c", folder / name
        source.write_text(HEAD + body)
        command = ["gcc", "-O2", "-Wall", "-Wno-unused-function", "-Wno-unused-parameter"]
        subprocess.run([*command, "-o", built[name], source], check=True)
    return built
